"""Faster, Mask and Cascade R-CNN for torch.export.

Detectron2's modules with the steps between them written for tensors of known sizes: places for
proposals and detections that may stay empty, where its own inference has lists as long as the image asks
for.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from ...heads.detections import Detections, best_detections, suppress
from .images import Images


class DetectionsWithMasks(NamedTuple):
    """Detections of a batch.

    Attributes:
        boxes: (B, N, 4): x1, y1, x2, y2 in pixels.
        scores: (B, N), in [0, 1].
        classes: (B, N) int64.
        masks: (B, N, S, S), probabilities in a grid over each box.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor


class TraceableRCNN(nn.Module):
    """An R-CNN's inference.

    Args:
        model: with an RPN and Detectron2's standard or cascaded heads, with or without masks.
        images: what is done to its images.

    Raises:
        ValueError: a part is another one, or the number of detections is not limited.
    """

    def __init__(self, model: GeneralizedRCNN, images: Images) -> None:
        super().__init__()
        rpn, heads = model.proposal_generator, model.roi_heads
        if not isinstance(rpn, RPN) or not isinstance(heads, StandardROIHeads):
            raise ValueError(
                f"an R-CNN exports with an RPN and StandardROIHeads or CascadeROIHeads, this one has "
                f"{type(rpn).__name__} and {type(heads).__name__}"
            )
        if heads.keypoint_on:
            raise ValueError("keypoints do not export")
        self.images = images
        self.backbone = model.backbone
        self.rpn = rpn
        self.roi_heads = heads
        # Standard heads have one stage.
        cascade = isinstance(heads, CascadeROIHeads)
        self.box_heads = nn.ModuleList(heads.box_head if cascade else [heads.box_head])
        self.box_predictors = nn.ModuleList(
            heads.box_predictor if cascade else [heads.box_predictor]
        )
        if self.box_predictors[-1].test_topk_per_image < 1:
            raise ValueError(
                "an R-CNN exports with test_topk_per_image of its box predictors from 1 on, got "
                f"{self.box_predictors[-1].test_topk_per_image}"
            )

    def forward(self, images: Tensor) -> Detections | DetectionsWithMasks:
        """Pixels (B, 3, H, W) -> `test_topk_per_image` places for detections."""
        prepared = self.images(images)
        size = prepared.size
        features = self.backbone(prepared.pixels)
        found = self.detect(features, *self.propose(features, size), size)
        given = found._replace(boxes=prepared.boxes(found.boxes))
        if not self.roi_heads.mask_on:
            return given
        return DetectionsWithMasks(*given, self.masks(features, found))

    def propose(self, features: Mapping[str, Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Boxes of the proposals, (B, R, 4), and which of these places have one, (B, R) bool."""
        rpn = self.rpn
        maps = [features[name] for name in rpn.in_features]
        boxes, scores, levels = [], [], []
        predicted = zip(rpn.anchor_generator(maps), *rpn.rpn_head(maps), strict=True)
        for level, (anchors, logits, deltas) in enumerate(predicted):
            num_anchors = logits.shape[1]
            logits = logits.permute(0, 2, 3, 1).flatten(1)
            deltas = deltas.unflatten(1, (num_anchors, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            # sym_min: in torch.export, which of them it is stays open.
            best, at = logits.topk(torch.sym_min(rpn.pre_nms_topk[False], logits.shape[1]))
            chosen = anchors.tensor[at]
            deltas = deltas.gather(1, at[..., None].expand_as(chosen))
            decoded = rpn.box2box_transform.apply_deltas(deltas.flatten(0, 1), chosen.flatten(0, 1))
            boxes.append(decoded.view_as(chosen))
            scores.append(best)
            levels.append(torch.full_like(at, level))
        candidates = Detections(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(levels, 1))
        finite = candidates.boxes.isfinite().all(dim=-1) & candidates.scores.isfinite()
        candidates = candidates._replace(boxes=clip_boxes_to_image(candidates.boxes, tuple(size)))
        sides = candidates.boxes[..., 2:] - candidates.boxes[..., :2]
        usable = finite & (sides > rpn.min_box_size).all(dim=-1)
        kept = suppress(candidates, usable, rpn.nms_thresh)
        proposals = best_detections(candidates, kept, rpn.post_nms_topk[False])
        return proposals.boxes, proposals.classes >= 0

    def detect(
        self, features: Mapping[str, Tensor], boxes: Tensor, usable: Tensor, size: Sequence[int]
    ) -> Detections:
        """Proposals (B, R, 4) -> detections, by one box head after the other."""
        maps = [features[name] for name in self.roi_heads.box_in_features]
        size = tuple(size)
        scores = []
        for head, predictor in zip(self.box_heads, self.box_predictors, strict=True):
            # Of every proposal 4 numbers, or 4 of every class.
            proposals = clip_boxes_to_image(boxes.flatten(1, 2).unflatten(1, (-1, 4)), size)
            pooled = pool(self.roi_heads.box_pooler, maps, proposals)
            logits, deltas = predictor(head(pooled))
            decoded = predictor.box2box_transform.apply_deltas(deltas, proposals.flatten(0, 1))
            boxes = decoded.unflatten(0, usable.shape)
            scores.append(probabilities(predictor, logits).unflatten(0, usable.shape))
        mean = torch.stack(scores).mean(dim=0)
        boxes = boxes.unflatten(-1, (-1, 4))
        finite = boxes.isfinite().flatten(2).all(dim=-1) & mean.isfinite().all(dim=-1)
        return self.choose(clip_boxes_to_image(boxes, size), mean[..., :-1], usable & finite)

    def choose(self, boxes: Tensor, scores: Tensor, usable: Tensor) -> Detections:
        """The best pairs of proposal and class.

        Args:
            boxes: (B, R, K or 1, 4).
            scores: (B, R, K).
            usable: (B, R) bool.
        """
        predictor = self.box_predictors[-1]
        classes = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
        usable = usable[..., None] & (scores > predictor.test_score_thresh)
        candidates = Detections(
            boxes.expand(*scores.shape, 4).flatten(1, 2), scores.flatten(1), classes.flatten(1)
        )
        kept = suppress(candidates, usable.flatten(1), predictor.test_nms_thresh)
        return best_detections(candidates, kept, predictor.test_topk_per_image)

    def masks(self, features: Mapping[str, Tensor], found: Detections) -> Tensor:
        """(B, N, S, S), the probabilities of each detection's own class."""
        heads = self.roi_heads
        maps = [features[name] for name in heads.mask_in_features]
        logits = heads.mask_head.layers(pool(heads.mask_pooler, maps, found.boxes))
        if logits.shape[1] == 1:  # shared by all classes
            own = logits[:, 0]
        else:
            own = logits[
                torch.arange(logits.shape[0], device=logits.device),
                found.classes.flatten().clamp(min=0),
            ]
        return own.sigmoid().unflatten(0, found.classes.shape)


def probabilities(predictor: FastRCNNOutputLayers, logits: Tensor) -> Tensor:
    """(n, K + 1), the background last."""
    return logits.sigmoid() if predictor.use_sigmoid_ce else logits.softmax(dim=-1)


def pool(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Detectron2's pooler on as many boxes of every image.

    Args:
        pooler: of the maps.
        maps: (B, C, H, W) of every level.
        boxes: (B, R, 4) in pixels.

    Returns:
        (B * R, C, S, S).
    """
    batch, number, _ = boxes.shape
    flat = boxes.flatten(0, 1)
    image = torch.arange(batch, dtype=boxes.dtype, device=boxes.device)[:, None, None]
    regions = torch.cat([image.expand(-1, number, 1).flatten(0, 1), flat], dim=1)
    levels = assign_boxes_to_levels(
        [Boxes(flat)],
        pooler.min_level,
        pooler.max_level,
        pooler.canonical_box_size,
        pooler.canonical_level,
    )
    pooled = maps[0].new_zeros(flat.shape[0], maps[0].shape[1], *pooler.output_size)
    for level, (x, roi_align) in enumerate(zip(maps, pooler.level_poolers, strict=True)):
        (at,) = (levels == level).nonzero(as_tuple=True)
        pooled = pooled.index_copy(0, at, roi_align(x, regions[at]))
    return pooled
