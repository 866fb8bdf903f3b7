"""One COCO file -> a part to train on and one to validate with."""

import hashlib
import re
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError

FOLDS = 20  # at least; the validation part is some of them
MOST_FOLDS = 200  # each costs a look at every group


def split_coco(
    content: dict[str, Any], images: Path, *, share: float, seed: int, group: str | None = None
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Split images so that both parts have every class in like shares, as far as that can be.

    Images of one group stay together: those whose `file_name` gives the same text for `group`, and
    copies of the same file. Balanced by each image's rarest class (scikit-learn's StratifiedGroupKFold).

    Args:
        content: COCO's json.
        images: the folder of the images.
        share: of the images that go to validation, 0 to 1.
        seed: the same one gives the same parts.
        group: a regular expression; its first group, or else the whole match, names an image's group.

    Returns:
        The training json, the validation json, and what is to be said.

    Raises:
        UserError: too few groups, or an expression that fits no name.
    """
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise UserError(
            "splitting needs scikit-learn: pip install 'comer_d2[quickstart]'"
        ) from error
    if not 0 < share < 1:
        raise UserError(f"--val {share:g}: a share of the images between 0 and 1")
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: from 0 to {2**32 - 1}")
    pictures = content["images"]
    groups = _groups(pictures, images, group)
    total = Counter(a["category_id"] for a in content["annotations"])
    of_image = defaultdict(list)
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation["category_id"])
    rarest = [min(of_image[p["id"]], key=total.__getitem__, default=-1) for p in pictures]
    smaller = min(share, 1 - share)
    folds = min(max(FOLDS, round(2 / smaller)), MOST_FOLDS, len(set(groups)))
    if folds < 2:
        raise UserError(f"{len(set(groups))} groups of images are too few to split {share:g} off")
    kfold = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    labels = _merged(rarest, folds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes of fewer images than folds: told below
        parts = [held.tolist() for _, held in kfold.split(np.zeros(len(pictures)), labels, groups)]
    target = share * len(pictures)
    held: list[int] = []
    for part in parts:  # those that bring the number of images nearer to what is wished
        more = len(held) + len(part)
        nearer = not held or abs(more - target) < abs(len(held) - target)
        if nearer and more < len(pictures):
            held += part
    held_ids = {pictures[i]["id"] for i in held}
    train, val = (
        {
            **content,
            "images": [p for p in pictures if (p["id"] in held_ids) == inside],
            "annotations": [
                a for a in content["annotations"] if (a["image_id"] in held_ids) == inside
            ],
        }
        for inside in (False, True)
    )
    return train, val, _account(content, train, val)


def _merged(labels: list[int], folds: int) -> list[int]:
    """Labels of which one has a member in every fold; the most frequent ones become one for it."""
    while True:
        (first, most), *others = Counter(labels).most_common(2)
        if most >= folds or not others:
            return labels
        labels = [first if label == others[0][0] else label for label in labels]


def _groups(pictures: list[dict[str, Any]], images: Path, group: str | None) -> list[int]:
    """A number for each image; equal numbers stay together."""
    try:
        expression = None if group is None else re.compile(group)
    except re.error as error:
        raise UserError(f"--group {group!r} is no regular expression: {error}") from error
    numbers: dict[Any, int] = {}
    first: dict[str, int] = {}
    found = []
    for index, picture in enumerate(pictures):
        name = picture["file_name"]
        key: Any = index
        if expression is not None:
            match = expression.search(name)
            key = match and match[1 if expression.groups else 0]
            if key is None:
                raise UserError(f"--group {group!r} does not fit {name!r}")
        number = numbers.setdefault(key, index)
        try:
            digest = hashlib.sha256((images / name).read_bytes()).hexdigest()
        except OSError as error:
            raise UserError(
                f"{images / name}: {error.strerror}: --images names the folder"
            ) from error
        other = first.setdefault(digest, number)
        if other != number:  # a copy joins two groups
            found = [other if n == number else n for n in found]
            numbers = {k: other if n == number else n for k, n in numbers.items()}
            first = {d: other if n == number else n for d, n in first.items()}
            number = other
        found.append(number)
    return found


def _account(content: dict[str, Any], train: dict[str, Any], val: dict[str, Any]) -> list[str]:
    lines = [f"{len(train['images'])} images to train on, {len(val['images'])} to validate with"]
    counts = [Counter(a["category_id"] for a in part["annotations"]) for part in (train, val)]
    for category in content["categories"]:
        first, second = (count[category["id"]] for count in counts)
        missing = "" if first and second else "   <- one part has none"
        lines.append(f"  {category['name']}: {first} and {second} objects{missing}")
    return lines
