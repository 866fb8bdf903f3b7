"""The check of all files, its repaired copy, and that a run checks once."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comer_d2.d2.cli import parse_arguments
from comer_d2.d2.commands.check import main
from comer_d2.d2.data import instances
from comer_d2.d2.engine.checks import check_ready
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.run import run
from tests.d2.runs import ROOT, read_metrics
from tests.d2.tiny_coco import write_tiny_coco

CONFIG = str(ROOT / "tests/d2/tiny_custom.py")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINY_COCO", str(tmp_path))
    return write_tiny_coco(tmp_path / "data")


def overrides(data: Path, train: str = "instances.json", val: str = "instances.json") -> list[str]:
    given = {"train_json": train, "val_json": val, "train_images": "", "val_images": ""}
    return [f"dataset.{key}={data / name}" for key, name in given.items()]


def damage_pixels(path: Path) -> None:
    """Header and end stay as they are: only decoding shows it."""
    content = bytearray(path.read_bytes())
    content[60:-60] = bytes(len(content) - 120)
    path.write_bytes(content)


def test_what_only_decoding_shows_is_listed_with_all_else(
    data: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(["--config-file", CONFIG, *overrides(data)], "check") == 0
    assert "can be trained on" in capsys.readouterr().out
    content = json.loads((data / "instances.json").read_text())
    for annotation in content["annotations"]:
        annotation["bbox"][2] = 0
    (data / "wrong.json").write_text(json.dumps(content))
    damage_pixels(data / "3.png")
    assert main(["--config-file", CONFIG, *overrides(data, train="wrong.json")], "check") == 1
    printed = capsys.readouterr().out
    assert printed.count("3.png: the image cannot be read") == 2  # in both splits
    assert all(f"annotation {a['id']}: " in printed for a in content["annotations"])


def test_a_repaired_copy_trains_and_the_original_stays(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    content = json.loads((data / "instances.json").read_text())
    for annotation in content["annotations"]:
        del annotation["area"]
    content["annotations"][0]["bbox"][3] = 0
    text = json.dumps(content)
    (data / "wrong.json").write_text(text)
    given = overrides(data, train="wrong.json")
    copy = tmp_path / "mended"
    assert main(["--config-file", CONFIG, "--repaired", str(copy), *given], "check") == 0
    printed = capsys.readouterr().out
    assert "boxes of zero size dropped: annotation 1" in printed
    assert f"dataset.train_json={copy / 'train.json'}" in printed
    assert (data / "wrong.json").read_text() == text
    again = [*given, f"dataset.train_json={copy / 'train.json'}"]
    assert main(["--config-file", CONFIG, *again], "check") == 0
    assert main(["--config-file", CONFIG, "--repaired", str(copy), *given], "check") == 2
    assert "is not an empty folder" in capsys.readouterr().err


def test_a_copy_of_label_maps_has_what_can_be_used(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / split / kind / "a").mkdir(parents=True)
        for number in range(3):
            labels = np.eye(8, dtype=np.uint8) * (9 if (split, number) == ("train", 1) else 1)
            Image.fromarray(labels).save(tmp_path / split / "masks/a" / f"{number}.png")
            Image.new("RGB", (8, 8)).save(tmp_path / split / "images/a" / f"{number}.jpg")
    folders = [
        f"dataset.{split}_{kind}={tmp_path / split / kind}"
        for split in ("train", "val")
        for kind in ("images", "masks")
    ]
    config = ["--config-file", str(ROOT / "tests/d2/tiny_upernet.py"), *folders]
    assert main(config, "check") == 1
    assert main([*config, "--repaired", str(tmp_path / "mended")], "check") == 0
    found = sorted(p.name for p in (tmp_path / "mended/train/masks/a").iterdir())
    assert found == ["0.png", "2.png"]
    assert len([*(tmp_path / "mended/val/images/a").iterdir()]) == 3


def test_processes_of_a_run_take_over_the_check_of_their_parent(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((data / "instances.json").read_text())
    for annotation in content["annotations"]:
        del annotation["area"], annotation["iscrowd"]
    (data / "short.json").write_text(json.dumps(content))
    given = overrides(data, "short.json", "short.json")
    given += [f"train.output_dir={tmp_path / 'output'}", "train.max_iter=1"]
    checked = check_ready(load_config(CONFIG, given), eval_only=False, resume=False)

    def again(*args: object, **kwargs: object) -> None:
        raise AssertionError("checked twice")

    monkeypatch.setattr(instances, "read_coco", again)
    results = run(parse_arguments(["--config-file", CONFIG, *given]), checked)
    assert results["bbox"]["AP"] >= 0
    assert read_metrics(tmp_path / "output")[-1]["total_loss"] > 0
    log = (tmp_path / "output/log.txt").read_text()
    assert "annotations without area: computed" in log
