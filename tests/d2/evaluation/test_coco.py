"""Detectron2's COCOEvaluator as the configs use it: its C++ matching equals pycocotools', and it keeps no masks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from tests.d2.tiny_coco import write_tiny_coco


@pytest.fixture(scope="module")
def predictions(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list, list]:
    """(dataset, inputs, outputs): every object found askew, some twice, some of the other class, and noise."""
    folder = write_tiny_coco(tmp_path_factory.mktemp("coco") / "data")
    register_coco_instances("coco_evaluator", {}, str(folder / "instances.json"), str(folder))
    content = json.loads((folder / "instances.json").read_text())
    rng = np.random.default_rng(0)
    inputs, outputs = [], []
    for image in content["images"]:
        height, width = image["height"], image["width"]
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        boxes, classes = [], []
        for annotation in own * 2:
            x, y, w, h = annotation["bbox"]
            dx, dy = rng.normal(0, 3, 2)
            boxes.append([x + dx, y + dy, x + w + dx, y + h + dy])
            classes.append((annotation["category_id"] - 1 + int(rng.random() < 0.2)) % 2)
        for x, y in rng.uniform(0, 40, (3, 2)):
            boxes.append([x, y, x + 15, y + 15])
            classes.append(int(rng.integers(2)))
        found = Instances((height, width))
        found.pred_boxes = Boxes(torch.tensor(boxes))
        found.scores = torch.from_numpy(rng.random(len(boxes)))
        found.pred_classes = torch.tensor(classes)
        masks = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, box in zip(masks, boxes):
            x0, y0, x1, y1 = (max(0, round(v)) for v in box)
            mask[y0:y1, x0:x1] = True
        found.pred_masks = masks
        inputs.append({"image_id": image["id"], "height": height, "width": width})
        outputs.append({"instances": found})
    return "coco_evaluator", inputs, outputs


def results_of(predictions: tuple[str, list, list], output_dir: Path, fast: bool) -> dict:
    name, inputs, outputs = predictions
    evaluator = COCOEvaluator(
        name,
        tasks=("bbox", "segm"),
        distributed=False,
        output_dir=str(output_dir),
        use_fast_impl=fast,
    )
    evaluator.reset()
    evaluator.process(inputs, outputs)
    # What several processes would exchange: plain values, masks as RLE.
    json.dumps(evaluator._predictions)
    assert all(
        "counts" in found["segmentation"]
        for p in evaluator._predictions
        for found in p["instances"]
    )
    return evaluator.evaluate()


def test_the_fast_matching_equals_pycocotools(
    predictions: tuple[str, list, list], tmp_path: Path
) -> None:
    fast, slow = (results_of(predictions, tmp_path, fast=fast) for fast in (True, False))
    assert fast.keys() == slow.keys() == {"bbox", "segm"}
    for task in fast:
        assert fast[task].keys() == slow[task].keys()
        assert 1 < fast[task]["AP"] < 99  # neither all right nor all wrong
        for name, value in fast[task].items():
            both_undefined = math.isnan(value) and math.isnan(slow[task][name])
            assert both_undefined or value == pytest.approx(slow[task][name], abs=1e-6), name
