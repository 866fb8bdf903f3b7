"""What `benchmarks/memory.py` counts, against what can be counted by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu_detectors
import memory
from kept import Kept


@pytest.mark.parametrize("drops", [True, False])
def test_layers_counted_by_hand(drops: bool) -> None:
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    with Kept(net, drops=drops) as kept:
        net(torch.zeros(16, 8))
    # The input, and once what the ReLU and the second layer both keep; no weight, no output.
    assert sorted(kept.activations.values()) == [16 * 8 * 4, 16 * 32 * 4]
    with torch.autocast("cpu", torch.bfloat16), Kept(net, drops=drops) as kept:
        net(torch.zeros(16, 8))
    assert sorted(kept.activations.values()) == [16 * 8 * 2, 16 * 32 * 2]
    # The second layer's weight; nothing needs the first one's.
    assert list(kept.casts.values()) == [32 * 4 * 2]


def test_images_that_fit() -> None:
    gib = 2**30
    need = memory.Need(fixed=2 * gib, per_image=gib)
    assert [need.fitting(card) for card in (2, 8, 24)] == [0, 4, 18]  # 0.9 x card - 1 - 2


def test_less_is_kept_in_bfloat16_with_checkpointing_and_of_small_images() -> None:
    def need(side: int, dtype: torch.dtype, checkpointing: bool) -> memory.Need:
        cfg = memory.config_of("upernet_comer_s_semantic", checkpointing)
        gpu_detectors.make_tiny(cfg)
        return memory.need(cfg, side, dtype)

    plain = need(64, torch.float32, False)
    half = need(64, torch.bfloat16, False)
    saving = need(64, torch.bfloat16, True)
    assert plain.per_image > half.per_image > saving.per_image
    assert half.fixed == saving.fixed == plain.fixed * 18 // 16
    large = need(128, torch.float32, False)
    assert (
        3.9 < large.per_image / plain.per_image < 4.1
    )  # all windows of UPerNet's ViT are the image
