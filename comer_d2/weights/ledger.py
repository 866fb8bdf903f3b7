"""The books of a conversion: every tensor of the source goes somewhere, once."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .files import WeightsError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]


@dataclass(frozen=True)
class Part:
    """Some elements of a source tensor, and the tensor of the branch that they became.

    Args:
        source: name in the source.
        elements: how many of its elements.
        target: name of the tensor in :attr:`Pretraining.tensors`; ``None`` if they are not used.
        note: what was done, or why they are not used.
        dtype: of the source tensor, where it is known.
    """

    source: str
    elements: int
    target: str | None
    note: str = ""
    dtype: torch.dtype | None = None


@dataclass
class Pretraining:
    """A ViT's weights by the names of this network's ViT branch, and how the ViT computes.

    Beside the branch's own names there are ``pos_embed`` without its prefix rows,
    ``pos_embed.class_row``, and tables of relative positions with their class rows.

    Args:
        family: for people, with the layout.
        tensors: the weights.
        parts: where every element of the source went.
        computation: the arguments of the network that the shapes of the weights do not show.
        unexpected: names in the source that the layout does not have.
        key: name of the family of a ViT; empty for anything else.
        dropped: tensors of the source that ViT-CoMer has no use for, by their names there.
    """

    family: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parts: list[Part] = field(default_factory=list)
    computation: dict[str, Any] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    key: str = ""
    dropped: dict[str, Tensor] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len({n.split(".")[1] for n in self.tensors if n.startswith("blocks.")})

    @property
    def embed_dim(self) -> int:
        """Channels of a token."""
        kernel = self.tensors.get("patch_embed.proj.weight")
        if kernel is None or kernel.ndim == 0:
            raise WeightsError(f"{self.family}: the weight of the patch embedding is missing")
        return kernel.shape[0]


class Ledger:
    """Takes the tensors of a source one by one; what is left at the end is unexpected.

    Args:
        source: the source's state dict.
        family: for people.
    """

    def __init__(self, source: Mapping[str, Tensor], family: str) -> None:
        self.left = dict(source)
        self.dtypes = {name: tensor.dtype for name, tensor in source.items()}
        self.result = Pretraining(family)

    def take(self, name: str) -> Tensor:
        """Removes a tensor from what is left."""
        if name not in self.left:
            raise WeightsError(f"{self.result.family}: the tensor '{name}' is missing")
        return self.left.pop(name)

    def put(self, target: str, tensor: Tensor) -> None:
        """Adds a tensor of the branch."""
        if target in self.result.tensors:
            raise WeightsError(f"{self.result.family}: two tensors stand for '{target}'")
        self.result.tensors[target] = tensor

    def note(self, source: str, elements: int, target: str | None, note: str = "") -> None:
        """Writes down where elements went."""
        self.result.parts.append(Part(source, elements, target, note, self.dtypes.get(source)))

    def move(self, source: str, target: str, note: str = "") -> None:
        """One tensor of the source is one of the branch."""
        tensor = self.take(source)
        self.put(target, tensor)
        self.note(source, tensor.numel(), target, note)

    def rename(self, rules: Sequence[Rule]) -> None:
        """Moves everything that one of the rules matches; the first rule to match a name counts."""
        for name in list(self.left):
            for pattern, replacement in rules:
                if match := re.fullmatch(pattern, name):
                    target = (
                        match.expand(replacement)
                        if isinstance(replacement, str)
                        else replacement(match)
                    )
                    self.move(name, target)
                    break

    def drop(self, rules: Sequence[tuple[str, str]]) -> None:
        """Leaves unused, with its reason, everything that one of the rules matches."""
        for name in list(self.left):
            for pattern, reason in rules:
                if re.fullmatch(pattern, name):
                    tensor = self.result.dropped[name] = self.take(name)
                    self.note(name, tensor.numel(), None, reason)
                    break

    def concatenate(self, sources: Sequence[str], target: str, note: str = "") -> None:
        """Several tensors of the source are one of the branch, one after the other."""
        tensors = [self.take(name) for name in sources]
        try:
            self.put(target, torch.cat(tensors))
        except RuntimeError as e:
            shapes = {name: tuple(t.shape) for name, t in zip(sources, tensors, strict=True)}
            raise WeightsError(f"{self.result.family}: these do not fit together: {shapes}") from e
        for name, tensor in zip(sources, tensors, strict=True):
            self.note(name, tensor.numel(), target, note)

    def split(self, source: str, targets: Sequence[str], note: str = "") -> None:
        """One tensor of the source is several of the branch, in equal parts."""
        tensor = self.take(source)
        if tensor.ndim == 0 or len(tensor) % len(targets):
            raise WeightsError(
                f"{self.result.family}: '{source}' of shape {tuple(tensor.shape)} does not divide "
                f"by {len(targets)}"
            )
        for target, part in zip(targets, tensor.chunk(len(targets)), strict=True):
            self.put(target, part)
            self.note(source, part.numel(), target, note)

    def close(self, **computation: Any) -> Pretraining:
        """The result; whatever is left is unexpected."""
        result = self.result
        result.computation = {**PLAIN_COMPUTATION, **computation}
        result.unexpected = list(self.left)
        for name, tensor in self.left.items():
            self.note(name, tensor.numel(), None, "not a tensor of this family")
        return result


# How the plain ViT computes; families name what differs.
PLAIN_COMPUTATION: dict[str, Any] = {
    "rope": None,
    "layer_norm_eps": 1e-6,
    "pre_norm_eps": None,
    "post_norm": False,
    "mlp": "gelu",
    "use_rel_pos_bias": False,
}
