"""Co-DETR's collaborative heads: Faster R-CNN and ATSS over the maps of DINO's encoder."""

from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from ...heads.atss import ATSSHead
from ...heads.dino.collaborative import Candidates, CollaborativeGenerator
from ...heads.dino.criterion import DINOCriterion, of_layers
from ...heads.dino.decoder import DINODecoder
from ...heads.dino.head import DINOOutputs
from ...layers.strided_conv import StridedConv2d


class CollaborativeHeads(nn.Module):
    """Two detectors that the encoder has to serve as well, and whose positives the decoder decodes.

    One-to-one matching gives the encoder few positives; these assign many boxes to every object.
    They train together with DINO and have no part in prediction.

    Source: Sec. 3 of arXiv 2211.12860.

    Args:
        proposal_generator: Detectron2's RPN; it reads all maps, ``m0`` (finest) to ``m{L}``.
        roi_heads: Detectron2's StandardROIHeads without masks; they read what they are told to.
        atss: an ATSS head; it reads all maps.
        roi_queries: makes queries of the sampled proposals.
        atss_queries: makes queries of the anchors.
        dim: channels of the encoder's maps.
        weight: of the losses of these heads: in the paper 2, for each of the 6 decoder layers.
        norm_groups: groups of the group norm of the additional coarsest map.
    """

    def __init__(
        self,
        *,
        proposal_generator: nn.Module,
        roi_heads: nn.Module,
        atss: ATSSHead,
        roi_queries: CollaborativeGenerator,
        atss_queries: CollaborativeGenerator,
        dim: int = 256,
        weight: float = 12.0,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.atss = atss
        self.roi_queries = roi_queries
        self.atss_queries = atss_queries
        self.coarser = nn.Sequential(
            StridedConv2d(dim, dim, 3, stride=2, padding=1), nn.GroupNorm(norm_groups, dim)
        )
        self.weight = weight

    def check_strides(self, strides: list[int]) -> None:
        """Raises a ValueError if one of the heads takes its maps for others: boxes would be elsewhere.

        Args:
            strides: of the encoder's maps and the additional one, finest first.
        """
        pooled = [int(name[1:]) for name in self.roi_heads.box_in_features]
        scales = [pooler.spatial_scale for pooler in self.roi_heads.box_pooler.level_poolers]
        taken = {
            "atss.strides": (list(self.atss.strides), strides),
            "proposal_generator.anchor_generator.strides": (
                list(self.proposal_generator.anchor_generator.strides),
                [strides[int(name[1:])] for name in self.proposal_generator.in_features],
            ),
            "roi_heads.box_pooler.scales": (scales, [1 / strides[i] for i in pooled]),
        }
        for name, (found, expected) in taken.items():
            if found != expected:
                raise ValueError(f"collaborative.{name} must be {expected}, got {found}")

    def forward(
        self,
        images: ImageList,
        instances: list[Instances],
        outputs: DINOOutputs,
        decoder: DINODecoder,
        criterion: DINOCriterion,
    ) -> dict[str, Tensor]:
        """Losses of the two heads, and of DINO's decoder on their positives.

        Args:
            images: the batch.
            instances: `gt_boxes` and `gt_classes` of every image.
            outputs: of DINO's head.
            decoder: of DINO's head.
            criterion: DINO's.

        Returns:
            ``loss_rpn_*``, ``loss_roi_*`` and ``loss_atss_*``; and, named as DINO's losses, those of
            every decoder layer with ``_roi`` and ``_atss``.
        """
        # Without masks, of which the sampled proposals would get a copy each.
        instances = [
            Instances(found.image_size, gt_boxes=found.gt_boxes, gt_classes=found.gt_classes)
            for found in instances
        ]
        maps = outputs.canvas.levels.maps(outputs.memory)
        maps.append(self.coarser(maps[-1]).to(maps[-1].dtype))
        roi_candidates, losses = self.faster_rcnn(images, maps, instances)
        atss_candidates, atss_losses = self.dense(images, maps, instances)
        losses = {name: loss * self.weight for name, loss in (losses | atss_losses).items()}
        for name, candidates, queries in (
            ("_roi", roi_candidates, self.roi_queries),
            ("_atss", atss_candidates, self.atss_queries),
        ):
            extra = queries(candidates)
            predictions = decoder(extra.contents, extra.boxes, outputs.memory, outputs.canvas)
            for suffix, prediction in of_layers(predictions, name).items():
                losses |= criterion.losses(prediction, extra.targets, extra.matches, suffix)
        return losses

    def faster_rcnn(
        self, images: ImageList, maps: list[Tensor], instances: list[Instances]
    ) -> tuple[list[Candidates], dict[str, Tensor]]:
        """The sampled proposals and what was assigned to them, and the losses."""
        named = {f"m{i}": level for i, level in enumerate(maps)}
        proposals, losses = self.proposal_generator(images, named, instances)
        sampled, roi_losses = self.roi_heads(images, named, proposals, instances)
        roi_losses = {name.replace("loss_", "loss_roi_"): loss for name, loss in roi_losses.items()}
        candidates = [
            candidates_of(
                found.proposal_boxes.tensor,
                found.gt_classes,
                # An image without objects gets none.
                found.get("gt_boxes" if found.has("gt_boxes") else "proposal_boxes").tensor,
                found.image_size,
            )
            for found in sampled
        ]
        return candidates, losses | roi_losses

    def dense(
        self, images: ImageList, maps: list[Tensor], instances: list[Instances]
    ) -> tuple[list[Candidates], dict[str, Tensor]]:
        """All anchors inside the images and what was assigned to them, and ATSS's losses."""
        predictions = self.atss(maps)
        targets = [
            {"boxes": found.gt_boxes.tensor, "labels": found.gt_classes} for found in instances
        ]
        learnt = self.atss.assign(predictions, targets, images.image_sizes)
        losses = self.atss.assigned_losses(predictions, learnt)
        anchors = self.atss.anchors(predictions)
        candidates = [
            candidates_of(anchors[inside], labels[inside], boxes[inside], size)
            for labels, boxes, inside, size in zip(
                learnt.labels, learnt.boxes, learnt.inside, images.image_sizes, strict=True
            )
        ]
        return candidates, {
            name.replace("loss_", "loss_atss_"): loss for name, loss in losses.items()
        }


def candidates_of(
    boxes: Tensor, labels: Tensor, objects: Tensor, image_size: tuple[int, int]
) -> Candidates:
    """Corners in pixels -> centres and sides in images.

    Args:
        boxes: (n, 4).
        labels: (n,).
        objects: (n, 4).
        image_size: (h, w) in pixels.
    """
    height, width = image_size
    unit = boxes.new_tensor([width, height, width, height])
    boxes, objects = (box_convert(b, "xyxy", "cxcywh") / unit for b in (boxes, objects))
    return Candidates(boxes, labels, objects)
