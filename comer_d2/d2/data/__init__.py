"""Datasets: the quickstart's digits, public ones, and data of the user's own."""

from . import builtin  # noqa: F401  registers them
