"""Weights of other projects -> state dicts of this one, and the report of what loaded."""

from .families import CONVERTERS, convert_pretraining
from .files import WeightsError, read_weights, write_weights
from .official import convert_official, official_arguments
from .pretrained import load_pretrained
from .report import LoadReport

FAMILIES = tuple(CONVERTERS)

__all__ = [
    "FAMILIES",
    "LoadReport",
    "WeightsError",
    "convert_official",
    "convert_pretraining",
    "load_pretrained",
    "official_arguments",
    "read_weights",
    "write_weights",
]
