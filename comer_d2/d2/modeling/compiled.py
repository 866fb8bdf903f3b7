"""torch.compile of a detector, as a config or a caller says."""

from typing import Literal

from torch import nn

from ...network.compiled import compile_blocks
from ..errors import UserError

Compile = Literal["blocks", "model"]


def check_compile(how: object, key: str) -> None:
    """Raises a UserError that names `key`, unless `how` is something that can be compiled, or None."""
    if how not in (None, "blocks", "model"):
        raise UserError(f"{key}={how!r}: use blocks, model, or null for none")


def compile_model(model: nn.Module, how: Compile | None, key: str) -> None:
    """Compiles a model in place, or a part of it.

    Args:
        model: a meta-architecture with a ``backbone``.
        how: ``"blocks"``: ViT blocks and interactions, one by one, each kind once for all image sizes;
            ``"model"``: the whole backbone as one graph; None: nothing.
        key: what a message calls this choice.

    Raises:
        UserError: the model has no blocks to be compiled.
    """
    check_compile(how, key)
    if how == "blocks":
        try:
            compile_blocks(model)
        except ValueError as e:
            raise UserError(f"{key}=blocks: {e}; use model") from e
    elif how == "model":
        model.get_submodule("backbone").compile(dynamic=True)
