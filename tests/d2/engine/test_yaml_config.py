"""A YAML config is data: nothing in it runs, whatever it names, and saved configs still load."""

from __future__ import annotations

import base64
import functools
import os
import pickle
import sys
from pathlib import Path

import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from omegaconf import OmegaConf
from torch import nn

from comer_d2.d2.cli import main
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.yaml_config import PACKAGES, check_targets, locate_allowed, read_yaml
from comer_d2.d2.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"
LEAVES = (  # one of each model and kind of data
    "COCO/mask_rcnn_comer_s_1x.py",
    "COCO/mask_rcnn_vit_s_1x.py",
    "COCO/cascade_mask_rcnn_comer_s.py",
    "COCO/codino_comer_l.py",
    "COCO/gfl_comer_s_3x.py",
    "COCO/panoptic/mask2former_comer_s.py",
    "ADE20K/semantic/upernet_comer_s.py",
    "custom/mask2former_comer_s_semantic.py",
    "quickstart/mask_rcnn_comer_digits.py",
)


def write(path: Path, model: str) -> str:
    """A config whose model node is given."""
    sections = "\n".join(f"{name}: {{}}" for name in ("dataloader", "optimizer", "lr_multiplier"))
    path.write_text(
        f"model:\n  {model}\n{sections}\ntrain: {{device: cpu, max_iter: 1, log_period: 1}}\n"
    )
    return str(path)


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_config_loads_again_as_it_was_saved(leaf: str, tmp_path: Path) -> None:
    cfg = LazyConfig.load(str(CONFIGS / leaf))
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = read_yaml(str(tmp_path / "config.yaml"))
    check_targets(again, "config.yaml")
    LazyConfig.save(again, str(tmp_path / "again.yaml"))
    assert (tmp_path / "again.yaml").read_text() == (tmp_path / "config.yaml").read_text()


def test_objects_that_detectron2_writes_come_back(tmp_path: Path) -> None:
    shape = ShapeSpec(channels=256, height=7, width=7)
    norm = functools.partial(nn.LayerNorm, eps=1e-6)
    model = {"shape": shape, "norm": norm, "block": nn.Conv2d, "size": (512, 512)}
    cfg = OmegaConf.create({"model": model}, flags={"allow_objects": True})
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = read_yaml(str(tmp_path / "config.yaml")).model
    assert OmegaConf.to_object(again.shape) == shape
    assert (again.norm.func, again.norm.keywords) == (nn.LayerNorm, {"eps": 1e-6})
    assert again.block is nn.Conv2d
    assert list(again.size) == [512, 512]


