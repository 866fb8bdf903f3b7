"""The training loader: every batch is a function of the seed and its number."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from comer_d2.d2.data.images import BadImage
from comer_d2.d2.data.loader import SampleStream, TrainLoader, build_train_loader
from comer_d2.d2.data.random_state import (
    get_random_state,
    preserved_random_state,
    set_random_state,
)
from tests.d2.runs import LIMIT, ROOT

SAMPLES = [{"id": i, "width": 10, "height": 20 if i % 3 == 0 else 5} for i in range(10)]


@pytest.fixture
def _workers_end_soon(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After an error PyTorch waits five seconds for every worker before it ends it."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()  # of the error's stack, which keeps them


def draw(sample: dict[str, Any]) -> tuple[int, float, float, float]:
    """A mapper that shows which sample it was given, and what each generator draws."""
    return sample["id"], random.random(), float(np.random.rand()), torch.rand(()).item()  # noqa: NPY002


def make_loader(**kwargs: Any) -> TrainLoader:
    return build_train_loader(
        SAMPLES, **{"mapper": draw, "total_batch_size": 4, "seed": 7, **kwargs}
    )


def take(batches: Any, count: int) -> list[Any]:
    return list(itertools.islice(batches, count))


def flat(batches: list[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(batches))


def test_every_epoch_has_every_sample_once() -> None:
    pairs = flat(take(SampleStream(6, 3, seed=1), 4))
    assert [position for position, _ in pairs] == list(range(12))
    assert sorted(i for _, i in pairs[:6]) == sorted(i for _, i in pairs[6:]) == list(range(6))


def test_processes_share_the_batch_that_one_would_have() -> None:
    alone = take(SampleStream(10, 4, seed=1), 6)
    shares = [take(SampleStream(10, 2, seed=1, rank=r, world_size=2), 6) for r in range(2)]
    assert [a + b for a, b in zip(*shares)] == alone


def test_landscape_and_portrait_do_not_mix() -> None:
    for batch in take(make_loader(), 12):
        assert len({sample_id % 3 == 0 for sample_id, *_ in batch}) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("grouping", [True, False])
def test_starting_in_the_middle_goes_on_as_without_a_stop(num_workers: int, grouping: bool) -> None:
    whole = take(make_loader(aspect_ratio_grouping=grouping), 8)
    resumed = make_loader(aspect_ratio_grouping=grouping, num_workers=num_workers, seed=99)
    resumed.load_state_dict(make_loader().state_dict())
    resumed.seek(5)
    assert take(resumed, 3) == whole[5:]


def test_the_same_sample_is_augmented_anew_in_the_next_epoch() -> None:
    batches = flat(take(make_loader(aspect_ratio_grouping=False), 5))
    draws = [rest for sample_id, *rest in batches if sample_id == 4]
    assert len(draws) == 2
    assert draws[0] != draws[1]


def test_loading_leaves_the_models_generators_alone() -> None:
    before = get_random_state()
    take(make_loader(), 3)
    after = get_random_state()
    assert before["python"] == after["python"]
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert torch.equal(before["torch"], after["torch"])


def test_random_states_come_back_exactly() -> None:
    state = get_random_state()
    first = draw({"id": 0})
    with preserved_random_state():
        draw({"id": 0})
    assert draw({"id": 0}) != first
    set_random_state(state)
    assert draw({"id": 0}) == first


def test_a_mapper_may_refuse_a_sample() -> None:
    loader = make_loader(mapper=lambda s: None if s["id"] < 8 else s["id"])
    assert set(flat(take(loader, 3))) <= {8, 9}


def test_an_empty_data_set_is_named() -> None:
    with pytest.raises(ValueError, match="no images"):
        build_train_loader([], mapper=draw, total_batch_size=2)


def spoilt(sample: dict[str, Any]) -> Any:
    """A mapper to which two of ten images are bad."""
    if sample["id"] in (2, 5):
        raise BadImage(f"{sample['id']}.jpg: the image cannot be read")
    return draw(sample)


@pytest.mark.usefixtures("_workers_end_soon")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_image_is_an_error_that_names_it(num_workers: int) -> None:
    with pytest.raises(BadImage, match=r"[25]\.jpg: the image cannot be read"):
        take(make_loader(mapper=spoilt, num_workers=num_workers), 20)


@pytest.mark.usefixtures("_workers_end_soon")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_skipped_and_listed_up_to_a_limit(
    num_workers: int, capfd: pytest.CaptureFixture
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger("comer_d2").addHandler(handler)
    options = {"mapper": spoilt, "num_workers": num_workers, "on_bad_image": "skip"}
    whole = take(make_loader(**options, max_bad_images=0.2), 12)
    assert {sample_id for sample_id, *_ in flat(whole)} == set(range(10)) - {2, 5}
    logging.getLogger("comer_d2").removeHandler(handler)
    listed = capfd.readouterr().err  # of workers too
    assert "2.jpg: the image cannot be read" in listed and "2 of at most 2" in listed
    assert listed.count("5.jpg") == 1
    resumed = make_loader(**options, max_bad_images=0.2)
    resumed.seek(7)
    assert take(resumed, 5) == whole[7:]
    with pytest.raises(BadImage, match="1 others were skipped, and no more may be"):
        take(make_loader(**options, max_bad_images=0.1), 12)


def test_a_limit_of_bad_images_is_a_share() -> None:
    with pytest.raises(ValueError, match="max_bad_images=7: a share of the images"):
        make_loader(on_bad_image="skip", max_bad_images=7)


# The grace is longer than anything takes here: a worker that waits for it hangs, and none goes by itself.
LOADS = """
import logging, os, signal, sys, time
import torch.utils.data
from comer_d2.d2.data import loader
from comer_d2.d2.data.loader import build_train_loader
loader.GRACE = 1e6
torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.2
def fails(sample):
    if sample["id"] == 5:
        raise ValueError("image 5")
    time.sleep(0.01)
    return os.getpid()
samples = [{"id": i, "width": 2, "height": 1} for i in range(10)]
batches = iter(build_train_loader(samples, mapper=fails, total_batch_size=1, num_workers=2, seed=1))
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_an_error_in_a_loading_process_ends_the_run_at_once() -> None:
    done = run(LOADS + "for batch in batches: pass")
    assert done.returncode == 1 and "image 5" in done.stderr


def test_loading_processes_outlive_a_signal_that_is_not_their_parents() -> None:
    code = (
        LOADS.replace("== 5", "== 50")
        + """
worker = next(batches)[0]
os.system(f"kill -TERM {worker}")
time.sleep(0.2)
assert worker in {next(batches)[0] for _ in range(20)}
print("still there", flush=True)
"""
    )
    done = run(code)
    assert "still there" in done.stdout, done.stderr
