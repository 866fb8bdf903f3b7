"""R-CNN models: what their box heads give under autocast."""

import pytest
import torch
from detectron2.config import LazyConfig, instantiate

from tests.d2.runs import ROOT


@pytest.mark.parametrize(
    "config",
    [
        "COCO/mask_rcnn_comer_s_1x.py",
        "COCO/cascade_mask_rcnn_comer_s.py",
        "custom/faster_rcnn_comer_s.py",
        "custom/cascade_rcnn_comer_s.py",
        "quickstart/cascade_rcnn_comer_digits.py",
    ],
)
def test_scores_and_boxes_are_float32_under_autocast(config: str) -> None:
    cfg = LazyConfig.load(str(ROOT / "configs" / config))
    cfg.model.roi_heads.num_classes = 3
    heads = cfg.model.roi_heads
    for node in heads.get("box_predictors") or [heads.box_predictor]:
        predictor = instantiate(node)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = predictor(torch.rand(2, predictor.cls_score.in_features))
        assert [output.dtype for output in outputs] == [torch.float32, torch.float32]