CODE = {
    "an object": "a: !!python/object/apply:os.system ['touch {mark}']",
    "an object of a class": "a: !!python/object/new:subprocess.Popen [['touch', '{mark}']]",
    "a module": "a: !!python/module:this",
    "a name": "a: !!python/name:os.system ''",
    "a partial": "a: !!python/object/apply:functools.partial\n    args: [!!python/name:os.system '']\n"
    "    state: !!python/tuple [!!python/name:os.system '', !!python/tuple ['touch {mark}'], {{}}, null]",
    "a target": "_target_: os.system\n  command: touch {mark}",
    "a target behind another package": "_target_: torch.nn.modules.module.warnings.sys.modules",
    "os behind torch": "_target_: detectron2.data.build.os.system\n  command: touch {mark}",
    "a loader of pickles": "_target_: torch.load\n  f: {mark}\n  weights_only: false",
    "a loader of code": "_target_: torch.hub.load\n  repo_or_dir: {mark}\n  model: x\n  source: local",
    "a python config": "_target_: detectron2.config.LazyConfig.load\n  filename: {mark}.py",
    "a config of ours": "_target_: comer_d2.d2.engine.config.load_config\n  config_file: {mark}.py",
    "an interpolated target": "_target_: ${{.name}}\n  name: os.system\n  command: touch {mark}",
    "a target in a list": "a: [[{{_target_: os.system, command: touch {mark}}}]]",
    "a target's target": "_target_: {{_target_: os.system, command: touch {mark}}}",
    "a module of the folder": "_target_: payload.run",
    "a node made of text": "a: '${{oc.create:{{_target_: os.system, command: touch}}}}'",
    "a resolver behind a name": "a: '${{oc.${{.b}}:{{_target_: os.system}}}}'\n  b: create",
    "bytes that are a pickle": "_target_: torch.utils.data.datapipes.utils.decoder.basichandlers\n"
    "  extension: pickle\n  data: !!binary {pickle}",
    "a file of pickled proposals": "_target_: detectron2.data.build.load_proposals_into_dataset\n"
    "  dataset_dicts: []\n  proposal_file: {file}",
    "pickled proposals of a dataset": "_target_: detectron2.data.get_detection_dataset_dicts\n"
    "  names: coco_2017_val\n  proposal_files: [{file}]",
    "timm's loader of pickles": "_target_: timm.models.load_state_dict\n"
    "  checkpoint_path: {file}\n  weights_only: false",
    "timm's loader from the hub": "_target_: timm.models.load_state_dict_from_hf\n"
    "  model_id: nobody/none\n  weights_only: false",
    "a file for a model of timm": "_target_: timm.create_model\n  model_name: resnet10t\n"
    "  checkpoint_path: {file}",
    "a partial of a file": "a: !!python/object/apply:functools.partial\n"
    "    args: [!!python/name:timm.create_model '']\n    state: !!python/tuple "
    "[!!python/name:timm.create_model '', !!python/tuple [], {{checkpoint_path: {file}}}, null]",
    "a writer of files": "_target_: comer_d2.d2.data.kind.write_for_this_process\n"
    "  content: {{}}\n  name: {mark}",
    "a method": "_target_: detectron2.data.DatasetCatalog.get\n  name: coco_2017_val",
    "a process": "_target_: torch.distributed.elastic.multiprocessing.subprocess_handler."
    "SubprocessHandler\n  entrypoint: touch",
}


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("kind", CODE)
def test_nothing_in_a_yaml_config_runs(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    mark = tmp_path / "mark"
    for name in ("payload.py", "mark.py"):
        (tmp_path / name).write_text(f"open({str(mark)!r}, 'w')\ndef run(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    payload = pickle.dumps(Payload(mark), protocol=2)
    file = tmp_path / "payload.pkl"
    file.write_bytes(payload)
    text = CODE[kind].format(mark=mark, file=file, pickle=base64.b64encode(payload).decode())
    path = write(tmp_path / "config.yaml", text)
    assert main(["--config-file", path, f"train.output_dir={tmp_path / 'output'}"]) == 2
    printed = capfd.readouterr().err
    assert path in printed
    assert "Traceback" not in printed
    assert not mark.exists() and not mark.with_suffix(".json").exists()


def test_the_users_own_class_needs_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model.py").write_text("class Model:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = write(tmp_path / "config.yaml", "_target_: my_model.Model")
    with pytest.raises(
        UserError, match=r"model\._target_: 'my_model\.Model' .*--allow-target my_model"
    ):
        load_config(path)
    for allowed in ("my_model", "my_model.Model"):
        cfg = load_config(path, allow_targets=[allowed])
        assert type(instantiate(cfg.model)).__name__ == "Model"
    with pytest.raises(UserError):
        load_config(path, allow_targets=["my_mod"])
    (tmp_path / "my_model.py").write_text(
        "class Model:\n    pass\ndef make():\n    return Model()\n"
    )
    sys.modules.pop("my_model")
    path = write(tmp_path / "config.yaml", "_target_: my_model.make")
    for allowed in ("my_model", "my_model.make"):
        assert instantiate(load_config(path, allow_targets=[allowed]).model)


def test_what_is_allowed_is_what_is_meant() -> None:
    assert locate_allowed("torch.nn.LayerNorm", PACKAGES) is nn.LayerNorm
    for name in (
        "torchvision.models.resnet18",
        "timm.models.resnet18",
        "timm.create_model",
        "detectron2.modeling.backbone.vit.get_vit_lr_decay_rate",
        "torch.nn.functional.relu",
    ):
        assert callable(locate_allowed(name, PACKAGES))
    for name in ("torch.nn.modules.module", "torch.nn.functional.torch.load", "torch.nnx"):
        with pytest.raises(Exception, match=r"--allow-target|cannot be imported|there is no"):
            locate_allowed(name, PACKAGES)


BOMB = "\n".join(
    ["a0: &a0 [1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
)
NO_CONFIGS = {
    "aliases of aliases": BOMB,
    "itself": "a: &a [*a]",
    "a list": "[1, 2]",
    "not closed": "model: [",
    "binary": "a: \x00",
    "no mapping": "- a\nb",
    "a partial of nothing": "a: !!python/object/apply:functools.partial {state: 5}",
    "a shape of no kind": "a: !!python/object:detectron2.layers.shape_spec.ShapeSpec {foo: 1}",
    "nested without end": "a: " + "[" * 3000,
}


@pytest.mark.parametrize("text", NO_CONFIGS.values(), ids=NO_CONFIGS)
def test_what_is_no_config_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match="config file '"):
        load_config(str(tmp_path / "config.yaml"))
