"""Mask2Former, EoMT and UPerNet for torch.export."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..modeling.mask2former import Mask2Former
from ..modeling.mask_inference import Frame, semantic_scores
from ..modeling.semantic_segmentor import SemanticSegmentor
from .images import Images


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

    Raises:
        ValueError: the model predicts from several views.
    """

    def __init__(self, model: SemanticSegmentor) -> None:
        super().__init__()
        _check_views(model)
        self.images = Images(model)
        self.backbone = model.backbone
        self.head = model.sem_seg_head

    def forward(self, images: Tensor) -> Scores:
        """Pixels (B, 3, H, W) -> logits."""
        logits, _ = self.head(self.backbone(self.images(images)), None)
        height, width = images.shape[-2:]
        return Scores(logits[..., :height, :width])


class TraceableMask2Former(nn.Module):
    """Inference of a model of queries, for the tasks "semantic" and "instance".

    Putting panoptic segments together takes steps that depend on what was found, which a program of
    tensors does not hold: a panoptic model exports as one for the other two tasks.

    Args:
        model: without views.

    Raises:
        ValueError: the model predicts from several views.
    """

    def __init__(self, model: Mask2Former) -> None:
        super().__init__()
        _check_views(model)
        self.images = Images(model)
        self.backbone = model.backbone
        self.head = model.sem_seg_head
        panoptic = "panoptic" in model.tasks
        self.semantic = "semantic" in model.tasks or panoptic
        self.instance = "instance" in model.tasks or panoptic
        self.max_instances = model.max_instances
        self.stuff_classes = sorted(model.stuff_classes)

    def forward(self, images: Tensor) -> Scores | Masks | ScoresAndMasks:
        """Pixels (B, 3, H, W) -> what the tasks ask for."""
        padded = self.images(images)
        outputs = self.head(self.backbone(padded))
        logits, masks = outputs["pred_logits"], outputs["pred_masks"]
        size, full = tuple(images.shape[-2:]), tuple(padded.shape[-2:])
        if not self.instance:
            return Scores(_scores(logits, masks, Frame(full, size, size)))
        found = self._instances(logits, masks, full, size)
        if not self.semantic:
            return found
        return ScoresAndMasks(_scores(logits, masks, Frame(full, size, size)), *found)

    def _instances(
        self, logits: Tensor, masks: Tensor, full: tuple[int, int], size: tuple[int, int]
    ) -> Masks:
        num_classes = logits.shape[-1] - 1
        probabilities = logits.float().softmax(dim=-1)[..., :-1]
        number = min(self.max_instances, probabilities[0].numel())
        scores, pairs = probabilities.flatten(1).topk(number)
        queries, classes = pairs // num_classes, pairs % num_classes
        own = masks.float().gather(1, queries[..., None, None].expand(-1, -1, *masks.shape[-2:]))
        enlarged = nn.functional.interpolate(own, size=full, mode="bilinear", align_corners=False)
        enlarged = enlarged[..., : size[0], : size[1]]
        inside = enlarged > 0
        area = inside.flatten(2).sum(2)
        quality = (enlarged.sigmoid() * inside).flatten(2).sum(2) / area.clamp(min=1)
        if self.stuff_classes:
            stuff = torch.tensor(self.stuff_classes, device=classes.device)
            quality = quality.masked_fill((classes[..., None] == stuff).any(-1), 0)
        return Masks(scores * quality, classes, inside)


def _scores(logits: Tensor, masks: Tensor, frame: Frame) -> Tensor:
    return torch.stack([semantic_scores(*image, frame) for image in zip(logits, masks)])


def _check_views(model: nn.Module) -> None:
    if model.views is not None:
        raise ValueError("a model with views of an image does not export: leave model.views out")
