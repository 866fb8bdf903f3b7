"""What is right and what is wrong about the objects found in an image."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

HIT, DOUBLE, WRONG_CLASS, BADLY_PLACED, BACKGROUND, IGNORED = (
    "hit", "found twice", "wrong class", "badly placed", "background", "ignored",
)  # fmt: skip
MISSED = "missed"
ERRORS = (MISSED, WRONG_CLASS, DOUBLE, BADLY_PLACED, BACKGROUND)
FOUND = 0.5  # IoU from which an object counts as found
TOUCHED = 0.1  # IoU below which a prediction has nothing to do with an object


@dataclass
class Outcome:
    """The verdict on one image.

    Args:
        kinds: of each prediction, one of the names above.
        partners: of each prediction the object that it is about, or -1.
        found: of each object, whether a prediction of its class found it.
    """

    kinds: list[str]
    partners: np.ndarray
    found: np.ndarray
    counts: dict[str, int] = field(default_factory=dict)


def judge(
    iou: np.ndarray, labels: Sequence[int], truth_labels: Sequence[int], crowds: Sequence[bool]
) -> Outcome:
    """Match the predictions of one image with its objects, best score first.

    A prediction finds the object of its class with the highest IoU among those that are still free,
    from an IoU of 0.5. Of the others, one on an object that was found already is a double, one on an
    object of another class has the wrong class, one with an IoU of 0.1 to 0.5 to an object of its class
    is badly placed, one on a crowd of its class is ignored, and the rest is background.

    Args:
        iou: (P, T), of predictions, best score first, and objects; of crowds the share of the
            prediction inside.
        labels: P classes.
        truth_labels: T classes.
        crowds: T, whether the object is a crowd.

    Returns:
        The verdict; crowds count as found.
    """
    labels, truth_labels = np.asarray(labels, int), np.asarray(truth_labels, int)
    crowds = np.asarray(crowds, bool)
    found = crowds.copy()
    kinds: list[str] = []
    partners = np.full(len(labels), -1)
    for row, label in enumerate(labels.tolist()):
        same, single = truth_labels == label, ~crowds
        free = np.where(same & single & ~found, iou[row], 0)
        if free.size and free.max() >= FOUND:
            partners[row] = free.argmax()
            found[partners[row]] = True
            kinds.append(HIT)
            continue
        candidates = (
            (IGNORED, same & crowds, FOUND),
            (DOUBLE, same & single & found, FOUND),
            (WRONG_CLASS, ~same & single, FOUND),
            (BADLY_PLACED, same & single, TOUCHED),
        )
        for kind, which, least in candidates:
            overlap = np.where(which, iou[row], 0)
            if overlap.size and overlap.max() >= least:
                partners[row] = overlap.argmax()
                kinds.append(kind)
                break
        else:
            kinds.append(BACKGROUND)
    counts = {kind: kinds.count(kind) for kind in ERRORS}
    counts[MISSED] = int((~found).sum())
    return Outcome(kinds, partners, found, counts)


def best_thresholds(
    scores: np.ndarray, hits: np.ndarray, labels: np.ndarray, objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F1 of every class over the threshold.

    Args:
        scores: (P,) of all predictions.
        hits: (P,) whether they found an object.
        labels: (P,) their classes.
        objects: (K,) number of objects of every class.

    Returns:
        (101,) thresholds from 0 to 1, (K, 101) F1, and (K,) the thresholds with the best F1, the
        lowest of equals; 0.5 for classes without a hit.
    """
    grid = np.linspace(0, 1, 101)
    f1 = np.zeros((len(objects), len(grid)))
    for label in range(len(objects)):
        mine = labels == label
        above = scores[mine, None] >= grid
        positive, true = above.sum(0), (above & hits[mine, None]).sum(0)
        f1[label] = 2 * true / np.maximum(positive + objects[label], 1)
    best = np.where(f1.max(1, initial=0) > 0, grid[f1.argmax(1)], 0.5)
    return grid, f1, best
