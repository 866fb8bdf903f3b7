"""What weights are, told by the one table of names that leaves nothing over."""

import fnmatch
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .conversion import Layout, Origin
from .files import WeightsError, shortened
from .frozen import FrozenPart
from .vit_fitting import PLAIN

OWN = "a checkpoint of these names"
# What image encoders are inside of, and what else is next to them there.
ENCLOSURES: tuple[tuple[str, str], ...] = (
    ("visual.trunk.", r"(visual\.head|text|transformer|token_embedding|ln_final)\..*"),
    ("visual.", r"(text|transformer|token_embedding|ln_final)\..*"),
    ("backbone.", r"(head|dino_head|ibot_head)\..*"),
    ("dinov2_with_registers.", r"classifier\..*"),
    ("dinov2.", r"classifier\..*"),
    ("model.", r"(classifier|head)\..*"),
)
BESIDE_ENCODER = r"positional_embedding|text_projection|logit_(scale|bias)|mask_token"
# What a tensor without a place can be, by its name, for the message.
EXPLAINED = {
    r"(ema_|module_ema|ema\.|_ema).*": "a moving average of the weights, kept next to them",
    r".*(_scale|_zero_point|packed_params).*": "of a quantised model",
    r".*(lora_[AB]|\.base_layer\.).*": "of LoRA: merge it into the weights first",
}
IsAllowed = Callable[[str], bool]


@dataclass
class Source:
    """Weights that were read.

    Args:
        weights: the state dict, without wrappers' prefixes.
        label: what to call them in messages.
        computes: how they compute, where that is known.
        notes: what else is to know.
        frozen: what they leave out.
        folder: that they were read from.
    """

    weights: dict[str, Tensor]
    label: str
    computes: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    frozen: FrozenPart | None = None
    folder: str = ""


def allowed_by(patterns: Sequence[str]) -> IsAllowed:
    """Whether a name matches one of the shell patterns."""
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def recognise(
    source: Source,
    origins: Sequence[Origin],
    family: str | None,
    is_allowed: IsAllowed,
    own: Collection[str],
) -> tuple[Origin, Layout, dict[str, Tensor], dict[str, Tensor]]:
    """The one table that leaves nothing over.

    Args:
        source: the weights.
        origins: what is known.
        family: the one that they have to be of, or ``None``.
        is_allowed: whether a name may be left over.
        own: names of the model, which an error compares them with, too.

    Returns:
        Where the weights come from, how they are written, the weights that the table is about, and
        those that stand next to them.

    Raises:
        WeightsError: if there is no such table, or there are several whose families compute
            differently.
    """
    whole, (inner, beside) = source.weights, without_enclosure(source.weights)
    candidates = [
        (origin, layout, inner if origin.part == "vit" else whole)
        for origin in origins
        if family in (None, origin.family)
        for layout in origin.layouts
    ]
    fitting = {
        origin.family: (origin, layout)
        for origin, layout, given in reversed(candidates)  # a family's first layout is what stays
        if not layout.lacks(given) and all(is_allowed(name) for name in layout.leftovers(given))
    }
    if fitting:
        origin, layout = the_one(list(reversed(fitting.values())), source)
        return origin, layout, *((inner, beside) if origin.part == "vit" else (whole, {}))
    raise not_known(source, family, candidates, is_allowed, own)


Candidates = Sequence[tuple[Origin, Layout, Mapping[str, Tensor]]]


def not_known(
    source: Source,
    family: str | None,
    candidates: Candidates,
    is_allowed: IsAllowed,
    own: Collection[str],
) -> WeightsError:
    """The error for weights that no table fits: what the closest has not, and what they lack."""
    foreign = [name for name in source.weights if name not in own and not is_allowed(name)]
    differences: list[tuple[float, str, list[str], list[str]]] = [
        (len(foreign) / len(source.weights), OWN, foreign, [])
    ]
    for origin, layout, given in candidates:
        over = [name for name in layout.leftovers(given) if not is_allowed(name)]
        lacks = layout.lacks(given)
        differences.append((len(over) / len(given) + len(lacks), origin.title, over, lacks))
    distance, title, over, lacks = min(differences, key=lambda d: d[0])
    if distance < 1:
        return no_place(source.label, title, over)
    if distance < 2 and lacks:
        other = f", and has {shortened(over)}" if over else ""
        shown = shortened([readable(pattern) for pattern in lacks])
        return WeightsError(f"{source.label} is like {title}, but has no {shown}{other}")
    return WeightsError(
        f"{source.label} is nothing that is known here{f' as {family!r}' if family else ''} "
        f"(docs/PRETRAINED.md lists what is); its names begin with {shortened(list(source.weights))}"
    )


def no_place(label: str, title: str, names: list[str]) -> WeightsError:
    """The error for tensors that a table does not have."""
    shown = shortened([f"{name} ({explained(name)})" for name in names])
    return WeightsError(
        f"{label} ({title}) does not fit: {shown}. Name those that may be left out (allow=...; in a "
        "config, train.init_allow)"
    )


def explained(name: str) -> str:
    """Why a tensor may have no place."""
    reason = next((why for p, why in EXPLAINED.items() if re.fullmatch(p, name)), "")
    return f"without a place in this model{', ' if reason else ''}{reason}"


def readable(pattern: str) -> str:
    """A regular expression of names, for people."""
    return f"'{pattern.replace(chr(92), '').replace('.*', '*')}'"


def the_one(fitting: list[tuple[Origin, Layout]], source: Source) -> tuple[Origin, Layout]:
    """Of tables that fit, the first whose family computes as the weights do.

    Raises:
        WeightsError: if the families compute differently and nothing says which it is.
    """
    if source.computes is not None:
        for origin, layout in fitting:
            if not different(origin, source.computes):
                return origin, layout
        differences = [(different(o, source.computes), o.title) for o, _ in fitting]
        names, title = min(differences, key=lambda pair: len(pair[0]))
        raise WeightsError(f"{source.label} is not {title} as it is known here: {names}")
    alike = {repr({**PLAIN, **o.computes}): o.family for o, _ in reversed(fitting)}
    if len(alike) > 1:
        families = " or ".join(map(repr, reversed(alike.values())))
        raise WeightsError(
            f"{source.label} can be {families}: the names are the same, the computation is not. Say "
            "which it is (family=...; in a config, train.init_family)"
        )
    return fitting[0]


def different(origin: Origin, actual: Mapping[str, Any]) -> str:
    """What a model computes otherwise than a family; empty if nothing."""
    expected = {**PLAIN, **origin.computes}
    if actual["mlp"] == "swiglu":  # that shows in names
        expected["mlp"] = "swiglu"
    return "; ".join(
        f"{name} is {actual[name]!r}, not {value!r}"
        for name, value in expected.items()
        if actual[name] != value
    )


def without_enclosure(
    weights: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The image encoder's tensors without the prefix of what it is in, and the known others."""
    inner, beside = dict(weights), dict[str, Tensor]()
    for prefix, others in ENCLOSURES:
        outside = {n: t for n, t in inner.items() if not n.startswith(prefix)}
        unknown = [n for n in outside if not re.fullmatch(f"{others}|{BESIDE_ENCODER}", n)]
        if len(outside) < len(inner) and not unknown:
            beside |= outside
            inner = {n.removeprefix(prefix): t for n, t in inner.items() if n.startswith(prefix)}
    return inner, beside
