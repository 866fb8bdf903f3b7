"""What a kind of dataset is: one class for all that depends on the kind.

The user's own data, given under `cfg.dataset`, are checked and registered by it; of any registered dataset, public ones too,
it knows the classes, how predictions are measured, and what there is to draw.
"""

import functools
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from omegaconf import DictConfig, ListConfig

from ..errors import UserError
from .findings import NOT_SET, SHOWN, Findings, summarise
from .images import read_image

SPLITS = ("train", "val")
MAX_BAD_IMAGES = 0.1  # default of dataset.max_bad_images, a share of all images of a split
_registered: set[str] = set()  # names that came from here and may be registered again


class DatasetError(UserError):
    """A dataset that cannot be used; the message lists every problem and the file it is in."""


@dataclass
class CheckedDataset:
    """The outcome of a check: plain values that go to other processes, which then need not check.

    Args:
        values: for `cfg.dataset`: num_classes, class_names and others of the kind.
        splits: per split, what the kind's `register` needs.
        notes: what was computed, repaired or left out, and what looks odd.
    """

    values: dict[str, Any]
    splits: dict[str, Any]
    notes: list[str] = field(default_factory=list)


class DatasetKind(ABC):
    """One kind of dataset.

    Args:
        name: of a registered dataset of this kind.
    """

    format: ClassVar[str]  # what dataset.format calls it

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    @abstractmethod
    def check(
        cfg: DictConfig, *, decode: bool = False, shown: int | None = SHOWN
    ) -> CheckedDataset:
        """Look at everything that `cfg.dataset` names, before anything is built.

        Args:
            cfg: the config.
            decode: read every image whole.
            shown: how many cases of each problem the error names; None: all.

        Raises:
            DatasetError: with every problem that was found.
        """

    @staticmethod
    @abstractmethod
    def register(name: str, split: Any, values: dict[str, Any]) -> None:
        """Register one split with Detectron2's catalogs; opens no image.

        Args:
            name: of the split in the catalogs.
            split: its part of `CheckedDataset.splits`.
            values: `CheckedDataset.values`.
        """

    @property
    @abstractmethod
    def classes(self) -> list[str]:
        """Names of the classes that a model of this kind predicts."""

    @property
    def stuff_classes(self) -> list[int]:
        """Numbers of the classes that are stuff."""
        return []

    @abstractmethod
    def evaluators(self, output_dir: str | None = None) -> list[DatasetEvaluator]:
        """What measures predictions; `output_dir`: where they also write them."""

    @abstractmethod
    def truth(self, record: dict[str, Any]) -> dict[str, Any]:
        """What a perfect model would say of an image: what there is to draw.

        Args:
            record: one of the registered dataset.

        Returns:
            Any of ``instances``, Instances with `gt_boxes`, `gt_classes` and perhaps `gt_masks` (n, h, w)
            bool; ``sem_seg``, (h, w) int, classes and 255; ``panoptic_seg``, ids (h, w) and segments. All
            on the CPU and at the size of the upright image.

        Raises:
            UserError: naming the file that cannot be read.
        """

    @staticmethod
    @abstractmethod
    def write_repaired(
        cfg: DictConfig, split: str, folder: Path
    ) -> tuple[list[str], dict[str, str]]:
        """Write one split of `cfg.dataset` without what can be repaired or has to be left out.

        Args:
            cfg: the config.
            split: "train" or "val".
            folder: where to.

        Returns:
            What was done, and key of `dataset` -> the path below `folder` that it is now.
        """

    def read(self, record: dict[str, Any]) -> None:
        """Read all files of a record.

        Raises:
            UserError: naming the file that is wrong.
        """
        read_image(record["file_name"])
        self.truth(record)

    @property
    def metadata(self) -> Metadata:
        """What Detectron2's catalog knows of the dataset beside its records."""
        return MetadataCatalog.get(self.name)


