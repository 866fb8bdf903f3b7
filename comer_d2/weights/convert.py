"""Weights -> a state dict by the names of a model here, or by the authors': whole, or an error."""

import os
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from .conversion import Layout, Origin
from .files import WeightsError, shortened
from .load import Places, fit, read_source
from .origins import ORIGINS
from .recognise import allowed_by
from .report import Entry, LoadReport

Target = Literal["here", "official"]


def convert_weights(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    to: Target = "here",
    *,
    label: str | None = None,
    family: str | None = None,
    allow: Sequence[str] = (),
    sha256: str | None = None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """Converts weights for a model: what :func:`load_weights` would load, as a state dict.

    Args:
        model: the model that the weights are for. Only its names and shapes count, so it can be made
            on the meta device.
        source: ``"timm:<id>"``, a path, or a state dict.
        to: ``"here"``: the model's names. ``"official"``: the authors' and their frameworks', of a
            Mask or Faster R-CNN, ATSS, GFL, a UPerNet or a ViT-CoMer backbone, which must be whole.
        label: what to call a state dict in messages.
        family: of a pretrained ViT, where names do not tell.
        allow: shell patterns of names to leave out.
        sha256: hexadecimal SHA-256 that a file must have.

    Returns:
        The state dict, which may share memory with the source, and the report.

    Raises:
        WeightsError: if the source cannot be read, is not known, does not fit the model, or has no
            such names.
    """
    if to not in get_args(Target):
        raise WeightsError(f"to must be one of {', '.join(get_args(Target))}, got {to!r}")
    read = read_source(source, label, sha256, model)
    fitted = fit(model, read, family, allow, complete=to == "official")
    if to == "here":
        return fitted.tensors, fitted.report
    return to_official(model, fitted.tensors, fitted.report, allow)


def to_official(
    model: nn.Module, weights: Mapping[str, Tensor], report: LoadReport, allow: Sequence[str]
) -> tuple[dict[str, Tensor], LoadReport]:
    """A whole model's weights -> the authors' names; arguments and errors as `convert_weights`."""
    is_allowed = allowed_by(allow)
    kept = {name: tensor for name, tensor in weights.items() if not is_allowed(name)}
    origin, layout, prefix = official_layout(model, kept)
    bare = {name.removeprefix(prefix): tensor for name, tensor in kept.items()}
    conversion = layout.write(bare, origin.title)
    given = {entry.target for entry in conversion.log}
    added = {n: t.numel() for n, t in conversion.tensors.items() if n not in given}
    left_out = [
        Entry(name, tensor.numel(), "not used", name, "left out, as asked")
        for name, tensor in weights.items()
        if name not in kept
    ]
    entries = [*conversion.log, *left_out]
    notes = [*report.notes]
    if added:
        notes.append("fresh: what the authors' network has and does not use, or computes")
    title = f"{origin.title}, by their names,"
    return conversion.tensors, LoadReport(report.source, title, entries, fresh=added, notes=notes)


def official_layout(model: nn.Module, weights: Mapping[str, Tensor]) -> tuple[Origin, Layout, str]:
    """The authors' names that a model's weights have, and what stands before theirs here."""
    fewest: list[str] | None = None
    places = Places(model)
    whole = [origin for origin in ORIGINS if origin.part != "vit"]
    for origin in sorted(whole, key=lambda origin: origin.part):  # the backbone alone comes first
        prefix = places.prefix(origin.part, origin.title)
        for layout in origin.layouts:
            foreign = [n for n in weights if not n.startswith(prefix)]
            foreign += layout.has_no(n.removeprefix(prefix) for n in weights if n not in foreign)
            if not foreign and layout.complete:
                return origin, layout, prefix
            if fewest is None or len(foreign) < len(fewest):
                fewest = foreign
    raise WeightsError(
        f"the authors have no names for {shortened(fewest or [])}. To convert the backbone alone, leave "
        "the rest out (allow=...; on the command line, --allow)"
    )
