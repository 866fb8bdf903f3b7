"""Steps of a detector's own training loop on generated images: what the machine trains, and what it waits for."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import op
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import HookBase
from PIL import Image

sys.path.insert(0, str(op.ROOT))
from comer_d2.d2.engine.checkpoint import CheckpointFolder
from comer_d2.d2.engine.checks import build
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.interrupt import InterruptFlag
from comer_d2.d2.engine.run import build_trainer

NAME, CLASSES, OBJECTS = "benchmark_train", 80, 7
WARM_UP = 0.3  # of the steps: not counted


class Clock(HookBase):
    """Seconds of every step, and of what it waited for data."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.data: list[float] = []

    def before_step(self) -> None:
        self.start = time.perf_counter()

    def after_step(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.steps.append(time.perf_counter() - self.start)
        self.data.append(self.trainer.storage.latest()["data_time"][0])


def steps(config: str, device: str, count: int) -> dict[str, Any]:
    """Trains a config on generated images for some steps.

    Args:
        config: path of a config on COCO, below the repository.
        device: "cuda", or "cpu" for a tiny backbone on tiny images.
        count: of steps, the first third of which warms up.

    Returns:
        Medians of a step's seconds, with and without what it waited for data; images per second.
    """
    images = 4 if device == "cuda" else 1
    cfg = load_config(
        str(op.ROOT / config),
        [f"train.device={device}", f"dataloader.train.total_batch_size={images}"],
    )
    for split in ("train", "test"):
        cfg.dataloader[split].dataset.names = NAME
    cfg.train.amp.enabled, cfg.train.amp.dtype = True, "bfloat16"
    if device == "cpu":
        make_tiny(cfg)
    with tempfile.TemporaryDirectory() as folder:
        cfg.train.output_dir = folder
        write_images(Path(folder), side=640 if device == "cuda" else 64)
        for catalog in (DatasetCatalog, MetadataCatalog):  # of the part before, in one process
            if NAME in catalog:
                catalog.remove(NAME)
        register_coco_instances(NAME, {}, f"{folder}/instances.json", folder)
        loader = build(cfg, "dataloader.train")
        trainer, *_ = build_trainer(
            cfg, loader, CheckpointFolder(folder), InterruptFlag(), resumes=False
        )
        trainer._hooks.clear()  # no checkpoint, no evaluation
        clock = Clock()
        trainer.register_hooks([clock])
        trainer.train(0, count)
    first = int(WARM_UP * count)
    whole = statistics.median(clock.steps[first:])
    own = statistics.median(s - d for s, d in zip(clock.steps[first:], clock.data[first:]))
    row = {
        "config": config,
        "images": images,
        "step, s": whole,
        "without waiting for data, s": own,
        "images per second": images / own,
    }
    if device == "cuda":
        row["peak, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def make_tiny(cfg: Any) -> None:
    """A backbone of four blocks, images as they are."""
    backbone = cfg.model.backbone
    backbone = backbone.bottom_up if "bottom_up" in backbone else backbone
    backbone.vit.update(embed_dim=24, depth=4, num_heads=3, window_block_indexes=[0, 1, 2])
    backbone.update(
        deform_num_heads=3, deform_ratio=1.0, interaction_indexes=[[i, i] for i in range(4)]
    )
    if "sem_seg_head" in cfg.model:
        head = cfg.model.sem_seg_head
        (head.pixel_decoder if "pixel_decoder" in head else head).in_channels = [24] * 4
    for owner in (backbone, cfg.model.backbone):
        if owner.get("square_pad"):
            owner.square_pad = 64
    cfg.dataloader.train.mapper.augmentations = []
    cfg.dataloader.train.num_workers = 0


def rectangle(draw: np.random.Generator, side: int) -> tuple[int, int, int, int]:
    """x, y, width and height of an object, in pixels; it lies in an image of side x 3/4 side."""
    x, y = (int(v) for v in draw.integers(0, side // 2, 2))
    w, h = (int(v) for v in draw.integers(side // 16, side // 4, 2))
    return x, y, w, h


def write_images(folder: Path, side: int, count: int = 16) -> None:
    """Images of noise with rectangles, and their annotations in COCO's format."""
    draw = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        pixels = draw.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8)
        for _ in range(OBJECTS):
            x, y, w, h = rectangle(draw, side)
            pixels[y : y + h, x : x + w] = draw.integers(0, 256, 3, dtype=np.uint8)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(draw.integers(CLASSES)) + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                    "iscrowd": 0,
                }
            )
        name = f"{number}.jpg"
        Image.fromarray(pixels).save(folder / name)
        height, width = pixels.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    categories = [{"id": i + 1, "name": f"class {i}"} for i in range(CLASSES)]
    (folder / "instances.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
