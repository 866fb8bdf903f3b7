"""Label maps in folders, named as their images.

dataset = dict(format="semantic", name="custom", train_images="...", train_masks="...",
               val_images="...", val_masks="...", class_names=["road", ...])
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from ..errors import UserError
from ..evaluation.semantic import SemanticEvaluator
from .findings import SHOWN, Findings, summarise
from .images import IMAGE_ENDINGS, check_images, read_all, turned_by_exif
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
)
from .semantic_labels import (
    IGNORE_LABEL,
    UNKNOWN,
    SemanticLabels,
    class_table,
    describe_unknown,
    read_label_map,
    read_palette,
)

MOSTLY = 0.95  # of all pixels ignored: nothing is left to learn


@dataclass
class _Split:
    """What was found in one split's folders."""

    findings: Findings = field(default_factory=Findings)
    notes: list[str] = field(default_factory=list)
    pairs: list[tuple[Path, Path]] = field(default_factory=list)
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # of every label


class SemanticData(DatasetKind):
    """Label maps: for every image one of its name in another folder."""

    format = "semantic"

    @staticmethod
    def check(
        cfg: DictConfig, *, decode: bool = False, shown: int | None = SHOWN
    ) -> CheckedDataset:
        dataset = cfg.dataset
        class_names = _class_names(dataset)
        ignored = dataset.get("ignore_label", IGNORE_LABEL)
        if isinstance(ignored, bool) or not isinstance(ignored, int) or not 0 <= ignored <= 255:
            raise DatasetError(f"dataset.ignore_label={ignored!r}: a label of 8 bits, 0 to 255")
        table = class_table(len(class_names), [ignored])
        splits = {split: _check_split(dataset, split, table, decode) for split in SPLITS}
        for split, found in splits.items():
            _check_pixels(found, split, table, class_names)
        check_problems(dataset, {split: found.findings for split, found in splits.items()}, shown)
        return CheckedDataset(
            values={
                "num_classes": len(class_names),
                "class_names": class_names,
                "ignore_label": ignored,
            },
            splits={
                split: {
                    "pairs": [(str(image), str(mask)) for image, mask in found.pairs],
                    "images": str(dataset[f"{split}_images"]),
                    "masks": str(dataset[f"{split}_masks"]),
                }
                for split, found in splits.items()
            },
            notes=[f"{split}: {note}" for split, found in splits.items() for note in found.notes]
            + shared_images(*([image for image, _ in found.pairs] for found in splits.values())),
        )

    @staticmethod
    def register(name: str, split: dict[str, Any], values: dict[str, Any]) -> None:
        records = [
            {"file_name": image, "sem_seg_file_name": mask, "image_id": number}
            for number, (image, mask) in enumerate(split["pairs"], 1)
        ]
        register(
            name,
            lambda: records,
            stuff_classes=values["class_names"],
            ignore_label=values["ignore_label"],
            image_root=split["images"],
            sem_seg_root=split["masks"],
            evaluator_type="sem_seg",
        )

    @property
    def classes(self) -> list[str]:
        return list(self.metadata.stuff_classes)

    def evaluators(self, output_dir: str | None = None) -> list[SemanticEvaluator]:
        return [SemanticEvaluator(self.name, output_dir=output_dir)]

    def truth(self, record: dict[str, Any]) -> dict[str, Any]:
        return {"sem_seg": SemanticLabels(self.name)(record)}

    @staticmethod
    def write_repaired(
        cfg: DictConfig, split: str, folder: Path
    ) -> tuple[list[str], dict[str, str]]:
        dataset = cfg.dataset
        table = class_table(len(_class_names(dataset)), [dataset.get("ignore_label", IGNORE_LABEL)])
        found = _check_split(dataset, split, table, decode=True)
        sources = {kind: Path(dataset[f"{split}_{kind}"]) for kind in ("images", "masks")}
        for pair in found.pairs:
            for path, kind in zip(pair, sources, strict=True):
                target = folder / split / kind / path.relative_to(sources[kind])
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        notes = [
            *(f"{split}: left out: {line}" for line in found.findings.lines(None)),
            *(f"{split}: {note}" for note in found.notes),
            f"{split}: {len(found.pairs)} images with label maps",
        ]
        return notes, {f"{split}_{kind}": f"{split}/{kind}" for kind in sources}


