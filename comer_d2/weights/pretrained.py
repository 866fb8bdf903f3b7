"""Any supported weights -> a network: all of them, or an error."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from .families import CONVERTERS, convert_pretraining
from .files import WeightsError, check_finite, first, read_weights
from .fit import Fitting, allowed_by, refuse_problems, report_of
from .ledger import Part, Pretraining
from .report import LoadReport, summary

TIMM = "timm:"
# timm's classes -> its names.
ACTIVATIONS = {
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
    "QuickGELU": "quick_gelu",
    "SiLU": "swiglu",
}


def load_pretrained(
    net: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    label: str | None = None,
    family: str | None = None,
    allow: Sequence[str] = (),
    sha256: str | None = None,
) -> LoadReport:
    """Loads a plain ViT pretraining into the ViT branch of a network: exactly, or not at all.

    Every tensor of the source is loaded, resampled to another size, or left out for a known reason,
    and the report says which. Anything else is an error, and the network is left as it was.

    Args:
        net: a :class:`~comer_d2.ViTCoMer`, or any module with one inside, such as a detector;
            Detectron2's own plain ViT will do too.
        source: ``"timm:<id>"``, for the weights that timm has under this id; or the path of a
            ``.safetensors``, ``.pth`` or ``.pt`` file; or a state dict.
        label: what to call a state dict in messages.
        family: one of ``comer_d2.weights.FAMILIES``; ``None``: told by the names.
        allow: shell patterns of names that may differ: tensors of the source, tensors of the
            network, or arguments of the network such as ``layer_norm_eps``.
        sha256: hexadecimal SHA-256 that a file must have.

    Returns:
        What was loaded, and what was not; ``print`` it.

    Raises:
        WeightsError: if the source cannot be read, is not known, or does not fit.
    """
    name, branch = vit_branch(net)
    pretraining, label = read_pretraining(source, label=label, family=family, sha256=sha256)
    is_allowed = allowed_by(allow)
    fitting = Fitting(pretraining, branch)
    fitted = fitting.run()
    refuse_problems(pretraining, fitted, label, is_allowed)
    own = net.state_dict()
    report = report_of(
        pretraining,
        fitted,
        label,
        {key.removeprefix(name): value for key, value in own.items()},
    )
    report.notes += type_notes(pretraining.parts, own[name + next(iter(fitted.tensors))].dtype)
    branch.load_state_dict(fitted.tensors, strict=False)
    return report


def read_pretraining(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    label: str | None = None,
    family: str | None = None,
    sha256: str | None = None,
) -> tuple[Pretraining, str]:
    """A pretraining from where it is, and what to call it; arguments as `load_pretrained`."""
    if isinstance(source, Mapping):
        label = label or "the state dict"
        check_finite(source, label)
        return convert_pretraining(source, family, label), label
    if str(source).startswith(TIMM):
        if sha256:
            raise WeightsError(f"sha256 is for files; '{source}' is checked by timm's hub cache")
        return from_timm(str(source).removeprefix(TIMM), family), str(source)
    weights, _ = read_weights(source, sha256=sha256)
    return convert_pretraining(weights, family, f"'{source}'"), f"'{source}'"


def from_timm(model_id: str, family: str | None = None) -> Pretraining:
    """The pretraining that timm has under an id, downloaded or from its cache."""
    if not timm.is_model(model_id.split(".")[0]):
        raise WeightsError(
            f"timm {timm.__version__} has no model '{model_id}': timm.list_models(pretrained=True) "
            "lists them"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(model_id, pretrained=True)
    except Exception as e:  # the hub's, the network's, timm's
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise WeightsError(
            f"timm could not get '{model_id}': {reason}. Without a network, its hub cache must "
            "have the model, or give the path of a file"
        ) from e
    return from_timm_model(model, family, f"timm:{model_id}")


def from_timm_model(model: nn.Module, family: str | None, label: str) -> Pretraining:
    """The weights of a timm model, if it computes what its family does here.

    Raises:
        WeightsError: if it computes anything else.
    """
    actual = timm_computation(model)
    if family is None and actual["mlp"] == "quick_gelu":
        family = "clip-quickgelu"
    elif family is None and actual["pre_norm_eps"] is not None:
        family = "clip"
    pretraining = convert_pretraining(model.state_dict(), family, label)
    different = [
        f"{name} is {actual[name]!r}, not {value!r}"
        for name, value in pretraining.computation.items()
        if actual[name] != value
    ]
    if different:
        raise WeightsError(
            f"{label} is not {pretraining.family} as it is known here: {'; '.join(different)}"
        )
    pretraining.computation["num_heads"] = actual["num_heads"]
    return pretraining


def timm_computation(model: nn.Module) -> dict[str, Any]:
    """How a timm ViT computes, in the terms of this network; unlike any where it is unknown."""
    kinds = ("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit")
    block = getattr(model, "blocks", [None])[0]
    known = type(model).__name__ in kinds and type(block).__name__ in ("Block", "EvaBlock")
    if not known:
        raise WeightsError(
            f"timm's {type(model).__name__} with {type(block).__name__} blocks is no ViT that is "
            f"known here; families: {sorted(CONVERTERS)}"
        )
    norm_pre = getattr(model, "norm_pre", None)
    act = type(block.mlp.act).__name__
    return {
        "rope": timm_rope(model),
        "layer_norm_eps": block.norm1.eps,
        "pre_norm_eps": getattr(norm_pre, "eps", None),
        "post_norm": False,
        "mlp": ACTIVATIONS.get(act, act),
        "use_rel_pos_bias": getattr(block.attn, "relative_position_bias_table", None) is not None
        or getattr(model, "rel_pos_bias", None) is not None,
        "num_heads": block.attn.num_heads,
    }


def timm_rope(model: nn.Module) -> str | None:
    """Which rotary positions a timm model has."""
    rope = getattr(model, "rope", None)
    if rope is None:
        return None
    kind = type(rope).__name__
    rotate_half = getattr(rope, "rotate_half", False)
    temperature = getattr(rope, "temperature", None)
    if kind == "RotaryEmbeddingDinoV3" and rotate_half and temperature == 100.0:
        return "dinov3"
    if kind == "RotaryEmbeddingCat" and not rotate_half and temperature == 10000.0:
        return "eva02" if tuple(rope.ref_feat_shape or ()) == (16, 16) else "cat"
    return kind


def vit_branch(net: nn.Module) -> tuple[str, nn.Module]:
    """The one ViT in a network, and the prefix of its names.

    Raises:
        WeightsError: if there is none, or more than one.
    """
    found = [
        (f"{name}." if name else "", module)
        for name, module in net.named_modules()
        if hasattr(module, "patch_embed")
        and isinstance(getattr(module, "blocks", None), nn.ModuleList)
    ]
    if len(found) != 1:
        where = first([name or "the network itself" for name, _ in found]) or "none"
        raise WeightsError(
            f"a pretraining needs one ViT in the {type(net).__name__}, found: {where}"
        )
    return found[0]


def type_notes(parts: Iterable[Part], own: torch.dtype) -> list[str]:
    """Lines for weights that are stored in another type than the network's."""
    kinds: dict[torch.dtype, dict[str, int]] = {}
    for part in parts:
        if part.target and part.dtype and part.dtype.is_floating_point and part.dtype != own:
            names = kinds.setdefault(part.dtype, {})
            names[part.source] = names.get(part.source, 0) + part.elements
    return [
        f"stored as {str(kind).removeprefix('torch.')}, loaded as "
        f"{str(own).removeprefix('torch.')}: {summary(names)}"
        for kind, names in kinds.items()
    ]
