"""The numbers that a COCO json gives to images and classes."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detectron2.data import MetadataCatalog
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError


@dataclass
class CocoIds:
    """Numbers of a dataset, and new ones for images that are not in it.

    Args:
        category_ids: of each class; None: no json is known.
        images: (file name in the json, number).
        folder: of the images; None: any file whose path ends like a name in the json is meant.
    """

    category_ids: list[int] | None = None
    images: dict[str, int] = field(default_factory=dict)
    folder: str | None = None
    new: dict[str, int] = field(default_factory=dict)

    def image_id(self, path: str) -> int:
        """The dataset's number of an image file; for others, the next one that is free."""
        full = Path(os.path.realpath(path))
        if self.folder is not None:
            root = Path(os.path.realpath(self.folder))
            names = [full.relative_to(root).as_posix()] if full.is_relative_to(root) else []
        else:
            names = ["/".join(full.parts[-length:]) for length in range(len(full.parts), 0, -1)]
        for name in names:
            if name in self.images:
                return self.images[name]
        first = max((i for i in self.images.values() if isinstance(i, int)), default=0) + 1
        return self.new.setdefault(path, first + len(self.new))


def coco_ids(
    cfg: DictConfig, class_names: Sequence[str], annotations: str | None = None
) -> CocoIds:
    """Read the numbers of a config's test dataset.

    Args:
        cfg: a whole LazyConfig.
        class_names: name of each class.
        annotations: a COCO json to take instead.

    Returns:
        The numbers; none where the config names no json, or it is not here.

    Raises:
        UserError: the json cannot be read, or lacks a class.
    """
    json_file, folder = annotations, None
    if json_file is None:
        json_file, folder = _of_config(cfg)
        if not json_file or not Path(json_file).is_file():
            return CocoIds()
    try:
        content = json.loads(Path(json_file).read_text(encoding="utf-8-sig"))
        by_name = {category["name"]: category["id"] for category in content["categories"]}
        images = {image["file_name"]: image["id"] for image in content["images"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{json_file} cannot be read as a COCO json: {error!r}") from error
    missing = [name for name in class_names if name not in by_name]
    if missing:
        raise UserError(
            f"{json_file} lacks the model's classes {', '.join(missing[:5])}: name the json of its "
            "data (--annotations)"
        )
    return CocoIds([by_name[name] for name in class_names], images, folder)


def _of_config(cfg: DictConfig) -> tuple[str | None, str | None]:
    """(json, folder of the images) of the test data."""
    if "dataset" in cfg:
        return cfg.dataset.get("val_json"), cfg.dataset.get("val_images")
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    if not names:
        return None, None
    metadata = MetadataCatalog.get(names if isinstance(names, str) else names[0])
    return metadata.get("json_file") or metadata.get("panoptic_json"), metadata.get("image_root")
