"""What a model itself finds, in the form of what exports of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from torch import Tensor, nn

from ...heads.detections import NOTHING


@torch.no_grad()
def by_the_model(model: nn.Module, images: Tensor, like: NamedTuple) -> NamedTuple:
    """Call a model as Detectron2 does.

    Args:
        model: in evaluation mode.
        images: (B, 3, H, W), pixels from 0 to 255.
        like: what its traceable form gives for these images.

    Returns:
        The same fields in the same shapes, except where the model finds more.
    """
    records = [{"image": x, "height": x.shape[1], "width": x.shape[2]} for x in images]
    if isinstance(model, GeneralizedRCNN):  # masks in the grids over their boxes
        results = [{"instances": x} for x in model.inference(records, do_postprocess=False)]
    else:
        results = model(records)
    rows = [_fields(result) for result in results]
    return like._make(
        _filled([row[name] for row in rows], of_like, NOTHING if name.endswith("classes") else 0)
        for name, of_like in zip(like._fields, like, strict=True)
    )


def _fields(result: Mapping[str, Any]) -> dict[str, Tensor]:
    """One image's."""
    fields: dict[str, Tensor] = {}
    if "sem_seg" in result:
        fields["sem_seg"] = result["sem_seg"]
    if "instances" in result:
        found: Instances = result["instances"]
        fields |= {"boxes": found.pred_boxes.tensor, "scores": found.scores}
        fields["classes"] = found.pred_classes
        if found.has("pred_masks"):
            masks = found.pred_masks
            fields["masks"] = masks[:, 0] if masks.ndim == 4 else masks
    if "panoptic_seg" in result:
        segments, rows = result["panoptic_seg"]
        fields["panoptic_seg"] = segments
        fields["segment_scores"] = torch.tensor([row["score"] for row in rows])
        fields["segment_classes"] = torch.tensor(
            [row["category_id"] for row in rows], dtype=torch.int64
        )
    return fields


def _filled(rows: list[Tensor], like: Tensor, value: int) -> Tensor:
    """Every image's in as many places as another's, those behind with a value."""
    places = max(like.shape[1], *(len(row) for row in rows))
    result = like.new_full((len(rows), places, *like.shape[2:]), value)
    for places_of_image, row in zip(result, rows, strict=True):
        places_of_image[: len(row)] = row
    return result
