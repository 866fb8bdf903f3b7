"""Run a model over the config's test data and print Detectron2's tables."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch.distributed as dist
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import has_event_storage
from omegaconf import DictConfig
from torch import nn

from ..visualization.predictions import PredictionPictures
from .checkpoint import write_json
from .checks import build, dataset_names
from .interrupt import InterruptFlag
from .loggers import SHOW_PICTURES

logger = logging.getLogger(__name__)


INFERENCE = "inference"  # where evaluators write predictions, in train.output_dir


class EvaluationStopped(Exception):
    """An evaluation was given up for a signal."""


def evaluate(
    cfg: DictConfig,
    model: nn.Module,
    loader: Iterable[list[Any]],
    iteration: int | None = None,
    interrupt: InterruptFlag | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate a model; all processes share the images.

    Args:
        cfg: the config; ``dataloader.evaluator`` is built from it.
        model: the bare model, on its device; it is put into eval mode and back.
        loader: of ``dataloader.test``.
        iteration: the last finished one, which evaluation.json names; None: unknown.
        interrupt: gives the evaluation up when set. Several processes do not look at it: they
            would have to agree on an image to stop at.

    Returns:
        In the main process, task -> metric -> value (percent for AP); elsewhere an empty dict. The
        main process also writes it to ``evaluation.json`` in ``train.output_dir``, and evaluators write
        the predictions to ``inference/`` there, in COCO's formats.

    Raises:
        EvaluationStopped: see `interrupt`.
    """

    def stop_if_asked() -> None:
        if interrupt and interrupt.signum and comm.get_world_size() == 1:
            raise EvaluationStopped

    evaluators = build(cfg, "dataloader.evaluator")
    evaluators = list(evaluators) if isinstance(evaluators, Sequence) else [evaluators]
    for evaluator in evaluators:
        if getattr(evaluator, "_output_dir", "") is None:  # not given in the config
            evaluator._output_dir = os.path.join(cfg.train.output_dir, INFERENCE)
    names = dataset_names(cfg, "test")
    shown = names and has_event_storage() and SHOW_PICTURES & set(cfg.train.loggers)
    if shown and comm.is_main_process():
        evaluators.append(PredictionPictures(names[0]))
    share_buffers(model)
    start, predicted = time.perf_counter(), []
    results = inference_on_dataset(
        model,
        loader,
        evaluators,
        callbacks={
            "before_inference": stop_if_asked,
            "on_end": lambda: predicted.append(time.perf_counter()),
        },
    )
    logger.info(
        "Evaluation: %.1f s to predict %d batches, %.1f s to measure",
        predicted[0] - start,
        len(loader),
        time.perf_counter() - predicted[0],
    )
    if not comm.is_main_process():
        return {}
    print_csv_format(results)
    results = {task: {k: float(v) for k, v in values.items()} for task, values in results.items()}
    write_json(
        os.path.join(cfg.train.output_dir, "evaluation.json"),
        {"iteration": iteration, "results": _finite(results)},
    )
    return results


def share_buffers(model: nn.Module) -> None:
    """Give all processes the main process's buffers, which are what checkpoints hold.

    A batch norm that does not synchronise has means and variances of its own in each of them: the processes
    would evaluate different models, none of them the one that is saved.

    Args:
        model: the bare model, the same one in all processes.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _finite(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """NaN, as Detectron2 gives where there is nothing to measure, is not JSON: null."""
    return {
        task: {name: v if math.isfinite(v) else None for name, v in values.items()}
        for task, values in results.items()
    }
