"""Any supported weights -> a whole model: every tensor has its place, or it is an error.

A source is told by its names: one table fits that leaves nothing over (``origins/``). What is then
missing, the model itself shows.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..network import ViTCoMerNet
from ..network.timm_pyramid import TimmPyramid
from ..network.vit import ViT
from .conversion import Conversion, Origin
from .files import WeightsError, averages_beside, check_tensors, read_weights
from .frozen import FrozenPart, digest_of, frozen_part_of
from .origins import FAMILIES, ORIGINS
from .origins.timm_pyramid import fit_tables, origin_of
from .recognise import OWN, IsAllowed, Source, allowed_by, explained, recognise
from .report import Entry, LoadReport, summary
from .timm_hub import TIMM, timm_weights
from .vit_fitting import ViTFitting, check_types

COUNTERS = "num_batches_tracked"  # of batch norms; nothing here computes with them
UPDATES = "n_averaged"  # of torch's AveragedModel, next to its module


@dataclass
class Fitted:
    """What to load into a model, by its names, and the report."""

    tensors: dict[str, Tensor]
    report: LoadReport


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

    The source is told by its names: a checkpoint of such a model, of its backbone or of its ViT; the
    authors' ViT-CoMer models; an official Mask2Former, whose head is taken; a pretrained ViT,
    whose positions and patches are resampled to the model's sizes; or timm's weights for a
    hierarchical network.

    A part of the model, such as the ViT or the mask head, that the source does not have at all
    keeps its initial values and is listed; a part that it has in pieces is an error.

    Args:
        model: what to load into.
        source: ``"timm:<id>"``, a path, or a state dict.
        label: what to call a state dict in messages.
        family: of a pretrained ViT, one of ``comer_d2.weights.FAMILIES``, where names do not tell.
        allow: shell patterns of names that may be missing, without a place, or of another shape; and
            of arguments of the ViT, such as ``layer_norm_eps``, that may differ.
        sha256: hexadecimal SHA-256 that a file must have.
        complete: whether every part of the model must be in the source, as for evaluation.

    Returns:
        What was loaded, and what was not; ``print`` it.

    Raises:
        WeightsError: if something does not fit; the model is left as it was.
    """
    read = read_source(source, label, sha256, model)
    fitted = fit(model, read, family, allow, complete)
    model.load_state_dict(fitted.tensors, strict=False)
    return fitted.report


def read_source(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    label: str | None,
    sha256: str | None,
    model: nn.Module,
) -> Source:
    """Weights from where they are; arguments as `load_weights`."""
    if isinstance(source, Mapping):
        label = label or "the state dict"
        check_tensors(source, label)
        return unwrapped(source, label)
    if str(source).startswith(TIMM):
        if sha256:
            raise WeightsError(f"sha256 is for files; '{source}' is checked by timm's hub cache")
        pyramids = [m.name for m in model.modules() if isinstance(m, TimmPyramid)]
        weights, computes = timm_weights(str(source), pyramids)
        return Source(weights, str(source), computes)
    weights, rest = read_weights(source, sha256=sha256)
    averages = averages_beside(rest)
    read = unwrapped(weights, label or f"'{source}'")
    read.frozen, read.folder = frozen_part_of(rest), os.path.dirname(source)
    if averages:
        read.notes.append(f"in the file, and not used: a moving average of the weights, {averages}")
    return read


def unwrapped(weights: Mapping[str, Tensor], label: str) -> Source:
    """Weights without what torch.compile, DistributedDataParallel, Lightning and AveragedModel add."""
    notes = []
    names = {name: name.replace("_orig_mod.", "") for name in weights}
    if UPDATES in names and all(n.startswith("module.") for n in names.values() if n != UPDATES):
        del names[UPDATES]
        notes.append(f"these are a moving average of the weights (AveragedModel has '{UPDATES}')")
    for prefix in ("module.", "model."):
        while names and all(name.startswith(prefix) for name in names.values()):
            names = {old: new.removeprefix(prefix) for old, new in names.items()}
    if len(set(names.values())) < len(names):
        raise WeightsError("names are the same without '_orig_mod.': two models in one state dict")
    return Source({new: weights[old] for old, new in names.items()}, label, notes=notes)


