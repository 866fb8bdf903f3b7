"""A training loader whose every batch is a function of the seed and the batch's number.

Detectron2's loader starts its shuffle again when a run is resumed, and its augmentations depend on
how many workers there are. Here a sample is seeded by its position in the endless stream of
samples, so that a resumed run sees what the uninterrupted one would have seen, with any number of
workers. Without aspect-ratio grouping the images of one global batch do not depend on the number of
processes either.

A config takes Detectron2's ``dataloader.train`` and swaps the call; the arguments are the same::

    from comer_d2.d2.data.loader import build_train_loader

    dataloader.train._target_ = build_train_loader
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from .images import BadImage
from .random_state import preserved_random_state, seeded

logger = logging.getLogger(__name__)

Sample = dict[str, Any]

GRACE = 30.0  # seconds after a signal, by which a worker that nobody shut down goes away by itself


class SampleStream:
    """The batches of one process, as numbers: an endless shuffle, cut among the processes.

    Args:
        size: how many samples the data set has.
        batch_size: samples per batch of one process.
        seed: of the shuffle; the same in all processes.
        portrait: per sample, whether it is taller than wide; when given, only samples of one kind
            come together in a batch, so that less padding is needed.
        rank: this process's number.
        world_size: how many processes there are.

    Iterating starts after `start` batches of this process and yields lists of (position in the
    stream, index of the sample).
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        *,
        portrait: list[bool] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.portrait = portrait
        self.rank = rank
        self.world_size = world_size
        self.start = 0

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        buckets: tuple[list, list] = ([], [])
        batches = 0  # of all processes; process r takes every world_size-th from the r-th on
        for position, index in enumerate(self._indices()):
            bucket = buckets[self.portrait[index] if self.portrait else 0]
            bucket.append((position, index))
            if len(bucket) < self.batch_size:
                continue
            round_, turn = divmod(batches, self.world_size)
            batches += 1
            if turn == self.rank and round_ >= self.start:
                yield list(bucket)
            bucket.clear()

    def _indices(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            yield from torch.randperm(self.size, generator=generator).tolist()


class BadImages:
    """Counts the images that were skipped, in all loading processes together.

    Args:
        size: how many images there are.
        allowed: how many of them may be skipped; 0: none, the first is an error.
    """

    def __init__(self, size: int, allowed: int) -> None:
        self.allowed = allowed
        self._seen = torch.zeros(size, dtype=torch.bool).share_memory_()

    def skip(self, index: int, error: BadImage) -> None:
        """Say once that an image is skipped.

        Raises:
            BadImage: too many were; the message names this one.
        """
        if self._seen[index]:
            return
        self._seen[index] = True
        count = int(self._seen.sum())
        if count > self.allowed:
            limit = f"; {count - 1} others were skipped, and no more may be" if count > 1 else ""
            raise BadImage(f"{error}{limit} (see dataset.on_bad_image)") from error
        logger.warning("skipped, %d of at most %d: %s", count, self.allowed, error)


class SeededDataset(Dataset):
    """Maps the sample of a (position, index) pair with generators seeded by the position."""

    def __init__(
        self,
        dataset: Dataset,
        mapper: Callable[[Sample], Sample | None],
        seed: int,
        bad_images: BadImages,
    ) -> None:
        self.dataset = dataset
        self.mapper = mapper
        self.seed = seed
        self.bad_images = bad_images

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        position, index = key
        with seeded(self.seed, position):
            # As in Detectron2, a mapper may refuse a sample by returning None.
            for _ in range(100):
                try:
                    sample = self.mapper(self.dataset[index])
                except BadImage as error:
                    self.bad_images.skip(index, error)
                    sample = None
                if sample is not None:
                    return sample
                index = int(torch.randint(len(self), ()))
        raise ValueError(
            "the mapper returned None for 100 samples in a row; is the data set empty?"
        )


class TrainLoader:
    """An endless iterable of batches that can start at any of them.

    `state_dict` and `seek` are what a checkpoint needs: the seed, and how many batches were used.
    """

    def __init__(
        self, dataset: SeededDataset, stream: SampleStream, num_workers: int, **kwargs: Any
    ) -> None:
        self._dataset = dataset
        self._stream = stream
        self._loader = DataLoader(
            dataset,
            batch_sampler=stream,
            num_workers=num_workers,
            worker_init_fn=_outlive_interrupts,
            **kwargs,
        )

    @property
    def num_images(self) -> int:
        """How many images there are, each of them once an epoch."""
        return len(self._dataset)

    def seek(self, batches: int) -> None:
        """The next iteration starts after this many batches (of each process)."""
        self._stream.start = batches

    def examples(self, count: int) -> Iterator[Sample]:
        """The first samples of the stream, at most `count`, mapped in this process."""
        for batch in self._stream:
            for key in batch:
                if count == 0:
                    return
                count -= 1
                yield self._dataset[key]

    def act_as(self, rank: int, world_size: int) -> None:
        """Give, in a single process, the batches that one of several processes gets."""
        self._stream.rank, self._stream.world_size = rank, world_size
        self._stream.batch_size //= world_size

    def state_dict(self) -> dict[str, int]:
        """The seed; the position is what the caller counted."""
        return {"seed": self._stream.seed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over the seed of a run that is continued."""
        self._stream.seed = self._dataset.seed = int(state["seed"])

    def __iter__(self) -> Iterator[list[Sample]]:
        with preserved_random_state():  # DataLoader draws a seed for its workers, unused here
            return iter(self._loader)


def build_train_loader(
    dataset: list[Sample] | Dataset,
    *,
    mapper: Callable[[Sample], Sample | None],
    total_batch_size: int,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    seed: int | None = None,
    on_bad_image: str = "error",
    max_bad_images: float = 0.1,
    collate_fn: Callable[[list[Sample]], Any] | None = None,
    **kwargs: Any,
) -> TrainLoader:
    """Detectron2's `build_detection_train_loader`, repeatable and resumable.

    Args:
        dataset: Detectron2's dataset dicts, or a map-style data set of such.
        mapper: dataset dict to model input; it may use Python's, NumPy's or PyTorch's generator.
        total_batch_size: images per batch in all processes together.
        aspect_ratio_grouping: put landscape and portrait images into batches of their own; reads
            "width" and "height" of the dataset dicts.
        num_workers: loading processes per training process.
        seed: of shuffling and augmentation; by default drawn once for all processes, and thereby
            a function of `train.seed` where that is set.
        on_bad_image: what to do with an image that cannot be read: "error" stops, naming the file;
            "skip" takes another image, drawn as the augmentations are, and says so.
        max_bad_images: the share of all images that may be skipped.
        collate_fn: list of mapped samples to a batch; by default the list itself.
        **kwargs: other arguments of PyTorch's DataLoader.

    Returns:
        An endless iterable of batches.

    Raises:
        ValueError: an empty data set, a batch size that the processes cannot share evenly, another
            `on_bad_image`, or no share.
    """
    world_size = comm.get_world_size()
    if len(dataset) == 0:
        raise ValueError("the training data set has no images (with annotations)")
    if total_batch_size < 1 or total_batch_size % world_size:
        raise ValueError(
            f"dataloader.train.total_batch_size={total_batch_size} cannot be shared evenly by "
            f"{world_size} processes"
        )
    if on_bad_image not in ("error", "skip"):
        raise ValueError(f"on_bad_image={on_bad_image!r}: use error or skip")
    if not 0 <= max_bad_images < 1:
        raise ValueError(f"max_bad_images={max_bad_images!r}: a share of the images, 0 to 1")
    allowed = int(max_bad_images * len(dataset)) if on_bad_image == "skip" else 0
    if seed is None:
        seed = comm.shared_random_seed()
    portrait = None
    if aspect_ratio_grouping:
        portrait = [bool(sample["height"] > sample["width"]) for sample in dataset]
    if isinstance(dataset, list):
        dataset = DatasetFromList(dataset, copy=False)  # one shared buffer for all workers
    stream = SampleStream(
        len(dataset),
        total_batch_size // world_size,
        seed,
        portrait=portrait,
        rank=comm.get_rank(),
        world_size=world_size,
    )
    collate_fn = trivial_batch_collator if collate_fn is None else collate_fn
    return TrainLoader(
        SeededDataset(dataset, mapper, seed, BadImages(len(dataset), allowed)),
        stream,
        num_workers,
        collate_fn=collate_fn,
        **kwargs,
    )


def _outlive_interrupts(worker_id: int) -> None:
    """Let loading processes outlive the signal that tells the training process to finish a step.

    Ctrl-C in a terminal and a batch system's SIGTERM reach every process of a job. A worker that
    died of it would break the training process in the middle of a step. The training process's own
    SIGTERM, with which it ends its workers after an error, is obeyed at once.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # for the thread that waits for it
    threading.Thread(target=_wait_for_the_end, args=(os.getppid(),), daemon=True).start()


def _wait_for_the_end(parent: int) -> None:
    sender = signal.sigwaitinfo({signal.SIGTERM}).si_pid
    while sender != parent:
        received = signal.sigtimedwait({signal.SIGTERM}, GRACE)
        sender = received.si_pid if received else parent
    os._exit(0)
