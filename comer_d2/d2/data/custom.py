"""The user's own data: given once under `dataset.*`, checked, registered.

A config that trains on it has a sixth name beside Detectron2's five, `dataset`; the files of its kinds
(instances.py, semantic.py, panoptic.py) show which keys. `dataloader.train.dataset.names` is
"${dataset.name}_train", and counts of classes are "${dataset.num_classes}".
"""

import logging

from detectron2.data import MetadataCatalog
from omegaconf import DictConfig

from .instances import InstanceData
from .kind import SPLITS, CheckedDataset, DatasetError, DatasetKind, check_settings
from .panoptic import PanopticData
from .semantic import SemanticData

logger = logging.getLogger(__name__)

KINDS: dict[str, type[DatasetKind]] = {
    kind.format: kind for kind in (InstanceData, SemanticData, PanopticData)
}


def resolve_dataset(cfg: DictConfig) -> None:
    """Check and register `cfg.dataset`, and let its classes flow into the model.

    Call it after overrides and before anything is instantiated. A config without `dataset` is left
    as it is.

    Args:
        cfg: a whole LazyConfig.

    Raises:
        DatasetError: the data or `cfg.dataset` is wrong; the message names file, count and fix.
    """
    checked = check_dataset(cfg)
    register_dataset(cfg, checked)
    log_dataset(cfg, checked)


def check_dataset(cfg: DictConfig) -> CheckedDataset | None:
    """The first half of `resolve_dataset`, which opens files: once for all processes of a run.

    Returns:
        Plain values for `register_dataset`, here or in other processes; None: no `dataset`.
    """
    if "dataset" not in cfg:
        return None
    check_settings(cfg.dataset)
    checked = kind_of_config(cfg).check(cfg)
    odd = [name for name in checked.values["class_names"] if "${" in name]
    if odd:  # config.yaml would hold them, and read another value
        raise DatasetError(f"dataset {cfg.dataset.name!r}: class name {odd[0]!r}: ${{ is a reference in configs; rename the class")  # fmt: skip
    return checked


def register_dataset(cfg: DictConfig, checked: CheckedDataset | None) -> None:
    """The second half: fill in `cfg.dataset`, and register ``<name>_train`` and ``<name>_val``."""
    if checked is None:
        return
    cfg.dataset.update(checked.values)
    for split in SPLITS:
        name = f"{cfg.dataset.name}_{split}"
        kind_of_config(cfg).register(name, checked.splits[split], checked.values)


def log_dataset(cfg: DictConfig, checked: CheckedDataset | None) -> None:
    """Say what was computed, repaired or left out."""
    if checked is None:
        return
    names = checked.values["class_names"]
    logger.info("Dataset %r: %d classes: %s", cfg.dataset.name, len(names), names)
    for note in checked.notes:
        logger.warning("%s", note)


def kind_of_config(cfg: DictConfig) -> type[DatasetKind]:
    """The kind that `cfg.dataset.format` names."""
    name = cfg.dataset.get("format", InstanceData.format)
    if name not in KINDS:
        raise DatasetError(f"dataset.format={name!r}: use one of {', '.join(KINDS)}")
    return KINDS[name]


def kind_of(name: str) -> DatasetKind:
    """What a registered dataset is, of the user's own or a public one.

    Args:
        name: in Detectron2's catalog.
    """
    metadata = MetadataCatalog.get(name)
    if metadata.get("panoptic_root"):
        return PanopticData(name)
    if metadata.get("sem_seg_root"):
        return SemanticData(name)
    return InstanceData(name)
