"""COCO's panoptic format: a json and a folder of PNGs, whose colours are segment ids.

dataset = dict(format="panoptic", name="custom", train_json="...", train_images="...",
               train_masks="...", val_json="...", val_images="...", val_masks="...")
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.evaluation import COCOEvaluator, DatasetEvaluator
from omegaconf import DictConfig

from ..errors import UserError
from ..evaluation.panoptic import PanopticEvaluator
from ..evaluation.semantic import SemanticEvaluator
from .coco_json import CocoFile, check_categories, check_fields, check_files, check_numbers, parse
from .findings import SHOWN
from .images import read_all
from .kind import (
    SPLITS,
    CheckedDataset,
    DatasetError,
    DatasetKind,
    check_problems,
    count_classes,
    register,
    share_of_bad_images,
    write_for_this_process,
)
from .mappers import PanopticMapper
from .panoptic_json import load_panoptic
from .semantic_labels import IGNORE_LABEL, SemanticLabels, read_segments


class PanopticData(DatasetKind):
    """Things and stuff. Class numbers: things first, then stuff, each in the order of their ids.

    With `dataset.<split>_instances`, a COCO instances file of the same images and things, mask AP
    can be measured too.
    """

    format = "panoptic"

    @staticmethod
    def check(
        cfg: DictConfig, *, decode: bool = False, shown: int | None = SHOWN
    ) -> CheckedDataset:
        dataset = cfg.dataset
        files = {split: _read(dataset, split, decode) for split in SPLITS}
        keys = {split: _key(dataset, split) for split in SPLITS}
        check_problems(dataset, {keys[s]: file.findings for s, file in files.items()}, shown)
        categories = [_categories(file) for file in files.values()]
        if categories[0] != categories[1]:
            raise DatasetError(
                f"dataset {dataset.name!r}: the categories of {dataset.train_json} and "
                f"{dataset.val_json} differ; give both the same list"
            )
        ordered = sorted(categories[0], key=lambda c: (not c[2], c[0]))
        names = [name for _, name, _ in ordered]
        count_classes(dataset, len(names), dataset.train_json)
        given = dataset.get("class_names")
        if given is not None and list(given) != names:
            raise DatasetError(
                f"dataset.class_names is {list(given)}, but the categories of {dataset.train_json} "
                f"are {names}, things first; leave it out"
            )
        num_things = sum(is_thing for _, _, is_thing in ordered)
        return CheckedDataset(
            values={
                "num_classes": len(names),
                "num_things": num_things,
                "class_names": names,
                "stuff_classes": list(range(num_things, len(names))),
            },
            splits={
                split: {
                    "json_file": write_for_this_process(file.content, f"{dataset.name}_{split}")
                    if file.changed
                    else str(dataset[f"{split}_json"]),
                    "images": str(dataset[f"{split}_images"]),
                    "masks": str(dataset[f"{split}_masks"]),
                    "instances": dataset.get(f"{split}_instances") or None,
                    "category_ids": [i for i, _, _ in ordered],
                }
                for split, file in files.items()
            },
            notes=[f"{keys[s]}: {note}" for s, file in files.items() for note in file.notes],
        )

    @staticmethod
    def register(name: str, split: dict[str, Any], values: dict[str, Any]) -> None:
        names, num_things = values["class_names"], values["num_things"]
        classes = {i: number for number, i in enumerate(split["category_ids"])}
        paths = [split[part] for part in ("json_file", "images", "masks")]
        instances = split["instances"]
        register(
            name,
            lambda: load_panoptic(*paths, classes, set(range(num_things))),
            thing_classes=names[:num_things],
            stuff_classes=names,
            thing_dataset_id_to_contiguous_id={i: n for i, n in classes.items() if n < num_things},
            stuff_dataset_id_to_contiguous_id={i: n for i, n in classes.items() if n >= num_things},
            image_root=paths[1],
            panoptic_json=paths[0],
            panoptic_root=paths[2],
            ignore_label=IGNORE_LABEL,
            evaluator_type="coco_panoptic_seg",
            **({"json_file": str(instances)} if instances else {}),
        )

    @property
    def classes(self) -> list[str]:
        return list(self.metadata.stuff_classes)

    @property
    def stuff_classes(self) -> list[int]:
        return sorted(self.metadata.stuff_dataset_id_to_contiguous_id.values())

    def evaluators(self, output_dir: str | None = None) -> list[DatasetEvaluator]:
        found: list[DatasetEvaluator] = [
            PanopticEvaluator(self.name, output_dir=output_dir),
            SemanticEvaluator(self.name, output_dir=output_dir),
        ]
        if self.metadata.get("json_file"):
            found.append(COCOEvaluator(self.name, tasks=("segm",), output_dir=output_dir))
        return found

    def truth(self, record: dict[str, Any]) -> dict[str, Any]:
        mapped = PanopticMapper(True, augmentations=[], things_only=True)(record)
        instances = mapped["instances"]
        instances.gt_masks = instances.gt_masks.tensor
        return {
            "panoptic_seg": (read_segments(record), record["segments_info"]),
            "sem_seg": SemanticLabels(self.name)(record),
            "instances": instances,
        }

    @staticmethod
    def write_repaired(
        cfg: DictConfig, split: str, folder: Path
    ) -> tuple[list[str], dict[str, str]]:
        file = _read(cfg.dataset, split, decode=True)
        check_problems(cfg.dataset, {_key(cfg.dataset, split): file.findings}, None)
        name = f"{split}.json"
        (folder / name).write_text(json.dumps(file.content), encoding="utf-8")
        return file.notes, {f"{split}_json": name}


def _key(dataset: DictConfig, split: str) -> str:
    path = dataset.get(f"{split}_json")
    return f"dataset.{split}_json={path}" if path else f"dataset.{split}_json"


def _categories(file: CocoFile) -> list[tuple[int, str, bool]]:
    """(id, name, is a thing) in the file's order."""
    return sorted((c["id"], c["name"], bool(c["isthing"])) for c in file.content["categories"])


