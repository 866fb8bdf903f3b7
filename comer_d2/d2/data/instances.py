"""Instances in COCO's format: boxes, and masks where they are trained.

dataset = dict(format="instances", name="custom", train_json="...", train_images="...",
               val_json="...", val_images="...")
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from omegaconf import DictConfig, OmegaConf

from .coco_json import CocoFile, read_coco
from .findings import SHOWN
from .kind import (
    SPLITS,
    CheckedDataset,
    DatasetError,
    DatasetKind,
    check_problems,
    count_classes,
    register,
    share_of_bad_images,
    shared_images,
    write_for_this_process,
)


class InstanceData(DatasetKind):
    """COCO's instances, one json and one folder of images a split."""

    format = "instances"

    @staticmethod
    def check(
        cfg: DictConfig, *, decode: bool = False, shown: int | None = SHOWN
    ) -> CheckedDataset:
        dataset = cfg.dataset
        files = {split: _read(cfg, split, decode=decode) for split in SPLITS}
        problems = {_key(dataset, split): file.findings for split, file in files.items()}
        if not any(problems.values()):
            _compare_categories(dataset, files["train"].categories, files["val"].categories)
        if any(problems.values()) and dataset.get("hint"):
            absent = any(not Path(dataset[f"{split}_json"] or "").is_file() for split in SPLITS)
            if absent:
                problems[_key(dataset, "val")].add(dataset.hint)
        check_problems(dataset, problems, shown)
        class_names = [name for _, name in sorted(files["train"].categories.items())]
        _check_classes(cfg, class_names)
        return CheckedDataset(
            values={"num_classes": len(class_names), "class_names": class_names},
            splits={
                split: {
                    "json_file": write_for_this_process(file.content, f"{dataset.name}_{split}")
                    if file.changed
                    else str(dataset[f"{split}_json"]),
                    "images": str(dataset[f"{split}_images"]),
                }
                for split, file in files.items()
            },
            notes=[
                f"{_key(dataset, split)}: {note}"
                for split, file in files.items()
                for note in file.notes
            ]
            + shared_images(*(file.paths(dataset[f"{s}_images"]) for s, file in files.items())),
        )

    @staticmethod
    def register(name: str, split: dict[str, str], values: dict[str, Any]) -> None:
        paths = split["json_file"], split["images"]
        register(
            name,
            lambda: load_coco_json(*paths, name),
            json_file=paths[0],
            image_root=paths[1],
            evaluator_type="coco",
            thing_classes=values["class_names"],
        )

    @property
    def classes(self) -> list[str]:
        return list(self.metadata.thing_classes)

    def evaluators(self, output_dir: str | None = None) -> list[COCOEvaluator]:
        return [COCOEvaluator(self.name, output_dir=output_dir)]

    def truth(self, record: dict[str, Any]) -> dict[str, Any]:
        shown = []
        for annotation in record["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            shown.append({**annotation, "bbox": np.array(box), "bbox_mode": BoxMode.XYXY_ABS})
        instances = annotations_to_instances(
            shown, (record["height"], record["width"]), mask_format="bitmask"
        )
        if instances.has("gt_masks"):
            instances.gt_masks = instances.gt_masks.tensor
        return {"instances": instances}

    @staticmethod
    def write_repaired(
        cfg: DictConfig, split: str, folder: Path
    ) -> tuple[list[str], dict[str, str]]:
        file = _read(cfg, split, decode=True, repair=True)
        check_problems(cfg.dataset, {_key(cfg.dataset, split): file.findings}, None)
        name = f"{split}.json"
        (folder / name).write_text(json.dumps(file.content), encoding="utf-8")
        return file.notes, {f"{split}_json": name}


def _read(cfg: DictConfig, split: str, *, decode: bool, repair: bool | None = None) -> CocoFile:
    dataset = cfg.dataset
    masks = bool(OmegaConf.select(cfg, "dataloader.train.mapper.use_instance_mask", default=False))
    return read_coco(
        dataset.get(f"{split}_json"),
        dataset.get(f"{split}_images"),
        need_masks=masks,
        repair=dataset.get("repair", False) if repair is None else repair,
        max_bad_images=share_of_bad_images(dataset),
        decode=decode,
        title=f"{dataset.name}_{split}",
    )


def _key(dataset: DictConfig, split: str) -> str:
    path = dataset.get(f"{split}_json")
    return f"dataset.{split}_json={path}" if path else f"dataset.{split}_json"


def _compare_categories(dataset: DictConfig, train: dict[int, str], val: dict[int, str]) -> None:
    if train == val:
        return
    only_train = sorted(set(train.items()) - set(val.items()))
    only_val = sorted(set(val.items()) - set(train.items()))
    raise DatasetError(
        f"dataset {dataset.name!r}: the categories of {dataset.train_json} and {dataset.val_json} "
        f"differ; (id, name) only in the first: {only_train}; only in the second: {only_val}. Give "
        "both the same list"
    )


def _check_classes(cfg: DictConfig, class_names: list[str]) -> None:
    """The config's own numbers and names agree with the data."""
    dataset = cfg.dataset
    count_classes(dataset, len(class_names), dataset.train_json)
    given = dataset.get("class_names")
    if given is not None and list(given) != class_names:
        raise DatasetError(
            f"dataset.class_names is {list(given)}, but the categories of {dataset.train_json}, in "
            f"the order of their ids, are {class_names}; leave it out"
        )
    in_model = OmegaConf.select(cfg, "model.roi_heads.num_classes")
    if in_model is not None and in_model != len(class_names) and not _follows(cfg):
        raise DatasetError(
            f"model.roi_heads.num_classes is {in_model}, but {dataset.train_json} has "
            f'{len(class_names)} categories; leave it at "${{dataset.num_classes}}"'
        )


def _follows(cfg: DictConfig) -> bool:
    return OmegaConf.is_interpolation(cfg.model.roi_heads, "num_classes")