def fit(
    model: nn.Module, source: Source, family: str | None, allow: Sequence[str], complete: bool
) -> Fitted:
    """What to load into a model, which may be on the meta device; as `load_weights`."""
    if family is not None and family not in FAMILIES:
        raise WeightsError(f"family must be one of {sorted(FAMILIES)}, got {family!r}")
    if source.frozen is not None:
        source.weights |= frozen_weights(model, source.frozen, source.folder, source.label)
        source.notes.append(f"its frozen ViT is from '{source.frozen.source}'")
    is_allowed = allowed_by(allow)
    places = Places(model)
    own_place = places.of_own(source.weights, is_allowed)
    if own_place is not None and source.computes is None:
        conversion = Conversion(source.weights, OWN)
        for name in source.weights:
            if own_place + name in places.own:
                conversion.cut([name], [own_place + name])
        problems: list[tuple[str, str]] = []
        neutral: list[str] = []
    else:
        origins = (*ORIGINS, *(origin_of(pyramid) for _, pyramid in places.pyramids))
        origin, layout, inner, beside = recognise(source, origins, family, is_allowed, places.own)
        if origin.part in ("vit", "pyramid") and complete:
            kind = "ViT" if origin.part == "vit" else "backbone"
            raise WeightsError(
                f"{source.label} is a pretrained {kind} ({origin.title}): there is no "
                f"{type(model).__name__} in it. Train from it first"
            )
        conversion = layout.read(inner, origin.title)
        for name, tensor in beside.items():
            conversion.note(name, tensor.numel(), None, "beside the image encoder")
        problems, neutral = place(conversion, origin, source, places)
    for name, tensor in conversion.left.items():
        problems.append((name, explained(name)))
        conversion.note(name, tensor.numel(), None, "allowed: without a place")
    tensors = check_shapes(conversion.tensors, places.own, problems)
    known = {prefix + name for name, _ in problems for prefix in ("", *places.of_trunks)}
    missing = places.missing(conversion.tensors, complete)
    problems += [(name, "missing") for name in missing if name not in known]
    refuse(problems, tensors, is_allowed, source.label, conversion.title)
    return Fitted(tensors, report_of(conversion, source, tensors, neutral, places.own))


def frozen_weights(
    model: nn.Module, frozen: FrozenPart, folder: str | os.PathLike[str], label: str
) -> dict[str, Tensor]:
    """The weights that a checkpoint leaves out, from where it says that they are.

    Args:
        model: the model that they are for, which may be on the meta device.
        frozen: what the checkpoint says.
        folder: the checkpoint's.
        label: what to call the checkpoint in messages.

    Raises:
        WeightsError: if the file is not there, is another one, or does not give these weights in this
            model.
    """
    about = f"{label} leaves out its frozen ViT, which is that of '{frozen.source}': "
    try:
        read = read_source(frozen.find(folder), None, None, model)
        given = fit(model, read, frozen.family, frozen.allow, complete=False).tensors
    except WeightsError as e:
        raise WeightsError(about + str(e)) from e
    weights = {name: given[name] for name in frozen.names if name in given}
    if len(weights) < len(frozen.names) or digest_of(weights.items()) != frozen.digest:
        raise WeightsError(
            about
            + "in this model its weights are not those of the training. Use the config.yaml that "
            "the run wrote, without changes to the ViT"
        )
    return weights


class Places:
    """Where in a model weights can go.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.own = model.state_dict()
        self.vits = [(n, m) for n, m in model.named_modules() if isinstance(m, ViT)]
        self.pyramids = [(n, m) for n, m in model.named_modules() if isinstance(m, TimmPyramid)]
        vits = [prefix_of(name) for name, _ in self.vits]
        pyramids = [prefix_of(name) for name, _ in self.pyramids]
        self.of_trunks = vits + pyramids
        nets = [prefix_of(n) for n, m in model.named_modules() if isinstance(m, ViTCoMerNet)]
        self._prefixes = {"vit": vits, "pyramid": pyramids, "backbone": nets, "model": [""]}

    def prefix(self, part: str, title: str) -> str:
        """What stands before the names of a part of the model.

        Raises:
            WeightsError: if there is none, or more than one.
        """
        found = self._prefixes[part]
        if len(found) != 1:
            kinds = {"vit": "ViT", "pyramid": "network of timm", "backbone": "ViT-CoMer"}
            name = kinds[part]
            raise WeightsError(f"{title} needs one {name} in the model, which has {len(found)}")
        return found[0]

    def of_own(self, weights: Mapping[str, Tensor], is_allowed: IsAllowed) -> str | None:
        """Before which names of the model all of a source's stand; ``None`` if not all do."""
        for prefix in dict.fromkeys(["", *self._prefixes["backbone"], *self.of_trunks]):
            places = [n for n in weights if prefix + n in self.own]
            if places and all(n in places or is_allowed(n) for n in weights):
                return prefix
        return None

    def part_of(self, name: str) -> str:
        """The part of the model that comes from one source as a whole.

        The trunk is one, the rest of the backbone another, and so is what stands around it (an FPN);
        of heads it is each module.
        """
        for prefix in (*self.of_trunks, *self._prefixes["backbone"]):
            if name.startswith(prefix):
                return prefix
        parts = name.split(".")
        around = any(p.startswith(f"{parts[0]}.") for p in self.of_trunks)
        return parts[0] if around else ".".join(parts[:2])

    def missing(self, given: Mapping[str, Tensor], complete: bool) -> list[str]:
        """Names that the model has and the source has not, although it has others of their part."""
        parts = {self.part_of(name) for name in given if name in self.own}
        return [
            name
            for name in self.own
            if name not in given
            and (complete or self.part_of(name) in parts)
            and not name.endswith(COUNTERS)
        ]


def prefix_of(module: str) -> str:
    return f"{module}." if module else ""


