"""UPerNet's pooling, in the form that is exported."""

import pytest
import torch
import torch.nn.functional as F

from comer_d2.heads.upernet import grid_means


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (6, 6), (11, 13), (32, 5)])
def test_means_over_grids_are_adaptive_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    for grid in (1, 2, 3, 6):
        torch.testing.assert_close(grid_means(x, grid), F.adaptive_avg_pool2d(x, grid))
