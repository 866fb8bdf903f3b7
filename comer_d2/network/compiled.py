"""torch.compile for ViTs and interactions, block by block."""

from typing import Any

import torch
from torch import nn

from .interaction import MRFP, CTIToC, CTIToV
from .vit import Block, PostNormBlock

PARTS = (Block, PostNormBlock, MRFP, CTIToV, CTIToC)
# Graphs a part may have: by its kind (windows or global, with or without drop path or feed-forward
# branch), for training and evaluation, for one image and for several.
MOST_GRAPHS = 32


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compiles every ViT block and every part of an interaction, in place.

    Blocks of one kind share one graph, for all image sizes. Names of parameters, and what a checkpoint
    holds, stay as they are. Everything else stays eager, as do drawn boxes and lists of images.

    Args:
        model: with a ViT or a ViT-CoMer anywhere inside.
        options: more arguments of ``torch.compile``.

    Raises:
        ValueError: the model has no ViT.
    """
    parts = [module for module in model.modules() if isinstance(module, PARTS)]
    if not parts:
        raise ValueError(
            f"{type(model).__name__} has no ViT, whose blocks could be compiled one by one"
        )
    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, MOST_GRAPHS)
    for part in parts:
        part.compile(dynamic=True, **options)
