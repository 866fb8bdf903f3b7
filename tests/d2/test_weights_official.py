"""The authors' Mask R-CNN, converted, detects what it detects in MMDetection.

The oracle is MMDetection 3.3 itself: its Mask R-CNN, data preprocessor, anchors, box coders, test
settings and post-processing, with RoIAlign and NMS of mmcv 2.1 compiled from its own C++, on the
authors' backbone, all with random weights. tests/data/mmdet_mask_rcnn.* has its numbers, and one
table for every convention that is not in the weights. Every expectation here is such a number; what
is tested is Detectron2 as configs/COCO sets it up.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import Boxes
from safetensors.torch import load_file

from comer_d2.weights import convert_weights, load_weights, official_arguments

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
CONFIG = ROOT / "configs/COCO/mask_rcnn_comer_s_1x.py"


@pytest.fixture(scope="module")
def given():
    return load_file(DATA / "mmdet_mask_rcnn.safetensors")


@pytest.fixture(scope="module")
def about():
    return json.loads((DATA / "mmdet_mask_rcnn.json").read_text())


@pytest.fixture(scope="module")
def released():
    """The model of the released config, as it is."""
    return LazyConfig.load(str(CONFIG)).model


def official_weights(given):
    """The weights, which are float16 numbers so that the file is small, as MMDetection has them."""
    weights = {
        name.removeprefix("weight."): tensor
        for name, tensor in given.items()
        if name.startswith("weight.")
    }
    return {n: t.float() if t.is_floating_point() else t for n, t in weights.items()}


def tiny_model(config, about):
    """The released config with the oracle's sizes; no other setting is touched."""
    arguments = official_arguments(about["backbone"])
    config.backbone.bottom_up.vit.update(arguments.pop("vit"), window_block_indexes=None)
    config.backbone.bottom_up.update(arguments)
    width = about["fpn_channels"]
    config.backbone.out_channels = width
    config.proposal_generator.head.in_channels = width
    heads = config.roi_heads
    heads.num_classes = about["num_classes"]
    heads.box_head.input_shape.channels = width
    heads.box_head.fc_dims = [about["fc_channels"]] * 2
    heads.box_predictor.input_shape.channels = about["fc_channels"]
    heads.mask_head.input_shape.channels = width
    heads.mask_head.conv_dims = [width] * 5
    return instantiate(config)


@pytest.fixture(scope="module")
def model(given, about):
    model = tiny_model(LazyConfig.load(str(CONFIG)).model, about)
    load_weights(model, official_weights(given), complete=True)
    return model.eval()


@pytest.fixture(scope="module")
def image(given, model):
    """The image as Detectron2 gives it to a model: channels first, in the config's order."""
    assert model.input_format == "RGB"
    return given["image_bgr"].flip(-1).permute(2, 0, 1).contiguous()