def register(name: str, load: Callable[[], Sequence[dict[str, Any]]], **metadata: Any) -> None:
    """Register a dataset of the user's own; one of that name that came from here is replaced.

    Raises:
        DatasetError: Detectron2 itself has one of that name.
    """
    if name in _registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    elif name in DatasetCatalog:
        raise DatasetError(
            f"Detectron2 already has a dataset {name!r}; choose another dataset.name"
        )
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
    _registered.add(name)


def check_problems(dataset: DictConfig, found: dict[str, Findings], shown: int | None) -> None:
    """Raise one error with the problems of all splits.

    Args:
        dataset: `cfg.dataset`.
        found: what a problem is about, such as "dataset.train_json=train.json" -> what was found.
        shown: how many cases of each problem are named.
    """
    lines = [
        f"{key} {line}" if line == NOT_SET else f"{key}: {line}"
        for key, findings in found.items()
        for line in findings.lines(shown)
    ]
    if lines:
        raise DatasetError(f"dataset {dataset.name!r}:\n  " + "\n  ".join(lines))


def shared_images(train: Iterable[str | Path], val: Iterable[str | Path]) -> list[str]:
    """A note on files that both splits have, if there are any."""
    known = set(map(os.path.realpath, train))
    both = [str(path) for path in val if os.path.realpath(path) in known]
    if not both:
        return []
    return [summarise("images are in train and val: what is measured is learnt by heart", both)]


def check_settings(dataset: DictConfig) -> None:
    """Values of another kind than a key of `cfg.dataset` can hold, from a config or a command line.

    Args:
        dataset: `cfg.dataset`.

    Raises:
        DatasetError: naming the key and its value.
    """
    text = ("name", "hint", *(key for key in dataset if key.startswith(tuple(SPLITS))))
    for key in text:
        value = dataset.get(key)
        if value is not None and not isinstance(value, (str, Path)):
            raise DatasetError(
                f"dataset.{key}={value!r}: give text, in quotes where it is a number"
            )
    if not dataset.get("name"):
        raise DatasetError("dataset.name is empty: give a name, for logs")
    if not isinstance(dataset.get("repair", False), bool):
        raise DatasetError(f"dataset.repair={dataset.repair!r}: use True or False")
    share_of_bad_images(dataset)
    names = dataset.get("class_names")
    if isinstance(names, ListConfig):
        wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
        if wrong:
            raise DatasetError(
                f"dataset.class_names holds {wrong[0]!r}, which is no name: each is a text, in quotes "
                "where it is a number"
            )
    elif names is not None and not isinstance(names, str):
        raise DatasetError(
            f"dataset.class_names={names!r}: give a list, or a file with one on each line"
        )


def share_of_bad_images(dataset: DictConfig) -> float:
    """How many of the images may be left out, as a share of them; 0 where `on_bad_image` says so."""
    action = dataset.get("on_bad_image", "error")
    if action not in ("error", "skip"):
        raise DatasetError(f"dataset.on_bad_image={action!r}: use error or skip")
    share = dataset.get("max_bad_images", MAX_BAD_IMAGES)
    if not isinstance(share, (int, float)) or not 0 <= share < 1:
        raise DatasetError(f"dataset.max_bad_images={share!r}: a share of the images, 0 to 1")
    return share if action == "skip" else 0.0


def count_classes(dataset: DictConfig, count: int, source: str) -> None:
    """Raises DatasetError where `dataset.num_classes` says another number than the data."""
    if dataset.get("num_classes") not in (None, count):
        raise DatasetError(
            f"dataset.num_classes is {dataset.num_classes}, but {source} has {count} classes; leave it out"
        )


def write_for_this_process(content: dict[str, Any], name: str) -> str:
    """Write a json that is gone when this process ends.

    Args:
        content: what to write.
        name: of the file; one of that name is replaced.

    Returns:
        The path.
    """
    path = Path(_folder().name, f"{name}.json")
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise DatasetError(
            f"{path}: the completed annotations cannot be written ({error}); "
            "set TMPDIR to a folder with space"
        ) from error
    return str(path)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="comer_d2_", ignore_cleanup_errors=True)
