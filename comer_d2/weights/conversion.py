"""Another project's tensors -> the names here, and back: one table of names, and a log of every tensor."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from .files import WeightsError, shortened
from .report import Entry, Status

Names = str | tuple[str, ...]
# A name in a table can stand for a module: then these are its tensors.
LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class Conversion:
    """Takes the tensors of a source one by one, and logs where each of their elements went.

    Args:
        source: the source's state dict.
        title: what it is, for people.
    """

    def __init__(self, source: Mapping[str, Tensor], title: str) -> None:
        self.left = dict(source)
        self.title = title
        self.tensors: dict[str, Tensor] = {}
        self.log: list[Entry] = []
        self._dtypes = {name: tensor.dtype for name, tensor in source.items()}

    def take(self, name: str) -> Tensor:
        """Removes a tensor from what is left."""
        if name not in self.left:
            raise WeightsError(f"{self.title}: the tensor '{name}' is missing")
        return self.left.pop(name)

    def put(self, target: str, tensor: Tensor) -> None:
        """Adds a tensor by its new name."""
        if target in self.tensors:
            raise WeightsError(f"{self.title}: two tensors stand for '{target}'")
        self.tensors[target] = tensor

    def note(self, source: str, elements: int, target: str | None, note: str = "") -> None:
        """Logs where elements went; nowhere if the target is ``None``."""
        status: Status = "not used" if target is None else "loaded"
        dtype = self._dtypes.get(source)
        self.log.append(Entry(source, elements, status, target or source, note, dtype))

    def drop(self, name: str, reason: str) -> None:
        """Leaves a tensor unused."""
        self.note(name, self.take(name).numel(), None, reason)

    def cut(
        self, sources: Sequence[str], targets: Sequence[str], shares: Sequence[int] = (1,)
    ) -> None:
        """Puts tensors one after the other, and cuts the whole into others.

        Args:
            sources: names of what is put together along the first dimension.
            targets: new names of the parts.
            shares: relative sizes of the parts; equal ones by default.
        """
        parts = {name: self.take(name) for name in sources}
        shapes = {name: tuple(part.shape) for name, part in parts.items()}
        if len({part.is_floating_point() for part in parts.values()}) > 1:
            raise WeightsError(
                f"{self.title}: {shortened(sources)} are not all floating-point numbers"
            )
        try:
            whole = torch.cat(list(parts.values())) if len(parts) > 1 else parts[sources[0]]
        except RuntimeError as e:
            raise WeightsError(f"{self.title}: these do not fit together: {shapes}") from e
        if len(targets) == 1:
            self.put(targets[0], whole)
            for name, part in parts.items():
                self.note(name, part.numel(), targets[0])
            return
        shares = list(shares) * len(targets) if len(shares) == 1 else shares
        if whole.ndim == 0 or len(whole) % sum(shares):
            raise WeightsError(f"{self.title}: {shapes} do not divide by {sum(shares)}")
        unit = len(whole) // sum(shares)
        for target, part in zip(targets, whole.split([unit * n for n in shares]), strict=True):
            self.put(target, part)
            self.note(sources[0], part.numel(), target)


Step = Callable[[Conversion], None]


@dataclass(frozen=True)
class Layout:
    """The names of one kind of file, strictly: everything in it has a place, or a reason to have none.

    Args:
        names: names there -> names here. ``#`` stands for any number, the same on both sides; a name
            can be a tensor's or a module's; several there are put together, several here are cut.
            A trailing ``*`` stands for anything.
        unused: names there that are not used, a trailing ``*`` standing for anything -> why not.
        requires: regular expressions that a name there must match each, so that it is this layout.
        takes: names that the steps of ``prepare`` take.
        prepare: what cannot be said by names: done before them, in this order.
        shares: name here that is cut from or put together of unequal parts -> their relative sizes.
        complete: for the way back: adds what the other project has and does not use, and raises
            WeightsError for what it cannot have.
    """

    names: Mapping[Names, Names]
    unused: Mapping[str, str] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    prepare: tuple[Step, ...] = ()
    shares: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    complete: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None

    @cached_property
    def _reading(self) -> "Index":
        rules = [(as_tuple(there), as_tuple(here)) for there, here in self.names.items()]
        return Index(rules)

    @cached_property
    def _writing(self) -> "Index":
        rules = [(as_tuple(here), as_tuple(there)) for there, here in self.names.items()]
        return Index(rules)

    @cached_property
    def _others(self) -> "Index":
        return Index([((name,), (name,)) for name in (*self.unused, *self.takes)])

    def leftovers(self, names: Mapping[str, Any]) -> list[str]:
        """Names that this layout does not have."""
        known = (self._reading, self._others)
        return [n for n in names if not any(index.find(n) for index in known)]

    def lacks(self, names: Mapping[str, Any]) -> list[str]:
        """What this layout requires and the names do not have."""
        return [p for p in self.requires if not any(re.fullmatch(p, name) for name in names)]

    def has_no(self, names: Iterable[str]) -> list[str]:
        """Names here that this layout has no name for."""
        return [name for name in names if not self._writing.find(name)]

    def read(self, source: Mapping[str, Tensor], title: str = "the source") -> Conversion:
        """Their names -> the names here; what has no place stays in ``left``."""
        conversion = Conversion(source, title)
        for step in self.prepare:
            step(conversion)
        for name in list(conversion.left):
            found = self._others.find(name)
            if found and (reason := self.unused.get(found.rule[0][0])):
                conversion.drop(name, reason)
        self._move(conversion, self._reading)
        return conversion

    def write(self, source: Mapping[str, Tensor], title: str = "the source") -> Conversion:
        """The names here -> theirs; what has no place there stays in ``left``."""
        conversion = Conversion(source, title)
        self._move(conversion, self._writing)
        if self.complete and not conversion.left:
            conversion.tensors = self.complete(conversion.tensors)
        return conversion

    def _move(self, conversion: Conversion, index: "Index") -> None:
        for name in list(conversion.left):
            found = index.find(name) if name in conversion.left else None
            if found:
                sources, targets = found.names()
                shared = [self.shares[n] for side in found.rule for n in side if n in self.shares]
                conversion.cut(sources, targets, *shared[:1])


@dataclass(frozen=True)
class Found:
    """A rule of a table for a name: the numbers and the rest of the name that it is about."""

    rule: tuple[tuple[str, ...], tuple[str, ...]]
    numbers: tuple[str, ...]
    rest: str

    def names(self) -> tuple[list[str], list[str]]:
        """Source and target names of the rule."""
        sources, targets = ([self._fill(name) for name in side] for side in self.rule)
        return sources, targets

    def _fill(self, name: str) -> str:
        numbers = iter(self.numbers)
        return re.sub("#", lambda _: next(numbers), name.removesuffix("*")) + self.rest


class Index:
    """Finds the rule of a table that is about a name, by one of its sources."""

    def __init__(self, rules: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]) -> None:
        self._exact: dict[str, list[Any]] = {}
        self._open: list[Any] = []
        for rule in rules:
            for source in rule[0]:
                pattern = re.compile(re.escape(source.removesuffix("*")).replace(r"\#", r"(\d+)"))
                if source.endswith("*"):
                    self._open.append((pattern, rule))
                else:
                    self._exact.setdefault(digits(source), []).append((pattern, rule))

    def find(self, name: str) -> Found | None:
        """The first rule about a tensor, or about the module that it is in."""
        for whole, rest in candidates(name):
            for pattern, rule in self._exact.get(digits(whole), ()):
                if match := pattern.fullmatch(whole):
                    return Found(rule, match.groups(), rest)
        for pattern, rule in self._open:
            if match := pattern.match(name):
                return Found(rule, match.groups(), name[match.end() :])
        return None


def candidates(name: str) -> Iterator[tuple[str, str]]:
    """A tensor's name, and that of its module with what is left of it."""
    yield name, ""
    module, _, leaf = name.rpartition(".")
    if leaf in LEAVES:
        yield module, f".{leaf}"


def digits(name: str) -> str:
    """A name with its numbers made alike."""
    return re.sub(r"\d+", "#", name)


def as_tuple(names: Names) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def under(there: str, here: str, names: Mapping[Names, Names]) -> dict[Names, Names]:
    """A table with a prefix on both sides."""

    def prefixed(prefix: str, side: Names) -> Names:
        return prefix + side if isinstance(side, str) else tuple(prefix + n for n in side)

    return {prefixed(there, old): prefixed(here, new) for old, new in names.items()}


def same(*names: str) -> dict[Names, Names]:
    """A table of names that are the same on both sides."""
    return {name: name for name in names}


@dataclass(frozen=True)
class Origin:
    """Where weights come from: a family of pretrained ViTs, or a kind of model.

    Args:
        family: the name that it is asked for by.
        title: for people.
        layouts: the ways in which it is written.
        part: what the names here are of: the ViT, the hierarchical network of timm, the whole
            backbone, or the whole model.
        computes: of a ViT, the arguments that shapes do not show and that differ from the plain ViT's.
    """

    family: str
    title: str
    layouts: tuple[Layout, ...]
    part: Literal["vit", "pyramid", "backbone", "model"] = "vit"
    computes: Mapping[str, Any] = field(default_factory=dict)
