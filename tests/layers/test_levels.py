"""Levels of a token pyramid, by hand."""

import pytest
import torch

from comer_d2.layers.levels import Levels, add_rows

DEVICE = torch.get_default_device()


def test_reference_points_are_cell_centres():
    levels = Levels(((2, 4), (1, 2), (1, 1)))
    points = levels.reference_points(DEVICE)
    fine = [[(x + 0.5) / 4, (y + 0.5) / 2] for y in range(2) for x in range(4)]
    expected = torch.tensor([*fine, [0.25, 0.5], [0.75, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(points, expected[None, :, None])
    assert levels.reference_points(DEVICE) is points  # once for all layers
    assert levels.reference_points(DEVICE, torch.float64).dtype == torch.float64
    assert levels.reference_points(DEVICE, torch.bfloat16) is points


def test_levels_split_and_merge():
    levels = Levels.around(2, 3)
    tokens = torch.randn(2, sum(levels.sizes), 5)
    maps = levels.maps(tokens)
    assert [m.shape[-2:] for m in maps] == [(4, 6), (2, 3), (1, 1)]
    assert torch.equal(levels.merge(maps), tokens)
    assert torch.equal(maps[1][0, :, 1, 2], tokens[0, 24 + 5])
    assert maps[1].data_ptr() == tokens[:, 24].data_ptr()  # a view


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_vit_tokens_are_added_to_the_middle_level(dtype: torch.dtype) -> None:
    """With the gradients of a sum, in the types of both; the tokens given are not written to."""
    levels = Levels.around(2, 3)
    tokens = torch.randn(2, sum(levels.sizes), 5, dtype=dtype, requires_grad=True)
    vit_tokens = torch.randn(2, 6, 5, dtype=torch.float64, requires_grad=True)
    before = tokens.detach().clone()
    result = levels.add(tokens, vit_tokens, 1)
    assert result.dtype == dtype and torch.equal(tokens, before)
    fine, middle, coarse = levels.split(result)
    assert torch.equal(fine, tokens[:, :24]) and torch.equal(coarse, tokens[:, 30:])
    assert torch.equal(middle, (tokens[:, 24:30].double() + vit_tokens).to(dtype))
    cotangent = torch.randn_like(result)
    result.backward(cotangent)
    assert torch.equal(tokens.grad, cotangent)
    assert torch.equal(vit_tokens.grad, cotangent[:, 24:30].double())


def test_adding_to_all_tokens_is_a_sum() -> None:
    tokens, rows = torch.randn(2, 6, 5), torch.randn(2, 6, 5)
    assert torch.equal(add_rows(tokens, rows, 0), tokens + rows)
    assert add_rows(tokens.bfloat16(), rows, 0).dtype == torch.bfloat16
