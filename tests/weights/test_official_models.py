"""The authors' whole models: Mask R-CNN's names and account, UPerNet against MMSegmentation.

UPerNet's numbers, tests/data/mmseg_upernet.safetensors, were made by MMSegmentation 1.2's own
UPerHead and FCNHead with random weights. Mask R-CNN against MMDetection: tests/d2.
"""

import json
import random
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from comer_d2.heads.upernet import UPerNetHead
from comer_d2.weights import (
    WeightsError,
    convert_weights,
    load_weights,
    read_weights,
)
from comer_d2.weights.conversion import Layout
from comer_d2.weights.origins.mmsegmentation import UPERNET
from tests.networks import NAMED, make_network, official_network

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def detector():
    """The tiny Mask R-CNN by MMDetection's names."""
    tensors = load_file(DATA / "mmdet_mask_rcnn.safetensors")
    return {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")}


class MaskRCNN(nn.Module):
    """The names of Detectron2's Mask R-CNN on a ViT-CoMer, without what computes."""

    def __init__(self) -> None:
        super().__init__()
        about = json.loads((DATA / "mmdet_mask_rcnn.json").read_text())
        width, classes, hidden = (
            about[name] for name in ("fpn_channels", "num_classes", "fc_channels")
        )
        bottom_up = official_network(about["backbone"])
        self.backbone = nn.Module()
        self.backbone.bottom_up = bottom_up
        for i in range(2, 6):
            lateral = nn.Conv2d(bottom_up.vit.embed_dim, width, 1)
            self.backbone.add_module(f"fpn_lateral{i}", lateral)
            self.backbone.add_module(f"fpn_output{i}", nn.Conv2d(width, width, 3))
        rpn = {"conv": 3, "objectness_logits": 1, "anchor_deltas": 1}
        outputs = {"conv": width, "objectness_logits": 3, "anchor_deltas": 12}
        self.proposal_generator = nn.Module()
        self.proposal_generator.rpn_head = nn.ModuleDict(
            {name: nn.Conv2d(width, outputs[name], side) for name, side in rpn.items()}
        )
        fc1, fc2 = nn.Linear(width * 49, hidden), nn.Linear(hidden, hidden)
        scores, boxes = nn.Linear(hidden, classes + 1), nn.Linear(hidden, 4 * classes)
        masks = {f"mask_fcn{i}": nn.Conv2d(width, width, 3) for i in range(1, 5)}
        masks |= {
            "deconv": nn.ConvTranspose2d(width, width, 2),
            "predictor": nn.Conv2d(width, classes, 1),
        }
        self.roi_heads = nn.ModuleDict(
            {
                "box_head": nn.ModuleDict({"fc1": fc1, "fc2": fc2}),
                "box_predictor": nn.ModuleDict({"cls_score": scores, "bbox_pred": boxes}),
                "mask_head": nn.ModuleDict(masks),
            }
        )


class UPerNet(nn.Module):
    """The names of the semantic segmentor on a ViT-CoMer."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = make_network(**NAMED, vit_features="stages")
        self.sem_seg_head = UPerNetHead(
            in_channels=[12] * 4, num_classes=5, channels=16, auxiliary_channels=8
        )


@pytest.fixture
def mask_rcnn():
    return MaskRCNN()


@pytest.fixture
def segmentor():
    """A tiny UPerNet by MMSegmentation's names."""
    backbone = UPerNet().backbone
    official, _ = convert_weights(backbone, backbone.state_dict(), "official")
    tensors = load_file(DATA / "mmseg_upernet.safetensors")
    heads = {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")}
    return {f"backbone.{n}": t for n, t in official.items()} | heads


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_mask_rcnn_there_and_back(detector, mask_rcnn):
    converted, _ = convert_weights(mask_rcnn, detector)
    assert converted.keys() == mask_rcnn.state_dict().keys()
    assert same(convert_weights(mask_rcnn, converted, "official")[0], detector)


def test_from_the_file_that_mmdetection_3_writes(detector, mask_rcnn, tmp_path, monkeypatch):
    """Beside the weights it has MMEngine's record of losses: an object, and methods by `getattr`."""
    module = ModuleType("mmengine.logging.history_buffer")
    recorder = type("HistoryBuffer", (), {"__module__": module.__name__, "mean": lambda self: 0})
    module.HistoryBuffer = recorder
    packages = ("mmengine", "mmengine.logging", module.__name__)
    for name in packages:
        monkeypatch.setitem(sys.modules, name, module)
    record = recorder()
    record.history, record.methods = np.arange(3), [record.mean]
    checkpoint = {"meta": {"epoch": 12}, "state_dict": detector, "message_hub": {"loss": record}}
    torch.save(checkpoint, tmp_path / "epoch_12.pth")
    for name in packages:
        monkeypatch.delitem(sys.modules, name)
    weights, rest = read_weights(tmp_path / "epoch_12.pth")
    assert same(weights, detector)
    load_weights(mask_rcnn, tmp_path / "epoch_12.pth", complete=True)
    assert rest["meta"] == {"epoch": 12}


def test_upernet_there_and_back(segmentor):
    model = UPerNet()
    converted, _ = convert_weights(model, segmentor)
    assert converted.keys() == model.state_dict().keys()
    assert same(convert_weights(model, converted, "official")[0], segmentor)


def test_upernet_computes_what_mmsegmentation_computes():
    tensors = load_file(DATA / "mmseg_upernet.safetensors")
    maps = [tensors[f"map.{i}"] for i in range(4)]
    head = UPerNetHead(
        in_channels=[12] * 4, num_classes=5, channels=16, auxiliary_channels=8
    ).eval()
    weights = {n.removeprefix("weight."): t for n, t in tensors.items() if "weight." in n[:7]}
    names = Layout(UPERNET).read(weights).tensors
    head.load_state_dict(
        {n.removeprefix("sem_seg_head."): t for n, t in names.items()}, strict=True
    )
    with torch.no_grad():
        logits, auxiliary = head.decoder(maps), head.auxiliary(maps[2])
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(auxiliary, tensors["auxiliary_logits"], atol=1e-5, rtol=1e-5)


def test_account_and_report(detector, mask_rcnn):
    _, report = convert_weights(mask_rcnn, detector, label="'small.pth'")
    assert {entry.source for entry in report.entries} == set(detector)
    assert report.source_elements == sum(t.numel() for t in detector.values())
    table = str(report)
    assert "the authors' Mask R-CNN from 'small.pth'" in table
    for group in ("patch embed", "blocks", "stem", "interactions", "heads"):
        assert re.search(rf"^  {group} +[\d,]+$", table, re.MULTILINE), table


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rpn_head.rpn_reg.bias", None, "proposal_generator.rpn_head.anchor_deltas.bias: missing"),
        ("neck.fpn_convs.2.conv.weight", None, "backbone.fpn_output4.weight: missing"),
        ("backbone.blocks.0.norm1.bias", None, "bottom_up.vit.blocks.0.norm1.bias: missing"),
        ("backbone.level_embed", None, "bottom_up.level_embed: missing"),
        ("roi_head.bbox_head.fc_cls.bias", torch.zeros(5), "of shape (5,), in the model (6,)"),
        ("rpn_head.rpn_cls.bias", torch.full((3,), torch.nan), "'rpn_head.rpn_cls.bias' has NaN"),
        (
            "rpn_head.rpn_cls.bias",
            torch.zeros(3, dtype=torch.int8),
            "objectness_logits.bias: of torch.int8",
        ),
        ("neck.fpn_convs.4.conv.weight", torch.zeros(1), "fit: neck.fpn_convs.4.conv.weight ("),
        ("bbox_head.fc_cls.weight", torch.zeros(1), "fit: bbox_head.fc_cls.weight ("),
        ("ema_backbone_level_embed", torch.zeros(1), "a moving average of the weights"),
        ("backbone.blocks.0.attn.rope", torch.zeros(1), "fit: backbone.blocks.0.attn.rope ("),
    ],
)
def test_a_damaged_checkpoint_is_an_error(detector, mask_rcnn, name, value, message):
    detector[name] = value
    if value is None:
        del detector[name]
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_weights(mask_rcnn, detector)


