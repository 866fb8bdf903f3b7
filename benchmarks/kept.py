"""Bytes that a forward keeps for its backward."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Kept(TorchDispatchMode):
    """Counts what is kept while it is active: each storage once, those of the model's weights and buffers not.

    Attributes:
        activations: storages and their bytes, which grow with the batch.
        casts: of the weights' copies in autocast's type, as many for every batch.
    """

    def __init__(self, model: nn.Module, *, drops: bool = False) -> None:
        """`drops`: let go of everything at once, in a forward that no backward follows."""
        super().__init__()
        self.activations: dict[StorageWeakRef, int] = {}
        self.casts: dict[StorageWeakRef, int] = {}
        self._own = {storage(t) for t in chain(model.parameters(), model.buffers())}
        self._copies: set[StorageWeakRef] = set()
        self._drops = drops

    def __enter__(self) -> Kept:
        super().__enter__()
        self._hooks = saved_tensors_hooks(self._keep, lambda tensor: tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        copies: Iterable[tuple[Tensor, Tensor]] = ()
        if func is torch.ops.aten._to_copy.default:
            copies = [(result, args[0])]
        elif func is torch.ops.aten._foreach_copy_.default:
            copies = zip(args[0], args[1], strict=True)
        for copy, source in copies:
            if storage(source) in self._own:
                self._copies.add(storage(copy))
        return result

    def _keep(self, tensor: Tensor) -> Tensor | None:
        place = storage(tensor)
        if place not in self._own:
            kind = self.casts if place in self._copies else self.activations
            kind[place] = tensor.untyped_storage().nbytes()
        return None if self._drops else tensor


def storage(tensor: Tensor) -> StorageWeakRef:
    """A tensor's storage, by a name that no other gets once it is gone."""
    return StorageWeakRef(tensor.untyped_storage())
