"""Mask2Former as a Detectron2 model: semantic, instance and panoptic segmentation by one head."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from detectron2.structures import BitMasks, ImageList, PolygonMasks
from torch import Tensor, nn

from .images import prepare_images
from .mask_inference import Frame, instances, panoptic_segments, semantic_scores
from .semantic_tta import SemanticViews

TASKS = ("semantic", "instance", "panoptic")


class Mask2Former(nn.Module):
    """A backbone, Mask2Former's head and its criterion, with Detectron2's inputs and outputs.

    Names in the ``state_dict`` are the official project's: ``backbone``, ``sem_seg_head`` and
    ``criterion``.

    Source: arXiv 2112.01527.

    Args:
        backbone: gives ``res2`` to ``res5``, or what the head reads.
        sem_seg_head: feature maps -> ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, H/4, W/4)
            and ``aux_outputs``; the identity if these are what the backbone gives, as EoMT does.
        criterion: (outputs, targets) -> weighted losses; targets are `labels` (n,) and `masks`
            (n, H, W) of every image.
        pixel_mean: per channel.
        pixel_std: per channel.
        tasks: what is predicted: some of "semantic", "instance", "panoptic".
        stuff_classes: numbers of the classes that have no instances.
        ignore_value: label of pixels of `sem_seg` that belong to no class.
        max_instances: per image, for "instance".
        score_threshold: of queries, for "panoptic".
        overlap_threshold: share of its own mask that a query must win, for "panoptic".
        views: of the image, for "semantic" alone; None: the image as it is.
        input_format: the order of channels that the model is trained on.

    Raises:
        ValueError: for unknown tasks, views together with other tasks than "semantic", or limits that
            would leave nothing.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: nn.Module,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        tasks: Sequence[str] = TASKS,
        stuff_classes: Sequence[int] = (),
        ignore_value: int = 255,
        max_instances: int = 100,
        score_threshold: float = 0.8,
        overlap_threshold: float = 0.8,
        views: SemanticViews | None = None,
        input_format: str = "RGB",
    ) -> None:
        super().__init__()
        if not tasks or set(tasks) - set(TASKS):
            raise ValueError(f"tasks must be some of {list(TASKS)}, got {list(tasks)}")
        if views is not None and list(tasks) != ["semantic"]:
            raise ValueError(f"views are for tasks=['semantic'] alone, got tasks={list(tasks)}")
        if max_instances < 1 or not (0 <= score_threshold < 1 and 0 <= overlap_threshold <= 1):
            raise ValueError(
                "max_instances must be at least 1, score_threshold in [0, 1) and overlap_threshold in "
                f"[0, 1], got {max_instances}, {score_threshold} and {overlap_threshold}"
            )
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.criterion = criterion
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.tasks = tuple(tasks)
        self.stuff_classes = frozenset(stuff_classes)
        self.ignore_value = ignore_value
        self.max_instances = max_instances
        self.score_threshold = score_threshold
        self.overlap_threshold = overlap_threshold
        self.views = views
        self.input_format = input_format

    @property
    def device(self) -> torch.device:
        """Where the model is, and its images go."""
        return self.pixel_mean.device

    @property
    def num_queries(self) -> int:
        """Objects that can be found in an image, by whichever part has the queries."""
        predicts_itself = isinstance(self.sem_seg_head, nn.Identity)
        return (self.backbone if predicts_itself else self.sem_seg_head).num_queries

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Images and targets -> losses in training; images -> segmentations otherwise.

        Args:
            batched_inputs: for every image `image`, (3, h, w). In training either `instances`, with
                `gt_classes` and `gt_masks` (things, and stuff too for panoptic segmentation), or
                `sem_seg`, (h, w) classes, of which each becomes one mask. Otherwise optionally
                `height` and `width` of the output.

        Returns:
            In training a dict of weighted losses. Otherwise for every image, as tasks ask:
            `sem_seg`, (K, height, width); `instances`, with `scores`, `pred_classes`, `pred_masks`
            and `pred_boxes`; `panoptic_seg`, ((height, width) int32 ids, a list of segments with
            `id`, `isthing`, `category_id` and `score`).
        """
        if self.training:
            images = self._prepare(batched_inputs)
            outputs = self.sem_seg_head(self.backbone(images.tensor))
            return self.criterion(outputs, self._targets(batched_inputs, images))
        if self.views is not None:
            return self.views(self._predict, batched_inputs, softmax=False)
        return self._predict(batched_inputs)

    def loss_scales(self, batches: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
        """For gradient accumulation: see :meth:`SetCriterion.accumulation_scales`."""
        counts = [[self._num_objects(record) for record in batch] for batch in batches]
        return self.criterion.accumulation_scales(counts, self.num_queries)

    def _num_objects(self, record: dict[str, Any]) -> int:
        if "instances" in record:
            return len(record["instances"])
        return len(_of_label_map(record["sem_seg"], self.ignore_value)[0])

    def _predict(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        images = self._prepare(batched_inputs)
        outputs = self.sem_seg_head(self.backbone(images.tensor))
        padded = tuple(images.tensor.shape[-2:])
        results = []
        for logits, masks, record, size in zip(
            outputs["pred_logits"],
            outputs["pred_masks"],
            batched_inputs,
            images.image_sizes,
            strict=True,
        ):
            output_size = (record.get("height", size[0]), record.get("width", size[1]))
            results.append(self._infer(logits, masks, Frame(padded, tuple(size), output_size)))
        return results

    def _infer(self, logits: Tensor, masks: Tensor, frame: Frame) -> dict[str, Any]:
        """One image's queries -> what the tasks ask for."""
        result: dict[str, Any] = {}
        if "semantic" in self.tasks:
            result["sem_seg"] = semantic_scores(logits, masks, frame)
        if "instance" in self.tasks:
            result["instances"] = instances(
                logits,
                masks,
                frame,
                max_instances=self.max_instances,
                stuff_classes=self.stuff_classes,
            )
        if "panoptic" in self.tasks:
            result["panoptic_seg"] = panoptic_segments(
                logits,
                masks,
                frame,
                stuff_classes=self.stuff_classes,
                score_threshold=self.score_threshold,
                overlap_threshold=self.overlap_threshold,
            )
        return result

    def _prepare(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        return prepare_images(batched_inputs, self.backbone, self.pixel_mean, self.pixel_std)

    def _targets(
        self, batched_inputs: list[dict[str, Any]], images: ImageList
    ) -> list[dict[str, Any]]:
        """Labels, masks and name of every image, the masks padded as the images are."""
        targets = []
        for record in batched_inputs:
            if "instances" in record:
                labels, masks = _of_instances(record)
            else:
                labels, masks = _of_label_map(record["sem_seg"].to(self.device), self.ignore_value)
            masks = masks.to(self.device)
            padded = masks.new_zeros(len(masks), *images.tensor.shape[-2:])
            padded[:, : masks.shape[1], : masks.shape[2]] = masks
            target = {"labels": labels.to(self.device), "masks": padded}
            name = {"name": record["file_name"]} if "file_name" in record else {}
            targets.append(target | name)
        return targets


def _of_instances(record: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Labels (n,) and masks (n, h, w) bool."""
    found = record["instances"]
    if not found.has("gt_masks"):  # an image without annotations
        return found.gt_classes, torch.zeros(0, *found.image_size, dtype=torch.bool)
    masks = found.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *found.image_size)
    return found.gt_classes, masks.tensor


def _of_label_map(labels: Tensor, ignore_value: int) -> tuple[Tensor, Tensor]:
    """(h, w) -> the classes (n,) that are there, and their masks (n, h, w) bool."""
    present = labels.unique()
    present = present[present != ignore_value]
    return present, labels[None] == present[:, None, None]
