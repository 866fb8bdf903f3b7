"""Run a model over the config's test data and print Detectron2's tables."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn

from .checkpoint import write_json
from .checks import build
from .interrupt import InterruptFlag


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
        main process also writes it to ``evaluation.json`` in ``train.output_dir``.

    Raises:
        EvaluationStopped: see `interrupt`.
    """

    def stop_if_asked() -> None:
        if interrupt and interrupt.signum and comm.get_world_size() == 1:
            raise EvaluationStopped

    results = inference_on_dataset(
        model,
        loader,
        build(cfg, "dataloader.evaluator"),
        callbacks={"before_inference": stop_if_asked},
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


def _finite(results: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    """NaN, as Detectron2 gives where there is nothing to measure, is not JSON: null."""
    return {
        task: {name: v if math.isfinite(v) else None for name, v in values.items()}
        for task, values in results.items()
    }
