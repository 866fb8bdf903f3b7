"""A ViT that is frozen, wholly or in part, inside ViT-CoMer."""

from __future__ import annotations

import pytest
import torch

from comer_d2.network import ViT, ViTCoMerNet
from tests.device import autocast


def make_net(freeze_at: int, frozen_dtype: str = "float32", **arguments: object) -> ViTCoMerNet:
    vit = ViT(
        embed_dim=24,
        depth=4,
        num_heads=3,
        window_block_indexes=(),
        pretrain_img_size=64,
        num_prefix_tokens=1,
        drop_path_rate=0.5,
        freeze_at=freeze_at,
        frozen_dtype=frozen_dtype,
    )
    return ViTCoMerNet(
        vit,
        stem_width=8,
        interaction_indexes=((0, 1), (2, 3)),
        deform_num_heads=3,
        gate_init=1.0,
        **arguments,
    )


@pytest.mark.parametrize("freeze_at", [0, 2, 4])
def test_what_is_frozen_gets_no_gradient_and_all_else_does(freeze_at: int) -> None:
    net = make_net(freeze_at).train()
    sum(m.square().mean() for m in net(torch.randn(2, 3, 64, 64)).values()).backward()
    without = {name for name, p in net.named_parameters() if p.grad is None}
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert without == frozen
    embedding = ("vit.patch_embed.", "vit.pos_embed", "vit.prefix_tokens")
    blocks = tuple(f"vit.blocks.{i}." for i in range(freeze_at))
    expected = (*embedding, *blocks) if freeze_at else ()
    assert frozen == {name for name, _ in net.named_parameters() if name.startswith(expected)}


def test_frozen_blocks_drop_no_paths_in_training() -> None:
    vit = make_net(4).train().vit
    image = torch.randn(2, 3, 64, 64)
    assert torch.equal(vit(image), vit(image))
    assert not any(block.training for block in vit.blocks)
    trained = make_net(0).train().vit
    assert not torch.equal(trained(image), trained(image))


@pytest.mark.parametrize("inject", [False, True])
def test_only_read_when_nothing_is_injected_into_it(inject: bool) -> None:
    """With CTI to V off there is no graph through the ViT, so that nothing is kept for a backward."""
    net = make_net(4, use_cti_to_v=inject).train()
    seen = []
    net.vit.blocks[-1].register_forward_hook(lambda *call: seen.append(call[-1]))
    net(torch.randn(2, 3, 64, 64))
    assert seen[0].requires_grad is inject


def test_features_are_those_of_the_net_that_is_not_frozen() -> None:
    frozen, free = make_net(4).eval(), make_net(0).eval()
    free.load_state_dict(frozen.state_dict())
    image = torch.randn(1, 3, 64, 96)
    for name, m in frozen(image).items():
        assert torch.equal(m, free(image)[name])


@pytest.mark.parametrize("halved", [False, True])
def test_kept_in_bfloat16_it_computes_nearly_the_same(halved: bool) -> None:
    half, whole = make_net(4, frozen_dtype="bfloat16"), make_net(4)
    kept = {name: p.dtype for name, p in half.named_parameters() if p.dtype != torch.float32}
    assert set(kept.values()) == {torch.bfloat16}
    assert {name.split(".")[1] for name in kept} == {"blocks"}
    assert not [name for name in kept if "norm" in name or "ls" in name]
    state = whole.state_dict()
    state |= {name: state[name].bfloat16().float() for name in kept}  # the weights themselves agree
    whole.load_state_dict(state)
    half.load_state_dict(state)
    image = torch.randn(1, 3, 64, 64)
    with autocast(torch.bfloat16, enabled=halved):
        outputs, expected = half.eval()(image), whole.eval()(image)
    for name, m in outputs.items():
        assert m.dtype == expected[name].dtype
        error = (m - expected[name]).norm() / expected[name].norm()
        assert error == 0 if halved else 0 < error < 0.02
    sum(m.float().square().mean() for m in outputs.values()).backward()
    assert not [n for n, p in half.named_parameters() if p.requires_grad and p.grad is None]


def test_an_unknown_type_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"frozen_dtype must be .*'float16'"):
        make_net(4, frozen_dtype="float16")


def test_a_type_for_frozen_blocks_where_none_is_frozen_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"frozen_dtype='bfloat16' .* freeze_at is 0: .* up to 4"):
        make_net(0, frozen_dtype="bfloat16")


@pytest.mark.parametrize("freeze_at", [5, -1, True, 1.5])
def test_what_is_no_number_of_blocks_is_an_error(freeze_at: object) -> None:
    with pytest.raises(ValueError, match=f"freeze_at must be 0 to 4, .* got {freeze_at}"):
        make_net(freeze_at)
