"""The position table is resized once for many images in evaluation, and never an old one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from comer_d2.layers import positions
from comer_d2.network import ViT

IMAGE = torch.randn(1, 3, 48, 80)
ROWS = 17  # of a 4 x 4 grid and the class token


@pytest.fixture
def vit() -> ViT:
    """Has resized its table already."""
    torch.manual_seed(0)
    net = ViT(
        embed_dim=24, depth=1, num_heads=3, pretrain_img_size=64, window_block_indexes=()
    ).eval()
    tokens(net)
    return net


def tokens(net: ViT, image: Tensor = IMAGE) -> Tensor:
    with torch.no_grad():
        return net.tokens(image)


def check_is_new(net: ViT) -> None:
    """As a copy computes it, which remembers nothing."""
    assert torch.equal(tokens(net), tokens(copy.deepcopy(net)))


@pytest.fixture
def resizings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The sizes that were computed."""
    sizes, resize = [], positions.resize_position_table

    def counted(table: Tensor, height: int, width: int) -> Tensor:
        sizes.append((height, width))
        return resize(table, height, width)

    monkeypatch.setattr(positions, "resize_position_table", counted)
    return sizes


def test_a_few_sizes_are_computed_once(vit: ViT, resizings: list[tuple[int, int]]) -> None:
    images = [torch.randn(1, 3, 16 * rows, 80) for rows in (3, 5, 6, 7)]
    expected = [tokens(copy.deepcopy(vit), image) for image in images]
    resizings.clear()
    for _ in range(2):
        for image, value in zip(images, expected, strict=True):
            assert torch.equal(tokens(vit, image), value)
    assert resizings == [(5, 5), (6, 5), (7, 5)]
    for rows in range(8, 30):
        tokens(vit, torch.randn(1, 3, 16 * rows, 80))
        remembered = vit.resized_pos_embed._remembered
        assert remembered is not None
        assert len(remembered.resized) <= positions.REMEMBERED_SIZES


def new_table() -> nn.Parameter:
    return nn.Parameter(torch.randn(1, ROWS, 24))


def train_with_fused_optimizer(net: ViT) -> None:
    """Its writes leave no trace in the parameter's version."""
    net.train().tokens(IMAGE).sum().backward()
    torch.optim.AdamW([net.pos_embed], lr=0.1, fused=True).step()
    net.eval()


def write_through_data(net: ViT) -> None:
    net.pos_embed.data.copy_(new_table())
    net.eval()


@torch.no_grad()
def average(net: ViT) -> None:
    torch._foreach_lerp_([net.pos_embed], [new_table()], 0.5)


CHANGES: dict[str, Callable[[ViT], object]] = {
    "in place": lambda net: nn.init.normal_(net.pos_embed),
    "load_state_dict": lambda net: net.load_state_dict({"pos_embed": new_table()}, strict=False),
    "assigned by load_state_dict": lambda net: net.load_state_dict(
        {"pos_embed": new_table()}, strict=False, assign=True
    ),
    "another parameter": lambda net: setattr(net, "pos_embed", new_table()),
    "other data": lambda net: setattr(net.pos_embed, "data", new_table().data),
    "another type": lambda net: net.bfloat16().float(),
    "a moving average": average,
    "a fused optimizer": train_with_fused_optimizer,
    "through data": write_through_data,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_table_is_resized_anew(vit: ViT, change: str) -> None:
    before = tokens(vit)
    CHANGES[change](vit)
    assert not torch.equal(tokens(vit), before)
    check_is_new(vit)


def test_other_tensors_for_one_call(vit: ViT) -> None:
    other = {"pos_embed": new_table().detach()}
    with torch.no_grad():
        found = torch.func.functional_call(vit, other, (IMAGE,))
    expected = copy.deepcopy(vit)
    expected.load_state_dict(other, strict=False)
    with torch.no_grad():
        assert torch.equal(found, expected(IMAGE))
    check_is_new(vit)


def test_what_inference_mode_remembers_is_not_in_the_way_of_gradients(vit: ViT) -> None:
    vit.eval()  # forgets
    with torch.inference_mode():
        vit.tokens(IMAGE)
    check_is_new(vit)
    vit.tokens(IMAGE).sum().backward()
    assert vit.pos_embed.grad is not None
    assert vit.pos_embed.grad.abs().sum() > 0


def test_shapes_alone_are_not_remembered(vit: ViT) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        tokens(vit, torch.empty(1, 3, 64, 96))
    image = torch.randn(1, 3, 64, 96)
    assert torch.equal(tokens(vit, image), tokens(copy.deepcopy(vit), image))


def test_it_is_not_saved(vit: ViT) -> None:
    remembering = len(pickle.dumps(vit))
    assert vit.resized_pos_embed._remembered is not None
    vit.eval()
    assert len(pickle.dumps(vit)) == remembering
