"""Mask2Former, EoMT and UPerNet for torch.export."""

from collections import namedtuple
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...heads.detections import NOTHING
from ..modeling.mask2former import Mask2Former
from ..modeling.mask_inference import MASKS_AT_A_TIME
from ..modeling.semantic_segmentor import SemanticSegmentor
from .images import Images, Prepared, Size
from .panoptic import panoptic_segments


class Scores(NamedTuple):
    """Semantic segmentation of a batch.

    Attributes:
        sem_seg: (B, K, H, W): the class with the highest is the pixel's.
    """

    sem_seg: Tensor


class Masks(NamedTuple):
    """The best pairs of query and class of a batch, best first; places without one have class -1 and zeros.

    Attributes:
        scores: (B, N), class probability times the mask's mean probability inside itself.
        classes: (B, N) int64.
        masks: (B, N, H, W) bool.
    """

    scores: Tensor
    classes: Tensor
    masks: Tensor


class TraceableSegmentor(nn.Module):
    """Inference of a model whose head classifies pixels.

    Args:
        model: without views.
        images: what is done to its images.

    Raises:
        ValueError: the model predicts from several views.
    """

    def __init__(self, model: SemanticSegmentor, images: Images) -> None:
        super().__init__()
        _check_views(model)
        self.images = images
        self.backbone = model.backbone
        self.head = model.sem_seg_head

    def forward(self, images: Tensor) -> Scores:
        """Pixels (B, 3, H, W) -> logits."""
        prepared = self.images(images)
        logits, _ = self.head(self.backbone(prepared.pixels), None)
        return Scores(cut_out(logits, prepared))


class TraceableMask2Former(nn.Module):
    """Inference of a model of queries.

    Args:
        model: without views.
        images: what is done to its images.

    Raises:
        ValueError: the model predicts from several views.
    """

    def __init__(self, model: Mask2Former, images: Images) -> None:
        super().__init__()
        _check_views(model)
        self.images = images
        self.backbone = model.backbone
        self.head = model.sem_seg_head
        self.tasks = model.tasks
        self.max_instances = model.max_instances
        self.stuff_classes = sorted(model.stuff_classes)
        self.score_threshold = model.score_threshold
        self.overlap_threshold = model.overlap_threshold

    def forward(self, images: Tensor) -> NamedTuple:
        """Pixels (B, 3, H, W) -> the fields of `Scores`, `Masks` and `Segments`, as the tasks ask for."""
        prepared = self.images(images)
        outputs = self.head(self.backbone(prepared.pixels))
        logits, masks = outputs["pred_logits"].float(), outputs["pred_masks"].float()
        parts: list[NamedTuple] = []
        if "semantic" in self.tasks:
            parts.append(Scores(semantic_scores(logits, masks, prepared)))
        if "instance" in self.tasks:
            parts.append(self._instances(logits, masks, prepared))
        if "panoptic" in self.tasks:
            parts.append(
                panoptic_segments(
                    logits,
                    enlarged(masks, prepared),
                    stuff_classes=self.stuff_classes,
                    score_threshold=self.score_threshold,
                    overlap_threshold=self.overlap_threshold,
                )
            )
        return together(parts)

    def _instances(self, logits: Tensor, masks: Tensor, prepared: Prepared) -> Masks:
        num_classes = logits.shape[-1] - 1
        probabilities = logits.softmax(dim=-1)[..., :-1]
        number = min(self.max_instances, probabilities[0].numel())
        scores, pairs = probabilities.flatten(1).topk(number)
        queries, classes = pairs // num_classes, pairs % num_classes
        own = masks.gather(1, queries[..., None, None].expand(-1, -1, *masks.shape[-2:]))
        inside, quality = [], []
        for some in enlarged(own, prepared):
            mask = some > 0
            area = mask.flatten(2).sum(2)
            quality.append((some.sigmoid() * mask).flatten(2).sum(2) / area.clamp(min=1))
            inside.append(mask)
        scores = scores * torch.cat(quality, dim=1)
        if self.stuff_classes:
            stuff = torch.tensor(self.stuff_classes, device=classes.device)
            scores = scores.masked_fill((classes[..., None] == stuff).any(-1), 0)
        scores, order = scores.topk(number)
        empty = scores == 0
        at = order[..., None, None].expand(-1, -1, *prepared.given)
        return Masks(
            scores,
            classes.gather(1, order).masked_fill(empty, NOTHING),
            torch.cat(inside, dim=1).gather(1, at) & ~empty[..., None, None],
        )


def together(parts: Sequence[NamedTuple]) -> NamedTuple:
    """One named tuple with the fields of several."""
    fields = {name: value for part in parts for name, value in part._asdict().items()}
    return namedtuple("Outputs", fields)(**fields)  # type: ignore[misc]


def semantic_scores(logits: Tensor, masks: Tensor, prepared: Prepared) -> Tensor:
    """`comer_d2.d2.modeling.mask_inference.semantic_scores` of a batch.

    Args:
        logits: (B, Q, K + 1), the last of no object.
        masks: (B, Q, h, w) mask logits.
        prepared: the images.

    Returns:
        (B, K, *prepared.given).
    """
    probabilities = logits.softmax(dim=-1)[..., :-1]
    some = zip(*(t.split(MASKS_AT_A_TIME, 1) for t in (probabilities, masks)), strict=True)
    scores = sum(
        torch.einsum("bqk,bqhw->bkhw", own, resized(part, prepared.padded).sigmoid())
        for own, part in some
    )
    return cut_out(scores, prepared)


def enlarged(masks: Tensor, prepared: Prepared) -> Iterator[Tensor]:
    """Mask logits (B, Q, h, w) -> those of a few queries at a time, (B, q, *prepared.given)."""
    for some in masks.split(MASKS_AT_A_TIME, dim=1):
        yield cut_out(resized(some, prepared.padded), prepared)


def cut_out(maps: Tensor, prepared: Prepared) -> Tensor:
    """Maps of the padded images, (B, C, *prepared.padded) -> of the images as they came in."""
    height, width = prepared.size
    maps = maps[..., :height, :width]
    return maps if prepared.size is prepared.given else resized(maps, prepared.given)


def resized(maps: Tensor, size: Size) -> Tensor:
    """(B, C, h, w) -> (B, C, *size), bilinear."""
    return nn.functional.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _check_views(model: nn.Module) -> None:
    if model.views is not None:
        raise ValueError(
            "a model with views of an image (sliding windows, scales, flips) does not export: export it "
            "without them, with --override model.views=null"
        )
