"""Weights of other projects -> state dicts of this one, and the report of what loaded."""

from .convert import convert_weights
from .families import CONVERTERS, convert_pretraining
from .files import WeightsError, read_weights, write_weights
from .load import load_weights
from .mask2former import convert_mask2former
from .official import convert_official, to_official
from .official_arguments import official_arguments
from .official_models import (
    convert_official_detector,
    convert_official_segmentor,
    to_official_detector,
    to_official_segmentor,
)
from .pretrained import load_pretrained
from .report import LoadReport

FAMILIES = tuple(CONVERTERS)

__all__ = [
    "FAMILIES",
    "LoadReport",
    "WeightsError",
    "convert_mask2former",
    "convert_official",
    "convert_official_detector",
    "convert_official_segmentor",
    "convert_pretraining",
    "convert_weights",
    "load_pretrained",
    "load_weights",
    "official_arguments",
    "read_weights",
    "to_official",
    "to_official_detector",
    "to_official_segmentor",
    "write_weights",
]
