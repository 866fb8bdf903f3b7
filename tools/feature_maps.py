#!/usr/bin/env python3
"""Draw the maps of strides 4 to 32 that models make of a photo, model under model: Figure 6 of the paper.

    python3 tools/feature_maps.py photo.jpg output/comer output/vit --output maps.png

A model is a run's folder or a checkpoint. Of ViT-CoMer under an FPN the backbone's own maps are drawn, of a plain ViT
those of its simple feature pyramid. The first three principal components of a model's maps, over all strides
together, are red, green and blue, on one scale.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from comer_d2.d2.cli import run_tool
from comer_d2.d2.errors import UserError
from comer_d2.d2.image_input import as_rgb
from comer_d2.d2.predictor import Predictor, load
from comer_d2.d2.visualization.sheet import picture_sheet, save_picture

STRIDES = (4, 8, 16, 32)
SIDE = 360  # pixels of a drawn map's longer side
MOST_CELLS = 4096  # of a map that take part in the principal components
OUTSIDE = 0.01  # share of the values at either end that the scale leaves out


def main() -> int:
    """Run the tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photo", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="run's folder or checkpoint")
    parser.add_argument("--output", type=Path, default=Path("feature_maps.png"))
    parser.add_argument("--device", help="cuda or cpu")
    args = parser.parse_args()
    return run_tool(lambda: draw(args), "feature_maps.py")


def draw(args: argparse.Namespace) -> None:
    """Draw what a command line names."""
    photo = as_rgb(args.photo)
    scale = SIDE / max(photo.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in photo.shape[1::-1])
    rows = []
    for name in args.models:
        model = load(name, device=args.device)
        pictures = [Image.fromarray(image).resize(size, Image.Resampling.NEAREST) for image in colours(feature_maps(model, photo))]  # fmt: skip
        rows.append((Image.fromarray(photo).resize(size), *pictures))
    sheet = picture_sheet(
        rows,
        headings=("photo", *(f"stride {stride}" for stride in STRIDES)),
        title=args.photo.name,
        subtitle="from above: " + ", ".join(args.models),
        columns=1,
    )
    print(f"Maps: {save_picture(sheet, args.output)}")


@torch.no_grad()
def feature_maps(model: Predictor, photo: np.ndarray) -> list[Tensor]:
    """What a model's backbone makes of a photo.

    Args:
        model: with a Detectron2 backbone.
        photo: (h, w, 3) uint8, RGB.

    Returns:
        Maps (C, h/s, w/s) of strides 4 to 32, without the model's padding.

    Raises:
        UserError: the backbone has no maps of these strides.
    """
    backbone: nn.Module = getattr(model.model.backbone, "bottom_up", model.model.backbone)
    if set(STRIDES) - {shape.stride for shape in backbone.output_shape().values()}:
        backbone = model.model.backbone  # a plain ViT has one stride; its pyramid is above it
    if hasattr(model.model, "views"):  # windows and scales: the photo is looked at once, whole
        model.model.views = None
    names = {shape.stride: name for name, shape in backbone.output_shape().items()}
    missing = set(STRIDES) - set(names)
    if missing:
        raise UserError(f"the backbone has no maps of stride {sorted(missing)}")
    found: dict[str, Tensor] = {}
    hook = backbone.register_forward_hook(lambda module, given, output: found.update(output))
    tensor = model.prepare(photo)
    try:
        model.outputs([{"image": tensor, "height": photo.shape[0], "width": photo.shape[1]}])
    finally:
        hook.remove()
    height, width = tensor.shape[1:]
    return [found[names[s]][0, :, : -(-height // s), : -(-width // s)].float().cpu() for s in STRIDES]  # fmt: skip


def colours(maps: list[Tensor]) -> list[np.ndarray]:
    """Principal components as colours, the same for all maps.

    Args:
        maps: (C, h, w), of one C.

    Returns:
        (h, w, 3) uint8 each.
    """
    cells = [x.flatten(1).T for x in maps]
    generator = torch.Generator().manual_seed(0)
    sample = torch.cat([c[torch.randperm(len(c), generator=generator)[:MOST_CELLS]] for c in cells])
    mean = sample.mean(0)
    _, _, axes = torch.linalg.svd(sample - mean, full_matrices=False)
    projected = [(c - mean) @ axes[:3].T for c in cells]
    every = torch.cat(projected)
    low, high = torch.quantile(every[:: max(1, len(every) // 1_000_000)], torch.tensor([OUTSIDE, 1 - OUTSIDE]), dim=0)  # fmt: skip
    shares = [((p - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) for p in projected]
    return [(255 * s).round().byte().reshape(*x.shape[1:], 3).numpy() for s, x in zip(shares, maps)]


if __name__ == "__main__":
    sys.exit(main())
