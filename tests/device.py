"""Where the tests of layers, network and heads compute: what `pytest --device` names, the CPU without it."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def load_numbers(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors, on the device under test."""
    return load_file(path, device=str(torch.get_default_device()))


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Autocast of the device under test."""
    return torch.autocast(torch.get_default_device().type, dtype)
