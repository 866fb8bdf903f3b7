"""Weights of other projects -> state dicts of this one, and the report of what loaded."""

from .convert import convert_weights
from .files import WeightsError, read_weights, write_weights
from .load import load_weights
from .origins import FAMILIES
from .origins.vit_comer_arguments import official_arguments
from .report import LoadReport

__all__ = [
    "FAMILIES",
    "LoadReport",
    "WeightsError",
    "convert_weights",
    "load_weights",
    "official_arguments",
    "read_weights",
    "write_weights",
]