def _class_names(dataset: DictConfig) -> list[str]:
    names = dataset.get("class_names")
    if isinstance(names, str):  # a file with one name on each line
        if not Path(names).is_file():
            raise DatasetError(
                f"dataset.class_names={names}: no such file; give a file with one class on each "
                "line, or a list"
            )
        lines = Path(names).read_text("utf-8-sig").splitlines()
        names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DatasetError(
            f"dataset {dataset.name!r}: label maps hold numbers only: give dataset.class_names, "
            "the names of labels 0, 1, ... (a list, or a file with one on each line)"
        )
    names = list(names)
    count_classes(dataset, len(names), "dataset.class_names")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DatasetError(
            f"dataset.class_names: {', '.join(map(repr, twice))} comes twice (metrics and "
            "predictions are told by name): rename one"
        )
    return names


def _check_split(dataset: DictConfig, split: str, table: np.ndarray, decode: bool) -> _Split:
    """Every image with the mask of its name; both can be read and belong to each other."""
    found = _Split()
    folders = [_folder(dataset, f"{split}_{kind}", found.findings) for kind in ("images", "masks")]
    if None in folders:
        return found
    pairs = _pair_files(*folders, found.findings)
    title = f"{dataset.name}_{split}"
    sizes = check_images([image for image, _ in pairs], decode=decode, title=title)
    maps = _count_labels([mask for _, mask in pairs], title)
    bad, other, turned, unknown = [], [], [], []
    colors: dict[int, set[tuple[int, ...]]] = {}  # label -> those of the files' palettes
    for (image, mask), size, counted in zip(pairs, sizes, maps, strict=True):
        wrong = [str(file) for file in (size, counted) if isinstance(file, UserError)]
        if wrong:
            bad.extend(wrong)
            continue
        mask_size, pixels, palette = counted
        for label in np.flatnonzero(pixels[: len(palette)]).tolist():
            colors.setdefault(label, set()).add(palette[label])
        labels = np.flatnonzero((pixels > 0) & (table == UNKNOWN)).tolist()
        if labels:
            unknown.append(f"{mask}: {describe_unknown(labels, table)}")
        elif size == mask_size:
            found.pairs.append((image, mask))
            found.pixels += pixels
        else:
            text = "{} is {} x {}, its image {} x {}".format(mask, *mask_size, *size)
            (turned if size == mask_size[::-1] and turned_by_exif(image) else other).append(text)
    odd = [f"{i}: {sorted(c)}" for i, c in sorted(colors.items()) if len(c) > 1]
    if odd:  # as after a conversion that gave each file a palette of its own
        what = "labels are not of one colour in all masks' palettes (it is the numbers that count, not the colours)"
        found.notes.append(summarise(what, odd))
    if bad and len(bad) <= share_of_bad_images(dataset) * len(pairs):
        found.notes.append(summarise("files left out (dataset.on_bad_image=skip)", bad))
    else:
        found.findings.extend(
            "files that cannot be read (dataset.on_bad_image=skip leaves out a few)", bad
        )
    found.findings.extend("masks of another size than their image", other)
    found.findings.extend(
        "masks that lie on their side while their photo's EXIF data turn it upright (turn the mask, "
        "or remove the photo's EXIF orientation)",
        turned,
    )
    found.findings.extend(
        "masks with labels that are no class (label 0 is the first class; if the first is 1 and 0 "
        "stands for nothing, set dataset.ignore_label=0)",
        unknown,
    )
    return found


def _folder(dataset: DictConfig, key: str, findings: Findings) -> Path | None:
    value = dataset.get(key)
    if value and Path(value).is_dir():
        return Path(value)
    hint = f" ({dataset.hint})" if dataset.get("hint") else ""
    findings.add(
        f"dataset.{key}={value}: no such folder{hint}"
        if value
        else f"dataset.{key} is not set{hint}"
    )
    return None


