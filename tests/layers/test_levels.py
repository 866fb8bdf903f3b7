"""Levels of a token pyramid, by hand."""

import torch

from comer_d2.layers.levels import Levels

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
