"""Boxes and masks from several views of an image: scales and mirror images."""

import sys
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA


def rcnn_views(
    model: GeneralizedRCNN, *, scales: Sequence[float], flip: bool
) -> GeneralizedRCNNWithTTA:
    """Detectron2's test-time augmentation around a model that comes from a LazyConfig.

    Boxes of all views go through one suppression; masks are averaged.

    Args:
        model: an R-CNN.
        scales: of the image that comes from the data loader.
        flip: whether every scale is also mirrored.

    Returns:
        Takes and gives what the model does; its images have to be on the CPU.
    """
    heads = model.roi_heads
    predictor = heads.box_predictor
    if not hasattr(predictor, "test_nms_thresh"):  # of a cascade: the last stage's
        predictor = predictor[-1]
    cfg = CfgNode(
        {
            "MODEL": {
                "MASK_ON": heads.mask_on,
                "KEYPOINT_ON": False,
                "LOAD_PROPOSALS": False,
                "ROI_HEADS": {
                    "NUM_CLASSES": heads.num_classes,
                    "NMS_THRESH_TEST": predictor.test_nms_thresh,
                },
            },
            "TEST": {"DETECTIONS_PER_IMAGE": predictor.test_topk_per_image},
        }
    )

    def views(record: dict[str, Any]) -> list[dict[str, Any]]:
        short = min(record["image"].shape[-2:])
        sides = [max(1, round(short * scale)) for scale in scales]
        return DatasetMapperTTA(min_sizes=sides, max_size=sys.maxsize, flip=flip)(record)

    # One at a time: in a batch, small views would be padded to the size of the largest.
    return GeneralizedRCNNWithTTA(cfg, model, views, batch_size=1)
