"""One process of a run: build from the config, then train or evaluate."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from typing import Any

import torch
from detectron2.engine import default_setup, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn

from ..data.custom import log_dataset, register_dataset
from ..data.kind import CheckedDataset
from ..errors import Interrupted, UserError
from ..modeling.images import refuse_to_cut
from .checkpoint import CheckpointFolder, forget_pretrained, load_checkpoint
from .checks import build, check_classes
from .config import load_config, settle_device
from .evaluation import evaluate
from .hooks import Checkpoints, Evaluation, resume
from .interrupt import InterruptFlag
from .progress import RecentMetrics, Throughput, writers
from .trainer import Trainer

logger = logging.getLogger(__name__)


def run(
    args: argparse.Namespace,
    dataset: CheckedDataset | None = None,
    cfg: DictConfig | None = None,
) -> dict[str, Any]:
    """Train or evaluate as the command line says, in one of the run's processes.

    Args:
        args: config_file, opts, eval_only, resume.
        dataset: what `check_ready` returned, in the process that started this one.
        cfg: the config, loaded and checked; None: this process is a new one and loads its own.

    Returns:
        In the main process the last evaluation's results, task -> metric -> value.

    Raises:
        UserError, Interrupted: see `train` and `evaluate_only`.
    """
    if cfg is None:
        cfg = load_config(args.config_file, args.opts)
        settle_device(cfg.train)
        register_dataset(cfg, dataset)
    # Saves config.yaml: must come before the optimizer's config is given the model. Without the
    # config file's name, or its whole text would be logged too.
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": ""}))
    setup_logger(
        cfg.train.output_dir,
        distributed_rank=comm.get_rank(),
        name="comer_d2",
        abbrev_name="comer",
    )
    logger.info("Config: %s", args.config_file)
    if comm.is_main_process():
        log_dataset(cfg, dataset)
    try:
        return evaluate_only(cfg, args.resume) if args.eval_only else train(cfg, args.resume)
    except FileNotFoundError as e:  # an image, most likely; from a loading process, in a long text
        raise UserError(f"file not found: {str(e).strip().splitlines()[-1]}") from e
    except UserError as e:
        if "Original Traceback" not in str(e):
            raise
        # From a loading process, behind its stack trace.
        raise UserError(str(e).rpartition(f"{type(e).__name__}: ")[2].strip()) from e


def evaluate_only(cfg: DictConfig, resume_last: bool = False) -> dict[str, Any]:
    """Evaluate train.init_checkpoint, or with `resume_last` the run's last checkpoint.

    Raises:
        UserError: not everything in the checkpoint fits the model.
    """
    path = CheckpointFolder(cfg.train.output_dir).last() if resume_last else None
    loader = build(cfg, "dataloader.test")
    check_classes(cfg, "test")
    forget_pretrained(cfg.model)
    model = build_model(cfg)
    if path:
        state = load_checkpoint(model, path, complete=True)
    else:
        state = initialize(cfg, model, complete=True)
    return evaluate(cfg, model, loader, state.get("iteration"))


def train(cfg: DictConfig, resume_run: bool = False) -> dict[str, Any]:
    """Train from train.init_checkpoint, from nothing, or from where a run stopped.

    Raises:
        UserError: a checkpoint does not fit, or training cannot go on.
        Interrupted: a signal came; a checkpoint was written.
    """
    folder = CheckpointFolder(cfg.train.output_dir, cfg.train.checkpointer.get("max_to_keep"))
    last = folder.last() if resume_run else None
    if last:
        forget_pretrained(cfg.model)
    with InterruptFlag() as interrupt:
        trainer, checkpoints, evaluation = build_trainer(cfg, folder, interrupt)
        start = 0
        if last:
            start = resume(trainer, load_checkpoint(trainer.bare_model, last, complete=True))
            logger.info("Going on after %d iterations, from %s", start, last)
        elif cfg.train.init_checkpoint:
            initialize(cfg, trainer.bare_model, complete=False)
        if start >= cfg.train.max_iter:
            logger.info("All %d iterations are done already: evaluating", cfg.train.max_iter)
            return evaluation.evaluate(start - 1)
        if comm.is_main_process():
            events = writers(cfg.train.output_dir, start, cfg.train.max_iter)
            trainer.register_hooks([hooks.PeriodicWriter(events, cfg.train.log_period)])
        trainer.train(start, cfg.train.max_iter)
        if trainer.interrupted_by and not evaluation.finished:
            raise Interrupted(
                trainer.interrupted_by,
                f"stopped after {trainer.iter + 1} of {trainer.max_iter} iterations; "
                f"{checkpoints.last_written} is complete. To go on:\n  {_resume_command()}",
            )
    return evaluation.results


def build_model(cfg: DictConfig) -> nn.Module:
    """The config's model, on the config's device."""
    model = build(cfg, "model").to(cfg.train.device)
    refuse_to_cut(model)
    count = sum(p.numel() for p in model.parameters())
    logger.info("Model: %s, %.1f M parameters", type(model).__name__, count / 1e6)
    return model


def build_trainer(
    cfg: DictConfig, folder: CheckpointFolder, interrupt: InterruptFlag
) -> tuple[Trainer, Checkpoints, Evaluation]:
    """Loader, model, optimizer and hooks, ready to train."""
    loader = build(cfg, "dataloader.train")
    test_loader = build(cfg, "dataloader.test")  # now, so that a mistake in it shows before hours
    for split in ("train", "test"):
        check_classes(cfg, split)
    model = build_model(cfg)
    cfg.optimizer.params.model = model
    optimizer = build(cfg, "optimizer")
    device = torch.device(cfg.train.device)
    device_ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    ddp = {"device_ids": device_ids, **cfg.train.ddp}
    trainer = Trainer(
        create_ddp_model(model, **ddp),
        loader,
        optimizer,
        device_type=device.type,
        amp_dtype=getattr(torch, cfg.train.amp.dtype) if cfg.train.amp.enabled else None,
        max_grad_norm=cfg.train.clip_grad.max_norm,
        grad_norm_type=cfg.train.clip_grad.norm_type,
        accumulation_steps=cfg.train.accumulation_steps,
        interrupt=interrupt,
    )
    checkpoints = Checkpoints(folder, cfg.train.checkpointer.period)
    evaluation = Evaluation(
        cfg.train.eval_period,
        lambda iteration: evaluate(cfg, model, test_loader, iteration, interrupt),
        folder,
        **cfg.train.best_checkpointer,
    )
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            Throughput(),
            hooks.LRScheduler(scheduler=build(cfg, "lr_multiplier")),
            RecentMetrics(),
            checkpoints,
            evaluation,
        ]
    )
    return trainer, checkpoints, evaluation


def initialize(cfg: DictConfig, model: nn.Module, *, complete: bool) -> dict[str, Any]:
    """Load train.init_checkpoint into a model; see `load_checkpoint`."""
    return load_checkpoint(
        model,
        cfg.train.init_checkpoint,
        complete=complete,
        family=cfg.train.init_family,
        allow=cfg.train.init_allow,
        sha256=cfg.train.init_sha256,
    )


def _resume_command() -> str:
    """This command line with --resume; under a launcher it is the launcher's to repeat."""
    arguments = sys.argv if "--resume" in sys.argv else [*sys.argv, "--resume"]
    return shlex.join(["python", *arguments])