def test_another_model_of_this_project_is_an_error(mask_rcnn):
    weights = mask_rcnn.state_dict()
    mask_rcnn.roi_heads["box_head"]["conv1"] = nn.Linear(1, 1)  # a 4conv1fc head, say
    with pytest.raises(WeightsError, match=r"roi_heads\.box_head\.conv1\.weight.*: missing"):
        convert_weights(mask_rcnn, weights, "official")
    with pytest.raises(WeightsError, match=r"no names for roi_heads\.box_head\.conv1\.weight"):
        convert_weights(mask_rcnn, mask_rcnn.state_dict(), "official")


def test_upernet_with_a_tensor_missing_is_an_error(segmentor):
    del segmentor["decode_head.psp_modules.2.1.bn.running_var"]
    with pytest.raises(WeightsError, match=r"pooling\.branches\.2\.norm\.running_var: missing"):
        load_weights(UPerNet(), segmentor)


MUTATIONS = {
    "drop": lambda tensors, name: {n: t for n, t in tensors.items() if n != name},
    "rename": lambda tensors, name: {
        name[:-1] + "_" if n == name else n: t for n, t in tensors.items()
    },
    "wrap": lambda tensors, name: tensors | {name: tensors[name][None]},
    "cut": lambda tensors, name: tensors | {name: tensors[name].reshape(-1)[1:]},
    "retype": lambda tensors, name: (
        tensors
        | {name: tensors[name].to(torch.int32 if tensors[name].is_floating_point() else torch.half)}
    ),
    "nan": lambda tensors, name: tensors | {name: tensors[name] * torch.nan},
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_every_mutation_is_an_error(detector, mask_rcnn, mutation):
    """Of eight tensors drawn at random, by six kinds of damage: never a silent difference."""
    names = random.Random(mutation).sample(sorted(detector), 8)
    for name in names:
        with pytest.raises(WeightsError) as error:
            load_weights(mask_rcnn, MUTATIONS[mutation](detector, name))
        last = name.rpartition(".")[2]
        assert last[:-1] in str(error.value), "the error names a tensor"