def test_detections(given, about, model, image):
    """Boxes, scores, classes and masks, at the size of the original image."""
    height, width = about["original_shape"]
    with torch.no_grad():
        (output,) = model([{"image": image, "height": height, "width": width}])
    found = output["instances"]
    assert torch.equal(found.pred_classes, given["detections.labels"])
    torch.testing.assert_close(found.scores, given["detections.scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(
        found.pred_boxes.tensor, given["detections.boxes"], atol=1e-3, rtol=0
    )
    expected = np.unpackbits(given["detections.masks"].numpy(), axis=-1, count=width)
    assert found.pred_masks.shape == expected.shape
    # A pixel whose probability is 0.5 to six digits may fall on either side.
    assert (found.pred_masks.numpy() != expected.astype(bool)).mean() < 1e-5
    assert found.pred_classes.unique().tolist() == list(range(about["num_classes"]))


def test_proposals(given, model, image):
    """The RPN's boxes in their order: before any RoI."""
    with torch.no_grad():
        images = model.preprocess_image([{"image": image}])
        proposals, _ = model.proposal_generator(images, model.backbone(images.tensor), None)
    (found,) = proposals
    torch.testing.assert_close(
        found.objectness_logits.sigmoid(), given["proposals.scores"], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(
        found.proposal_boxes.tensor, given["proposals.boxes"], atol=1e-3, rtol=0
    )


def test_anchors(given, about, released):
    generator = instantiate(released.proposal_generator.anchor_generator)
    maps = [torch.empty(1, 1, h, w) for h, w in about["anchor_maps"]]
    for level, anchors in enumerate(generator(maps)):
        torch.testing.assert_close(anchors.tensor, given[f"anchors.{level}"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("part", ["rpn", "head"])
def test_box_deltas(given, about, released, part):
    """Order, scales, and the largest growth; both sides clip to the image afterwards."""
    config = {"rpn": released.proposal_generator, "head": released.roi_heads.box_predictor}[part]
    transform = instantiate(config.box2box_transform)
    boxes = Boxes(transform.apply_deltas(given["deltas.deltas"], given["deltas.boxes"]))
    boxes.clip(tuple(about["decode_shape"]))
    torch.testing.assert_close(boxes.tensor, given[f"deltas.{part}"], atol=1e-3, rtol=0)


def test_levels_of_boxes(given, released):
    """sqrt(area) of 112, 224 and 448 pixels are where the next level begins."""
    pooler = instantiate(released.roi_heads.box_pooler)
    levels = assign_boxes_to_levels(
        [Boxes(given["levels.boxes"])],
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )
    assert torch.equal(levels, given["levels.levels"])


@pytest.mark.parametrize(("pooler", "size"), [("box_pooler", 7), ("mask_pooler", 14)])
def test_roi_align(given, released, pooler, size):
    """Aligned, with as many samples as a bin has pixels; RoIs over the border and tiny ones too."""
    pooler = instantiate(released.roi_heads[pooler])
    finest = pooler.level_poolers[0]
    assert isinstance(finest, ROIAlign) and finest.output_size == (size, size)
    boxes = given["roi_align.boxes"]
    rois = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
    torch.testing.assert_close(
        finest(given["roi_align.map"], rois), given[f"roi_align.{size}"], atol=1e-5, rtol=1e-5
    )


def test_last_suppression(given, released):
    """Score threshold and NMS of every class by itself, the best first."""
    predictor = instantiate(released.roi_heads.box_predictor)
    assert predictor.test_topk_per_image == 100
    found, _ = fast_rcnn_inference_single_image(
        given["nms.boxes"],
        given["nms.scores"],
        (200, 200),
        predictor.test_score_thresh,
        predictor.test_nms_thresh,
        topk_per_image=20,  # as the oracle was asked
    )
    assert torch.equal(found.pred_classes, given["nms.labels"])
    kept = torch.cat([found.pred_boxes.tensor, found.scores[:, None]], dim=1)
    torch.testing.assert_close(kept, given["nms.kept"], atol=1e-5, rtol=0)


def test_image_sizes(about):
    """800 pixels, at most 1333, rounded alike."""
    mapper = LazyConfig.load(str(CONFIG)).dataloader.test.mapper
    (resize,) = mapper.augmentations
    assert mapper.image_format == "RGB"
    assert (resize.short_edge_length, resize.max_size) == (800, 1333)
    for (height, width), expected in about["resize_1333_800"]:
        size = ResizeShortestEdge.get_output_shape(height, width, 800, 1333)
        assert list(size) == expected, (height, width)


def test_class_order(about):
    """MMDetection's classes are Detectron2's contiguous ones; the detections say where they begin."""
    assert [c["name"] for c in COCO_CATEGORIES if c["isthing"]] == about["coco_classes"]


def names_of_size_s(detector):
    """Every name of an 80-class model of size S in MMDetection, with tensors of its shape."""
    lines = (DATA / "keys_mask_rcnn.txt").read_text().splitlines()
    if detector == "faster_rcnn":
        lines = [line for line in lines if ".mask_head." not in line]
    elif detector != "mask_rcnn":  # neck and head stand in a file of their own
        lines = [line for line in lines if line.startswith("backbone.")]
        lines += (DATA / f"keys_{detector}.txt").read_text().splitlines()
    official = {}
    for line in lines:
        name, shape = line.split("\t")
        shape = [int(n) for n in shape.strip("(),").split(",") if n]
        kind = torch.long if name.endswith("num_batches_tracked") else torch.float32
        official[name] = torch.zeros((), dtype=kind).expand(shape)
        if name.endswith("integral.project"):
            official[name] = torch.arange(shape[0]).float()
    return official


@pytest.mark.parametrize(
    ("detector", "leaf"),
    [
        ("mask_rcnn", "mask_rcnn_comer_s_1x"),
        ("faster_rcnn", "faster_rcnn_comer_s_3x"),
        ("atss", "atss_comer_s_3x"),
        ("gfl", "gfl_comer_s_3x"),
    ],
)
def test_every_name_of_size_s(detector, leaf):
    """An 80-class model of size S in MMDetection converts to just the config's model, and back."""
    config = LazyConfig.load(str(ROOT / f"configs/COCO/{leaf}.py")).model
    config.backbone.bottom_up.vit.pretrain_img_size = 592  # DINOv2's, as the names were written
    with torch.device("meta"):
        model = instantiate(config)
    official = names_of_size_s(detector)
    converted, _ = convert_weights(model, official)
    assert {n: t.shape for n, t in converted.items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    back, _ = convert_weights(model, converted, "official")
    assert {n: t.shape for n, t in back.items()} == {n: t.shape for n, t in official.items()}


def test_upernet_of_size_s():
    """What UPerNet's config builds is what goes to the authors' names and comes back."""
    path = ROOT / "configs/ADE20K/semantic/upernet_comer_s.py"
    with torch.device("meta"):
        model = instantiate(LazyConfig.load(str(path)).model)
    own = model.state_dict()
    weights = {n: torch.zeros((), dtype=t.dtype).expand(t.shape) for n, t in own.items()}
    official, _ = convert_weights(model, weights, "official")
    converted, _ = convert_weights(model, official)
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in weights.items()}
