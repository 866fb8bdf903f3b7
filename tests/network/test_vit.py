"""The ViT, against timm's and by hand."""

import pytest
import timm
import torch
from torch.nn import functional as F

from comer_d2.network import ViT, ViTCoMerNet
from comer_d2.network.timm_pyramid import TimmPyramid
from comer_d2.network.vit_attention import (
    Attention,
    RelativePositionAttention,
    relative_position_index,
    window_partition,
    window_reverse,
)


def test_blocks_equal_timms_vit():
    """With global attention and no class token it is timm's plain ViT, without the last norm."""
    expected = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        class_token=False,
        global_pool="",
        init_values=1.0,
        img_size=64,
        depth=2,
    ).double()
    vit = ViT(
        embed_dim=192,
        depth=2,
        num_heads=3,
        window_size=0,
        window_block_indexes=(),
        pretrain_img_size=64,
        pretrain_use_cls_token=False,
    ).double()
    with torch.no_grad():
        for p in expected.parameters():
            p.normal_(std=0.2)
        result = vit.load_state_dict(expected.state_dict(), strict=False)
        assert result == ([], ["norm.weight", "norm.bias"])
        image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        tokens = expected.blocks(expected._pos_embed(expected.patch_embed(image)))
    torch.testing.assert_close(vit(image), tokens.mT.unflatten(2, (4, 4)), atol=1e-10, rtol=1e-10)


def test_images_that_are_no_whole_patches_are_refused():
    vit = ViT(embed_dim=24, depth=1, num_heads=3, window_block_indexes=())
    with pytest.raises(ValueError, match=r"must divide by 16.*got \(1, 3, 32, 40\)"):
        vit(torch.zeros(1, 3, 32, 40))


def test_padding_keys_take_part_in_softmax():
    """A 2 x 3 map in windows of 2: the last column's windows are half padding."""
    attention = Attention(dim=8, num_heads=2, qkv_bias="qkv", window_size=2).double()
    x = torch.randn(1, 6, 8, dtype=torch.float64)
    q, k, v = attention.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)[:, 0]
    expected = torch.zeros(2, 6, 4, dtype=torch.float64)
    for tokens, padding in (([0, 1, 3, 4], 0), ([2, 5], 2)):
        logits = q[:, tokens] @ k[:, tokens].transpose(1, 2) / 2  # sqrt(4 channels a head)
        weights = F.pad(logits, (0, padding)).softmax(dim=-1)  # a padded key has logit 0 ...
        expected[:, tokens] = weights[..., : len(tokens)] @ v[:, tokens]  # ... and value 0
    expected = attention.proj(expected.permute(1, 0, 2).flatten(1))[None]
    torch.testing.assert_close(attention(x, 2, 3), expected)


def test_beits_padding_carries_the_value_bias():
    """BEiT pads before the projection: k = 0, v = v_bias, and the relative bias applies."""
    attention = RelativePositionAttention(dim=4, num_heads=1, qkv_bias="qv", window_size=2).double()
    for p in attention.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(1, 1, 4, dtype=torch.float64)
    q = x[0, 0] @ attention.qkv.weight[:4].T + attention.qkv.q_bias
    k = x[0, 0] @ attention.qkv.weight[4:8].T
    v = x[0, 0] @ attention.qkv.weight[8:].T + attention.qkv.v_bias
    table = attention.relative_position_bias_table[:, 0].unflatten(0, (3, 3))
    # One token at the window's top left; the keys lie 0 or 1 below and to the right of it.
    bias = torch.stack([table[1 - dy, 1 - dx] for dy in (0, 1) for dx in (0, 1)])
    logits = torch.stack([q @ k / 2, *[q.new_zeros(())] * 3]) + bias
    weights = logits.softmax(dim=0)
    expected = attention.proj(weights[0] * v + weights[1:].sum() * attention.qkv.v_bias)
    torch.testing.assert_close(attention(x, 1, 1)[0, 0], expected)


def test_relative_position_index_by_hand():
    expected = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
    assert relative_position_index(2, 2).tolist() == expected


def test_windows_come_back():
    x = torch.randn(2, 5 * 7, 3)
    windows = window_partition(x, 5, 7, 3)
    assert windows.shape == (2 * 2 * 3, 9, 3)
    assert torch.equal(window_reverse(windows, 5, 7, 3), x)
    # The second window of the first image holds rows 0..2 and columns 3..5.
    assert torch.equal(windows[1], x[0].view(5, 7, 3)[:3, 3:6].reshape(9, 3))


def test_position_table_is_resized_as_an_image():
    vit = ViT(embed_dim=24, depth=1, num_heads=3, window_block_indexes=(), pretrain_img_size=64)
    torch.nn.init.zeros_(vit.patch_embed.proj.weight)
    torch.nn.init.zeros_(vit.patch_embed.proj.bias)
    grid = vit.pos_embed[:, 1:].view(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(2, 6), mode="bicubic", align_corners=False)
    tokens = vit.tokens(torch.randn(1, 3, 32, 96))
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2))


def test_a_vit_that_is_given_keeps_its_weights():
    vit = ViT(embed_dim=24, depth=1, num_heads=3, window_block_indexes=())
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    net = ViTCoMerNet(vit, interaction_indexes=((0, 0),), deform_num_heads=3)
    assert net.vit is vit
    for name, tensor in vit.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_vit_without_weights_gets_them_from_the_network():
    torch.manual_seed(0)
    vit = ViT(embed_dim=24, depth=1, num_heads=3, window_block_indexes=(), draw_weights=False)
    assert not vit.pos_embed.any()
    ViTCoMerNet(vit, interaction_indexes=((0, 0),), deform_num_heads=3)
    assert vit.is_drawn
    for tensor in (vit.pos_embed, vit.blocks[0].mlp.fc1.weight):
        assert 0.018 < tensor.std() < 0.022


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_a_drop_path_rate_is_a_probability(rate):
    with pytest.raises(ValueError, match=r"drop path rate must be in \[0, 1\], got"):
        ViT(embed_dim=24, depth=2, num_heads=3, window_block_indexes=(), drop_path_rate=rate)
    with pytest.raises(ValueError, match=r"drop_path_rate must be in \[0, 1\], got"):
        TimmPyramid("test_convnext", drop_path_rate=rate)
