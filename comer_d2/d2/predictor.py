"""Prediction on images from a LazyConfig and a checkpoint."""

import contextlib
import numbers
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import huggingface_hub
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog
from detectron2.modeling import GeneralizedRCNN, GeneralizedRCNNWithTTA
from omegaconf import DictConfig, OmegaConf

from comer_d2.layers.narrow import narrow_weights

from .data.augmentation import apply_augmentations
from .data.custom import resolve_dataset
from .engine.checkpoint import load_checkpoint
from .engine.checks import model_class_counts
from .engine.config import load_config, settle_device
from .errors import UserError
from .image_input import ImageLike, as_rgb
from .modeling.box_tta import rcnn_views
from .modeling.compiled import Compile, check_compile, compile_model
from .modeling.images import refuse_to_cut
from .modeling.semantic_segmentor import SemanticSegmentor
from .modeling.semantic_tta import SemanticViews
from .results import TASKS, Result

DEFAULT_THRESHOLD = 0.5
DTYPES = ("float32", "bfloat16", "float16")
# What a run's folder holds, best first.
HUB_WEIGHTS = "model.safetensors"  # of a folder from the hub
CHECKPOINTS = ("model_best.pth", "model_final.pth", HUB_WEIGHTS)
HUB = "hf:"  # before the name of a repository on the Hugging Face hub
Threshold = float | Mapping[str, float]


