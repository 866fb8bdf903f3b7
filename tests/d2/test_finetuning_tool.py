"""The ladder of docs/FINETUNING.md: every row has a folder that train_net.py takes."""

import importlib.util

from comer_d2.d2.engine.config import load_config
from tests.d2.runs import ROOT


def test_folders_are_apart_and_overrides_hold_them() -> None:
    spec = importlib.util.spec_from_file_location("finetuning", ROOT / "tools" / "finetuning.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folders = [script.folder_of(row, seed) for row in script.ROWS for seed in (0, 1)]
    assert len(set(folders)) == len(folders) == 2 * len(script.ROWS)
    for row, folder in zip(script.ROWS, folders[::2], strict=True):
        _, changes = script.ROWS[row]
        cfg = load_config(str(script.CONFIG), [*changes, f"train.output_dir=out/{folder}"])
        assert cfg.train.output_dir == f"out/{folder}"
