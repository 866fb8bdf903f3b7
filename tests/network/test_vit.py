"""The ViT branch and deformable attention, each against an independent reading of its definition."""

import timm
import torch
from torch.nn import functional as F

from comer_d2.layers.deform_attn import MSDeformAttn
from comer_d2.layers.levels import Levels
from comer_d2.network import ViTCoMerNet
from comer_d2.network.vit_attention import (
    Attention,
    RelativePositionAttention,
    relative_position_index,
    window_partition,
    window_reverse,
)


def test_blocks_equal_timms_vit():
    """With global attention and no class token, the branch is timm's plain ViT."""
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=0,
        class_token=False,
        global_pool="",
        init_values=1.0,
        img_size=64,
        depth=2,
    ).double()
    net = ViTCoMerNet(
        embed_dim=192,
        depth=2,
        num_heads=3,
        window_size=0,
        window_block_indexes=(),
        pretrain_img_size=64,
        pretrain_use_cls_token=False,
        interaction_indexes=((0, 1),),
    ).double()
    with torch.no_grad():
        for p in vit.parameters():
            p.normal_(std=0.2)
        result = net.load_state_dict(vit.state_dict(), strict=False)
        assert result.unexpected_keys == ["norm.weight", "norm.bias"]
        image = torch.randn(2, 3, 64, 64, dtype=torch.float64)
        x = net.vit_tokens(image)
        for block in net.blocks:
            x = block(x, 4, 4)
        expected = vit.blocks(vit._pos_embed(vit.patch_embed(image)))
    torch.testing.assert_close(x, expected, atol=1e-10, rtol=1e-10)


def test_padding_keys_take_part_in_softmax():
    """A 2 x 3 map in windows of 2: the last column's windows are half padding."""
    attention = Attention(dim=8, num_heads=2, qkv_bias=True, window_size=2).double()
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
    attention = RelativePositionAttention(dim=4, num_heads=1, qkv_bias=True, window_size=2).double()
    for p in attention.parameters():
        torch.nn.init.normal_(p)
    x = torch.randn(1, 1, 4, dtype=torch.float64)
    q = x[0, 0] @ attention.qkv.weight[:4].T + attention.q_bias
    k = x[0, 0] @ attention.qkv.weight[4:8].T
    v = x[0, 0] @ attention.qkv.weight[8:].T + attention.v_bias
    table = attention.relative_position_bias_table[:, 0].unflatten(0, (3, 3))
    # One token at the window's top left; the keys lie 0 or 1 below and to the right of it.
    bias = torch.stack([table[1 - dy, 1 - dx] for dy in (0, 1) for dx in (0, 1)])
    logits = torch.stack([q @ k / 2, *[q.new_zeros(())] * 3]) + bias
    weights = logits.softmax(dim=0)
    expected = attention.proj(weights[0] * v + weights[1:].sum() * attention.v_bias)
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
    net = ViTCoMerNet(
        embed_dim=24,
        depth=1,
        num_heads=3,
        window_size=0,
        window_block_indexes=(),
        pretrain_img_size=64,
        interaction_indexes=((0, 0),),
        deform_num_heads=3,
    )
    torch.nn.init.zeros_(net.patch_embed.proj.weight)
    torch.nn.init.zeros_(net.patch_embed.proj.bias)
    grid = net.pos_embed[:, 1:].view(1, 4, 4, 24).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(2, 6), mode="bicubic", align_corners=False)
    tokens = net.vit_tokens(torch.randn(1, 3, 32, 96))
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2))


def test_reference_points_are_cell_centres():
    geometry = Levels(((2, 4), (1, 2), (1, 1))).geometry(torch.device("cpu"))
    fine = [[(x + 0.5) / 4, (y + 0.5) / 2] for y in range(2) for x in range(4)]
    expected = torch.tensor([*fine, [0.25, 0.5], [0.75, 0.5], [0.5, 0.5]])
    torch.testing.assert_close(geometry.reference_points, expected)


def test_levels_split_and_merge():
    levels = Levels.around(2, 3)
    tokens = torch.randn(2, sum(levels.sizes), 5)
    maps = levels.maps(tokens)
    assert [m.shape[-2:] for m in maps] == [(4, 6), (2, 3), (1, 1)]
    assert torch.equal(levels.merge(maps), tokens)
    assert torch.equal(maps[1][0, :, 1, 2], tokens[0, 24 + 5])
    assert maps[1].data_ptr() == tokens[:, 24].data_ptr()  # a view


def test_offsets_start_on_rings():
    attention = MSDeformAttn(8, num_levels=3, num_heads=4, num_points=2)
    geometry = Levels.around(2, 2).geometry(torch.device("cpu"))
    projected = attention.offsets_and_logits(torch.randn(1, 21, 8))
    offsets = projected[..., :48].unflatten(-1, (4, 3, 2, 2))
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    for point in range(2):
        expected = (directions * (point + 1))[None, None, :, None].expand(1, 21, 4, 3, 2)
        torch.testing.assert_close(offsets[:, :, :, :, point], expected, atol=1e-6, rtol=0)
    assert not projected[..., 48:].any()  # equal weights
    assert attention(torch.randn(1, 21, 8), torch.randn(1, 21, 8), geometry).shape == (1, 21, 8)


def test_deformable_attention_by_hand():
    """Offsets of whole tokens and equal weights: the mean of the tokens they point at."""
    attention = MSDeformAttn(2, num_levels=1, num_heads=1, num_points=2).double()
    torch.nn.init.eye_(attention.value_proj.weight)
    torch.nn.init.eye_(attention.output_proj.weight)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 1.0]))  # right, below
    feat = torch.arange(1.0, 19.0, dtype=torch.float64).view(1, 9, 2)
    output = attention(
        torch.zeros_like(feat), feat, Levels(((3, 3),)).geometry(feat.device, feat.dtype)
    )
    grid = F.pad(feat.view(3, 3, 2), (0, 0, 0, 1, 0, 1))  # zeros outside the map
    expected = (grid[:3, 1:] + grid[1:, :3]) / 2
    torch.testing.assert_close(output.view(3, 3, 2), expected)
