"""What must be there and agree before a model is built: data, classes, checkpoints."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from typing import Any

from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from ...heads.upernet import PyramidPooling
from ...weights.timm_hub import TIMM
from ..data.custom import check_dataset, register_dataset
from ..data.kind import CheckedDataset
from ..errors import UserError
from ..modeling.norm import GlooSyncBatchNorm
from .checkpoint import CheckpointFolder
from .loggers import check_loggers

# Heads with a count of their own: semantic classes, a classifier on the backbone.
_OTHER_CLASSES = {"backbone", "sem_seg_head"}
_TRACEBACK_HINT = "COMER_D2_TRACEBACK=1 shows where"


def check_ready(cfg: DictConfig, *, eval_only: bool, resume: bool) -> CheckedDataset | None:
    """Look for everything a run needs before anything is built or started.

    Returns:
        What other processes of the run need instead of checking again; see `check_dataset`.

    Raises:
        UserError: naming all data sets and files that are missing, and what to do.
    """
    problems = []
    dataset = None
    try:
        dataset = check_dataset(cfg)  # whose paths are in the config itself
        register_dataset(cfg, dataset)
    except UserError as e:
        problems.append(str(e))
    else:
        for split in ("test",) if eval_only else ("train", "test"):
            missing = (_missing_dataset(name, split) for name in dataset_names(cfg, split))
            problems += [problem for problem in missing if problem and problem not in problems]
    if not eval_only:
        try:
            check_loggers(cfg.train.loggers)
        except UserError as e:
            problems.append(str(e))
    folder = CheckpointFolder(cfg.train.output_dir)
    last = folder.last()
    unnamed = folder.newest_readable() if resume and not last else None
    if unnamed:
        problems.append(
            f"--resume: {folder.marker}, which names the checkpoint to go on from, is gone: write "
            f"{unnamed} into it, or choose another train.output_dir"
        )
    init = init_checkpoints(cfg)
    if eval_only and not init and not (resume and (last or unnamed)):
        problems.append(
            "no weights to evaluate: set train.init_checkpoint=PATH"
            + ("; --resume finds no checkpoint in " + cfg.train.output_dir if resume else "")
        )
    for path in init:
        if not path.startswith(TIMM) and "://" not in path and not os.path.isfile(path):
            problems.append(
                f"train.init_checkpoint='{path}' does not exist (looked in {os.getcwd()})"
            )
    if len(init) > 1 and (eval_only or cfg.train.init_sha256):
        problems.append(
            "several train.init_checkpoint are for training from the parts of a model: evaluate "
            "one, and check the SHA-256 of one"
        )
    if last and not eval_only and not resume:
        problems.append(
            f"train.output_dir='{cfg.train.output_dir}' holds a run already ({last}): continue it "
            "with --resume, or choose another train.output_dir"
        )
    if problems:
        raise UserError("\n".join(problems))
    return dataset


def check_together(cfg: DictConfig, *, eval_only: bool, resume: bool) -> CheckedDataset | None:
    """`check_ready` in processes that another program started: one looks for all of its machine.

    What it finds ends all processes; it alone says so.

    Raises:
        UserError: what `check_ready` raised here.
        SystemExit: what it raised in another process.
    """
    verdict: CheckedDataset | UserError | None = None
    if comm.get_local_rank() == 0:
        try:
            verdict = check_ready(cfg, eval_only=eval_only, resume=resume)
        except UserError as e:
            verdict = e
    verdicts = comm.all_gather(verdict)
    rank = comm.get_rank()
    for number, found in enumerate(verdicts):
        if isinstance(found, UserError):
            raise verdict if number == rank else SystemExit(found.exit_code)
    if comm.get_local_rank() > 0:
        verdict = verdicts[rank - comm.get_local_rank()]
        register_dataset(cfg, verdict)
    return verdict


def init_checkpoints(cfg: DictConfig) -> list[str]:
    """What ``train.init_checkpoint`` names: nothing, one or several."""
    init = cfg.train.init_checkpoint
    if not init:
        return []
    return [init] if isinstance(init, str) else list(init)


def dataset_names(cfg: DictConfig, split: str) -> list[str]:
    """The registered names that ``dataloader.{train,test}.dataset`` reads, if it is built so."""
    dataset = OmegaConf.select(cfg, f"dataloader.{split}.dataset")
    names = dataset.get("names") if isinstance(dataset, DictConfig) else None
    if names is None:
        return []
    return [names] if isinstance(names, str) else list(names)


def _missing_dataset(name: str, split: str) -> str | None:
    """Why a data set cannot be read, with what to do; None when it can."""
    if name not in DatasetCatalog:
        near = difflib.get_close_matches(name, DatasetCatalog.list(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        return f"data set '{name}' (dataloader.{split}.dataset.names) is not registered{hint}"
    metadata = MetadataCatalog.get(name).as_dict()
    paths = [
        ("annotations", metadata.get("json_file")),
        ("images", metadata.get("image_root")),
        ("label maps", metadata.get("sem_seg_root")),
        ("panoptic annotations", metadata.get("panoptic_json")),
        ("panoptic label maps", metadata.get("panoptic_root")),
    ]
    missing = [(what, path) for what, path in paths if path and not os.path.exists(path)]
    if not missing:
        return None
    root = os.environ.get("DETECTRON2_DATASETS")
    lines = [f"data set '{name}' is missing:"]
    lines += [f"  {what}: {path} does not exist" for what, path in missing]
    lines.append(
        "  set the environment variable DETECTRON2_DATASETS to the folder that holds "
        f"'{_folder_of(missing[0][1], root)}' (now: {root or 'unset, so ./datasets'}); "
        "docs/DATASETS.md shows the layout"
    )
    return "\n".join(lines)


def _folder_of(path: str, root: str | None) -> str:
    """First folder of a built-in data set's path below the data sets' root, such as coco."""
    inside = os.path.relpath(path, os.path.expanduser(root or "datasets"))
    return path if inside.startswith("..") else inside.split(os.sep)[0]


def build(cfg: DictConfig, key: str) -> Any:
    """Instantiate one node of the config.

    Args:
        cfg: the whole config.
        key: full name of a node with a ``_target_``, such as "dataloader.train".

    Raises:
        UserError: the node cannot be what its call takes, or names what is not there.
    """
    try:
        return instantiate(OmegaConf.select(cfg, key))
    except UserError:
        raise
    except (FileNotFoundError, ValueError, AssertionError, ImportError) as e:
        raise UserError(f"{key}: {e} ({_TRACEBACK_HINT})") from e
    except OmegaConfBaseException as e:  # too short a list; what follows its first line is no help
        raise UserError(f"{key}: {str(e).splitlines()[0]} ({_TRACEBACK_HINT})") from e
    except TypeError as e:
        # A wrong name or count of arguments, and null or one number for several, are the config's fault.
        if not re.search("argument|NoneType|not (subscriptable|iterable)", str(e)):
            raise
        raise UserError(f"{key}: {e} ({_TRACEBACK_HINT})") from e


def check_classes(cfg: DictConfig, split: str) -> None:
    """Compare the classes of the data with every ``num_classes`` in the model's config.

    Raises:
        UserError: naming both counts and the key to set.
    """
    names = dataset_names(cfg, split)
    if not names:
        return
    metadata = MetadataCatalog.get(names[0])
    classes = metadata.get("thing_classes")
    if _has_one_head(cfg.model):
        # Data with label maps or segments list all their classes as stuff_classes.
        classes = metadata.get("stuff_classes") or classes
    if not classes:
        return
    for key, value in model_class_counts(cfg.model):
        if value != len(classes):
            raise UserError(
                f"data set '{names[0]}' has {len(classes)} classes, but {key} is {value}: "
                f"set {key}={len(classes)}"
            )


def check_batch_norm(cfg: DictConfig, model: nn.Module) -> None:
    """A pooling to one pixel of every image leaves its batch norm no variance of one image.

    Args:
        cfg: the config.
        model: built from it, in all of the run's processes.

    Raises:
        UserError: naming the keys to set.
    """
    batch_size = OmegaConf.select(cfg, "dataloader.train.total_batch_size")
    if batch_size is None:
        return
    for pooling in (module for module in model.modules() if isinstance(module, PyramidPooling)):
        for grid, branch in zip(pooling.grids, pooling.branches, strict=True):
            if grid > 1 or not isinstance(branch.norm, nn.modules.batchnorm._BatchNorm):
                continue
            shared = isinstance(branch.norm, (nn.SyncBatchNorm, GlooSyncBatchNorm))
            images = batch_size if shared else batch_size // comm.get_world_size()
            if images < 2:
                raise UserError(
                    f"dataloader.train.total_batch_size={batch_size} is 1 image for the head's batch "
                    "norm after a pooling to one pixel, which has no variance: set it to at least 2 "
                    "images a process (SyncBN: in all processes), or "
                    "model.sem_seg_head.norm_layer.norm=GN; train.accumulation_steps does not help"
                )


def model_class_counts(model: DictConfig) -> list[tuple[str, int]]:
    """Every ``num_classes`` that is written out in a model and has to be that of the data.

    Args:
        model: the config's node.

    Returns:
        Full name and value.
    """
    if not _has_one_head(model):
        return list(class_counts(model, "model"))
    of_head = list(class_counts(model.sem_seg_head, "model.sem_seg_head"))
    # EoMT's predictions are the backbone's.
    return of_head or list(class_counts(model.backbone, "model.backbone"))


def _has_one_head(model: DictConfig) -> bool:
    """Whether one head predicts all classes, those of pixels and of segments."""
    return "roi_heads" not in model and "sem_seg_head" in model


def class_counts(node: Any, prefix: str) -> Iterator[tuple[str, int]]:
    """Every ``num_classes`` that is written out (not interpolated) below a config node.

    Args:
        node: of the config.
        prefix: its full name.

    Yields:
        Full name and value.
    """
    if isinstance(node, ListConfig):
        for index in range(len(node)):
            if not OmegaConf.is_interpolation(node, index):
                yield from class_counts(node[index], f"{prefix}.{index}")
    elif isinstance(node, DictConfig):
        for name in node:
            if name in _OTHER_CLASSES or OmegaConf.is_interpolation(node, name):
                continue
            if name == "num_classes" and isinstance(node[name], int):
                yield f"{prefix}.num_classes", node[name]
            else:
                yield from class_counts(node[name], f"{prefix}.{name}")
