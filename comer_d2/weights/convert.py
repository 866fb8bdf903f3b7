"""Any supported weights -> a state dict by the names here, by the authors' or by timm's."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from .families import convert_pretraining
from .files import WeightsError, check_finite, first, read_weights
from .fit import allowed_by, is_of_branch
from .ledger import Part, Pretraining
from .load import is_comer, without_wrapper
from .mask2former import is_mask2former, official_mask2former
from .official import is_official
from .official_models import has_official_heads, read_official, write_official
from .pretrained import TIMM, from_timm
from .report import Entry, LoadReport, summary
from .sizes import check_whole, sized_branch
from .timm_layouts import TIMM_MODELS, to_timm
from .vit_layouts import FINAL_NORM, own_branch

Target = Literal["here", "official", "timm"]
LEFT_OUT = "left out, as asked"
Converted = tuple[dict[str, Tensor], LoadReport]


def convert_weights(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    to: Target = "here",
    *,
    label: str | None = None,
    family: str | None = None,
    allow: Sequence[str] = (),
    sha256: str | None = None,
) -> Converted:
    """Converts weights to other names: all that there are, or an error.

    ``"here"`` takes the authors' models, an official Mask2Former (its head) or a pretrained ViT, and
    gives what :func:`load_weights` reads without further ado. ``"official"`` takes a Mask R-CNN, a
    UPerNet or a ViT-CoMer backbone of this project, and gives the authors' names. ``"timm"`` takes
    any of these, or a pretrained ViT in any layout, and gives the ViT by the names of timm's model of
    the family.

    Args:
        source: ``"timm:<id>"``, a path, or a state dict.
        to: whose names.
        label: what to call a state dict in messages.
        family: of the ViT, one of ``comer_d2.weights.FAMILIES``; ``None``: told by the names, which
            those of a trained ViT-CoMer do not tell.
        allow: shell patterns of the source's names to leave out.
        sha256: hexadecimal SHA-256 that a file must have.

    Returns:
        The state dict, which may share memory with the source, and the report: ``fresh`` in it are
        tensors that were added with their initial values.

    Raises:
        WeightsError: if the source cannot be read, is not known, or has no such names.
    """
    if to not in get_args(Target):
        raise WeightsError(f"to must be one of {', '.join(get_args(Target))}, got {to!r}")
    if isinstance(source, Mapping):
        label = label or "the state dict"
    elif str(source).startswith(TIMM):
        return convert_timm_model(str(source), to, family, allow, sha256)
    else:
        label = label or f"'{source}'"
        source, _ = read_weights(source, sha256=sha256)
    kept, left_out = split(without_wrapper(source), allow)
    check_finite(kept, label)
    if not kept:
        raise WeightsError(f"{label}: nothing is left of it to convert")
    convert = {"here": to_here, "official": to_authors, "timm": to_timm_model}[to]
    tensors, report = convert(kept, label, family)
    report.entries += [Entry(n, t.numel(), "not used", n, LEFT_OUT) for n, t in left_out.items()]
    return tensors, report


def convert_timm_model(
    source: str, to: Target, family: str | None, allow: Sequence[str], sha256: str | None
) -> Converted:
    """The weights that timm has under an id; arguments as `convert_weights`."""
    if to != "here" or sha256 or allow:
        raise WeightsError(
            f"'{source}' can only be converted to the names here, as a whole, and is checked by "
            "timm's hub cache: no other direction, SHA-256 or tensors to leave out"
        )
    pretraining = from_timm(source.removeprefix(TIMM), family)
    return branch_tensors(pretraining), conversion_report(pretraining, source)


def split(
    weights: Mapping[str, Tensor], patterns: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What to convert, and what to leave out."""
    is_left_out = allowed_by(patterns)
    kept = {name: tensor for name, tensor in weights.items() if not is_left_out(name)}
    return kept, {name: tensor for name, tensor in weights.items() if name not in kept}


def to_here(weights: Mapping[str, Tensor], label: str, family: str | None) -> Converted:
    """Anything known -> the names here."""
    if is_official(weights):
        converted = read_official(weights)
    elif is_comer(weights):
        raise WeightsError(
            f"{label} has the names of this project already; say what to write: official or timm"
        )
    elif is_mask2former(weights):
        converted = official_mask2former(weights)
    else:
        converted = known_pretraining(weights, label, family)
        return branch_tensors(converted), conversion_report(converted, label)
    return converted.tensors, conversion_report(converted, label)


def to_authors(weights: Mapping[str, Tensor], label: str, family: str | None) -> Converted:
    """A model of this project -> the authors' names."""
    if is_official(weights):
        raise WeightsError(f"{label} has the authors' names already")
    if not is_comer(weights):
        raise WeightsError(
            f"{label} is no ViT-CoMer by the names here: the authors have no names for it"
        )
    prefix = comer_prefix(weights)
    outside = [name for name in weights if not name.startswith(prefix)]
    if outside and not has_official_heads(weights):
        raise WeightsError(
            f"{label} is neither the authors' Mask R-CNN nor their UPerNet: they have no names for "
            f"{first(outside)}. To convert the backbone alone, leave these out (allow=...; on the "
            "command line, --allow)"
        )
    if not outside:  # the backbone alone, out of whatever it was in
        weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    official = write_official(weights)
    given = {id(tensor) for tensor in weights.values()}
    report = LoadReport(
        label,
        "ViT-CoMer by the authors' names",
        [Entry(name, tensor.numel(), "loaded", name) for name, tensor in weights.items()],
        fresh={
            name: t.numel()
            for name, t in official.items()
            if id(t) not in given
            and not re.search(r"\.(sampling_offsets|attention_weights)\.", name)
        },
        notes=kinds_of(own_model(weights).parts),
    )
    if report.fresh:
        report.notes.append(
            "fresh: what the authors' network has and does not use, or computes: "
            f"{first(list(report.fresh), 3)}"
        )
    return official, report


