"""Any supported weights -> a whole model: every tensor has its place, or it is an error."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from .files import WeightsError, check_finite, read_weights
from .fit import allowed_by, is_of_branch
from .ledger import Ledger, Part, Pretraining
from .mask2former import is_mask2former, official_mask2former
from .official import is_official
from .official_models import read_official
from .pretrained import TIMM, load_pretrained, type_notes, vit_branch
from .report import GROUP_OF, Entry, LoadReport

OWN = "a checkpoint of these names"
COUNTERS = "num_batches_tracked"  # of batch norms; nothing here computes with them
COMER = {"pyramid", "interactions", "out_norms"}  # modules that only ViT-CoMer has


def load_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    label: str | None = None,
    family: str | None = None,
    allow: Sequence[str] = (),
    sha256: str | None = None,
    complete: bool = False,
) -> LoadReport:
    """Loads weights into a model: all that the source has, or nothing and an error.

    The source is told by its names: a checkpoint of such a model, or of its backbone; the authors'
    ViT-CoMer models; an official Mask2Former, whose head is taken; or a pretrained ViT
    (:func:`load_pretrained`).

    A part of the model, such as the backbone or the mask head, that the source does not have at all
    keeps its initial values and is listed; a part that it has in pieces is an error.

    Args:
        model: what to load into.
        source: ``"timm:<id>"``, a path, or a state dict.
        label: what to call a state dict in messages.
        family: of a pretrained ViT, where its names do not tell.
        allow: shell patterns of names that may be missing, without a place, or of another shape.
        sha256: hexadecimal SHA-256 that a file must have.
        complete: whether every part of the model must be in the source, as for evaluation.

    Returns:
        What was loaded, and what was not; ``print`` it.

    Raises:
        WeightsError: if something does not fit; the model is left as it was.
    """
    if not isinstance(source, Mapping) and not str(source).startswith(TIMM):
        label = label or f"'{source}'"
        source, _ = read_weights(source, sha256=sha256)
    if isinstance(source, Mapping):
        label = label or "the state dict"
        converted = by_names_of(model, source, label)
        if converted is not None:
            check_finite(converted.tensors, label)
            return load_all(model, converted, label, allow, complete)
    if complete:
        raise WeightsError(
            f"{label or source} is a pretrained ViT, or nothing that is known here: there is no "
            f"{type(model).__name__} in it. Train from it first"
        )
    return load_pretrained(model, source, label=label, family=family, allow=allow, sha256=sha256)


def by_names_of(model: nn.Module, weights: Mapping[str, Tensor], label: str) -> Pretraining | None:
    """A source in the names of a model; ``None`` if it is neither such a model nor a converted one."""
    weights = without_wrapper(weights)
    prefix = branch_prefix(model)
    if is_official(weights):
        return below(prefix, read_official(weights))
    names = [name for name in weights if not is_plain_vit(name, prefix)]
    of_comer = is_comer(names)
    if is_mask2former(weights) and not of_comer:
        return official_mask2former(weights)
    own = model.state_dict()
    if any(name in own for name in names) or of_comer:
        ledger = Ledger(weights, OWN)
        for name in weights:
            ledger.move(name, name)
        return below(prefix, ledger.close())
    return None


def is_comer(names: Iterable[str]) -> bool:
    """Whether names are of a model of this project with a ViT-CoMer in it, or are of one."""
    return any(part in COMER for name in names for part in name.split(".")[:3])


def load_all(
    model: nn.Module,
    converted: Pretraining,
    label: str,
    allow: Sequence[str],
    complete: bool,
) -> LoadReport:
    """Loads what is in the names of the model; raises as :func:`load_weights`."""
    own = model.state_dict()
    is_allowed = allowed_by(allow)
    fitting, foreign, other_shape, other_type = {}, [], [], []
    for name, tensor in converted.tensors.items():
        if name not in own:
            foreign.append(name)
        elif tensor.shape != own[name].shape:
            other_shape.append(f"{name} ({tuple(tensor.shape)}, {tuple(own[name].shape)})")
        elif tensor.is_floating_point() != own[name].is_floating_point():
            other_type.append(f"{name} ({tensor.dtype}, {own[name].dtype})")
        else:
            fitting[name] = tensor
    prefix = branch_prefix(model)
    given = {part_of(name, prefix) for name in converted.tensors if name in own}
    missing = [
        name
        for name in own
        if name not in converted.tensors
        and (complete or part_of(name, prefix) in given)
        and not name.endswith(COUNTERS)
    ]
    problems = {
        "missing": missing,
        "without a place in this model": foreign,
        "of another shape (in the source, in the model)": other_shape,
        "of another type (in the source, in the model)": other_type,
    }
    wrong = {
        title: [name for name in names if not is_allowed(name.split(" ")[0])]
        for title, names in problems.items()
    }
    if any(wrong.values()) or not fitting:
        lines = [f"{len(names)} {what}: {grouped(names)}" for what, names in wrong.items() if names]
        lines = lines or ["none of its tensors has a place in it"]
        raise WeightsError(
            f"{label} ({converted.family}) does not fit the model: " + "\n  ".join(lines) + "\n  "
            "Nothing was loaded. Choose the config it was made with, or allow the names that may "
            "differ (allow=...; in a config, train.init_allow)"
        )
    model.load_state_dict(fitting, strict=False)
    floating = next(own[name].dtype for name in fitting if own[name].is_floating_point())
    return LoadReport(
        label,
        converted.family,
        [entry_of(part, fitting) for part in converted.parts],
        notes=type_notes(converted.parts, floating),
        fresh={
            name: tensor.numel()
            for name, tensor in own.items()
            if name not in fitting and tensor.is_floating_point()
        },
    )


def entry_of(part: Part, fitting: Mapping[str, Tensor]) -> Entry:
    """The line of the report about some elements of the source."""
    if part.target is None:
        return Entry(part.source, part.elements, "not used", part.source, part.note)
    if part.target in fitting:
        return Entry(part.source, part.elements, "loaded", part.target, part.note)
    note = "allowed: without a place, or of another shape"
    return Entry(part.source, part.elements, "not used", part.target, note)


def without_wrapper(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Names without DistributedDataParallel's ``module.``"""
    if weights and all(name.startswith("module.") for name in weights):
        return {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    return weights


def branch_prefix(model: nn.Module) -> str | None:
    """The prefix of the names of the model's backbone; ``None`` without one ViT in it."""
    try:
        return vit_branch(model)[0].removesuffix("vit.")
    except WeightsError:
        return None


def is_plain_vit(name: str, prefix: str | None) -> bool:
    """Whether a tensor says nothing about whose it is: any ViT has such a name."""
    return is_of_branch(name) or (prefix is not None and is_of_branch(name.removeprefix(prefix)))


def below(prefix: str | None, converted: Pretraining) -> Pretraining:
    """A bare backbone's names as they are in a model that has it as a part."""
    bare = any(name.split(".")[0] in (*GROUP_OF, "vit") for name in converted.tensors)
    if not prefix or not bare:
        return converted
    converted.tensors = {prefix + name: tensor for name, tensor in converted.tensors.items()}
    converted.parts = [
        replace(part, target=part.target and prefix + part.target) for part in converted.parts
    ]
    return converted


def part_of(name: str, prefix: str | None) -> str:
    """The part of a model that comes from one source as a whole.

    The backbone is one, what stands around it (an FPN) is another; of heads it is each module.
    """
    if prefix and name.startswith(prefix):
        return prefix
    parts = name.split(".")
    around_backbone = prefix and prefix.startswith(f"{parts[0]}.")
    return parts[0] if around_backbone else ".".join(parts[:2])


def grouped(names: Sequence[str], show: int = 12) -> str:
    """A few names in full; of many, how many there are under each of their first two parts."""
    if len(names) <= show:
        return ", ".join(names)
    groups = Counter(".".join(name.split(" ")[0].split(".")[:2]) for name in names)
    shown = [f"{group}.* ({count})" for group, count in groups.most_common(show)]
    return ", ".join(shown) + (", ..." if len(groups) > show else "")
