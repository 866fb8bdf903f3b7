"""Large images, tile by tile."""

import os
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral

import numpy as np
import torch

from .data.images import BadImage
from .errors import UserError
from .image_input import ImageLike, as_rgb
from .modeling.semantic_tta import SemanticViews
from .predictor import DEFAULT_THRESHOLD, Predictor, Threshold, thresholds_of
from .results import Result

# Of the smaller of two objects of a class: what of it lies in the other, for them to be one.
SHARED = 0.5
OVERLAP = 0.2  # of neighbouring tiles, a share of their side


def predict_tiles(
    model: Predictor,
    image: ImageLike,
    *,
    tile: int,
    overlap: float = OVERLAP,
    threshold: Threshold = DEFAULT_THRESHOLD,
) -> Result:
    """Predict a large image in overlapping tiles, each prepared as an image of its own.

    Label maps: the scores of overlapping tiles are averaged. Objects: two of one class are one where
    half of the smaller lies in the other (supervision's InferenceSlicer), so an object that is larger
    than the overlap can stay in parts: choose tiles that are larger than the objects.

    Args:
        model: of objects or of a label map.
        image: as a model takes it.
        tile: side of the tiles, pixels of the image.
        overlap: share of a tile that the next one covers too, 0 to less than 1.
        threshold: as of a model's call.

    Returns:
        The result for the whole image.

    Raises:
        UserError: of a panoptic model, or values out of range.
    """
    if not isinstance(tile, Integral) or tile < 1 or not 0 <= overlap < 1:
        raise UserError(
            f"tile={tile!r}, overlap={overlap:g}: whole pixels from 1, and 0 to less than 1"
        )
    rgb = as_rgb(image)
    name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
    tasks = model.tasks
    if tasks == ("semantic",):
        output = _label_map(model, rgb, tile, overlap, name)
        return model.result(
            output, rgb, thresholds_of(threshold, model.class_names), file_name=name
        )
    if tasks == ("instance",):
        return _objects(model, rgb, tile, overlap, threshold, name)
    raise UserError(
        f"tiles are for models of objects or of a label map alone, this one predicts {', '.join(tasks)}"
        ': set model.tasks=["semantic"] or ["instance"]'
    )


def tiled(
    model: Predictor,
    images: Iterable[str | os.PathLike],
    tile: int,
    overlap: float,
    *,
    threshold: Threshold = DEFAULT_THRESHOLD,
    on_error: Callable[[ImageLike, UserError], object],
) -> Iterator[Result]:
    """`predict_tiles` of image files; bad ones go to `on_error` and are left out."""
    for image in images:
        try:
            result = predict_tiles(model, image, tile=tile, overlap=overlap, threshold=threshold)
        except BadImage as error:
            on_error(image, error)
        else:
            yield result


def _label_map(
    model: Predictor, rgb: np.ndarray, tile: int, overlap: float, name: str | None
) -> dict[str, torch.Tensor]:
    def forward(tiles: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        outputs = []
        for record in tiles:
            part = record["image"].byte().permute(1, 2, 0).numpy()
            inputs = {
                "image": model.prepare(part, name),
                "height": part.shape[0],
                "width": part.shape[1],
            }
            outputs += [{"sem_seg": model.outputs([inputs])[0]["sem_seg"].float().cpu()}]
        return outputs

    step = max(1, round(tile * (1 - overlap)))
    views = SemanticViews(window=(tile, tile), stride=(step, step), windows_per_batch=1)
    (output,) = views(forward, [{"image": torch.from_numpy(rgb).permute(2, 0, 1)}], softmax=False)
    return output


def _objects(
    model: Predictor,
    rgb: np.ndarray,
    tile: int,
    overlap: float,
    threshold: Threshold,
    name: str | None,
) -> Result:
    try:
        from supervision import Detections, InferenceSlicer, OverlapFilter, OverlapMetric
    except ImportError as error:
        raise UserError(
            "tiles of objects need supervision: pip install 'comer_d2[supervision]'"
        ) from error

    with_masks = False

    def detect(part: np.ndarray) -> Detections:
        nonlocal with_masks
        try:
            result = model(part, threshold=threshold)
        except BadImage as error:  # a strip that is too thin to be resized
            raise BadImage(f"{name or 'an array'}, in tiles: {error}") from error
        with_masks = result.masks is not None
        return result.to_supervision()

    slicer = InferenceSlicer(
        detect,
        slice_wh=tile,
        overlap_wh=round(tile * overlap),
        overlap_filter=OverlapFilter.NON_MAX_MERGE,
        overlap_metric=OverlapMetric.IOS,
        iou_threshold=SHARED,
    )
    found = slicer(rgb)
    found = found[np.argsort(-found.confidence, kind="stable")]
    masks = found.mask if len(found) else np.zeros((0, *rgb.shape[:2]), bool)
    return Result(
        rgb,
        model.class_names,
        name,
        boxes=found.xyxy.astype(np.float32),
        scores=found.confidence.astype(np.float32),
        classes=found.class_id.astype(np.int64),
        masks=masks if with_masks else None,
        stuff_classes=model.stuff_classes,
        category_ids=model.category_ids,
    )
