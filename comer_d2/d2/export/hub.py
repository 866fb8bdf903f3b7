"""A folder to share: weights as safetensors, config, and a model card; `comer_d2.load` reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from detectron2.config import LazyConfig
from huggingface_hub import ModelCard, ModelCardData
from omegaconf import OmegaConf
from torch import nn

from ... import __version__
from ...heads.eomt import EoMT
from ...network import ViT, ViTCoMerNet
from ...network.timm_pyramid import TimmPyramid
from ...weights.files import write_weights
from ..data.kind import SPLITS
from ..errors import UserError
from ..new_folder import new_folder
from ..predictor import HUB_WEIGHTS, Predictor, load

TASK_TAGS = {"instance": "object-detection", "semantic": "image-segmentation", "panoptic": "image-segmentation"}  # fmt: skip
# Of the HTTP client that this version of the package has: no connection is one, and no HfHubHTTPError.
CLIENT_ERRORS: tuple[type[Exception], ...] = huggingface_hub.errors.HfHubHTTPError.__bases__
PROBE_SIDE = 96  # of the image that the written folder is compared on
CARD = """\
# {title}

{what}, {parameters:.1f} M parameters, trained with comer_d2 {version}.
{metrics}
**Classes** ({count}): {classes}

**Data**: {data}

**Pretrained weights**: {pretraining}

## How to run it

