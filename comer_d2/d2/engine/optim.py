"""Learning rate and weight decay of every parameter."""

import re
from collections.abc import Sequence
from typing import Any

from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver.build import reduce_param_groups
from omegaconf import DictConfig
from torch import nn

from ..errors import UserError

# What comes before the blocks, and so learns as slowly as the position table.
EMBEDDING = re.compile(r"^backbone(?:\..*?)?\.(prefix_tokens$|norm_pre\.)")
VIT_BLOCK = re.compile(r"^(backbone(?:\..*?)?)\.blocks\.(\d+)\.")


def get_param_groups(
    model: nn.Module,
    base_lr: float,
    weight_decay: float,
    lr_decay_rate: float = 1.0,
    no_decay: Sequence[str] = ("pos_embed", "prefix_tokens"),
    backbone_lr_factor: float = 1.0,
    vit_lr_factor: float = 1.0,
) -> list[dict[str, Any]]:
    """Sorts a detector's parameters into optimizer groups.

    Learning rate: with ``n`` ViT blocks, block ``i`` gets ``base_lr * lr_decay_rate**(n - i)``, the
    patch, position and token embedding ``base_lr * lr_decay_rate**(n + 1)``, and everything else, which is
    the whole of CoMer and the heads, ``base_lr``. The rule is Detectron2's; ``n`` is counted here.

    Weight decay: none on tensors with one dimension, which are biases, the weights of norms, layer
    scales and gates of CTI to V. (Detectron2's ``get_default_optimizer_params`` goes by the type
    of the module and misses its own LayerNorm and scales outside norms.) None on ``no_decay``.

    By default the position table is not decayed, as in ViTDet, nor are class and register tokens.
    The released ViT-CoMer recipes for sizes S and B mean that too but ask for the name without its
    ``backbone.``; the difference is nothing: at the table's learning rate, 0.70**13 of 1e-4, a 1x
    schedule would decay it by 0.3 %.
    ``level_embed`` is decayed, as in those recipes, which leave out nothing else that has two
    dimensions: it starts at N(0, 1), not from pretraining, and has the full learning rate, so there
    it matters (a quarter over a 1x schedule).

    Args:
        model: a model whose ViT is under ``backbone``, directly or in an FPN.
        base_lr: learning rate of the heads.
        weight_decay: of everything that is decayed.
        lr_decay_rate: ratio of the learning rates of two consecutive blocks, in (0, 1]; 1 for none.
        no_decay: parts of names, between dots, of parameters that are not decayed: "pos_embed", or
            "predictor.level_embed" for the weight of that module.
        vit_lr_factor: of the ViT alone, position table and embedding included, next to the layer decay. (The
            ViT's ``freeze_at`` freezes it.)
        backbone_lr_factor: of everything under ``backbone``, next to the other rules; a tenth where
            a DETR stands on a pretrained hierarchical network.

    Returns:
        Groups for a torch optimizer, one for each pair of ``lr`` and ``weight_decay``; parameters
        that do not require a gradient are in none.

    Raises:
        ValueError: if ``lr_decay_rate`` is not in (0, 1], or below 1 with no ViT blocks to decay, or
            with blocks in several stages, as a hierarchical network has them.
    """
    blocks = [match for name, _ in model.named_parameters() if (match := VIT_BLOCK.match(name))]
    num_layers = 1 + max((int(match[2]) for match in blocks), default=-1)
    if not 0 < lr_decay_rate <= 1:
        raise ValueError(f"lr_decay_rate must be in (0, 1], got {lr_decay_rate}")
    if num_layers == 0 and lr_decay_rate != 1:
        raise ValueError(
            f"lr_decay_rate is {lr_decay_rate}, but {type(model).__name__} has no parameters named "
            "backbone.*.blocks.<i>.*: pass the unwrapped model, or set lr_decay_rate to 1"
        )
    stages = sorted({match[1] for match in blocks})
    if len(stages) > 1 and lr_decay_rate != 1:
        raise ValueError(
            f"lr_decay_rate is {lr_decay_rate}, but the blocks of {type(model).__name__} are in "
            f"{len(stages)} stages ({stages[0]}, ...): it is for plain ViTs. Set it to 1; "
            "backbone_lr_factor slows down the whole backbone"
        )
    if vit_lr_factor <= 0 or (vit_lr_factor != 1 and len(stages) != 1):
        raise ValueError(
            f"vit_lr_factor is {vit_lr_factor}: it must be positive (freeze_at of the ViT freezes it), and is "
            f"for models with one plain ViT under backbone; {type(model).__name__} has {len(stages)}"
        )
    of_vit = {id(p) for p in vit_parameters(model)} if len(stages) == 1 else set()
    groups = []
    for name, parameter in model.named_parameters():
        in_vit = id(parameter) in of_vit
        if not parameter.requires_grad:
            continue
        decayed = parameter.ndim > 1 and not any(f".{part}." in f".{name}." for part in no_decay)
        layer = "backbone.net.pos_embed" if EMBEDDING.match(name) else name
        groups.append(
            {
                "params": [parameter],
                "lr": base_lr
                * get_vit_lr_decay_rate(layer, lr_decay_rate, num_layers)
                * (backbone_lr_factor if name.startswith("backbone.") else 1.0)
                * (vit_lr_factor if in_vit else 1.0),
                "weight_decay": weight_decay if decayed else 0.0,
            }
        )
    return reduce_param_groups(groups)


def settle_fused(optimizer: DictConfig, device_type: str) -> None:
    """Turn ``optimizer.fused=null`` into true on CUDA.

    There one kernel updates all parameters, and a step that float16 has to skip is skipped by the
    device, which the host need not wait for. On a CPU PyTorch's own default stays.

    Args:
        optimizer: the config's node; without the key nothing changes.
        device_type: "cpu" or "cuda".
    """
    if device_type == "cuda" and optimizer.get("fused", False) is None:
        optimizer.fused = True


def vit_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters of a model's plain ViT, which is the module that has the blocks.

    Raises:
        UserError: there is no plain ViT under ``backbone``.
    """
    names = [name for name, _ in model.named_parameters()]
    prefixes = {match[1] for name in names if (match := VIT_BLOCK.match(name))}
    if len(prefixes) != 1:
        raise UserError(
            f"{type(model).__name__} has no plain ViT to freeze (found {len(prefixes)}): set train.frozen_vit=0"
        )
    return list(model.get_submodule(prefixes.pop()).parameters())