def to_timm_model(weights: Mapping[str, Tensor], label: str, family: str | None) -> Converted:
    """A ViT-CoMer of either naming, or a pretrained ViT -> timm's names of the ViT."""
    if is_official(weights):
        model = read_official(weights)
    elif is_comer(weights):
        model = own_model(weights)
    else:
        pretraining = known_pretraining(weights, label, family)
        return written_for_timm(pretraining, pretraining.key, label)
    if family not in TIMM_MODELS:
        raise WeightsError(
            f"the names of {label} do not tell which ViT it was trained from, and timm's differ: "
            f"say the family, one of {', '.join(TIMM_MODELS)}"
        )
    return written_for_timm(vit_of(model, family), family, label)


def written_for_timm(pretraining: Pretraining, family: str, label: str) -> Converted:
    """A ViT by timm's names, with the report."""
    written = to_timm(pretraining, family)
    report = conversion_report(pretraining, label)
    report.family = f"{pretraining.family} by timm's names"
    report.entries = [
        replace(entry, status="not used", note=written.unused[entry.target])
        if entry.target in written.unused
        else replace(entry, status="loaded", note="")
        if entry.note == FINAL_NORM
        else entry
        for entry in report.entries
    ]
    report.neutral = written.neutral
    report.notes.append("timm's models attend globally in every block; windows are not in weights")
    return written.tensors, report


def known_pretraining(weights: Mapping[str, Tensor], label: str, family: str | None) -> Pretraining:
    """A pretrained ViT with all tensors of its layout, and no other."""
    pretraining = convert_pretraining(weights, family, label)
    refuse_unexpected(pretraining, label)
    tensors = branch_tensors(pretraining)
    whole = sized_branch(tensors, pretraining.computation).state_dict()
    check_whole(tensors, whole, f"{label} ({pretraining.family})")
    return pretraining


def refuse_unexpected(pretraining: Pretraining, label: str) -> None:
    """Raises WeightsError if there are tensors that the layout does not have."""
    if pretraining.unexpected:
        raise WeightsError(
            f"{label} ({pretraining.family}) has tensors that are not of this family: "
            f"{first(pretraining.unexpected)}. Name those that may be left out (allow=...; "
            "on the command line, --allow)"
        )


def own_model(weights: Mapping[str, Tensor]) -> Pretraining:
    """A model by the names here as it is, with its books."""
    parts = [Part(name, t.numel(), name, dtype=t.dtype) for name, t in weights.items()]
    return Pretraining("ViT-CoMer", dict(weights), parts)


def vit_of(model: Pretraining, family: str) -> Pretraining:
    """The ViT in a model by the names here, as the pretraining that it could have been.

    The books are about what the model itself was made from.
    """
    prefix = comer_prefix(model.tensors)
    bare = {
        name.removeprefix(prefix): tensor
        for name, tensor in model.tensors.items()
        if name.startswith(prefix)
    }
    branch = {n.removeprefix("vit."): t for n, t in bare.items() if is_of_branch(n)}
    vit = own_branch(branch, family)
    refuse_unexpected(vit, model.family)
    tensors = branch_tensors(vit)
    check_whole(tensors, sized_branch(tensors).state_dict(), f"the ViT of {model.family}")
    source_of = {
        (part.target or "").removeprefix(prefix).removeprefix("vit."): part.source
        for part in model.parts
    }
    vit.parts = [replace(part, source=source_of[part.source]) for part in vit.parts]
    vit.parts += [
        replace(part, target=None, note=part.note or "not of the ViT")
        for part in model.parts
        if not is_of_branch((part.target or "").removeprefix(prefix))
    ]
    vit.family = f"the ViT ({family}) of {model.family}"
    return vit


def comer_prefix(names: Mapping[str, Tensor]) -> str:
    """What stands before the names of the one ViT-CoMer in a model.

    Raises:
        WeightsError: if there is none, or more than one.
    """
    sign = "pyramid.stem.0.0.weight"
    found = [name.removesuffix(sign) for name in names if name.endswith(sign)]
    if len(found) != 1:
        raise WeightsError(f"{len(found)} tensors '*{sign}', of one ViT-CoMer there is one")
    return found[0]


def branch_tensors(pretraining: Pretraining) -> dict[str, Tensor]:
    """A pretraining's tensors as a network has them: the class token's row is part of the table."""
    tensors = dict(pretraining.tensors)
    class_row = tensors.pop("pos_embed.class_row", None)
    if class_row is not None:
        tensors["pos_embed"] = torch.cat([class_row, tensors["pos_embed"]], dim=1)
    return tensors


def conversion_report(converted: Pretraining, source: str) -> LoadReport:
    """What a conversion did with every element of its source; ``print`` it.

    Args:
        converted: the result, with its books.
        source: the file.
    """
    return LoadReport(
        source,
        converted.family,
        [
            Entry(
                part.source,
                part.elements,
                "not used" if part.target is None else "loaded",
                part.target or part.source,
                part.note,
            )
            for part in converted.parts
        ],
        notes=kinds_of(converted.parts),
    )


def kinds_of(parts: Sequence[Part]) -> list[str]:
    """Lines for the tensors that are of another type than most."""
    kinds: dict[torch.dtype, dict[str, int]] = {}
    for part in parts:
        if part.target and part.dtype and part.dtype.is_floating_point:
            kinds.setdefault(part.dtype, {})[part.source] = part.elements
    rest = sorted(kinds.items(), key=lambda kind: sum(kind[1].values()))[:-1]
    return [f"of type {str(kind).removeprefix('torch.')}: {summary(names)}" for kind, names in rest]
