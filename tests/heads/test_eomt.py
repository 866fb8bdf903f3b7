"""EoMT against the official implementation's numbers, and its masked attention.

`data/eomt.safetensors`: the official EoMT (16 dims, 4 blocks, 2 with queries, a class and a register token, random
parameters under the names here) on a 64 x 64 image: every prediction with masked attention fully on, upstream gradients
`g.*` and the gradients they give; and the last prediction with masked attention off.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from comer_d2.heads.eomt import EoMT, masked_share
from comer_d2.network import ViT
from tests.device import load_numbers

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_numbers(DATA / "eomt.safetensors")


def make_vit(**arguments: object) -> ViT:
    return ViT(
        **{
            "embed_dim": 16,
            "depth": 4,
            "num_heads": 2,
            "window_size": 0,
            "window_block_indexes": None,
            "pretrain_img_size": 64,
            "pretrain_use_cls_token": False,
            "num_prefix_tokens": 2,
            **arguments,
        }
    )


@pytest.fixture
def net(golden: dict[str, Tensor]) -> EoMT:
    net = EoMT(make_vit(), num_classes=3, num_queries=5, num_blocks=2)
    state = {k.removeprefix("param."): v for k, v in golden.items() if k.startswith("param.")}
    net.load_state_dict(state)
    return net


def test_training_is_the_official_one(net: EoMT, golden: dict[str, Tensor]) -> None:
    outputs = net.train()(golden["input"])
    predictions = [*outputs["aux_outputs"], outputs]
    tensors, upstream = [], []
    for i, prediction in enumerate(predictions):
        for ours, theirs in (("pred_masks", "masks"), ("pred_logits", "logits")):
            torch.testing.assert_close(
                prediction[ours], golden[f"{theirs}.{i}"], atol=1e-4, rtol=1e-5
            )
            tensors.append(prediction[ours])
            upstream.append(golden[f"g.{theirs}.{i}"])
    torch.autograd.backward(tensors, upstream)
    for name, parameter in net.named_parameters():
        expected = golden[f"grad.{name}"]
        bound = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(parameter.grad, expected, atol=bound, rtol=0)


def test_evaluation_needs_no_masks(net: EoMT, golden: dict[str, Tensor]) -> None:
    with torch.no_grad():
        outputs = net.eval()(golden["input"])
    assert outputs["aux_outputs"] == []
    torch.testing.assert_close(outputs["pred_masks"], golden["eval.masks"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(outputs["pred_logits"], golden["eval.logits"], atol=1e-4, rtol=1e-5)


def test_after_annealing_training_computes_what_evaluation_does(
    net: EoMT, golden: dict[str, Tensor]
) -> None:
    net.progress = 1.0
    with torch.no_grad():
        outputs = net.train()(golden["input"])
    torch.testing.assert_close(outputs["pred_masks"], golden["eval.masks"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("blocks", "starts"), [(4, [14782, 29564, 44346, 59128]), (3, [14782, 36955, 59128])]
)
def test_masks_are_annealed_block_by_block(blocks: int, starts: list[int]) -> None:
    """The published iterations of COCO's 12 epochs, in sixths of 6 * 14,782."""
    sixth, total = 14782, 6 * 14782
    for i, start in enumerate(starts):
        shares = [
            masked_share(i, blocks, iteration / total)
            for iteration in (start - 1, start + sixth / 2, start + sixth + 1)
        ]
        assert shares == pytest.approx([1, 0.5**0.9, 0])


def test_share_of_the_queries_that_are_held_to_their_masks() -> None:
    net = EoMT(make_vit(), num_classes=3, num_queries=400, num_blocks=2)
    masks = torch.full((1, 400, 16, 16), -1.0)
    allowed = net.allowed(masks, 400 + 2 + 16, 4, 4, share=0.25)
    held = ~allowed[0, 0, :400, -16:].any(dim=-1)
    assert 0.15 < held.float().mean() < 0.35
    # Queries, prefix tokens and the map's own tokens are seen, and see, as ever.
    assert allowed[0, 0, :, :402].all()
    assert allowed[0, 0, 400:].all()


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (48, 80)])
def test_any_size_and_every_parameter_gets_a_gradient(size: tuple[int, int]) -> None:
    net = EoMT(make_vit(), num_classes=3, num_queries=5, num_blocks=2).train()
    outputs = net(torch.randn(2, 3, *size))
    assert outputs["pred_masks"].shape == (2, 5, size[0] // 4, size[1] // 4)
    predictions = [*outputs["aux_outputs"], outputs]
    sum((p["pred_masks"].sum() + p["pred_logits"].sum()) for p in predictions).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]


def test_rotary_positions_leave_queries_alone() -> None:
    """DINOv3's positions turn the map's tokens; queries, like its register tokens, have none."""
    vit = make_vit(use_abs_pos=False, rope="dinov3", num_prefix_tokens=5)
    outputs = EoMT(vit, num_classes=3, num_queries=5, num_blocks=2).eval()(
        torch.randn(1, 3, 32, 64)
    )
    assert outputs["pred_logits"].shape == (1, 5, 4)


def test_wrong_arguments_name_themselves() -> None:
    with pytest.raises(ValueError, match=r"num_blocks must be 1 to 4, .* got 5"):
        EoMT(make_vit(), num_classes=3, num_blocks=5)
    with pytest.raises(ValueError, match="num_queries must be at least 1, got 3 and 0"):
        EoMT(make_vit(), num_classes=3, num_queries=0)
    with pytest.raises(ValueError, match="block 2 is not"):
        EoMT(make_vit(window_size=2, window_block_indexes=[0, 2]), num_classes=3, num_blocks=2)
    with pytest.raises(ValueError, match=r"divide by 16.*\(1, 3, 30, 32\)"):
        EoMT(make_vit(), num_classes=3, num_blocks=2)(torch.zeros(1, 3, 30, 32))
