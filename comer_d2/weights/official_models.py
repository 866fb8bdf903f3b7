"""The authors' whole models, by OpenMMLab's names <-> by the names of the models here.

Mask R-CNN of MMDetection 2 and 3 is Detectron2's ``GeneralizedRCNN`` under other names. What is not
in weights is the same in the configs here (tests/d2/test_weights_official.py shows each against
numbers of MMDetection): class order with the background last, the order of anchors and box deltas,
fc1's flattening, RoIAlign, level assignment, thresholds, RGB with ImageNet's mean and deviation. So
no tensor changes: a conversion is renaming.

Three differences are left, all too small to show in detections: MMDetection also limits by how much
a box delta shrinks a box (to 1/62.5, as both limit its growth); a box less than 6e-5 pixels smaller
than where a pyramid level begins belongs to that level there and to the one before here; and images
are resized by OpenCV there and Pillow here, which differ by at most one of 255 where they enlarge, as
they do all images of COCO.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..heads.upernet import UPerNetHead
from .files import WeightsError, check_finite, first
from .ledger import Ledger, Pretraining
from .official import (
    is_official,
    official_backbone,
    to_official,
    translate,
    under,
    without_wrapper,
)
from .sizes import Sizes, check_whole

MASK_RCNN = {
    **{f"neck.lateral_convs.{i}.conv": f"backbone.fpn_lateral{i + 2}" for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv": f"backbone.fpn_output{i + 2}" for i in range(4)},
    "rpn_head.rpn_conv": "proposal_generator.rpn_head.conv",
    "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
    "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    "roi_head.bbox_head.shared_fcs.0": "roi_heads.box_head.fc1",
    "roi_head.bbox_head.shared_fcs.1": "roi_heads.box_head.fc2",
    "roi_head.bbox_head.fc_cls": "roi_heads.box_predictor.cls_score",
    "roi_head.bbox_head.fc_reg": "roi_heads.box_predictor.bbox_pred",
    **{
        f"roi_head.mask_head.convs.{i}.conv": f"roi_heads.mask_head.mask_fcn{i + 1}"
        for i in range(4)
    },
    "roi_head.mask_head.upsample": "roi_heads.mask_head.deconv",
    "roi_head.mask_head.conv_logits": "roi_heads.mask_head.predictor",
}


def conv_norm(official: str, here: str) -> dict[str, str]:
    """A convolution and its norm, as the two sides call them."""
    return {f"{official}.conv": f"{here}.conv", f"{official}.bn": f"{here}.norm"}


DECODER = {
    **{
        old: new
        for i in range(4)
        for old, new in conv_norm(f"psp_modules.{i}.1", f"pooling.branches.{i}").items()
    },
    **conv_norm("bottleneck", "pooling.fuse"),
    **{
        old: new
        for i in range(3)
        for part, name in (("lateral_convs", "laterals"), ("fpn_convs", "outputs"))
        for old, new in conv_norm(f"{part}.{i}", f"{name}.{i}").items()
    },
    **conv_norm("fpn_bottleneck", "fuse"),
    "conv_seg": "classifier",
}
UPERNET = {
    **under("decode_head.", "sem_seg_head.decoder.", DECODER),
    **under(
        "auxiliary_head.",
        "sem_seg_head.auxiliary.",
        {**conv_norm("convs.0", "conv"), "conv_seg": "classifier"},
    ),
}


@dataclass(frozen=True)
class Model:
    """One kind of model.

    Args:
        title: for people.
        heads: names of its modules outside the backbone, official -> here.
        backbone: the backbone's prefix here; the official one is ``backbone.``
        sizes: tensors of the heads by the names here -> those of a whole model, for their shapes.
        sign: the official names that no other model has begin so.
        own_sign: the names here that no other model has begin so.
    """

    title: str
    heads: Mapping[str, str]
    backbone: str
    sizes: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
    sign: str
    own_sign: str


def convert_official_detector(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turns the authors' Mask R-CNN into the state dict of this project's.

    Args:
        state_dict: of MMDetection 2 or 3: the model's tensors, or a checkpoint with these in its
            ``state_dict``.

    Returns:
        Tensors for a model of ``configs/COCO/mask_rcnn_comer_*.py``; they share memory with the
        given ones.

    Raises:
        WeightsError: for names that the model does not have, or that are missing, for shapes that
            do not fit together, and for values that are not finite.
    """
    return official_detector(state_dict).tensors


