"""Hierarchical networks of timm, by the names of timm's whole model.

The table is made for each network, for timm's feature extractors name the same modules in their own
ways: ``layers.0.blocks`` of the whole model is ``layers_0.blocks``, or ``model.layers.0.blocks``.
"""

import math
import warnings
from dataclasses import replace
from typing import Any

import timm
import torch
from timm.layers import resize_rel_pos_bias_table
from torch import nn

from ...network.timm_pyramid import TimmPyramid
from ..conversion import Conversion, Layout, Names, Origin
from ..vit_steps import COMPUTED

NOT_IN_MAPS = "after the last feature map: norm and head"
BIAS_TABLE = "relative_position_bias_table"


def origin_of(pyramid: TimmPyramid) -> Origin:
    """What weights of timm's whole model are in a network here, which may be on the meta device."""
    with torch.device("meta"):
        whole = timm.create_model(pyramid.name, **pyramid.arguments)
    own = pyramid.state_dict()
    names: dict[Names, Names] = {}
    unused = dict.fromkeys(buffers_not_saved(whole), COMPUTED)
    for name in whole.state_dict():
        ways = (name, name.replace(".", "_", 1), f"model.{name}")
        place = next((f"net.{way}" for way in ways if f"net.{way}" in own), None)
        if place is None:
            unused[name] = NOT_IN_MAPS
        else:
            names[name] = place
    return Origin("pyramid", f"timm's {pyramid.name}", (Layout(names, unused),), part="pyramid")


def buffers_not_saved(model: nn.Module) -> list[str]:
    """Names of masks and indices, which older versions of timm saved with the weights."""
    saved = model.state_dict()
    every = [f"{m}.{b}" for m, module in model.named_modules() for b in module._buffers]
    return [name for name in every if name not in saved]


def fit_tables(conversion: Conversion, pyramid: TimmPyramid) -> None:
    """Resizes Swin's tables of relative positions to the windows of the network."""
    own = pyramid.state_dict()
    for name, table in conversion.tensors.items():
        if not name.endswith(BIAS_TABLE) or table.shape[1:] != own[name].shape[1:]:
            continue  # loaded, or a problem, as any other
        side = math.isqrt(len(table))
        if table.shape == own[name].shape or side**2 != len(table):
            continue
        attention: Any = pyramid.get_submodule(name.removesuffix(f".{BIAS_TABLE}"))
        window = attention.window_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about timm's code
            resized = resize_rel_pos_bias_table(table, window, tuple(own[name].shape))
        conversion.tensors[name] = resized
        note = f"window {(side + 1) // 2} to {window[0]} (linear between geometric steps)"
        conversion.log = [
            replace(e, status="resampled", note=note) if e.target == name else e
            for e in conversion.log
        ]
