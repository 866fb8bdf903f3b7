"""Frozen weights of a ViT: a checkpoint names the file that they came from, instead of holding them."""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..network.vit import ViT
from .files import WeightsError, sha256_of
from .timm_hub import TIMM

FROZEN = "frozen_vit"  # the entry of a checkpoint


@dataclass(frozen=True)
class FrozenPart:
    """What a checkpoint says about the weights that it leaves out.

    Args:
        source: ``"timm:<id>"``, or the absolute path of a file.
        sha256: of the file; ``None`` for timm's.
        family: as that of :func:`~comer_d2.weights.load_weights`; so is the next.
        allow: names that may differ.
        names: of the weights, in the model.
        digest: of their values; see :func:`digest_of`.
    """

    source: str
    sha256: str | None
    family: str | None
    allow: Sequence[str]
    names: Sequence[str]
    digest: str

    def entry(self) -> dict[str, Any]:
        """What a checkpoint has under ``frozen_vit``."""
        return asdict(self)

    def find(self, folder: str | os.PathLike[str]) -> str:
        """The source: the file where it was, or else one of its name in a folder.

        Raises:
            WeightsError: if there is none, or it is another file.
        """
        if self.source.startswith(TIMM):
            return self.source
        path = Path(self.source)
        if not path.is_file():
            path = Path(folder) / path.name
        if not path.is_file():
            raise WeightsError(
                f"'{self.source}' does not exist, and no '{path.name}' next to the checkpoint: put the "
                f"file, of SHA-256 {self.sha256}, in one of the two places"
            )
        found = sha256_of(path)
        if found != self.sha256:
            raise WeightsError(
                f"'{path}' has SHA-256 {found}, not {self.sha256}: it is another file than the one of "
                "the training; put that one in its place"
            )
        return str(path)


def frozen_part_of(rest: Mapping[str, Any]) -> FrozenPart | None:
    """What a checkpoint says about weights that it leaves out; ``None`` if it leaves out none.

    Args:
        rest: what the checkpoint holds besides the weights.

    Raises:
        WeightsError: if it is not of the form that is written here.
    """
    if FROZEN not in rest:
        return None
    try:
        part = FrozenPart(**rest[FROZEN])
        texts = [part.source, part.digest, part.sha256 or "", part.family or ""]
        is_whole = all(isinstance(text, str) for text in [*texts, *part.allow, *part.names])
    except TypeError:
        is_whole = False
    if not is_whole:
        raise WeightsError(f"a checkpoint's entry '{FROZEN}' is not of the form that a run writes")
    return part


def frozen_part(
    model: nn.Module, source: str, family: str | None, allow: Sequence[str]
) -> FrozenPart:
    """What to say about a model's frozen weights, if they are those of a source.

    Args:
        model: has been given its weights.
        source: ``"timm:<id>"``, or a path.
        family: as that of :func:`~comer_d2.weights.load_weights`; so is the next.
        allow: names that may differ.
    """
    frozen = frozen_weights_of(model)
    is_file = not source.startswith(TIMM)
    return FrozenPart(
        source=os.path.abspath(source) if is_file else source,
        sha256=sha256_of(Path(source)) if is_file else None,
        family=family,
        allow=list(allow),
        names=list(frozen),
        digest=digest_of(frozen.items()),
    )


def frozen_weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that ``freeze_at`` of the model's ViT holds still, by their names."""
    still: set[nn.Parameter] = set()
    for vit in model.modules():
        if isinstance(vit, ViT):
            for part in vit.frozen_parts():
                still.update(part.parameters() if isinstance(part, nn.Module) else [part])
    return {name: p.detach() for name, p in model.named_parameters() if p in still}


def digest_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 of names, shapes and values, rounded to bfloat16: frozen weights can be kept in it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        values = tensor.detach().to("cpu", torch.bfloat16).contiguous().reshape(-1)
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
