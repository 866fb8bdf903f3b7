"""ViTCoMer as Detectron2 sees it: shapes, padding, and the heads it feeds."""

from typing import Any

import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import FPN
from detectron2.modeling import SimpleFeaturePyramid as Detectron2Pyramid
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.meta_arch import SemanticSegmentor
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

import comer_d2
from comer_d2.d2.modeling.backbone import PlainViT, ViTCoMer
from comer_d2.d2.modeling.simple_feature_pyramid import SimpleFeaturePyramid
from comer_d2.layers.norm import LayerNorm
from tests.networks import make_network

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
TINY = {  # every part, few channels
    "embed_dim": 32,
    "depth": 4,
    "num_heads": 2,
    "window_block_indexes": [0, 2],
    "interaction_indexes": [[0, 1], [2, 3]],
    "deform_num_heads": 2,
    "stem_width": 8,
    "num_extra_cti": 1,
}


def tiny(**arguments: Any) -> ViTCoMer:
    return make_network(ViTCoMer, **{**TINY, **arguments})


def image_record(height: int, width: int, **gt: Any) -> dict[str, Any]:
    return {"image": torch.randn(3, height, width), "height": height, "width": width, **gt}


def test_public_name_is_this_class() -> None:
    assert comer_d2.ViTCoMer is ViTCoMer


def test_parameters_and_keys_are_the_networks() -> None:
    network = make_network(**TINY)
    assert list(tiny().state_dict()) == list(network.state_dict())


def test_any_norm_of_detectron2_by_its_name() -> None:
    norms = {type(m) for m in tiny(norm="FrozenBN").modules() if "Norm" in type(m).__name__}
    assert norms == {FrozenBatchNorm2d, LayerNorm}
    with pytest.raises(ValueError, match="norm 'Batch' is none that Detectron2 knows"):
        tiny(norm="Batch")


def test_output_shape_is_what_forward_returns() -> None:
    backbone = tiny()
    described = backbone.output_shape()
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert list(described) == list(maps) == list(STRIDES)
    for name, stride in STRIDES.items():
        assert (described[name].channels, described[name].stride) == (32, stride)
        assert maps[name].shape == (2, 32, 64 // stride, 96 // stride)


def test_called_alone_takes_any_size() -> None:
    maps = tiny()(torch.randn(2, 3, 50, 61))
    assert {k: tuple(v.shape[-2:]) for k, v in maps.items()} == {
        "res2": (13, 16),
        "res3": (7, 8),
        "res4": (4, 4),
        "res5": (2, 2),
    }


@pytest.mark.parametrize("wanted", [["res2"], ["res3", "res4", "res5"], ["res5", "res2"]])
def test_out_features_selects_and_leaves_no_parameter_without_gradient(wanted: list[str]) -> None:
    torch.manual_seed(0)
    every = tiny().eval()
    torch.manual_seed(0)
    some = tiny(out_features=wanted).eval()
    image = torch.randn(1, 3, 64, 64)
    maps = some(image)
    assert list(maps) == list(some.output_shape()) == wanted
    for name, value in maps.items():
        torch.testing.assert_close(value, every(image)[name])
    sum(value.sum() for value in maps.values()).backward()
    idle = [n for n, p in some.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle, "DistributedDataParallel would refuse these"


@pytest.mark.parametrize("wanted", [["res6"], ["res2", "p3"], []])
def test_unknown_features_are_refused(wanted: list[str]) -> None:
    with pytest.raises(ValueError, match="out_features must be some of"):
        tiny(out_features=wanted)


@pytest.mark.parametrize(("square_pad", "padded"), [(0, (64, 96)), (128, (128, 128))])
def test_detectron2_pads_to_the_constraints(square_pad: int, padded: tuple[int, int]) -> None:
    backbone = tiny(square_pad=square_pad)
    assert backbone.size_divisibility == 32
    images = ImageList.from_tensors(
        [torch.zeros(3, 50, 61), torch.zeros(3, 40, 70)],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    )
    assert tuple(images.tensor.shape[-2:]) == padded


def test_fpn_with_max_pool() -> None:
    fpn = FPN(tiny(), list(STRIDES), 16, top_block=LastLevelMaxPool())
    assert fpn.size_divisibility == 32
    maps = fpn(torch.randn(1, 3, 64, 96))
    sizes = {name: (value.shape[1], *value.shape[-2:]) for name, value in maps.items()}
    assert sizes == {
        "p2": (16, 16, 24),
        "p3": (16, 8, 12),
        "p4": (16, 4, 6),
        "p5": (16, 2, 3),
        "p6": (16, 1, 2),
    }


def test_retinanet_on_three_levels_trains() -> None:
    model_config = model_zoo.get_config("common/models/retinanet.py").model
    model_config.num_classes = 2
    model_config.head.conv_dims = [16]
    features = ["res3", "res4", "res5"]
    model_config.backbone = FPN(
        tiny(out_features=features), features, 16, top_block=LastLevelP6P7(16, 16, in_feature="p5")
    )
    model_config.head.input_shape = list(model_config.backbone.output_shape().values())
    model = instantiate(model_config)
    instances = Instances((50, 61))
    instances.gt_boxes = Boxes([[5.0, 5.0, 40.0, 40.0]])
    instances.gt_classes = torch.tensor([1])
    with EventStorage():
        losses = model([image_record(50, 61, instances=instances)])
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total)
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle


def test_semantic_head_directly_on_the_backbone() -> None:
    backbone = tiny()
    model = SemanticSegmentor(
        backbone=backbone,
        sem_seg_head=SemSegFPNHead(
            backbone.output_shape(),
            num_classes=3,
            conv_dims=32,
            common_stride=4,
            norm="GN",
        ),
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    losses = model([image_record(50, 61, sem_seg=torch.randint(0, 3, (50, 61)))])
    assert torch.isfinite(losses["loss_sem_seg"])
    with torch.no_grad():
        (result,) = model.eval()([image_record(50, 61)])
    assert result["sem_seg"].shape == (3, 50, 61)


def pyramid(cls: type, square_pad: int = 0) -> nn.Module:
    vit = PlainViT(embed_dim=32, depth=1, num_heads=2, window_block_indexes=[0])
    return cls(
        vit,
        "last_feat",
        16,
        (4.0, 2.0, 1.0, 0.5),
        top_block=LastLevelMaxPool(),
        square_pad=square_pad,
    )


def padded_size(backbone: nn.Module) -> tuple[int, ...]:
    images = ImageList.from_tensors(
        [torch.zeros(3, 50, 61)],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    )
    return tuple(images.tensor.shape[-2:])


def test_plain_vit_pyramid_is_padded() -> None:
    assert padded_size(pyramid(Detectron2Pyramid)) == (50, 61)  # the reason for a class of ours
    assert padded_size(pyramid(SimpleFeaturePyramid)) == (64, 64)
    assert padded_size(pyramid(SimpleFeaturePyramid, square_pad=96)) == (96, 96)


def test_plain_vit_pyramid_has_the_levels_of_an_fpn() -> None:
    maps: dict[str, Tensor] = pyramid(SimpleFeaturePyramid)(torch.randn(1, 3, 64, 96))
    assert {name: tuple(value.shape[1:]) for name, value in maps.items()} == {
        "p2": (16, 16, 24),
        "p3": (16, 8, 12),
        "p4": (16, 4, 6),
        "p5": (16, 2, 3),
        "p6": (16, 1, 2),
    }