def _pair_files(images: Path, masks: Path, findings: Findings) -> list[tuple[Path, Path]]:
    of_images, of_masks = _files(images, IMAGE_ENDINGS), _files(masks, (".png",))
    for what, by_name in (("images", of_images), ("masks", of_masks)):
        findings.extend(
            f"{what} of the same name (a mask belongs to one image)",
            (f"{paths[0]} and {paths[1].name}" for paths in by_name.values() if len(paths) > 1),
        )
    if not of_images:
        findings.add(f"no images in {images}")
    jpegs = (
        ""
        if of_masks or not _files(masks, (".jpg", ".jpeg"))
        else "; there are JPEGs, which change labels"
    )
    for what, names in (
        (f"images without a mask <name>.png in {masks}{jpegs}", set(of_images) - set(of_masks)),
        (f"masks without an image in {images}", set(of_masks) - set(of_images)),
    ):
        findings.extend(what, sorted(names))
    both = sorted(set(of_images) & set(of_masks))
    findings.extend(
        "images that are their own mask (the two folders have to be different ones)",
        (str(of_images[name][0]) for name in both if of_images[name][0] == of_masks[name][0]),
    )
    return [(of_images[name][0], of_masks[name][0]) for name in both]


def _files(folder: Path, endings: tuple[str, ...]) -> dict[str, list[Path]]:
    """Path below the folder without ending -> files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in endings and not path.name.startswith("."):
            found.setdefault(str(path.relative_to(folder).with_suffix("")), []).append(path)
    return found


def _count_labels(
    paths: Sequence[Path], title: str
) -> list[tuple[tuple[int, int], np.ndarray, list[tuple[int, ...]]] | UserError]:
    """For each label map its (width, height), the pixels of every label and its palette, or the error."""

    def count(
        path: Path,
    ) -> tuple[tuple[int, int], np.ndarray, list[tuple[int, ...]]] | UserError:
        try:
            labels = read_label_map(path)
        except UserError as error:
            return error
        return labels.shape[::-1], np.bincount(labels.ravel(), minlength=256), read_palette(path)

    return read_all(count, paths, f"{title} masks")


def _check_pixels(found: _Split, split: str, table: np.ndarray, class_names: list[str]) -> None:
    """Labels that leave nothing to learn or to measure, as foreground masks of 0 and 255 do.

    A class that is only absent may be rare: that is a note.
    """
    total = int(found.pixels.sum())
    if found.findings or not total:
        return
    ignored = int(found.pixels[table == IGNORE_LABEL].sum()) / total
    known = (table != IGNORE_LABEL) & (table != UNKNOWN)
    occurring = {int(table[label]) for label in np.flatnonzero(known & (found.pixels > 0))}
    labels = np.flatnonzero(found.pixels).tolist()
    # A few validation images may be of one class, but not where the rest of them is ignored.
    alone = len(occurring) < 2 and (split == "train" or ignored > 0)
    if ignored >= MOSTLY or alone:
        hints = []
        if labels == [0, 255]:
            hints.append("; masks of 0 and 255 have to become 0 and 1")
        if len(class_names) == 1:
            hints.append(
                "; one class alone is every pixel: dataset.class_names needs the rest, too"
            )
        found.findings.add(
            f"nothing to {'learn' if split == 'train' else 'measure'}: of all pixels {ignored:.1%} "
            f"are ignored, and {len(occurring)} of {len(class_names)} classes occur. The labels in "
            f"the masks are {', '.join(map(str, labels))}, where {_text(table)}{''.join(hints)}"
        )
        return
    absent = [repr(name) for i, name in enumerate(class_names) if i not in occurring]
    if absent and split == "train":
        found.notes.append(
            summarise(
                f"classes without a pixel, which cannot be learnt ({ignored:.1%} of all pixels are "
                "ignored)",
                absent,
            )
        )


def _text(table: np.ndarray) -> str:
    ignored = np.flatnonzero(table == IGNORE_LABEL).tolist()
    return f"{', '.join(map(str, ignored))} is ignored (dataset.ignore_label)"
