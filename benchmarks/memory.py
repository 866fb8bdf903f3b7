"""What a training step of configs/custom needs of a GPU's memory, on paper, and how many images fit.

    python benchmarks/memory.py                                  # the table of docs/FINETUNING.md
    python benchmarks/memory.py --configs dino_comer_s --sides 640 --json memory.json

One forward in training runs on the CPU, on generated images, and what it keeps for the backward is counted: each
storage once, the model's own not. Weights, gradients and AdamW's two averages come from the number of parameters,
and with bfloat16 the weights' casts. With activation checkpointing, the largest part that the backward computes again
is added to what is kept.

On paper: a GPU's peak has workspaces, temporary gradients and what the allocator cannot use on top, and autocast
there casts other operators than on a CPU. For them a tenth of the card is left free, as `train.auto_batch_size` does,
and one GiB for CUDA's context.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import op
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from gpu_detectors import OBJECTS, rectangle
from kept import Kept
from torch import nn
from torch.utils.checkpoint import checkpoint
from traffic import states

sys.path.insert(0, str(op.ROOT))
from comer_d2.d2.engine.auto_batch import MARGIN
from comer_d2.d2.engine.checks import build
from comer_d2.d2.engine.config import load_config
from comer_d2.heads.upernet import PyramidPooling
from comer_d2.network import interaction

CONFIGS = ["mask_rcnn_comer_s", "upernet_comer_s_semantic", "mask2former_comer_s_instance"]
SIDES = [512, 640, 800]
# Autocast's type and activation checkpointing.
CASES = {
    "f32": (torch.float32, False),
    "bf16": (torch.bfloat16, False),
    "bf16 + checkpointing": (torch.bfloat16, True),
}
CLASSES = 20
CARDS = [8, 12, 16, 24]  # GiB
CONTEXT = 1.0  # GiB
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Bytes of a training step.

    Attributes:
        fixed: weights, gradients, AdamW's averages and casts.
        per_image: kept for the backward, and what of it is computed again at a time.
    """

    fixed: int
    per_image: int

    def fitting(self, card: float) -> int:
        """Images that fit at once into a card of so many GiB."""
        free = (card * (1 - MARGIN) - CONTEXT) * GIB - self.fixed
        return max(0, int(free // self.per_image))


def config_of(name: str, checkpointing: bool) -> Any:
    """A config of configs/custom, with data of `CLASSES` classes."""
    cfg = load_config(str(op.ROOT / "configs" / "custom" / f"{name}.py"), ["train.device=cpu"])
    cfg.dataset.num_classes = CLASSES
    backbone = cfg.model.backbone
    (backbone.bottom_up if "bottom_up" in backbone else backbone).use_act_checkpoint = checkpointing
    if "roi_heads" in cfg.model:
        # As a trained model has them: a full share of proposals that are objects, whose masks are learnt.
        cfg.model.roi_heads.proposal_matcher.thresholds = [0.05]
    return cfg


def sample(side: int, seed: int) -> dict[str, Any]:
    """A square image of noise with rectangles: what any of the mappers would give for it."""
    draw = np.random.default_rng(seed)
    rectangles = [rectangle(draw, side) for _ in range(OBJECTS)]
    masks = torch.zeros(OBJECTS, side, side, dtype=torch.bool)
    for mask, (x, y, w, h) in zip(masks, rectangles, strict=True):
        mask[y : y + h, x : x + w] = True
    classes = torch.from_numpy(draw.integers(CLASSES, size=OBJECTS))
    masks = BitMasks(masks)
    instances = Instances((side, side), gt_classes=classes, gt_masks=masks)
    instances.gt_boxes = Boxes([[x, y, x + w, y + h] for x, y, w, h in rectangles])
    pixels = torch.from_numpy(draw.integers(0, 256, (3, side, side), dtype=np.uint8))
    labels = (masks.tensor * (classes[:, None, None] + 1)).amax(0) % CLASSES
    return {"image": pixels, "height": side, "width": side, "instances": instances} | {
        "sem_seg": labels
    }


def need(cfg: Any, side: int, dtype: torch.dtype) -> Need:
    """Counts a training step of a config's model.

    Args:
        cfg: of `config_of`.
        side: of square images, in pixels.
        dtype: bfloat16 is autocast's; float32 is without it.
    """
    torch.manual_seed(0)
    model = build(cfg, "model").train()
    # The norm behind a pyramid pooled to one pixel needs two.
    images = 2 if any(isinstance(part, PyramidPooling) for part in model.modules()) else 1
    batch = [sample(side, seed) for seed in range(images)]
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    with (
        EventStorage(),
        autocast,
        recomputed_bytes(model) as parts,
        Kept(model, drops=True) as kept,
    ):
        model(batch)
    fixed, trained = states(lambda: model)
    casts = 0 if dtype == torch.float32 else trained * dtype.itemsize
    activations = sum(kept.activations.values()) + max(parts, default=0)
    return Need(fixed + casts, activations // images)


@contextmanager
def recomputed_bytes(model: nn.Module) -> Iterator[list[int]]:
    """Bytes that each part under activation checkpointing would keep, and that its backward computes again."""
    parts: list[int] = []

    def counted(call: Any, *inputs: Any, **options: Any) -> Any:
        def counted_call(*arguments: Any) -> Any:
            with Kept(model, drops=True) as kept:
                result = call(*arguments)
            parts.append(sum(kept.activations.values()))
            return result

        return checkpoint(counted_call, *inputs, **options)

    with mock.patch.object(interaction, "checkpoint", counted):
        yield parts


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: GiB an image in each case, and how many images fit with bfloat16."""
    cases = list(CASES)
    head = ["config", "side", *(f"{case}, GiB an image" for case in cases)]
    head += [f"{case} in {' / '.join(map(str, CARDS))} GB" for case in cases[1:]]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        needs = [Need(**row["cases"][case]) for case in cases]
        lines.append(
            [f"`{row['config']}`", str(row["side"])]
            + [f"{n.per_image / GIB:.2f}" for n in needs]
            + [" / ".join(str(n.fitting(card)) for card in CARDS) for n in needs[1:]]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=CONFIGS, help="of configs/custom")
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES, help="pixels")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    rows = []
    for name in options.configs:
        for side in options.sides:
            cases = {}
            for case, (dtype, checkpointing) in CASES.items():
                cases[case] = asdict(need(config_of(name, checkpointing), side, dtype))
                figures = ", ".join(f"{k} {v / GIB:.2f} GiB" for k, v in cases[case].items())
                print(f"{name}, {side}, {case}: {figures}", file=sys.stderr, flush=True)
            rows.append({"config": name, "side": side, "cases": cases})
    print(table(rows))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
