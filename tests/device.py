"""Where the tests of layers, network and heads compute: what `pytest --device` names, the CPU without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def load_numbers(path: Path) -> dict[str, Tensor]:
    """A safetensors file's tensors, on the device under test."""
    return load_file(path, device=str(torch.get_default_device()))


def device_type() -> str:
    """The type of the device under test, as autocast asks for it: read in a test, not at import."""
    return torch.get_default_device().type


def autocast(dtype: torch.dtype, enabled: bool = True) -> torch.autocast:
    """Autocast of the device under test."""
    return torch.autocast(device_type(), dtype, enabled=enabled)


@contextmanager
def no_default_device() -> Iterator[None]:
    """For what is compiled: PyTorch 2.11's compiler does not trace all that a default device wraps."""
    device = torch.get_default_device()
    torch.set_default_device(None)
    try:
        yield
    finally:
        torch.set_default_device(None if device.type == "cpu" else device)


def seeded(seed: int) -> torch.Generator:
    """A generator of the device under test, which no other device's tensors can be drawn with."""
    return torch.Generator(device_type()).manual_seed(seed)
