"""timm's pyramids as Detectron2 backbones: what Detectron2 reads of them, and detectors that train on them."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import LazyCall as L
from detectron2.config import instantiate
from detectron2.modeling import FPN
from detectron2.structures import ImageList
from omegaconf import OmegaConf

from comer_d2.d2.modeling.timm_backbone import TimmBackbone


def test_what_detectron2_reads() -> None:
    backbone = TimmBackbone("test_convnext", out_features=["res3", "res5"], square_pad=128)
    shapes = {name: (s.channels, s.stride) for name, s in backbone.output_shape().items()}
    assert shapes == {"res3": (32, 8), "res5": (64, 32)}
    assert backbone.padding_constraints == {"size_divisibility": 32, "square_size": 128}
    assert set(backbone(torch.zeros(1, 3, 64, 64))) == {"res3", "res5"}


def test_fpn_takes_the_maps_of_a_padded_batch() -> None:
    backbone = FPN(TimmBackbone("test_convnext"), ["res2", "res3", "res4", "res5"], 16)
    images = ImageList.from_tensors(
        [torch.randn(3, 70, 101), torch.randn(3, 33, 40)],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    )
    maps = backbone(images.tensor)
    assert [tuple(m.shape[-2:]) for m in maps.values()] == [(24, 32), (12, 16), (6, 8), (3, 4)]


def test_arguments_of_a_config_reach_timm() -> None:
    """A config's lists are ListConfigs, which timm does not take."""
    node = L(TimmBackbone)(
        name="swin_tiny_patch4_window7_224",
        arguments={"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
    )
    backbone = instantiate(OmegaConf.create({"backbone": node}).backbone)
    assert backbone.output_shape()["res5"].channels == 128


def test_grey_images() -> None:
    backbone = TimmBackbone("test_convnext", in_chans=1)
    assert backbone(torch.zeros(1, 1, 40, 50))["res5"].shape == (1, 64, 2, 2)


def test_every_parameter_gets_a_gradient() -> None:
    """A parameter without one is an error under DistributedDataParallel."""
    for name in ("test_convnext", "swin_tiny_patch4_window7_224", "test_resnet", "test_mambaout"):
        backbone = TimmBackbone(name)
        sum(m.square().mean() for m in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
        assert not [key for key, p in backbone.named_parameters() if p.grad is None], name


def test_drop_path_and_unknown_maps() -> None:
    backbone = TimmBackbone("swin_tiny_patch4_window7_224", drop_path_rate=0.3)
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"out_features must be some of .* got \['res6'\]"):
        TimmBackbone("test_convnext", out_features=["res6"])