def to_official_detector(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_official_detector`; raises as it does."""
    return restore(DETECTOR, state_dict)


def convert_official_segmentor(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turns the authors' UPerNet, of MMSegmentation, into the state dict of this project's.

    For a model of ``configs/common/models/upernet_comer.py``; arguments and errors as
    :func:`convert_official_detector`.
    """
    return official_segmentor(state_dict).tensors


def to_official_segmentor(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_official_segmentor`; raises as it does."""
    return restore(SEGMENTOR, state_dict)


def official_detector(state_dict: Mapping[str, Any]) -> Pretraining:
    """As :func:`convert_official_detector`, with the books."""
    return convert(DETECTOR, state_dict)


def official_segmentor(state_dict: Mapping[str, Any]) -> Pretraining:
    """As :func:`convert_official_segmentor`, with the books."""
    return convert(SEGMENTOR, state_dict)


def is_official_detector(names: Iterable[str]) -> bool:
    """Whether a state dict is of the authors' Mask R-CNN."""
    return is_model(DETECTOR, names)


def is_official_segmentor(names: Iterable[str]) -> bool:
    """Whether a state dict is of the authors' UPerNet."""
    return is_model(SEGMENTOR, names)


def read_official(state_dict: Mapping[str, Any]) -> Pretraining:
    """Any state dict of the authors: a whole model where there is one here, else its backbone.

    Of the Co-DETR branch's detectors, for instance, it is the backbone; the rest is listed as not
    used.
    """
    inner = without_wrapper(state_dict)
    for model in (DETECTOR, SEGMENTOR):
        if is_model(model, inner):
            return convert(model, inner)
    return official_backbone(inner)


def write_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Any state dict of this project, of a Mask R-CNN, a UPerNet or a backbone, by official names."""
    for model in (DETECTOR, SEGMENTOR):
        if any(name.startswith(model.own_sign) for name in state_dict):
            return restore(model, state_dict)
    return to_official(state_dict)


def has_official_heads(names: Iterable[str]) -> bool:
    """Whether a model of this project has heads that the authors have names for."""
    signs = (DETECTOR.own_sign, SEGMENTOR.own_sign)
    return any(name.startswith(signs) for name in names)


def is_model(model: Model, names: Iterable[str]) -> bool:
    """Whether official names are of one kind of model."""
    names = list(names)
    return is_official(names) and any(name.startswith(model.sign) for name in names)


def convert(model: Model, state_dict: Mapping[str, Any]) -> Pretraining:
    """Official -> here, with the books."""
    state_dict = without_wrapper(state_dict)
    inner = {n: t for n, t in state_dict.items() if n.startswith("backbone.")}
    ledger = Ledger({n: t for n, t in state_dict.items() if n not in inner}, model.title)
    for name in list(ledger.left):
        if new_name := translate(name, model.heads):
            ledger.move(name, new_name)
    if ledger.left:
        raise WeightsError(f"{model.title} has no {first(list(map(repr, ledger.left)))}")
    heads = ledger.result.tensors
    check_finite(state_dict, model.title)
    check_heads(model, heads)
    backbone = official_backbone(inner)
    for name, tensor in backbone.tensors.items():
        ledger.put(model.backbone + name, tensor)
    ledger.result.parts += [
        replace(part, target=part.target and model.backbone + part.target)
        for part in backbone.parts
    ]
    return ledger.result


def restore(model: Model, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Here -> official."""
    inverse = {new: old for old, new in model.heads.items()}
    backbone, heads, official, foreign = {}, {}, {}, []
    for name, tensor in state_dict.items():
        # The pyramid of Mask R-CNN is `backbone.` too, so the heads have to be asked first.
        if old_name := translate(name, inverse):
            heads[name] = official[old_name] = tensor
        elif name.startswith(model.backbone):
            backbone[name.removeprefix(model.backbone)] = tensor
        else:
            foreign.append(repr(name))
    if foreign:
        raise WeightsError(f"{model.title} has no {first(foreign)}")
    check_finite(state_dict, "the model")
    check_heads(model, heads)
    return {f"backbone.{n}": t for n, t in to_official(backbone).items()} | official


def check_heads(model: Model, heads: Mapping[str, Tensor]) -> None:
    """Raises WeightsError unless the heads are whole and their shapes fit together."""
    try:
        own = model.sizes(heads)
    except ValueError as e:
        raise WeightsError(f"the heads of {model.title}: {e}") from e
    check_whole(heads, own, f"the heads of {model.title}")


def mask_rcnn_heads(heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of Mask R-CNN's heads without memory, of the sizes that some of the given ones show."""
    sizes = Sizes(heads)
    new = MASK_RCNN.__getitem__
    width, dim = sizes.shape(f"{new('neck.lateral_convs.0.conv')}.weight", 4)[:2]
    rpn = sizes.shape(f"{new('rpn_head.rpn_conv')}.weight", 4)[0]
    anchors = sizes.shape(f"{new('rpn_head.rpn_cls')}.weight", 4)[0]
    hidden = [sizes.shape(f"roi_heads.box_head.fc{i}.weight", 2)[0] for i in (1, 2)]
    mask = sizes.shape(f"{new('roi_head.mask_head.convs.0.conv')}.weight", 4)[0]
    classes = sizes.shape(f"{new('roi_head.mask_head.conv_logits')}.weight", 4)[0]
    weights = {
        **{f"neck.lateral_convs.{i}.conv": (width, dim, 1, 1) for i in range(4)},
        **{f"neck.fpn_convs.{i}.conv": (width, width, 3, 3) for i in range(4)},
        "rpn_head.rpn_conv": (rpn, width, 3, 3),
        "rpn_head.rpn_cls": (anchors, rpn, 1, 1),
        "rpn_head.rpn_reg": (4 * anchors, rpn, 1, 1),
        "roi_head.bbox_head.shared_fcs.0": (hidden[0], width * 7 * 7),
        "roi_head.bbox_head.shared_fcs.1": (hidden[1], hidden[0]),
        "roi_head.bbox_head.fc_cls": (classes + 1, hidden[1]),  # the background is the last
        "roi_head.bbox_head.fc_reg": (4 * classes, hidden[1]),
        "roi_head.mask_head.convs.0.conv": (mask, width, 3, 3),
        **{f"roi_head.mask_head.convs.{i}.conv": (mask, mask, 3, 3) for i in range(1, 4)},
        "roi_head.mask_head.upsample": (mask, mask, 2, 2),
        "roi_head.mask_head.conv_logits": (classes, mask, 1, 1),
    }
    own = {}
    for module, shape in weights.items():
        own[f"{new(module)}.weight"] = torch.empty(shape, device="meta")
        own[f"{new(module)}.bias"] = torch.empty(shape[0], device="meta")
    return own


def upernet_heads(heads: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of UPerNet's heads without memory, of the sizes that some of the given ones show."""
    sizes = Sizes(heads)
    decoder, auxiliary = "sem_seg_head.decoder.", "sem_seg_head.auxiliary."
    channels, coarsest = sizes.shape(f"{decoder}pooling.branches.0.conv.weight", 4)[:2]
    fine = [sizes.shape(f"{decoder}laterals.{i}.conv.weight", 4)[1] for i in range(3)]
    with torch.device("meta"):
        head = UPerNetHead(
            in_channels=[*fine, coarsest],
            num_classes=sizes.shape(f"{decoder}classifier.weight", 4)[0],
            channels=channels,
            auxiliary_channels=sizes.shape(f"{auxiliary}conv.conv.weight", 4)[0],
        )
    return {f"sem_seg_head.{name}": tensor for name, tensor in head.state_dict().items()}


DETECTOR = Model(
    "the authors' Mask R-CNN",
    MASK_RCNN,
    "backbone.bottom_up.",
    mask_rcnn_heads,
    "roi_head.bbox_head.",
    "roi_heads.",
)
SEGMENTOR = Model(
    "the authors' UPerNet",
    UPERNET,
    "backbone.",
    upernet_heads,
    "decode_head.psp_modules.",
    "sem_seg_head.decoder.",
)
