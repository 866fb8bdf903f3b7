"""The operators in elementary operations: the same numbers, at any size, with nothing of ours left in the program."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from comer_d2.network import ViT, ViTCoMerNet
from comer_d2.ops import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
    portable_decompositions,
)
from comer_d2.ops.ms_deform_attn_gather import ms_deform_attn_fused_gather, ms_deform_attn_gather

SHAPES = [(5, 7), (3, 2), (1, 1)]
TOKENS = 35 + 6 + 1


def test_gathers_are_grid_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, TOKENS, 3, 4, dtype=torch.float64, generator=generator)
    locations = 1.6 * torch.rand(2, 9, 3, 3, 2, 2, dtype=torch.float64, generator=generator) - 0.3
    locations[0, 0, 0, 0, 0, 0] = torch.nan
    locations[0, 1, 1, 1, 1, 1] = torch.inf
    weights = torch.rand(2, 9, 3, 3, 2, dtype=torch.float64, generator=generator)
    arguments = value, SHAPES, locations, weights
    torch.testing.assert_close(
        ms_deform_attn_gather(*arguments), ms_deform_attn_reference(*arguments)
    )


@pytest.mark.parametrize("levels", [1, 3])
def test_fused_gathers_too(levels: int) -> None:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(2, TOKENS, 3, 4, dtype=torch.float64, generator=generator)
    projected = 3 * torch.randn(2, 9, 3 * 3 * 3 * 2, dtype=torch.float64, generator=generator)
    points = torch.rand(1, 9, levels, 2, dtype=torch.float64, generator=generator)
    arguments = value, SHAPES, projected, points
    expected = ms_deform_attn_fused_reference(*arguments)
    torch.testing.assert_close(ms_deform_attn_fused_gather(*arguments), expected)


class Maps(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.net(images).values())


def test_a_network_without_our_operators() -> None:
    torch.manual_seed(0)
    vit = ViT(embed_dim=32, num_heads=2, depth=2, pretrain_img_size=64, window_size=0, window_block_indexes=[])  # fmt: skip
    net = ViTCoMerNet(vit, interaction_indexes=[[0, 0], [1, 1]], deform_num_heads=2, deform_ratio=1.0, stem_width=8)  # fmt: skip
    model = Maps(net).eval()
    height, width = (torch.export.Dim(name, min=2, max=32) for name in ("height", "width"))
    image = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        program = torch.export.export(model, (image,), dynamic_shapes=({2: 32 * height, 3: 32 * width},))  # fmt: skip
        assert any("comer_d2" in str(node.target) for node in program.graph.nodes)
        table = torch.export.default_decompositions() | portable_decompositions()
        program = program.run_decompositions(table)
        assert not [n for n in program.graph.nodes if "comer_d2" in str(n.target)]
        for size in ((96, 160), (128, 64)):
            image = torch.randn(1, 3, *size)
            for found, expected in zip(program.module()(image), model(image), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