class Predictor:
    """A model that takes images of any size, each prepared as the config's test data is.

    Args:
        cfg: a whole LazyConfig: a config file of this project, or the `config.yaml` that training
            leaves beside its checkpoints.
        checkpoint: file with the model's weights; every parameter has to be in it.
        device: where to run; the default is `cfg.train.device`, or the CPU without CUDA. A GPU that is named
            and not there is an error.
        dtype: "bfloat16" or "float16" to compute in half precision, with the weights of linear layers
            and convolutions kept in it: autocast's results, without its casts, in less memory.
        compile: torch.compile of "blocks" or the backbone as a whole ("model"); True: blocks. The first
            images wait for it.
        scales: test-time augmentation: sizes, relative to the test data's, whose predictions are put
            together. For R-CNN models and semantic ones.
        flip: whether every scale is also mirrored.

    Raises:
        UserError: the checkpoint cannot be read, its weights are not exactly this model's, the device is not
            there, or the model has no test-time augmentation.
    """

    def __init__(
        self,
        cfg: DictConfig,
        checkpoint: str | os.PathLike,
        *,
        device: str | torch.device | None = None,
        dtype: str = "float32",
        compile: Compile | bool | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype!r}: use one of {', '.join(DTYPES)}")
        if isinstance(compile, bool):
            compile = "blocks" if compile else None
        check_compile(compile, "compile")
        self.cfg = cfg
        self.class_names = class_names_of(cfg)
        mapper = cfg.dataloader.test.mapper
        self.image_format: str = mapper.image_format
        self.augmentation = T.AugmentationList(list(instantiate(mapper.augmentations)))
        if device is not None:
            cfg.train.device = str(device)
        if settle_device(cfg.train) and device is not None:
            raise UserError(f"device={str(device)!r}: no CUDA device here")
        self.device = torch.device(cfg.train.device)
        self.dtype = getattr(torch, dtype)
        self.model = instantiate(cfg.model).to(self.device).eval()
        refuse_to_cut(self.model)
        average = bool(OmegaConf.select(cfg, "train.ema.enabled"))
        load_checkpoint(self.model, os.fspath(checkpoint), complete=True, average=average)
        if self.dtype != torch.float32:
            narrow_weights(self.model, self.dtype)
        compile_model(self.model, compile, "compile")
        self.views: GeneralizedRCNNWithTTA | None = None
        self.augmented = flip or tuple(scales) != (1.0,)
        if self.augmented:
            self._augment(scales, flip)
        self.stuff_classes = frozenset(
            OmegaConf.select(cfg, "dataset.stuff_classes")
            or getattr(self.model, "stuff_classes", None)
            or ()
        )
        self.category_ids: Sequence[int] | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the model predicts, of `TASKS` and in their order."""
        known = ("semantic",) if isinstance(self.model, SemanticSegmentor) else ("instance",)
        given = getattr(self.model, "tasks", known)
        return tuple(task for task in TASKS if task in given)

    def _augment(self, scales: Sequence[float], flip: bool) -> None:
        if not scales or not all(_is_number(scale) and 0 < scale < 100 for scale in scales):
            raise UserError(f"scales={list(scales)}: positive numbers, 1 for the test data's size")
        if isinstance(self.model, GeneralizedRCNN):
            self.views = rcnn_views(self.model, scales=scales, flip=flip)
        elif self.tasks == ("semantic",):
            before = self.model.views
            self.model.views = SemanticViews(
                window=before.window if before else None,
                stride=before.stride if before else None,
                scales=scales,
                flip=flip,
            )
        else:
            raise UserError(
                "scales and flip are for R-CNN models and semantic ones, not for "
                f"{type(self.model).__name__}"
            )

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        threshold: Threshold = DEFAULT_THRESHOLD,
        batch_size: int = 1,
    ) -> Result | list[Result]:
        """Predict an image, or a list of images.

        Args:
            images: paths, Pillow images, arrays or tensors, as :func:`.image_input.as_rgb` takes them.
            threshold: objects below this score are left out, 0 to 1; or class name -> threshold, with
                0.5 for the others. Of panoptic segments it is the things that have to reach it. (The
                model itself has left out what its config's thresholds say.)
            batch_size: images of one size that are predicted together.

        Returns:
            A result, or a list of them in the images' order.

        Raises:
            UserError: an image cannot be read, or the threshold is out of range.
        """
        if isinstance(images, (list, tuple)):
            return list(self.stream(images, threshold=threshold, batch_size=batch_size))
        return next(self.stream([images], threshold=threshold))

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        threshold: Threshold = DEFAULT_THRESHOLD,
        batch_size: int = 1,
        on_error: Callable[[ImageLike, UserError], object] | None = None,
    ) -> Iterator[Result]:
        """Predict images one batch after the other; arguments as of a call.

        Args:
            images: as of a call; read when they are needed.
            threshold: as of a call.
            batch_size: as of a call. Only images that are of one size once they are prepared share a
                batch, so that nobody's padding changes anybody's result.
            on_error: called with an image that cannot be read, which is then left out; without it,
                the error is raised.

        Returns:
            An iterator of results, one for each image, in order.

        Raises:
            UserError: as of a call.
        """
        thresholds = thresholds_of(threshold, self.class_names)
        if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
            raise UserError(f"batch_size={batch_size!r}: a whole number, at least 1")
        return self._stream(images, thresholds, batch_size, on_error)

    def _stream(
        self,
        images: Iterable[ImageLike],
        thresholds: np.ndarray,
        batch_size: int,
        on_error: Callable[[ImageLike, UserError], object] | None,
    ) -> Iterator[Result]:
        batch: list[tuple[np.ndarray, str | None, torch.Tensor]] = []
        for image in images:
            try:
                rgb = as_rgb(image)
                name = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
                tensor = self.prepare(rgb, name)
            except UserError as error:
                if on_error is None:
                    raise
                on_error(image, error)
                continue
            if batch and tensor.shape != batch[0][2].shape:
                yield from self._predict(batch, thresholds)
                batch = []
            batch.append((rgb, name, tensor))
            if len(batch) == batch_size:  # before the next is waited for: it may be a camera's
                yield from self._predict(batch, thresholds)
                batch = []
        if batch:
            yield from self._predict(batch, thresholds)

    def prepare(self, rgb: np.ndarray, name: str | None = None) -> torch.Tensor:
        """(h, w, 3) uint8 RGB -> (3, H, W) as the model takes it: resized as the test data."""
        image = rgb[:, :, ::-1] if self.image_format == "BGR" else rgb
        prepared = T.AugInput(np.ascontiguousarray(image))
        apply_augmentations(self.augmentation, prepared, name or "the image")
        return torch.as_tensor(np.ascontiguousarray(prepared.image.transpose(2, 0, 1)))

    @torch.no_grad()
    def outputs(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Call the model on prepared images, in this predictor's precision.

        Args:
            inputs: Detectron2's: `image`, and the output's `height` and `width`.

        Returns:
            The model's outputs, on its device: `instances`, `sem_seg`, `panoptic_seg`, or some.
        """
        half = self.dtype != torch.float32
        context = torch.autocast(self.device.type, self.dtype) if half else contextlib.nullcontext()
        with context:
            if self.views is not None:  # it resizes on the CPU
                return self.views(inputs)
            return self.model([{**i, "image": i["image"].to(self.device)} for i in inputs])

    def _predict(
        self, batch: list[tuple[np.ndarray, str | None, torch.Tensor]], thresholds: np.ndarray
    ) -> Iterator[Result]:
        inputs = [
            {"image": tensor, "height": rgb.shape[0], "width": rgb.shape[1]}
            for rgb, _, tensor in batch
        ]
        for (rgb, name, _), output in zip(batch, self.outputs(inputs), strict=True):
            yield self.result(output, rgb, thresholds, file_name=name)

    def result(
        self,
        output: Mapping[str, Any],
        image: np.ndarray,
        thresholds: np.ndarray,
        *,
        file_name: str | None = None,
    ) -> Result:
        """Plain fields from what the model gave for one image.

        Args:
            output: of the model.
            image: (h, w, 3) uint8, RGB.
            thresholds: (K,) lowest score of each class's objects.
            file_name: of the image.

        Returns:
            The result.
        """
        fields: dict[str, Any] = {}
        if "instances" in output:
            found = output["instances"]
            lowest = torch.as_tensor(thresholds, device=found.scores.device)
            found = found[found.scores >= lowest[found.pred_classes]].to("cpu")
            fields["boxes"] = found.pred_boxes.tensor.float().numpy()
            fields["scores"] = found.scores.float().numpy()
            fields["classes"] = found.pred_classes.numpy()
            if found.has("pred_masks"):
                fields["masks"] = found.pred_masks.numpy()
        if "sem_seg" in output:
            fields["label_map"] = output["sem_seg"].argmax(dim=0).cpu().numpy()
        if "panoptic_seg" in output:
            segments, info = output["panoptic_seg"]
            low = [
                s["id"] for s in info if s["isthing"] and s["score"] < thresholds[s["category_id"]]
            ]
            fields["segments_info"] = [s for s in info if s["id"] not in low]
            segments = segments.cpu().numpy()
            fields["segments"] = np.where(np.isin(segments, low), 0, segments) if low else segments
        return Result(
            image,
            self.class_names,
            file_name,
            stuff_classes=self.stuff_classes,
            category_ids=self.category_ids,
            **fields,
        )


def load(
    source: str | os.PathLike,
    *,
    config_file: str | os.PathLike | None = None,
    overrides: Sequence[str] = (),
    allow_targets: Sequence[str] = (),
    device: str | torch.device | None = None,
    dtype: str = "float32",
    compile: Compile | bool | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
) -> Predictor:
    """A trained model, ready to predict.

    Args:
        source: the output folder of a run (its model_best.pth is taken, or else model_final.pth), a
            checkpoint, a folder from the Hugging Face hub, or ``hf:user/name``, which is fetched.
        config_file: of the model; the default is the config.yaml beside the checkpoint.
        overrides: ``key=value`` changes of the config.
        allow_targets: your own packages or classes that a ``.yaml`` config may name; see
            :func:`~comer_d2.d2.engine.config.load_config`.
        device: as of :class:`Predictor`.
        dtype: as of :class:`Predictor`.
        compile: as of :class:`Predictor`.
        scales: as of :class:`Predictor`.
        flip: as of :class:`Predictor`.

    Returns:
        The model: call it on images.

    Raises:
        UserError: there is no checkpoint or no config, or they do not fit.
    """
    checkpoint = find_checkpoint(source)
    config = os.fspath(find_config(checkpoint, config_file))
    cfg = load_config(config, overrides, allow_targets=allow_targets)
    return Predictor(
        cfg, checkpoint, device=device, dtype=dtype, compile=compile, scales=scales, flip=flip
    )


def find_checkpoint(source: str | os.PathLike) -> Path:
    """The checkpoint that a run's folder, or a path, stands for; see :func:`load`."""
    name = os.fspath(source)
    path = fetch(name.removeprefix(HUB)) if name.startswith(HUB) else Path(name)
    if path.is_file():
        return path
    if not path.is_dir():
        hub = (
            f", or {HUB}{name} for the hub's" if name.count("/") == 1 and path.suffix == "" else ""
        )
        raise UserError(f"'{path}' does not exist: give a run's folder or a checkpoint{hub}")
    for name in CHECKPOINTS:
        if (path / name).is_file():
            return path / name
    others = sorted(p.name for p in path.glob("*.pth"))
    hint = f"; name one of {', '.join(others)}" if others else ""
    raise UserError(f"'{path}' holds none of {', '.join(CHECKPOINTS)}{hint}")


def fetch(repository: str) -> Path:
    """Bring a model's folder from the Hugging Face hub; what is here already is used.

    Args:
        repository: ``user/name``, or ``user/name@revision``.

    Returns:
        The folder.

    Raises:
        UserError: it cannot be had.
    """
    name, _, revision = repository.partition("@")
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None))
    except (huggingface_hub.errors.HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(f"{HUB}{repository}: {error}") from error


def find_config(checkpoint: Path, config_file: str | os.PathLike | None = None) -> Path:
    """The config of a checkpoint's model; see :func:`load`."""
    config = Path(config_file) if config_file else checkpoint.with_name("config.yaml")
    if not config_file and not config.is_file():
        raise UserError(
            f"there is no config.yaml beside {checkpoint}: name the model's config "
            "(config_file=..., --config-file)"
        )
    return config


def thresholds_of(threshold: Threshold, class_names: Sequence[str]) -> np.ndarray:
    """The lowest score of every class.

    Args:
        threshold: for all, 0 to 1; or class name -> threshold, with 0.5 for the others.
        class_names: name of each class.

    Returns:
        (K,) float32.

    Raises:
        UserError: a value out of range, or an unknown class.
    """
    by_name = threshold if isinstance(threshold, Mapping) else dict.fromkeys(class_names, threshold)
    unknown = sorted(repr(name) for name in set(by_name) - set(class_names))
    if unknown:
        names = ", ".join(map(repr, list(class_names)[:10]))
        more = ", ..." if len(class_names) > 10 else ""
        raise UserError(f"threshold for {', '.join(unknown)}: the classes are {names}{more}")
    for name, value in by_name.items():
        if not _is_number(value) or not 0 <= value <= 1:  # NaN fails too
            which = f" of {name}" if isinstance(threshold, Mapping) else ""
            shown = f"{value:g}" if _is_number(value) else repr(value)
            raise UserError(f"threshold {shown}{which}: scores are from 0 to 1")
    return np.array([by_name.get(n, DEFAULT_THRESHOLD) for n in class_names], dtype=np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def class_names_of(cfg: DictConfig) -> list[str]:
    """Names of the classes that a config's model predicts.

    Args:
        cfg: a whole LazyConfig. Its `dataset`, when it has one, is resolved unless an earlier
            training already did (then the data itself need not be here).

    Returns:
        One name per class; numbers when the test dataset has no names.
    """
    if "dataset" in cfg:
        if not (cfg.dataset.get("class_names") and cfg.dataset.get("num_classes")):
            resolve_dataset(cfg)
        return list(cfg.dataset.class_names)
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    name = names if isinstance(names, str) or names is None else names[0]
    metadata = MetadataCatalog.get(name) if name else None
    known = None
    if metadata and "sem_seg_head" in cfg.model:
        known = metadata.get("stuff_classes")
    if metadata and not known:
        known = metadata.get("thing_classes")
    if known:
        return list(known)
    counts = dict(model_class_counts(cfg.model))
    if not counts:
        raise UserError(
            "neither the test dataset nor the model's config says how many classes it has"
        )
    return [str(i) for i in range(next(iter(counts.values())))]
