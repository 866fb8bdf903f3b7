"""Networks of tests, from one list of arguments for a ViT and what is around it."""

import inspect
from collections.abc import Mapping
from typing import Any

from comer_d2.network import ViT, ViTCoMerNet
from comer_d2.weights import official_arguments

OF_VIT = set(inspect.signature(ViT).parameters)


def official_network(config: Mapping[str, Any]) -> ViTCoMerNet:
    """The network of a config of the authors."""
    arguments = official_arguments(config)
    return ViTCoMerNet(ViT(**arguments.pop("vit")), **arguments)


def make_network(cls: type[ViTCoMerNet] = ViTCoMerNet, **arguments: Any) -> ViTCoMerNet:
    """A ViT-CoMer; arguments that :class:`ViT` has are its ViT's."""
    vit = {name: value for name, value in arguments.items() if name in OF_VIT}
    rest = {name: value for name, value in arguments.items() if name not in OF_VIT}
    return cls(ViT(**vit), **rest)