def place(
    conversion: Conversion, origin: Origin, source: Source, places: Places
) -> tuple[list[tuple[str, str]], list[str]]:
    """Gives a conversion the names of the model; a ViT is resampled to its sizes.

    Returns:
        What does not fit, as (name, what is wrong), and the names set to what changes nothing.
    """
    prefix = places.prefix(origin.part, conversion.title)
    problems: list[tuple[str, str]] = []
    neutral: list[str] = []
    if origin.part == "vit":
        check_types(conversion)
        heads = {k: v for k, v in (source.computes or {}).items() if k == "num_heads"}
        fitting = ViTFitting(conversion, {**origin.computes, **heads}, places.vits[0][1])
        conversion.tensors, conversion.log = fitting.tensors, fitting.log
        problems, neutral = fitting.problems, [prefix + name for name in fitting.neutral]
    elif origin.part == "pyramid":
        fit_tables(conversion, places.pyramids[0][1])
    conversion.tensors = {prefix + name: tensor for name, tensor in conversion.tensors.items()}
    conversion.log = [
        entry if entry.status == "not used" else replace(entry, target=prefix + entry.target)
        for entry in conversion.log
    ]
    return problems, neutral


def check_shapes(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], problems: list[tuple[str, str]]
) -> dict[str, Tensor]:
    """The tensors that have a place of their shape and type; the others become problems."""
    fitting = {}
    for name, tensor in given.items():
        if name not in own:
            problems.append((name, explained(name)))
        elif tensor.shape != own[name].shape:
            shapes = f"{tuple(tensor.shape)}, in the model {tuple(own[name].shape)}"
            problems.append((name, f"of shape {shapes}"))
        elif kind_of(tensor) != kind_of(own[name]):
            problems.append((name, f"of {tensor.dtype}, in the model {own[name].dtype}"))
        else:
            fitting[name] = tensor
    return fitting


def kind_of(tensor: Tensor) -> str:
    """Whether a tensor has floating-point numbers, integers, or what else."""
    if tensor.is_floating_point():
        return "floating point"
    return str(tensor.dtype) if tensor.is_complex() or tensor.dtype is torch.bool else "integer"


def refuse(
    problems: Sequence[tuple[str, str]],
    tensors: Mapping[str, Tensor],
    is_allowed: IsAllowed,
    label: str,
    title: str,
) -> None:
    """Raises WeightsError for everything that does not fit and is not allowed to."""
    kinds: dict[str, list[str]] = {}
    for name, what in problems:
        if not is_allowed(name) and name not in kinds.setdefault(what, []):
            kinds[what].append(name)
    lines = [f"{grouped(names)}: {what}" for what, names in kinds.items() if names]
    if tensors and not lines:
        return
    lines = lines or ["none of its tensors has a place in it"]
    more = f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else ""
    raise WeightsError(
        f"{label} ({title}) does not fit the model:\n  " + "\n  ".join(lines[:8]) + more + "\n  "
        "Nothing was loaded. Choose the config and the arguments it was made with, or allow the "
        "names that may differ (allow=...; in a config, train.init_allow)"
    )


def grouped(names: Sequence[str], show: int = 4) -> str:
    """A few names in full; of many, how many there are under each of their first two parts."""
    if len(names) <= show:
        return ", ".join(names)
    groups = Counter(".".join(name.split(".")[:2]) for name in names)
    shown = [f"{group}.* ({count})" for group, count in groups.most_common(show)]
    return ", ".join(shown) + (", ..." if len(groups) > show else "")


def report_of(
    conversion: Conversion,
    source: Source,
    tensors: Mapping[str, Tensor],
    neutral: Sequence[str],
    own: Mapping[str, Tensor],
) -> LoadReport:
    """The account of a load, element by element."""
    entries = []
    for entry in conversion.log:
        if entry.status == "not used" or entry.target in tensors:
            entries.append(entry)
        else:
            note = "allowed: without a place, or of another shape"
            entries.append(replace(entry, status="not used", note=note))
    floating = next((own[n].dtype for n in tensors if own[n].is_floating_point()), torch.float32)
    return LoadReport(
        source.label,
        conversion.title,
        entries,
        {name: own[name].numel() for name in neutral},
        {n: t.numel() for n, t in own.items() if n not in tensors and t.is_floating_point()},
        [*source.notes, *type_notes(entries, floating)],
    )


def type_notes(entries: Sequence[Entry], own: torch.dtype) -> list[str]:
    """Lines for weights that are stored in another type than the model's."""
    kinds: dict[torch.dtype, dict[str, int]] = {}
    for entry in entries:
        kind = entry.dtype
        if entry.status != "not used" and kind and kind.is_floating_point and kind != own:
            names = kinds.setdefault(kind, {})
            names[entry.source] = names.get(entry.source, 0) + entry.elements
    return [
        f"of {str(kind).removeprefix('torch.')}, where the model is of "
        f"{str(own).removeprefix('torch.')}: {summary(names)}"
        for kind, names in kinds.items()
    ]
