"""The convolutions of token pyramids as layers: they are Conv2d by level, and what works on layers works."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from comer_d2.layers.levels import Levels
from comer_d2.layers.token_conv import LevelDepthwiseConv, TokenDepthwiseConv

LEVELS = Levels(((8, 6), (4, 3), (2, 1)))


def tokens(channels: int) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 62, channels)


def test_a_shared_convolution_is_conv2d_on_every_map():
    conv, given = TokenDepthwiseConv(8, 3), tokens(8)
    plain = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    plain.load_state_dict(conv.state_dict())
    expected = LEVELS.merge([plain(x) for x in LEVELS.maps(given)])
    torch.testing.assert_close(conv(given, LEVELS), expected)


def test_convolutions_of_levels_are_conv2d_on_every_map_and_group():
    convs, given = LevelDepthwiseConv(8, (3, 5), 3), tokens(8)
    assert {"0.0.weight", "2.1.bias"} < set(convs.state_dict())
    expected = []
    for x, level in zip(LEVELS.maps(given), convs):
        parts = [
            nn.functional.conv2d(part, k.weight, k.bias, padding=k.padding, groups=4)
            for part, k in zip(x.chunk(2, dim=1), level)
        ]
        expected.append(torch.cat(parts, dim=1))
    torch.testing.assert_close(convs(given, LEVELS), LEVELS.merge(expected))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_hooks_pruning_and_parametrizations_of_one_kernel_count():
    convs, given = LevelDepthwiseConv(8, (3, 5), 3), tokens(8)
    before, start = convs(given, LEVELS), 48 + 12

    def changed(output):  # the places that a change of the last level's second kernel may touch
        difference = (output - before).abs().amax((0, 1)) > 0
        same = torch.equal(output[:, :start], before[:, :start])
        return same and not difference[:4].any() and bool(difference[4:].all())

    kernel = convs[2][1]
    parametrize.register_parametrization(kernel, "weight", Doubled())
    assert changed(convs(given, LEVELS))
    parametrize.remove_parametrizations(kernel, "weight", leave_parametrized=False)
    assert torch.equal(convs(given, LEVELS), before)

    handle = kernel.register_forward_hook(lambda module, args, output: (output[0] * 0, output[1]))
    assert changed(convs(given, LEVELS))
    handle.remove()

    prune.random_unstructured(kernel, "weight", 0.9)
    with torch.no_grad():
        kernel.weight_orig.mul_(3)  # seen only if the kernel's forward is called
    weight = 3 * kernel.weight
    output = convs(given, LEVELS)
    assert torch.equal(kernel.weight, weight) and changed(output)
    output.sum().backward()
    assert kernel.weight_orig.grad.abs().sum() > 0