```python
from comer_d2 import load  # needs comer_d2 and Detectron2

model = load("hf:USER/NAME")  # or a folder with these files
result = model("photo.jpg")
result.draw().save("found.png")
```
"""


def write_hub_folder(
    model: Predictor,
    folder: Path,
    *,
    license: str,
    title: str,
    metrics: Mapping[str, Mapping[str, float | None]],
    allow_targets: Sequence[str] = (),
) -> list[str]:
    """Write model.safetensors, config.yaml and README.md, and compare what they load as.

    Args:
        model: what to write.
        folder: a new or an empty folder.
        license: of the weights, as the hub names it (``apache-2.0``, ``cc-by-nc-4.0``, ``other`` ...): that
            of the pretrained weights and of the data usually decides.
        title: of the model card.
        metrics: task -> metric -> value, of this checkpoint; may be empty.
        allow_targets: as of `load`.

    Returns:
        What was written.

    Raises:
        UserError: the folder holds something, what was written computes something else, or the model is one
            of half precision or of several views.
    """
    if model.dtype != torch.float32 or model.augmented:
        raise UserError(
            "a folder to share holds float32 weights; dtype, scales and flip are chosen where it is loaded"
        )
    with new_folder(folder) as part:
        write_weights(part / HUB_WEIGHTS, model.model.state_dict())
        cfg = shareable(model.cfg)
        LazyConfig.save(cfg, str(part / "config.yaml"))
        _card(model, license, title, metrics).save(part / "README.md")
        _compare(model, part, allow_targets)
    return sorted(str(path) for path in folder.iterdir())


def shareable(cfg: Any) -> Any:
    """A config without the paths of this machine: nothing of them is needed to predict.

    Args:
        cfg: a whole LazyConfig; not changed.

    Returns:
        A copy.
    """
    cfg = OmegaConf.create(
        OmegaConf.to_container(cfg, resolve=False), flags={"allow_objects": True}
    )
    cfg.train.output_dir, cfg.train.init_checkpoint = "output", ""
    cfg.train.device = "cuda"
    for key in list(cfg.get("dataset", ())):
        if key.startswith(SPLITS):
            cfg.dataset[key] = ""
    return cfg


def push(folder: Path, repository: str, *, private: bool = True) -> str:
    """Upload a folder of `write_hub_folder` to the Hugging Face hub.

    Args:
        folder: what to upload.
        repository: ``user/name``; it is made if it is not there.
        private: whether a new one is seen by its owner alone.

    Returns:
        The address.

    Raises:
        UserError: the folder is not one of these, or the hub refuses it.
    """
    missing = [n for n in (HUB_WEIGHTS, "config.yaml", "README.md") if not (folder / n).is_file()]
    if missing:
        raise UserError(
            f"'{folder}' lacks {', '.join(missing)}: make it with comer-d2 export --format hub"
        )
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))
    except (*CLIENT_ERRORS, ValueError, OSError) as error:
        raise UserError(f"{repository}: {error} (`hf auth login` stores a token)") from error


def _card(
    model: Predictor,
    license: str,
    title: str,
    metrics: Mapping[str, Mapping[str, float | None]],
) -> ModelCard:
    cfg = model.cfg
    table = "".join(
        f"| {task} {name} | {value:.2f} |\n"
        for task, found in metrics.items()
        for name, value in found.items()
        if value is not None and "-" not in name  # those by class are many
    )
    shown = f"\n| on its validation data | |\n|---|---|\n{table}" if table else ""
    names = list(model.class_names)
    start = cfg.train.init_checkpoint
    starts = [start] if isinstance(start, str) else list(start or ())
    has_comer = any(isinstance(module, ViTCoMerNet) for module in model.model.modules())
    data = ModelCardData(
        license=license,
        library_name="comer_d2",
        tags=["vit-comer", "detectron2"] if has_comer else ["detectron2"],
        pipeline_tag=TASK_TAGS[model.tasks[0]],
    )
    text = CARD.format(
        title=title,
        what=described(model.model),
        parameters=sum(p.numel() for p in model.model.parameters()) / 1e6,
        version=__version__,
        metrics=shown,
        count=len(names),
        classes=", ".join(names[:100]) + (", ..." if len(names) > 100 else ""),
        data=OmegaConf.select(cfg, "dataset.name") or _dataset(cfg),
        pretraining=", ".join(Path(s).name or s for s in starts if s)
        or "none: trained from scratch",
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def described(model: nn.Module) -> str:
    """What a model is, for people: "GeneralizedRCNN on ViT-CoMer"."""
    kind = type(model).__name__
    for part in model.get_submodule("backbone").modules():  # what is around comes first
        if isinstance(part, EoMT):
            return f"EoMT ({kind})"
        if isinstance(part, ViTCoMerNet):
            around = f" around {part.vit.name}" if isinstance(part.vit, TimmPyramid) else ""
            return f"{kind} on ViT-CoMer{around}"
        if isinstance(part, TimmPyramid):
            return f"{kind} on {part.name}"
        if isinstance(part, ViT):
            return f"{kind} on a plain ViT"
    return kind


def _dataset(cfg: Any) -> str:
    names: str | Sequence[str] = (
        OmegaConf.select(cfg, "dataloader.train.dataset.names") or "not named"
    )
    return names if isinstance(names, str) else ", ".join(names)


def _compare(model: Predictor, folder: Path, allow_targets: Sequence[str]) -> None:
    """The written folder, loaded, gives the same outputs on an image of noise."""
    image = np.random.default_rng(0).integers(0, 256, (PROBE_SIDE, PROBE_SIDE, 3), np.uint8)
    again = load(folder, device=model.device, allow_targets=allow_targets)
    before, after = (_flat(m.outputs([_input(m, image)])) for m in (model, again))
    if not all(torch.equal(a, b) for a, b in zip(before, after, strict=True)):
        raise UserError(f"{folder}: the weights that were written compute something else")


def _input(model: Predictor, image: np.ndarray) -> dict[str, Any]:
    return {"image": model.prepare(image), "height": image.shape[0], "width": image.shape[1]}


def _flat(outputs: list[dict[str, Any]]) -> list[torch.Tensor]:
    found = []
    for value in outputs[0].values():
        if hasattr(value, "get_fields"):
            fields = value.get_fields().values()
            found += [getattr(field, "tensor", field) for field in fields]
        elif isinstance(value, tuple):
            found.append(value[0])
        else:
            found.append(value)
    return found
