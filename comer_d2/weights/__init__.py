"""State dicts of other projects -> state dicts of this one."""

from .official import convert_official, official_arguments

__all__ = ["convert_official", "official_arguments"]
