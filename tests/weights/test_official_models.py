"""The authors' whole models: Mask R-CNN's names and books, UPerNet against MMSegmentation.

UPerNet's numbers, tests/data/mmseg_upernet.safetensors, were made by MMSegmentation 1.2's own
UPerHead and FCNHead with random weights. Mask R-CNN against MMDetection: tests/d2.
"""

import random
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from comer_d2.heads.upernet import UPerNetHead
from comer_d2.weights import (
    WeightsError,
    convert_official_detector,
    convert_official_segmentor,
    read_weights,
    to_official,
    to_official_detector,
    to_official_segmentor,
)
from comer_d2.weights.convert import conversion_report
from comer_d2.weights.official import translate
from comer_d2.weights.official_models import (
    UPERNET,
    is_official_detector,
    is_official_segmentor,
    official_detector,
    read_official,
    write_official,
)
from tests.networks import make_network

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def detector():
    """The tiny Mask R-CNN by MMDetection's names."""
    tensors = load_file(DATA / "mmdet_mask_rcnn.safetensors")
    return {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")}


@pytest.fixture
def segmentor():
    """A tiny UPerNet by MMSegmentation's names."""
    backbone = make_network(
        embed_dim=12,
        depth=4,
        num_heads=3,
        pretrain_img_size=32,
        stem_width=4,
        interaction_indexes=[[i, i] for i in range(4)],
        window_size=0,
        deform_num_heads=3,
        num_extra_cti=1,
        vit_features="stages",
        window_block_indexes=[],
    )
    tensors = load_file(DATA / "mmseg_upernet.safetensors")
    heads = {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")}
    return {f"backbone.{n}": t for n, t in to_official(backbone.state_dict()).items()} | heads


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_mask_rcnn_there_and_back(detector):
    converted = convert_official_detector({"state_dict": detector, "meta": {"epoch": 12}})
    assert same(to_official_detector(converted), detector)
    assert same(write_official(converted), detector)
    assert {name.split(".")[0] for name in converted} == {
        "backbone",
        "proposal_generator",
        "roi_heads",
    }


def test_from_the_file_that_mmdetection_3_writes(detector, tmp_path, monkeypatch):
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
    assert same(convert_official_detector(weights), convert_official_detector(detector))
    assert rest["meta"] == {"epoch": 12}


def test_upernet_there_and_back(segmentor):
    converted = convert_official_segmentor(segmentor)
    assert same(to_official_segmentor(converted), segmentor)
    assert same(write_official(converted), segmentor)


def test_upernet_computes_what_mmsegmentation_computes():
    tensors = load_file(DATA / "mmseg_upernet.safetensors")
    maps = [tensors[f"map.{i}"] for i in range(4)]
    head = UPerNetHead(
        in_channels=[12] * 4, num_classes=5, channels=16, auxiliary_channels=8
    ).eval()
    names = {}
    for name, tensor in tensors.items():
        if name.startswith("weight."):
            new = translate(name.removeprefix("weight."), UPERNET)
            names[new.removeprefix("sem_seg_head.")] = tensor
    head.load_state_dict(names, strict=True)
    with torch.no_grad():
        logits, auxiliary = head.decoder(maps), head.auxiliary(maps[2])
    torch.testing.assert_close(logits, tensors["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(auxiliary, tensors["auxiliary_logits"], atol=1e-5, rtol=1e-5)


def test_recognised_by_names(detector, segmentor):
    assert is_official_detector(detector) and not is_official_segmentor(detector)
    assert is_official_segmentor(segmentor) and not is_official_detector(segmentor)
    backbone_alone = [name for name in detector if name.startswith("backbone.")]
    assert not is_official_detector(backbone_alone)
    plain = [name for name in detector if not name.startswith("backbone.")]
    assert not is_official_detector(plain)  # MMDetection's Mask R-CNN on another backbone


def test_other_detectors_give_their_backbone(detector):
    """Co-DETR: the backbone is loaded, and every tensor of the rest is listed."""
    other = {n: t for n, t in detector.items() if n.startswith("backbone.")}
    other |= {
        "query_head.label_embedding.weight": torch.ones(2, 3),
        "neck.convs.0.gn.bias": torch.ones(4),
    }
    books = read_official(other)
    unused = {p.source: (p.elements, p.note) for p in books.parts if p.target is None}
    assert unused == {
        "query_head.label_embedding.weight": (6, "not of the backbone"),
        "neck.convs.0.gn.bias": (4, "not of the backbone"),
    }
    assert sum(p.elements for p in books.parts) == sum(t.numel() for t in other.values())


def test_books_and_report(detector):
    books = official_detector(detector)
    assert {p.source for p in books.parts} == set(detector)
    assert all(p.target in books.tensors for p in books.parts)
    report = conversion_report(books, "'small.pth'")
    assert report.source_elements == sum(t.numel() for t in detector.values())
    table = str(report)
    assert "the authors' Mask R-CNN from 'small.pth'" in table
    for group in ("patch embed", "blocks", "stem", "interactions", "heads"):
        assert re.search(rf"^  {group} +[\d,]+$", table, re.MULTILINE), table


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "rpn_head.rpn_reg.bias",
            None,
            "missing: 'proposal_generator.rpn_head.anchor_deltas.bias'",
        ),
        ("neck.fpn_convs.2.conv.weight", None, "missing: 'backbone.fpn_output4.weight'"),
        ("neck.lateral_convs.0.conv.weight", None, "'backbone.fpn_lateral2.weight' is missing"),
        ("backbone.blocks.0.norm1.bias", None, "missing: 'vit.blocks.0.norm1.bias'"),
        ("backbone.level_embed", None, "missing: 'level_embed'"),
        ("roi_head.bbox_head.fc_cls.bias", torch.zeros(5), "has shape (5,), not (6,)"),
        ("roi_head.bbox_head.fc_reg.weight", torch.zeros(4, 24), "has shape (4, 24), not (20, 24)"),
        (
            "rpn_head.rpn_cls.weight",
            torch.zeros(3, 16),
            "must have 4 dimensions, got shape (3, 16)",
        ),
        ("rpn_head.rpn_cls.bias", torch.full((3,), torch.nan), "'rpn_head.rpn_cls.bias' has NaN"),
        ("rpn_head.rpn_cls.bias", torch.zeros(3, dtype=torch.int8), "is of torch.int8"),
        ("neck.fpn_convs.4.conv.weight", torch.zeros(1), "has no 'neck.fpn_convs.4.conv.weight'"),
        ("bbox_head.fc_cls.weight", torch.zeros(1), "has no 'bbox_head.fc_cls.weight'"),
        ("ema_backbone_level_embed", torch.zeros(1), "has no 'ema_backbone_level_embed'"),
        ("backbone.blocks.0.attn.rope", torch.zeros(1), "'blocks.0.attn.rope' is not a tensor"),
    ],
)
def test_a_damaged_checkpoint_is_an_error(detector, name, value, message):
    detector[name] = value
    if value is None:
        del detector[name]
    with pytest.raises(WeightsError, match=re.escape(message)):
        convert_official_detector(detector)


def test_another_model_of_this_project_is_an_error(detector):
    converted = convert_official_detector(detector)
    converted["roi_heads.box_head.conv1.weight"] = torch.zeros(1)  # a 4conv1fc head, say
    with pytest.raises(WeightsError, match=r"has no 'roi_heads\.box_head\.conv1\.weight'"):
        to_official_detector(converted)
    del converted["roi_heads.box_head.conv1.weight"], converted["roi_heads.box_head.fc2.bias"]
    with pytest.raises(WeightsError, match=r"missing: 'roi_heads\.box_head\.fc2\.bias'"):
        to_official_detector(converted)


def test_upernet_with_a_tensor_missing_is_an_error(segmentor):
    del segmentor["decode_head.psp_modules.2.1.bn.running_var"]
    with pytest.raises(
        WeightsError, match=r"missing: 'sem_seg_head\.decoder\.pooling\.branches\.2"
    ):
        convert_official_segmentor(segmentor)


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
def test_every_mutation_is_an_error(detector, mutation):
    """Of eight tensors drawn at random, by six kinds of damage: never a silent difference."""
    names = random.Random(mutation).sample(sorted(detector), 8)
    for name in names:
        with pytest.raises(WeightsError) as error:
            convert_official_detector(MUTATIONS[mutation](detector, name))
        assert str(error.value).count("'") >= 2, "the error names a tensor"
