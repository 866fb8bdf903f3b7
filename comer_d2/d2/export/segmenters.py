"""Mask2Former, EoMT and UPerNet for torch.export."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..modeling.mask2former import Mask2Former
from ..modeling.mask_inference import MASKS_AT_A_TIME
from ..modeling.semantic_segmentor import SemanticSegmentor
from .images import Images, Prepared, Size


class Scores(NamedTuple):
    """Semantic segmentation of a batch.

    Attributes:
        sem_seg: (B, K, H, W): the class with the highest is the pixel's.
    """

    sem_seg: Tensor


class Masks(NamedTuple):
    """The best pairs of query and class of a batch, best class first.

    Attributes:
        scores: (B, N), class probability times the mask's mean probability inside itself; 0: no mask.
        classes: (B, N) int64.
        masks: (B, N, H, W) bool.
    """

    scores: Tensor
    classes: Tensor
    masks: Tensor


class ScoresAndMasks(NamedTuple):
    """Both, of a model for both: see `Scores` and `Masks`."""

    sem_seg: Tensor
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
    """Inference of a model of queries, for the tasks "semantic" and "instance".

    Putting panoptic segments together takes steps that depend on what was found, which a program of
    tensors does not hold: a panoptic model exports as one for the other two tasks.

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
        panoptic = "panoptic" in model.tasks
        self.semantic = "semantic" in model.tasks or panoptic
        self.instance = "instance" in model.tasks or panoptic
        self.max_instances = model.max_instances
        self.stuff_classes = sorted(model.stuff_classes)

    def forward(self, images: Tensor) -> Scores | Masks | ScoresAndMasks:
        """Pixels (B, 3, H, W) -> what the tasks ask for."""
        prepared = self.images(images)
        outputs = self.head(self.backbone(prepared.pixels))
        logits, masks = outputs["pred_logits"].float(), outputs["pred_masks"].float()
        if not self.instance:
            return Scores(semantic_scores(logits, masks, prepared))
        found = self._instances(logits, masks, prepared)
        if not self.semantic:
            return found
        return ScoresAndMasks(semantic_scores(logits, masks, prepared), *found)

    def _instances(self, logits: Tensor, masks: Tensor, prepared: Prepared) -> Masks:
        num_classes = logits.shape[-1] - 1
        probabilities = logits.softmax(dim=-1)[..., :-1]
        number = min(self.max_instances, probabilities[0].numel())
        scores, pairs = probabilities.flatten(1).topk(number)
        queries, classes = pairs // num_classes, pairs % num_classes
        own = masks.gather(1, queries[..., None, None].expand(-1, -1, *masks.shape[-2:]))
        enlarged = cut_out(resized(own, prepared.padded), prepared)
        inside = enlarged > 0
        area = inside.flatten(2).sum(2)
        quality = (enlarged.sigmoid() * inside).flatten(2).sum(2) / area.clamp(min=1)
        if self.stuff_classes:
            stuff = torch.tensor(self.stuff_classes, device=classes.device)
            quality = quality.masked_fill((classes[..., None] == stuff).any(-1), 0)
        return Masks(scores * quality, classes, inside)


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
        raise ValueError("a model with views of an image does not export: leave model.views out")
