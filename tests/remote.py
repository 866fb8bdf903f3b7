"""A pretended device on the CPU that counts how often a GPU's host would have to wait for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

aten = torch.ops.aten
DEVICE = torch.device("meta")  # PyTorch's device without memory, for which autograd needs no driver
# What a GPU can only answer once all work before it is done.
ANSWERS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten._unique2,
}


class RemoteTensor(Tensor):
    """A tensor that says it is on the device; its values are on the CPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> RemoteTensor:
        return Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), dtype=values.dtype, device=DEVICE
        )

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("remote tensors are for use inside of RemoteDevice")


class RemoteDevice(TorchDispatchMode):
    """While it is entered, work on remote tensors is done on the CPU, and waiting is noted.

    A host waits where it asks for a value, copies from the device, or copies to it without
    ``non_blocking``; and nothing on the device may meet what is not there.

    Attributes:
        waits: the operations that were waited for, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Any] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        remote = [x for x in tensors if isinstance(x, RemoteTensor)]
        here = [x for x in tensors if not isinstance(x, RemoteTensor) and x.ndim]
        to_device = "device" in kwargs and kwargs["device"] is not None
        becomes_remote = torch.device(kwargs["device"]) == DEVICE if to_device else bool(remote)
        if to_device:
            kwargs["device"] = torch.device("cpu")
        packet = func.overloadpacket
        if packet in (aten._to_copy, aten.copy_):
            blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            from_device = bool(remote) and not becomes_remote
            crosses = bool(remote) != becomes_remote or bool(remote and here)
            if crosses and (blocking or from_device):
                self.waits.append(func)
        elif remote:
            masks = packet is aten.index and any(
                x.dtype in (torch.bool, torch.uint8) for x in remote[1:]
            )
            if packet in ANSWERS or masks:
                self.waits.append(func)
            if here:
                raise RuntimeError(f"{func} of tensors on the device and tensors that are not")
        values = tree_map_only(RemoteTensor, lambda x: x.values, (args, kwargs))
        result = func(*values[0], **values[1])
        if func._schema.is_mutable and args and result is not None:
            return args[0]
        return tree_map_only(Tensor, RemoteTensor, result) if becomes_remote else result


def remote(tree: Any) -> Any:
    """All tensors of a tree as leaves on the device, inside of `RemoteDevice`."""

    def move(x: Tensor) -> Tensor:
        return RemoteTensor(x.detach()).requires_grad_(x.requires_grad)

    return tree_map_only(Tensor, move, tree)
