"""Dataset dicts -> model inputs."""

import copy
from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.structures import BitMasks, Instances, PolygonMasks

from ..errors import UserError
from .augmentation import apply_augmentations
from .images import read_image
from .panoptic_png import id_to_rgb, rgb_to_id
from .semantic_labels import SemanticLabels, read_segments


class InstanceMapper(DatasetMapper):
    """Detectron2's mapper of boxes and masks, which also takes images without an object.

    Detectron2's gives those no masks rather than none: `recompute_boxes` and heads of masks then
    look for a field that is not there. Arguments as there; `precomputed_proposal_topk` and label
    maps are not supported.
    """

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict.

        Returns:
            `file_name`, `image_id` if there is one, `height` and `width` of the file; `image`,
            (3, h, w) uint8; in training `instances` with `gt_boxes`, `gt_classes` and, with
            `use_instance_mask`, `gt_masks`.

        Raises:
            UserError: naming the file that is wrong.
        """
        output, image = _read(record, self.image_format)
        prepared = T.AugInput(image)
        transforms = apply_augmentations(self.augmentations, prepared, record["file_name"])
        output["image"] = _to_tensor(prepared.image)
        if self.is_train:
            output["annotations"] = copy.deepcopy(record["annotations"])  # changed in place
            self._transform_annotations(output, transforms, prepared.image.shape[:2])
        return output

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: T.Transform, image_shape: tuple[int, int]
    ) -> None:
        if not all(a.get("iscrowd", 0) for a in dataset_dict["annotations"]):
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        del dataset_dict["annotations"]
        instances = detection_utils.annotations_to_instances([], image_shape)
        if self.use_instance_mask:
            bitmasks = BitMasks(torch.zeros((0, *image_shape), dtype=torch.bool))
            instances.gt_masks = (
                bitmasks if self.instance_mask_format == "bitmask" else PolygonMasks([])
            )
        dataset_dict["instances"] = instances


class SemanticMapper:
    """Reads an image and its label map.

    Args:
        is_train: whether labels are read.
        dataset_name: the registered dataset, or several of the same classes; also of a panoptic
            one, whose segments become label maps.
        augmentations: Detectron2's, in order. Those that ask for `sem_seg` get the label map.
        image_format: of the images given to augmentations and model, "RGB" or "BGR".
    """

    def __init__(
        self,
        is_train: bool,
        *,
        dataset_name: str | Sequence[str],
        augmentations: Sequence[T.Augmentation],
        image_format: str = "RGB",
    ) -> None:
        self.is_train = is_train
        self.image_format = image_format
        self.augmentations = T.AugmentationList(list(augmentations))
        self._labels = SemanticLabels(_first(dataset_name))

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict.

        Returns:
            `file_name`, `image_id` if there is one, `height` and `width` of the file; `image`,
            (3, h, w) uint8; in training `sem_seg`, (h, w) int64 classes and the ignored label.

        Raises:
            UserError: naming the file that is wrong.
        """
        output, image = _read(record, self.image_format)
        labels = None
        if self.is_train:
            labels = self._labels(record)
            _check_size(image, labels, record.get("sem_seg_file_name"), record)
        prepared = T.AugInput(image, sem_seg=labels)
        apply_augmentations(self.augmentations, prepared, record["file_name"])
        output["image"] = _to_tensor(prepared.image)
        if self.is_train:
            output["sem_seg"] = torch.as_tensor(prepared.sem_seg.astype(np.int64))
        return output


class PanopticMapper:
    """Reads an image and its panoptic segments, things and stuff alike, as instances.

    Crowds are left out, as are segments that an augmentation removes.

    Args:
        is_train: whether segments are read.
        augmentations: Detectron2's, in order.
        image_format: of the images given to augmentations and model, "RGB" or "BGR".
        things_only: leave out stuff, for instance segmentation on panoptic data.
    """

    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation],
        image_format: str = "RGB",
        things_only: bool = False,
    ) -> None:
        self.is_train = is_train
        self.image_format = image_format
        self.things_only = things_only
        self.augmentations = T.AugmentationList(list(augmentations))

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        """Map one dataset dict.

        Returns:
            As :class:`SemanticMapper`, but in training `instances` with `gt_classes`, `gt_masks`
            (BitMasks) and `gt_boxes`.

        Raises:
            UserError: naming the file that is wrong.
        """
        output, image = _read(record, self.image_format)
        if self.is_train:
            ids = read_segments(record)
            _check_size(image, ids, record["pan_seg_file_name"], record)
        prepared = T.AugInput(image)
        transforms = apply_augmentations(self.augmentations, prepared, record["file_name"])
        output["image"] = _to_tensor(prepared.image)
        if self.is_train:
            # As colours: transforms work on images of bytes.
            ids = rgb_to_id(transforms.apply_segmentation(id_to_rgb(ids)))
            info = record["segments_info"]
            if self.things_only:
                info = [segment for segment in info if segment["isthing"]]
            output["instances"] = _segments_as_instances(ids, info)
        return output


def _segments_as_instances(ids: np.ndarray, info: Sequence[dict[str, Any]]) -> Instances:
    present = set(np.unique(ids).tolist())
    kept = [s for s in info if s["id"] in present and not s.get("iscrowd", 0)]
    instances = Instances(ids.shape)
    instances.gt_classes = torch.tensor([s["category_id"] for s in kept], dtype=torch.int64)
    masks = np.stack([ids == s["id"] for s in kept]) if kept else np.zeros((0, *ids.shape), bool)
    instances.gt_masks = BitMasks(torch.from_numpy(masks))
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    return instances


def _read(record: dict[str, Any], image_format: str) -> tuple[dict[str, Any], np.ndarray]:
    image = read_image(record["file_name"], image_format)
    height, width = image.shape[:2]
    listed = (record.get("width", width), record.get("height", height))
    if listed != (width, height):
        raise UserError(
            f"{record['file_name']} is {width} x {height} pixels, but its annotations say "
            f"{listed[0]} x {listed[1]}"
        )
    kept = {key: record[key] for key in ("file_name", "image_id") if key in record}
    return {**kept, "height": height, "width": width}, image


def _check_size(
    image: np.ndarray, labels: np.ndarray, path: str | None, record: dict[str, Any]
) -> None:
    if labels.shape != image.shape[:2]:
        height, width = labels.shape
        raise UserError(
            f"{path or record['pan_seg_file_name']} is {width} x {height} pixels, but its image "
            f"{record['file_name']} is {image.shape[1]} x {image.shape[0]}"
        )


def _to_tensor(image: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _first(names: str | Sequence[str]) -> str:
    return names if isinstance(names, str) else names[0]