def _read(dataset: DictConfig, split: str, decode: bool) -> CocoFile:
    """The json, checked against images and PNGs; all PNGs are read."""
    found = CocoFile()
    masks = dataset.get(f"{split}_masks")
    if not parse(found, dataset.get(f"{split}_json"), dataset.get(f"{split}_images")):
        if dataset.get("hint") and not Path(dataset.get(f"{split}_json") or "").is_file():
            found.findings.add(dataset.hint)
        return found
    if not masks or not Path(masks).is_dir():
        found.findings.add(
            f"its folder of PNGs, dataset.{split}_masks={masks or ''!r}, does not exist"
        )
        return found
    content = found.content
    check_fields(
        content,
        {
            "images": {"id": (int, str), "file_name": (str,)},
            "categories": {"id": (int,), "name": (str,), "isthing": (int,)},
            "annotations": {"image_id": (int, str), "file_name": (str,), "segments_info": (list,)},
        },
        found.findings,
    )
    if found.findings:  # what follows reads those fields
        return found
    title = f"{dataset.name}_{split}"
    images = Path(dataset[f"{split}_images"])
    check_files(found, images, share_of_bad_images(dataset), decode=decode, title=title)
    check_categories(
        found, {s.get("category_id") for a in content["annotations"] for s in a["segments_info"]}
    )
    _check_segments(found, Path(masks), title)
    return found


def _check_segments(found: CocoFile, folder: Path, title: str) -> None:
    """Every annotation has an image, a PNG of its size and exactly its segments, and known classes."""
    content, findings = found.content, found.findings
    images = {image["id"]: image for image in content["images"]}
    annotations = content["annotations"]
    findings.extend(
        "annotations of an image that is not listed (image_id)",
        (repr(a["image_id"]) for a in annotations if a["image_id"] not in images),
    )
    for key in ("image_id", "file_name"):
        counts = Counter(a[key] for a in annotations)
        findings.extend(
            f"annotations whose {key} another one has", (str(k) for k, n in counts.items() if n > 1)
        )
    annotated = {a["image_id"] for a in annotations}
    found.note(
        "images without an annotation, which are not used",
        (image["file_name"] for i, image in images.items() if i not in annotated),
    )
    segments = {a["image_id"]: len(a["segments_info"]) for a in annotations}
    check_numbers(findings, segments, images, need_masks=True)
    categories = found.categories
    broken = [
        f"{a['file_name']}: {s!r}"
        for a in annotations
        for s in a["segments_info"]
        if not isinstance(s, dict) or not isinstance(s.get("id"), int) or "category_id" not in s
    ]
    findings.extend("segments without a number as id or without category_id", broken)
    if broken:
        return
    findings.extend(
        "segments of a category that is not listed (category_id)",
        (
            f"{a['file_name']}: {s['category_id']}"
            for a in annotations
            for s in a["segments_info"]
            if s["category_id"] not in categories
        ),
    )
    sized = [
        a for a in annotations if "size_is_wrong" not in images.get(a["image_id"], "size_is_wrong")
    ]
    bad, other = [], []
    for annotation, ids in zip(sized, _read_all(sized, folder, title), strict=True):
        image = images[annotation["image_id"]]
        if isinstance(ids, UserError):
            bad.append(str(ids))
        elif ids != (image["width"], image["height"]):
            other.append(
                "{} is {} x {}, its image {} x {}".format(
                    annotation["file_name"], *ids, image["width"], image["height"]
                )
            )
    findings.extend(
        "PNGs that are missing, cannot be read, or hold segments that are not listed", bad
    )
    findings.extend("PNGs of another size than their image", other)


def _read_all(
    annotations: Sequence[dict[str, Any]], folder: Path, title: str
) -> list[tuple[int, int] | UserError]:
    """For each PNG its (width, height), or what is wrong with it."""

    def read(annotation: dict[str, Any]) -> tuple[int, int] | UserError:
        record = {
            "pan_seg_file_name": str(folder / annotation["file_name"]),
            "segments_info": annotation["segments_info"],
        }
        try:
            return read_segments(record).shape[::-1]
        except UserError as error:
            return error

    return read_all(read, annotations, f"{title} PNGs")
