"""An optimizer's state by the names of parameters, so that it survives another grouping of them."""

from __future__ import annotations

import copy
import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...weights.files import shortened
from ..errors import UserError

logger = logging.getLogger(__name__)

# Not settings, set anew by the schedule at every step (initial_lr is the setting), or only how the same
# update is computed.
_NO_SETTINGS = {"params", "param_names", "initial_lr", "foreach", "fused"}


def save_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Any]:
    """The optimizer's `state_dict`, with ``names`` of its parameters in their order."""
    return {**optimizer.state_dict(), "names": _names(optimizer, model)}


def load_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]
) -> None:
    """Take over what `save_optimizer` returned: averages of the gradients, but no settings.

    Learning rates, weight decay and the like are the config's, and what differs is logged. As groups
    follow from those settings, states are found by the parameters' names.

    Args:
        optimizer: built from the config.
        model: whose parameters it has.
        saved: of a checkpoint.

    Raises:
        UserError: of other parameters or another optimizer, or not of an optimizer's form.
    """
    names, saved_names = _names(optimizer, model), list(saved["names"])
    differing = sorted(set(names) ^ set(saved_names))
    if differing:
        raise UserError(
            f"the checkpoint's optimizer trained other parameters than the config's: "
            f"{', '.join(differing[:5])} ({len(differing)} in all); start a new run with "
            "train.init_checkpoint"
        )
    groups = optimizer.state_dict()["param_groups"]
    _compare_settings(
        dict(_settings(groups, names)), dict(_settings(saved["param_groups"], saved_names))
    )
    states = {saved_names[index]: state for index, state in saved["state"].items()}
    entries = dict(zip(names, _entries(optimizer)))
    for name, parameter in model.named_parameters():
        if name in states:
            _check(name, states[name], parameter, entries[name])
    missing = [name for name in names if entries[name] and name not in states]
    if missing:  # frozen so far, or lost
        logger.warning(
            "The checkpoint's optimizer has nothing of %d of %d parameters, whose averages of the gradients begin "
            "anew: %s",
            len(missing),
            len(names),
            shortened(missing),
        )
    state = {index: states[name] for index, name in enumerate(names) if name in states}
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # what the schedule multiplies


def _names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[str]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"]]


def _settings(
    groups: list[dict[str, Any]], names: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Parameter -> its settings, in a `state_dict`'s groups."""
    for group in groups:
        settings = {key: value for key, value in group.items() if key not in _NO_SETTINGS}
        settings["lr"] = group.get("initial_lr", group["lr"])
        for index in group["params"]:
            yield names[index], settings


def _compare_settings(new: dict[str, dict[str, Any]], old: dict[str, dict[str, Any]]) -> None:
    """Log what differs; raise a UserError where the state would not fit."""
    changes: dict[str, set[tuple[Any, Any]]] = {}
    for name, settings in new.items():
        if settings.keys() != old[name].keys():
            raise UserError(
                "the checkpoint was written by another optimizer than the config's (its settings "
                f"are {', '.join(old[name])}); set the config's back, or start a new run with "
                "train.init_checkpoint"
            )
        for key, value in settings.items():
            if value != old[name][key]:
                changes.setdefault(key, set()).add((old[name][key], value))
    if "amsgrad" in changes:
        raise UserError("optimizer.amsgrad cannot change in a run: its state is another")
    for key, pairs in changes.items():
        shown = ", ".join(f"{before} -> {after}" for before, after in sorted(pairs, key=str)[:5])
        logger.warning(
            "optimizer.%s is the config's from here on, not the checkpoint's: %s%s",
            key,
            shown,
            f", ... ({len(pairs)} in all)" if len(pairs) > 5 else "",
        )


def _entries(optimizer: torch.optim.Optimizer) -> Iterator[set[str]]:
    """What this optimizer keeps of each parameter: seen on a step of a twin, whose parameters are single zeros."""
    for group in optimizer.param_groups:
        probes = {p.ndim: p.detach().new_zeros([1] * p.ndim) for p in group["params"]}
        for probe in probes.values():
            probe.grad = torch.zeros_like(probe)
        twin = copy.copy(optimizer)
        twin.state = defaultdict(dict)
        twin.param_groups = [{**group, "params": list(probes.values())}]
        twin.step()
        yield from (set(twin.state[probes[p.ndim]]) for p in group["params"])


def _check(name: str, state: dict[str, Any], parameter: Tensor, entries: set[str]) -> None:
    """An entry is one number, or of the parameter's shape (or a mean over some of its dimensions)."""
    missing = sorted(entries - state.keys())
    if missing:
        raise UserError(
            f"the checkpoint's optimizer is damaged: of '{name}' it holds {sorted(state)}, and not "
            f"{', '.join(missing)}"
        )
    for key, value in state.items():
        if not isinstance(value, Tensor):
            continue
        sides = zip(value.shape, parameter.shape)
        fits = value.ndim == parameter.ndim and all(side in (1, whole) for side, whole in sides)
        if value.numel() != 1 and not fits:
            raise UserError(
                f"the checkpoint's optimizer does not fit: {key} of '{name}' has shape "
                f"{tuple(value.shape)}, the parameter {tuple(parameter.shape)}"
            )
        if key == "step" and (value < 0).any():
            raise UserError(f"the checkpoint's optimizer is damaged: step of '{name}' is {value}")
        if not torch.isfinite(value).all():
            raise UserError(
                f"the checkpoint's optimizer is damaged: {key} of '{name}' is not finite"
            )
