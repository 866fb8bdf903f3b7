"""Deformable attention: its start, by hand, and against the formula in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from comer_d2.layers.deform_attn import MSDeformAttn
from comer_d2.layers.levels import Levels


def test_offsets_start_on_rings():
    attention = MSDeformAttn(8, num_levels=3, num_heads=4, num_points=2)
    projected = attention.sampling(torch.randn(1, 21, 8))
    offsets = projected[..., :48].unflatten(-1, (4, 3, 2, 2))
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(2):
        expected = (directions * (point + 1))[None, None, :, None].expand(1, 21, 4, 3, 2)
        torch.testing.assert_close(offsets[:, :, :, :, point], expected, atol=1e-6, rtol=0)
    assert not projected[..., 48:].any()  # equal weights


def test_deformable_attention_by_hand():
    """Offsets of whole tokens and equal weights: the mean of the tokens they point at."""
    attention = MSDeformAttn(2, num_levels=1, num_heads=1, num_points=2).double()
    torch.nn.init.eye_(attention.value_proj.weight)
    torch.nn.init.eye_(attention.output_proj.weight)
    with torch.no_grad():
        attention.sampling.bias[:4] = torch.tensor([1.0, 0.0, 0.0, 1.0])  # right, below
    feat = torch.arange(1.0, 19.0, dtype=torch.float64).view(1, 9, 2)
    levels = Levels(((3, 3),))
    points = levels.reference_points(feat.device, feat.dtype)
    output = attention(torch.zeros_like(feat), points, feat, levels)
    grid = F.pad(feat.view(3, 3, 2), (0, 0, 0, 1, 0, 1))  # zeros outside the map
    expected = (grid[:3, 1:] + grid[1:, :3]) / 2
    torch.testing.assert_close(output.view(3, 3, 2), expected)


LEVELS = Levels(((5, 3), (2, 4)))


def by_the_formula(
    attention: MSDeformAttn, query: Tensor, reference: Tensor, value: Tensor
) -> Tensor:
    """Deformable DETR's equation, sample by sample through grid_sample.

    Args:
        attention: whose parameters and sizes are used.
        query: (B, Q, D).
        reference: (B, Q, L, 2 or 4).
        value: (B, S, D).
    """
    heads, num_levels, points = attention.num_heads, attention.num_levels, attention.num_points
    samples = heads * num_levels * points
    projected = F.linear(query, attention.sampling.weight, attention.sampling.bias)
    offsets = projected[..., : 2 * samples].unflatten(-1, (heads, num_levels, points, 2))
    weights = projected[..., 2 * samples :].unflatten(-1, (heads, num_levels * points))
    weights = weights.softmax(dim=-1).unflatten(-1, (num_levels, points))
    value = F.linear(value, attention.value_proj.weight, attention.value_proj.bias)
    output = 0
    for level, (part, (h, w)) in enumerate(
        zip(LEVELS.split(value), LEVELS.spatial_shapes, strict=True)
    ):
        at = reference[:, :, level, None, None]
        if reference.shape[-1] == 4:
            places = at[..., :2] + offsets[:, :, :, level] / points * at[..., 2:] / 2
        else:
            places = at + offsets[:, :, :, level] / torch.tensor([w, h])
        maps = part.unflatten(-1, (heads, -1)).permute(0, 2, 3, 1).flatten(0, 1)
        found = F.grid_sample(
            maps.unflatten(-1, (h, w)),
            (2 * places - 1).transpose(1, 2).flatten(0, 1),
            align_corners=False,
        )
        found = (
            found.unflatten(0, (-1, heads)) * weights[:, :, :, level].transpose(1, 2)[:, :, None]
        )
        output = output + found.sum(dim=-1)
    output = output.permute(0, 3, 1, 2).flatten(2)
    return F.linear(output, attention.output_proj.weight, attention.output_proj.bias)


@pytest.mark.parametrize("size", [2, 4], ids=["points", "boxes"])
@pytest.mark.parametrize("shared", ["nothing", "batch", "levels", "both"])
def test_queries_that_are_not_the_values(size: int, shared: str) -> None:
    """Outputs and gradients, those of the reference points among them."""
    attention = MSDeformAttn(12, num_levels=2, num_heads=3, num_points=2, value_ratio=0.5).double()
    for p in attention.parameters():
        torch.nn.init.normal_(p, std=0.5)
    query = torch.randn(2, 7, 12, dtype=torch.float64, requires_grad=True)
    value = torch.randn(2, sum(LEVELS.sizes), 12, dtype=torch.float64, requires_grad=True)
    batch, levels = 2 - (shared in ("batch", "both")), 2 - (shared in ("levels", "both"))
    reference = torch.rand(batch, 7, levels, size, dtype=torch.float64, requires_grad=True)
    output = attention(query, reference, value, LEVELS)
    expected = by_the_formula(attention, query, reference.expand(2, -1, 2, -1), value)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-10)
    inputs = [query, value, reference, *attention.parameters()]
    cotangent = torch.randn_like(output)
    torch.testing.assert_close(
        torch.autograd.grad(output, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        atol=1e-10,
        rtol=1e-8,
    )


def test_an_offset_of_all_points_is_half_a_side_of_the_box() -> None:
    """The box's right edge is at the centre of the last token of the row."""
    attention = MSDeformAttn(1, num_levels=1, num_heads=1, num_points=1).double()
    torch.nn.init.ones_(attention.value_proj.weight)
    torch.nn.init.ones_(attention.output_proj.weight)
    with torch.no_grad():
        attention.sampling.bias[:2] = torch.tensor([1.0, 0.0])
    value = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]], dtype=torch.float64)
    box = torch.tensor([0.5, 0.5, 2 * (0.875 - 0.5), 0.3], dtype=torch.float64)
    output = attention(
        torch.zeros(1, 1, 1).double(), box.view(1, 1, 1, 4), value, Levels(((1, 4),))
    )
    assert output.item() == pytest.approx(4.0)


def test_other_reference_points_are_refused() -> None:
    attention = MSDeformAttn(4, num_levels=2, num_heads=1)
    value = torch.zeros(1, sum(LEVELS.sizes), 4)
    with pytest.raises(ValueError, match=r"reference_points must have shape .* got \(1, 7, 1, 3\)"):
        attention(torch.zeros(1, 7, 4), torch.zeros(1, 7, 1, 3), value, LEVELS)
