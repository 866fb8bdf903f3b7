"""What is right and wrong in an image, by hand; thresholds against a search."""

import numpy as np
from numpy.testing import assert_allclose

from comer_d2.d2.report.matching import best_thresholds, judge


def test_every_kind_of_verdict() -> None:
    # Objects: a cat, a dog, a dog that nobody finds, a crowd of cats.
    truth, crowds = [0, 1, 1, 0], [False, False, False, True]
    iou = np.array(
        [
            [0.9, 0.0, 0.0, 0.0],  # cat on the cat
            [0.8, 0.0, 0.0, 0.0],  # cat on it again
            [0.0, 0.7, 0.0, 0.0],  # cat on the dog
            [0.0, 0.6, 0.0, 0.0],  # dog on the dog
            [0.0, 0.0, 0.3, 0.0],  # dog beside a dog
            [0.0, 0.0, 0.0, 0.9],  # cat in the crowd
            [0.05, 0.0, 0.0, 0.0],  # cat where nothing is
            [0.0, 0.0, 0.0, 0.9],  # dog in the crowd of cats
        ]
    )
    outcome = judge(iou, [0, 0, 0, 1, 1, 0, 0, 1], truth, crowds)
    assert outcome.kinds == [
        "hit", "found twice", "wrong class", "hit", "badly placed", "ignored", "background", "background",
    ]  # fmt: skip
    assert outcome.found.tolist() == [True, True, False, True]
    assert outcome.counts == {
        "missed": 1, "wrong class": 1, "found twice": 1, "badly placed": 1, "background": 2,
    }  # fmt: skip
    assert outcome.partners[:4].tolist() == [0, 0, 1, 1]


def test_nothing_predicted_and_nothing_there() -> None:
    assert judge(np.zeros((0, 2)), [], [0, 1], [False, False]).counts["missed"] == 2
    assert judge(np.zeros((1, 0)), [0], [], []).kinds == ["background"]


def test_thresholds() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random(60), rng.integers(0, 2, 60)
    hits = rng.random(60) < scores
    objects = np.array([40, 35, 5])
    grid, f1, best = best_thresholds(scores, hits, labels, objects)
    for label in (0, 1):
        mine = labels == label
        slow = []
        for threshold in grid:
            above = mine & (scores >= threshold)
            tp, fp = (above & hits).sum(), (above & ~hits).sum()
            fn = objects[label] - tp
            slow.append(2 * tp / (2 * tp + fp + fn))
        assert_allclose(f1[label], slow)
        assert f1[label, np.flatnonzero(grid == best[label])[0]] == max(slow)
    assert best[2] == 0.5
