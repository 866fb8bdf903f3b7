"""Sine encodings of numbers."""

import torch
from torch import Tensor


def sine_encoding(x: Tensor, dim: int, temperature: float) -> Tensor:
    """Sines and cosines of numbers at several frequencies.

    Args:
        x: (...), in radians.
        dim: channels C, even: a pair is sine and cosine at one frequency.
        temperature: the frequencies go from 1 down to nearly its inverse.

    Returns:
        (..., C).
    """
    pairs = torch.arange(dim // 2, device=x.device, dtype=x.dtype)
    angle = x[..., None] / temperature ** (2 * pairs / dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)
