"""The random generators of this process: capture, restore, seed for a while."""

# ruff: noqa: NPY002 - Detectron2's augmentations draw from NumPy's global generator.

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def get_random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's generators (CPU and the current CUDA device).

    Returns:
        A dict of tensors and plain values only, so that it can be read back weights-only.
    """
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what `get_random_state` returned."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """What is drawn inside leaves the generators outside as they were."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextmanager
def seeded(*seeds: int) -> Iterator[None]:
    """Inside, all CPU generators start from `seeds` (non-negative); afterwards as before."""
    # Sequences that differ in one number alone must not be correlated, hence SeedSequence.
    python, numpy, pytorch = np.random.SeedSequence(seeds).generate_state(3)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch_state = torch.get_rng_state()
    try:
        random.seed(int(python))
        np.random.seed(numpy)
        # Not torch.manual_seed: that would seed CUDA too, which the model draws from.
        torch.default_generator.manual_seed(int(pytorch))
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
