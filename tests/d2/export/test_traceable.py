"""Detectors for torch.export: what the exported program finds is what the model finds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import Instances
from omegaconf import OmegaConf
from torch import Tensor, nn

from comer_d2.d2.export.images import fitting
from comer_d2.d2.export.traceable import traceable
from comer_d2.ops import portable_decompositions

ROOT = Path(__file__).parents[3]
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
DETECTORS = ["faster_rcnn", "mask_rcnn", "cascade_rcnn", "atss", "gfl", "dino", "codino"]


class MeanColours(Backbone):
    """In the place of a network: projected mean colours, 64 channels."""

    size_divisibility = 32
    square_size = 0

    def __init__(self, out_features: list[str]) -> None:
        super().__init__()
        self.names = list(out_features)
        self.projections = nn.ModuleDict({name: nn.Conv2d(3, 64, 1) for name in out_features})

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {
            name: self.projections[name](F.avg_pool2d(image, STRIDES[name])) for name in self.names
        }

    @property
    def padding_constraints(self) -> dict[str, int]:
        return {"square_size": self.square_size}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {name: ShapeSpec(channels=64, stride=STRIDES[name]) for name in self.names}


def build(leaf: str, *, network: bool = False, **overrides: Any) -> nn.Module:
    """The quickstart's detector, its heads not as at the start, where all boxes are alike."""
    cfg = LazyConfig.load(str(ROOT / f"configs/quickstart/{leaf}_comer_digits.py"))
    cfg.dataset.num_classes = 5
    for key, value in overrides.items():
        OmegaConf.update(cfg.model, key.replace("__", "."), value)
    torch.manual_seed(0)
    pyramid = "bottom_up" in cfg.model.backbone
    node = cfg.model.backbone.bottom_up if pyramid else cfg.model.backbone
    if network:
        node.vit.depth = 2
        node.interaction_indexes = [[0, 0], [1, 1]]
    else:
        stub = L(MeanColours)(out_features=list(node.out_features))
        if pyramid:
            cfg.model.backbone.bottom_up = stub
        else:
            cfg.model.backbone = stub
    model = instantiate(cfg.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            loud = ("cls_score", "objectness", "anchor_deltas", "bbox_pred", "deconv", "predictor.")
            own = any(part in name for part in ("head", "proposal", "pixel"))
            scale = 0.2 if any(part in name for part in loud) else 0.05 if own else 0.0
            parameter.add_(torch.randn_like(parameter) * scale)
    return model.eval()


def picture(height: int, width: int) -> Tensor:
    """Coloured areas: (3, H, W), 0 to 255."""
    areas = torch.rand(1, 3, max(height // 24, 1), max(width // 24, 1)) * 255
    return F.interpolate(areas, (height, width), mode="bicubic").clamp(0, 255)[0]


@torch.no_grad()
def by_the_model(model: nn.Module, images: Tensor) -> list[Instances]:
    records = [{"image": x, "height": x.shape[1], "width": x.shape[2]} for x in images]
    if hasattr(model, "roi_heads"):
        return model.inference(records, do_postprocess=False)  # masks as they are predicted
    return [result["instances"] for result in model(records)]


@torch.no_grad()
def compare(
    model: nn.Module, program: Callable[[Tensor], Any], images: Tensor, slack: float = 1.0
) -> None:
    """Detections of every image, one by one, and nothing in the places behind them."""
    found = program(images)
    for i, expected in enumerate(by_the_model(model, images)):
        taken = found.classes[i] >= 0
        assert len(expected) > 5
        assert int(taken.sum()) == len(expected)
        assert torch.equal(found.classes[i, taken], expected.pred_classes)
        of_scores = {"rtol": 1e-4 * slack, "atol": 1e-5 * slack}
        torch.testing.assert_close(found.scores[i, taken], expected.scores, **of_scores)
        boxes = expected.pred_boxes.tensor
        torch.testing.assert_close(found.boxes[i, taken], boxes, rtol=1e-4, atol=1e-2)
        if hasattr(found, "masks"):
            masks = expected.pred_masks[:, 0]
            of_masks = {"rtol": 1e-3 * slack, "atol": 1e-4 * slack}
            torch.testing.assert_close(found.masks[i, taken], masks, **of_masks)
        assert (found.scores[i, ~taken] == 0).all()
        assert (found.boxes[i, ~taken] == 0).all()


@pytest.mark.parametrize("leaf", DETECTORS)
def test_inference_is_the_models(leaf: str) -> None:
    model = build(leaf)
    compare(model, traceable(model), torch.stack([picture(96, 160), picture(96, 160)]))


def export(model: nn.Module, images: Tensor, *, free: bool) -> Callable[[Tensor], Any]:
    """The exported program; with sides that are free."""
    shapes = None
    if free:
        # From 160 pixels on P7 has more than one cell; to torch.export one is a shape of its own.
        sides = {2: torch.export.Dim("h", min=5, max=40), 3: torch.export.Dim("w", min=5, max=40)}
        shapes = ({side: 32 * steps for side, steps in sides.items()},)
    with torch.no_grad():
        program = torch.export.export(traceable(model), (images,), dynamic_shapes=shapes)
    return program.module()


@pytest.mark.parametrize("leaf", DETECTORS)
def test_exports_at_a_fixed_size(leaf: str) -> None:
    model = build(leaf)
    size = (96, 160)
    program = export(model, picture(*size)[None], free=False)
    compare(model, program, picture(*size)[None])


def test_what_onnx_is_written_from_samples_by_gathers() -> None:
    """Not by GridSample, which TensorRT compiles wrongly inside deformable attention."""
    with torch.no_grad():
        program = torch.export.export(traceable(build("dino")), (picture(96, 160)[None],))
        program = program.run_decompositions(portable_decompositions())
    names = {str(node.target) for node in program.graph.nodes}
    assert any("gather" in name for name in names)
    assert not any("grid_sample" in name or "ms_deform_attn" in name for name in names)


@pytest.mark.parametrize("leaf", DETECTORS)
def test_exports_at_any_size(leaf: str) -> None:
    model = build(leaf)
    program = export(model, picture(160, 224)[None], free=True)
    for size in ((256, 160), (192, 320), (192, 192)):
        compare(model, program, picture(*size)[None])


@pytest.mark.slow
@pytest.mark.parametrize("leaf", ["mask_rcnn", "atss", "dino"])
def test_with_its_network(leaf: str) -> None:
    model = build(leaf, network=True)
    program = export(model, picture(160, 224)[None], free=True)
    # The network sums in another order; random heads enlarge the difference.
    for size in ((256, 160), (192, 320), (192, 224)):
        compare(model, program, picture(*size)[None], slack=10)


@pytest.mark.parametrize("leaf", ["faster_rcnn", "atss", "dino"])
def test_images_smaller_than_the_square(leaf: str) -> None:
    model = build(leaf)
    square(model, 160)
    compare(model, traceable(model), torch.stack([picture(96, 130), picture(96, 130)]))
    with pytest.raises(
        ValueError, match="64 x 192 pixels are larger than the model's square_pad=160"
    ):
        traceable(model)(picture(64, 192)[None])


@pytest.mark.parametrize("leaf", ["mask_rcnn", "atss", "dino"])
def test_photos_are_resized_inside(leaf: str) -> None:
    """To the largest size that fits, and the boxes are in the photo's pixels."""
    model = build(leaf)
    photo = picture(301, 200)[None]
    small = F.interpolate(photo, (160, 106), mode="bilinear", antialias=True)
    with torch.no_grad():
        found = traceable(model, (160, 160))(photo)
        square(model, 160)
        expected = traceable(model)(small)
    assert (found.classes >= 0).sum() > 5
    scale = torch.tensor([200 / 106, 301 / 160] * 2)
    torch.testing.assert_close(found.boxes, expected.boxes * scale, rtol=1e-4, atol=1e-2)
    for ours, theirs in zip(expected[1:], found[1:], strict=True):
        torch.testing.assert_close(theirs, ours)


def test_largest_sizes_that_fit() -> None:
    sizes = [(3, 4), (480, 640), (500, 333), (1, 5000), (5000, 1), (7000, 7001)]
    assert [fitting(size, (96, 128)) for size in sizes] == [
        *((96, 128), (96, 128), (96, 64), (2, 128), (96, 2), (96, 96)),
    ]


def square(model: nn.Module, side: int) -> None:
    if hasattr(model.backbone, "bottom_up"):
        model.backbone._square_pad = side  # of an FPN
    else:
        model.backbone.square_size = side


def test_sides_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="96 x 130 pixels: sides must be multiples of 32"):
        traceable(build("atss"))(picture(96, 130)[None])


def test_what_does_not_export_is_named() -> None:
    with pytest.raises(ValueError, match=r"call model\.eval\(\)"):
        traceable(build("atss").train())
    with pytest.raises(
        ValueError, match=r"soft suppression \(0\.8\) .*--override model\.soft_nms_threshold=null"
    ):
        traceable(build("codino", soft_nms_threshold=0.8))
    with pytest.raises(
        ValueError, match=r"Linear cannot be exported; GeneralizedRCNN, .*DINO.* can"
    ):
        traceable(nn.Linear(1, 1).eval())
