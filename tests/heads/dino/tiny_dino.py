"""A DINO small enough for tests."""

from typing import Any

import torch
from torch import Tensor

from comer_d2.heads.dino import (
    ChannelMapper,
    DenoisingGenerator,
    DINODecoder,
    DINOEncoder,
    DINOHead,
    ProposalHead,
)

NUM_CLASSES = 4
CHANNELS = (4, 6, 8)
STRIDES = (8, 16, 32)


def tiny_head(
    *,
    dim: int = 16,
    num_levels: int = 4,
    encoder_layers: int = 2,
    decoder_layers: int = 3,
    num_queries: int = 8,
    denoising_queries: int = 9,
    channels: tuple[int, ...] = CHANNELS,
    use_act_checkpoint: bool = False,
    **attention: Any,
) -> DINOHead:
    """On maps of CHANNELS at STRIDES."""
    attention = {"num_heads": 2, "num_points": 2, "ffn_dim": 24, **attention}
    attention |= {
        "dim": dim,
        "num_levels": num_levels,
        "use_act_checkpoint": use_act_checkpoint,
    }
    classes = {"dim": dim, "num_classes": NUM_CLASSES}
    return DINOHead(
        neck=ChannelMapper(in_channels=channels, dim=dim, num_levels=num_levels, norm_groups=4),
        encoder=DINOEncoder(num_layers=encoder_layers, **attention),
        proposals=ProposalHead(**classes),
        decoder=DINODecoder(num_layers=decoder_layers, num_classes=NUM_CLASSES, **attention),
        denoising=DenoisingGenerator(num_queries=denoising_queries, **classes),
        num_queries=num_queries,
        dim=dim,
    )


def roughen(head: torch.nn.Module) -> None:
    """Noise on every parameter: at the start many are zero, and much would go unnoticed."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)


def tiny_features(
    height: int, width: int, batch: int = 2, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Maps of a batch of images of (height, width)."""
    return {
        f"res{i + 3}": torch.randn(batch, channels, height // stride, width // stride, dtype=dtype)
        for i, (channels, stride) in enumerate(zip(CHANNELS, STRIDES, strict=True))
    }


def tiny_target(count: int) -> dict[str, Tensor]:
    """Objects of one image."""
    centres = torch.rand(count, 2) * 0.4 + 0.3
    return {
        "labels": torch.randint(NUM_CLASSES, (count,)),
        "boxes": torch.cat([centres, torch.rand(count, 2) * 0.4 + 0.1], dim=1),
    }
