"""ATSS and GFL by MMDetection's names: every tensor there and back, and nothing else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from comer_d2.heads.atss import ATSSHead
from comer_d2.heads.gfl import GFLHead
from comer_d2.weights import WeightsError, convert_weights
from tests.networks import NAMED, make_network

DATA = Path(__file__).parents[1] / "data"
TINY = dict(num_classes=4, in_channels=8, channels=8, num_convs=2, num_groups=4)
HEADS = {"atss": lambda: ATSSHead(**TINY), "gfl": lambda: GFLHead(**TINY, reg_max=3)}


class Detector(nn.Module):
    """The names of a dense detector on a ViT-CoMer, without what computes."""

    def __init__(self, head: str) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = make_network(**NAMED)
        for i in (3, 4, 5):
            # 6 channels, which the oracle of the pyramid has
            self.backbone.add_module(f"fpn_lateral{i}", nn.Conv2d(6, 8, 1))
            self.backbone.add_module(f"fpn_output{i}", nn.Conv2d(8, 8, 3))
        self.backbone.top_block = nn.ModuleDict(
            {name: nn.Conv2d(8, 8, 3, stride=2) for name in ("p6", "p7")}
        )
        self.head = HEADS[head]()


def given(file: str, prefix: str = "") -> dict[str, Tensor]:
    tensors = load_file(DATA / file)
    names = {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")}
    return {prefix + name: tensor.float() for name, tensor in names.items()}


@pytest.fixture(params=HEADS)
def model(request: pytest.FixtureRequest) -> Detector:
    detector = Detector(request.param)
    detector.name = request.param
    return detector


@pytest.fixture
def official(model: Detector) -> dict[str, Tensor]:
    """The model's checkpoint in MMDetection, its head and pyramid of the oracles' weights."""
    backbone = model.backbone.bottom_up
    names, _ = convert_weights(backbone, backbone.state_dict(), "official")
    weights = {f"backbone.{name}": tensor for name, tensor in names.items()}
    weights |= given("mmdet_fpn.safetensors", "neck.")
    weights |= given(f"mmdet_{model.name}.safetensors", "bbox_head.")
    if model.name == "gfl":
        weights["bbox_head.integral.project"] = torch.linspace(0, 3, 4)
    return weights


def test_there_and_back(model: Detector, official: dict[str, Tensor]) -> None:
    converted, report = convert_weights(model, official)
    assert converted.keys() == model.state_dict().keys()
    assert {entry.source for entry in report.entries} == set(official)
    assert f"{model.name.upper()} on the authors' backbone" in str(report)
    back, _ = convert_weights(model, converted, "official")
    assert back.keys() == official.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in official.items())
    scale = converted["head.scales.1"]
    assert torch.equal(scale, official["bbox_head.scales.1.scale"]) and scale != 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("neck.fpn_convs.4.conv.weight", "backbone.top_block.p7.weight: missing"),
        ("bbox_head.scales.3.scale", "head.scales.3: missing"),
        ("bbox_head.reg_convs.1.gn.bias", "head.bbox_subnet.1.norm.bias: missing"),
    ],
)
def test_a_tensor_less_is_an_error(
    model: Detector, official: dict[str, Tensor], name: str, message: str
) -> None:
    del official[name]
    with pytest.raises(WeightsError, match=message):
        convert_weights(model, official)


def test_other_tensors_are_an_error(model: Detector, official: dict[str, Tensor]) -> None:
    official["bbox_head.reg_convs.0.conv.bias"] = torch.zeros(8)
    with pytest.raises(WeightsError, match=r"bbox_subnet\.0\.conv\.bias: without a place"):
        convert_weights(model, official)


def test_other_distances_are_an_error() -> None:
    model = Detector("gfl")
    model.name = "gfl"
    official = given("mmdet_gfl.safetensors", "bbox_head.")
    backbone = model.backbone.bottom_up
    names, _ = convert_weights(backbone, backbone.state_dict(), "official")
    official |= {f"backbone.{name}": tensor for name, tensor in names.items()}
    official |= given("mmdet_fpn.safetensors", "neck.")
    official["bbox_head.integral.project"] = torch.linspace(0, 1, 4)
    with pytest.raises(WeightsError, match=r"integral\.project' is not 0, 1, 2"):
        convert_weights(model, official)
