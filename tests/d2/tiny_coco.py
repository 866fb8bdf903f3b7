"""A generated data set in COCO's format: six images of two shapes with boxes and polygon masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIZES = ((64, 64), (80, 64), (64, 80), (64, 64), (72, 64), (64, 72))  # width, height in pixels


def write_tiny_coco(folder: Path, categories: int = 2) -> Path:
    """Write images and ``instances.json`` into a folder, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, (width, height) in enumerate(SIZES):
        image = Image.fromarray(rng.integers(0, 60, (height, width, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(image)
        for _ in range(2):
            x, y = (int(v) for v in rng.integers(2, 34, 2))
            size, category = int(rng.integers(16, 28)), int(rng.integers(2))
            corners = [(x, y), (x + size, y), (x + size, y + size), (x, y + size)]
            polygon = corners if category == 0 else [corners[0], corners[1], corners[3]]
            draw.polygon(polygon, fill=(230, 40, 40) if category == 0 else (40, 230, 90))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category + 1,
                    "bbox": [x, y, size, size],
                    "area": size * size / (1 + category),
                    "segmentation": [[c for point in polygon for c in point]],
                    "iscrowd": 0,
                }
            )
        name = f"{number}.png"
        image.save(folder / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
    labels = [{"id": i + 1, "name": f"shape{i}"} for i in range(categories)]
    content = {"images": images, "annotations": annotations, "categories": labels}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder
