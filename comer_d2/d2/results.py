"""What a model found in one image, in plain fields."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from .errors import UserError
from .visualization.drawing import draw_instances, draw_label_map, draw_segments

if TYPE_CHECKING:
    import supervision

TASKS = ("panoptic", "instance", "semantic")


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Objects, segments and labels of one image, in its own pixels; NumPy arrays on the CPU.

    A field is None where the model does not predict it (and so are `classes` and `scores` without
    `boxes`).

    Args:
        image: (h, w, 3) uint8, RGB: what was looked at.
        class_names: name of each class number.
        file_name: path of the image, if it was read from a file.
        boxes: (n, 4) float32, (x0, y0, x1, y1), best score first.
        scores: (n,) float32, 0 to 1; None for ground truth.
        classes: (n,) int64.
        masks: (n, h, w) bool.
        label_map: (h, w) int, the class of every pixel.
        segments: (h, w) int32, segment ids of a panoptic segmentation; 0: none.
        segments_info: `id`, `category_id` (class number), `isthing` and `score` of the segments.
        stuff_classes: numbers of the classes that are no objects, which are drawn paler.
        category_ids: the dataset's number of each class.
    """

    image: np.ndarray
    class_names: Sequence[str]
    file_name: str | None = None
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    classes: np.ndarray | None = None
    masks: np.ndarray | None = None
    label_map: np.ndarray | None = None
    segments: np.ndarray | None = None
    segments_info: list[dict[str, Any]] = field(default_factory=list)
    stuff_classes: Collection[int] = ()
    category_ids: Sequence[int] | None = None

    def __len__(self) -> int:
        """Number of objects, or of segments or classes: of what `task` says."""
        if self.task == "panoptic":
            return len(self.segments_info)
        return len(self.boxes if self.task == "instance" else np.unique(self.label_map))

    def __repr__(self) -> str:
        found = ", ".join(self.names()) or "nothing"
        return f"Result({self.file_name or 'image'}: {found})"

    @property
    def task(self) -> str:
        """What `draw` shows: "panoptic", "instance" or "semantic"."""
        if self.segments is not None:
            return "panoptic"
        return "instance" if self.boxes is not None else "semantic"

    def names(self) -> list[str]:
        """Class and, where there is one, score of everything found, such as "cat 0.93"."""
        if self.task == "semantic":
            return [self.class_names[label] for label in np.unique(self.label_map).tolist()]
        if self.task == "panoptic":
            pairs = [(s["category_id"], s.get("score")) for s in self.segments_info]
        else:
            scores = [None] * len(self.classes) if self.scores is None else self.scores.tolist()
            pairs = list(zip(self.classes.tolist(), scores, strict=True))
        return [
            self.class_names[label] + ("" if score is None else f" {score:.2f}")
            for label, score in pairs
        ]

    def draw(self, *, task: str | None = None, scale: float = 1.0) -> Image.Image:
        """Draw what was found into the image.

        Args:
            task: "panoptic", "instance" or "semantic"; the default is the first the model predicts.
            scale: enlargement of the picture.

        Returns:
            A picture of (w * scale, h * scale) pixels.

        Raises:
            UserError: the model does not predict `task`, or the scale is no enlargement.
        """
        if not 0 < scale < float("inf"):
            raise UserError(f"scale={scale}: more than 0")
        task = task or self.task
        pale = {"stuff_classes": tuple(self.stuff_classes), "scale": scale}
        if task == "panoptic" and self.segments is not None:
            return draw_segments(
                self.image, self.segments, self.segments_info, self.class_names, **pale
            )
        if task == "semantic" and self.label_map is not None:
            return draw_label_map(self.image, self.label_map, self.class_names, **pale)
        if task == "instance" and self.boxes is not None:
            return draw_instances(
                self.image,
                self.boxes,
                self.classes,
                self.class_names,
                masks=self.masks,
                scores=self.scores,
                scale=scale,
            )
        raise UserError(f"there is nothing to draw for task {task!r}; this model has {self.task!r}")

    def to_coco(self, image_id: int | str = 0) -> list[dict[str, Any]]:
        """The objects in COCO's results format.

        Args:
            image_id: the dataset's number of the image.

        Returns:
            For each object image_id, category_id (of the dataset where `category_ids` is known, else
            the class number + 1), bbox [x, y, width, height] in pixels, score and, with masks,
            segmentation (compressed RLE).

        Raises:
            UserError: the model finds no objects.
        """
        if self.boxes is None:
            raise UserError(f"a {self.task} segmentation has no objects for COCO's results format")
        ids = self.category_ids or range(1, len(self.class_names) + 1)
        boxes = np.hstack([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]]).tolist()
        entries = [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score}
            for label, box, score in zip(
                self.classes.tolist(), boxes, self.scores.tolist(), strict=True
            )
        ]
        if self.masks is not None:
            for entry, mask in zip(entries, self.masks, strict=True):
                rle = mask_util.encode(np.asfortranarray(mask.view(np.uint8)))
                entry["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
        return entries

    def to_supervision(self) -> supervision.Detections:
        """The objects as supervision's Detections, for its annotators, trackers and zones.

        Where the model finds no objects, each panoptic segment is one, or each class of a label map.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            raise UserError(
                "supervision is missing: pip install 'comer_d2[supervision]'"
            ) from error
        boxes, scores, classes, masks = self.boxes, self.scores, self.classes, self.masks
        if boxes is None:
            if self.segments is not None:
                info = [(s["id"], s["category_id"], s.get("score")) for s in self.segments_info]
                where = self.segments
            else:
                info = [(label, label, None) for label in np.unique(self.label_map).tolist()]
                where = self.label_map
            masks = np.stack([where == number for number, _, _ in info]) if info else None
            classes = np.array([label for _, label, _ in info], dtype=np.int64)
            known = all(score is not None for _, _, score in info)
            scores = np.array([s for _, _, s in info], dtype=np.float32) if known else None
            boxes = supervision.mask_to_xyxy(masks).astype(np.float32) if info else np.zeros((0, 4))
        names = np.array([self.class_names[label] for label in classes.tolist()], dtype=str)
        return supervision.Detections(
            xyxy=boxes, mask=masks, confidence=scores, class_id=classes, data={"class_name": names}
        )
