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
from .coco_json import (
    CocoFile,
    check_categories,
    check_fields,
    check_files,
    check_numbers,
    parse,
    read_coco,
)
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
    shared_images,
    write_for_this_process,
)
from .mappers import PanopticMapper
from .panoptic_json import load_panoptic
from .panoptic_png import VOID
from .semantic_labels import (
    IGNORE_LABEL,
    SemanticLabels,
    read_present_segments,
    read_segments,
)


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
        problems = {_key(dataset, s): file.findings for s, file in files.items()}
        check_problems(dataset, problems, shown)
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
        given = {split: dataset.get(f"{split}_instances") for split in SPLITS}
        instances = {s: _read_instances(dataset, s, files[s]) for s, path in given.items() if path}
        problems = {_key(dataset, s, "instances"): f.findings for s, f in instances.items()}
        check_problems(dataset, problems, shown)
        return CheckedDataset(
            values={
                "num_classes": len(names),
                "num_things": num_things,
                "class_names": names,
                "stuff_classes": list(range(num_things, len(names))),
            },
            splits={
                split: {
                    "json_file": _path(file, dataset, split, "json"),
                    "images": str(dataset[f"{split}_images"]),
                    "masks": str(dataset[f"{split}_masks"]),
                    "instances": _path(instances[split], dataset, split, "instances")
                    if split in instances
                    else None,
                    "category_ids": [i for i, _, _ in ordered],
                }
                for split, file in files.items()
            },
            notes=[
                f"{_key(dataset, split, part)}: {note}"
                for part, found in (("json", files), ("instances", instances))
                for split, file in found.items()
                for note in file.notes
            ]
            + shared_images(*(file.paths(dataset[f"{s}_images"]) for s, file in files.items())),
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
            **({"json_file": instances} if instances else {}),
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


def _key(dataset: DictConfig, split: str, part: str = "json") -> str:
    path = dataset.get(f"{split}_{part}")
    return f"dataset.{split}_{part}={path}" if path else f"dataset.{split}_{part}"


def _path(file: CocoFile, dataset: DictConfig, split: str, part: str) -> str:
    """Where a file can be read as it was completed."""
    if file.changed:
        return write_for_this_process(file.content, f"{dataset.name}_{split}_{part}")
    return str(dataset[f"{split}_{part}"])


def _categories(file: CocoFile) -> list[tuple[int, str, bool]]:
    """(id, name, is a thing) in the file's order."""
    return sorted((c["id"], c["name"], bool(c["isthing"])) for c in file.content["categories"])


def _read_instances(dataset: DictConfig, split: str, segments: CocoFile) -> CocoFile:
    """A COCO instances file of exactly the images and things of a panoptic one.

    COCO's evaluation goes by ids, and counts the objects of every image that the file lists.
    """
    found = read_coco(
        dataset[f"{split}_instances"],
        dataset[f"{split}_images"],
        need_masks=True,
        max_bad_images=share_of_bad_images(dataset),
    )
    if found.findings:
        return found
    annotated = {a["image_id"] for a in segments.content["annotations"]}
    images = {(i["id"], i["file_name"]) for i in segments.content["images"] if i["id"] in annotated}
    things = {(i, name) for i, name, is_thing in _categories(segments) if is_thing}
    for what, own, others in (
        (
            "images (id, file_name)",
            {(i["id"], i["file_name"]) for i in found.content["images"]},
            images,
        ),
        ("categories (id, name)", set(found.categories.items()), things),
    ):
        where = f"dataset.{split}_json{' (things)' if others is things else ''}"
        found.findings.extend(f"{what} that {where} lacks", map(str, sorted(own - others, key=str)))
        found.findings.extend(
            f"{what} of {where} that are missing", map(str, sorted(others - own, key=str))
        )
    return found


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
    numbers = {a["image_id"]: len(a["segments_info"]) for a in annotations}
    check_numbers(findings, numbers, images, need_masks=True)
    findings.extend(
        "categories whose isthing is neither 0 nor 1",
        (
            f"{c['name']!r}: {c['isthing']}"
            for c in content["categories"]
            if c["isthing"] not in (0, 1)
        ),
    )
    segments = [(a["file_name"], s) for a in annotations for s in a["segments_info"]]
    broken = [f"{name}: {segment!r}" for name, segment in segments if not _is_segment(segment)]
    findings.extend(
        "segments that are no object with an id above 0 (0 stands for no segment), a category_id and perhaps an "
        "iscrowd of 0 or 1",
        broken,
    )
    if broken:
        return
    check_categories(found, {s["category_id"] for _, s in segments if not s.get("iscrowd")})
    categories = found.categories
    findings.extend(
        "segments of a category that is not listed (category_id)",
        (
            f"{name}: {s['category_id']}"
            for name, s in segments
            if s["category_id"] not in categories
        ),
    )
    counts = Counter((name, segment["id"]) for name, segment in segments)
    findings.extend(
        "segments whose id another one of the same PNG has",
        (f"{name}: {i}" for (name, i), count in counts.items() if count > 1),
    )
    _check_pngs(found, folder, images, title)


def _is_segment(segment: Any) -> bool:
    if not isinstance(segment, dict) or segment.get("iscrowd") not in (None, 0, 1):
        return False
    segment_id, category_id = segment.get("id"), segment.get("category_id")
    return isinstance(segment_id, int) and isinstance(category_id, int) and segment_id > VOID


def _check_pngs(found: CocoFile, folder: Path, images: dict[Any, dict], title: str) -> None:
    """PNGs and what they hold; nothing but void and crowds is nothing to learn, and nothing to measure."""
    sized = [
        a
        for a in found.content["annotations"]
        if "size_is_wrong" not in images.get(a["image_id"], "size_is_wrong")
    ]
    bad, other, absent, objects = [], [], [], 0
    for annotation, read in zip(sized, _read_all(sized, folder, title), strict=True):
        image, name = images[annotation["image_id"]], annotation["file_name"]
        if isinstance(read, UserError):
            bad.append(str(read))
            continue
        size, present = read
        if size != (image["width"], image["height"]):
            width, height = size
            other.append(
                f"{name} is {width} x {height}, its image {image['width']} x {image['height']}"
            )
        for segment in annotation["segments_info"]:
            if segment["id"] not in present:
                absent.append(f"{name}: {segment['id']}")
            elif not segment.get("iscrowd"):
                objects += 1
    found.findings.extend(
        "PNGs that are missing, cannot be read, or hold segments that are not listed", bad
    )
    found.findings.extend("PNGs of another size than their image", other)
    if not objects and not found.findings:
        found.findings.add(
            "no segment but crowds (iscrowd=1) has a pixel in any PNG, and the rest is void: nothing trains or counts"
        )
    found.note("segments without a pixel in their PNG, which are not used", absent)


def _read_all(
    annotations: Sequence[dict[str, Any]], folder: Path, title: str
) -> list[tuple[tuple[int, int], set[int]] | UserError]:
    """For each PNG its (width, height) and the ids that have a pixel, or what is wrong with it."""

    def read(annotation: dict[str, Any]) -> tuple[tuple[int, int], set[int]] | UserError:
        record = {
            "pan_seg_file_name": str(folder / annotation["file_name"]),
            "segments_info": annotation["segments_info"],
        }
        try:
            ids, present = read_present_segments(record)
        except UserError as error:
            return error
        return ids.shape[::-1], present

    return read_all(read, annotations, f"{title} PNGs")
