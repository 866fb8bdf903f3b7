"""One process of a run: build from the config, then train or evaluate."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from typing import Any

import torch
from detectron2.config import instantiate
from detectron2.engine import default_setup, hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn

from ..data.custom import resolve_dataset
from .checkpoint import CheckpointFolder, load_weights, read_checkpoint
from .checks import build_dataset_users, check_classes
from .config import load_config, settle_device
from .errors import Interrupted
from .evaluation import evaluate
from .hooks import Checkpoints, Evaluation, autocast_dtype, resume
from .interrupt import InterruptFlag
from .progress import RecentMetrics, Throughput, writers
from .trainer import Trainer

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train or evaluate as the command line says, in a process of a running process group.

    Args:
        args: config_file, opts, eval_only, resume.

    Returns:
        In the main process the last evaluation's results, task -> metric -> value.
    """
    cfg = load_config(args.config_file, args.opts)
    settle_device(cfg.train)
    resolve_dataset(cfg)  # in every process: Detectron2's catalogs are per process
    # Saves config.yaml: must come before the optimizer's config is given the model. Without the
    # config file's name, or its whole text would be logged too.
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": ""}))
    setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="comer_d2", abbrev_name="comer")
    logger.info("Config: %s", args.config_file)
    return evaluate_only(cfg, args.resume) if args.eval_only else train(cfg, args.resume)


def evaluate_only(cfg: DictConfig, resume_last: bool = False) -> dict[str, Any]:
    """Evaluate train.init_checkpoint, or with `resume_last` the run's last checkpoint.

    Raises:
        UserError: no checkpoint was given, or not everything in it fits the model.
    """
    path = CheckpointFolder(cfg.train.output_dir).last() if resume_last else None
    path = path or cfg.train.init_checkpoint
    check_classes(cfg, "test")
    model = build_model(cfg)
    state = read_checkpoint(path)
    report = load_weights(model, state["model"], path, allow=cfg.train.init_allow)
    logger.info("%s: %s", path, report)
    return evaluate(cfg, model, state.get("iteration"))


def train(cfg: DictConfig, resume_run: bool = False) -> dict[str, Any]:
    """Train from train.init_checkpoint, from nothing, or from where a run stopped.

    Raises:
        UserError: the output folder holds another run, or a checkpoint does not fit.
        Interrupted: a signal came; a checkpoint was written.
    """
    folder = CheckpointFolder(cfg.train.output_dir, cfg.train.checkpointer.get("max_to_keep"))
    last = folder.last()
    with InterruptFlag() as interrupt:
        trainer, checkpoints, evaluation = build_trainer(cfg, folder, interrupt)
        start = 0
        if resume_run and last:
            state = read_checkpoint(last)
            load_weights(trainer.bare_model, state["model"], last)
            start = resume(trainer, state)
            logger.info("Going on after %d iterations, from %s", start, last)
        elif cfg.train.init_checkpoint:
            initialize(cfg, trainer.bare_model)
        if comm.is_main_process():
            events = writers(cfg.train.output_dir, start, cfg.train.max_iter)
            trainer.register_hooks([hooks.PeriodicWriter(events, cfg.train.log_period)])
        if start >= cfg.train.max_iter:
            logger.info("All %d iterations are done already: evaluating", cfg.train.max_iter)
            return evaluate(cfg, trainer.bare_model, start - 1)
        trainer.train(start, cfg.train.max_iter)
        if trainer.interrupted_by and trainer.iter + 1 < trainer.max_iter:
            raise Interrupted(
                trainer.interrupted_by,
                f"stopped after {trainer.iter + 1} of {trainer.max_iter} iterations; "
                f"{checkpoints.last_written} is complete. To go on:\n  {_resume_command()}",
            )
    return evaluation.results


def build_model(cfg: DictConfig) -> nn.Module:
    """The config's model, on the config's device."""
    model = instantiate(cfg.model).to(cfg.train.device)
    count = sum(p.numel() for p in model.parameters())
    logger.info("Model: %s, %.1f M parameters", type(model).__name__, count / 1e6)
    return model


def build_trainer(
    cfg: DictConfig, folder: CheckpointFolder, interrupt: InterruptFlag
) -> tuple[Trainer, Checkpoints, Evaluation]:
    """Loader, model, optimizer and hooks, ready to train."""
    loader = build_dataset_users(cfg)
    check_classes(cfg, "train")
    model = build_model(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    device = torch.device(cfg.train.device)
    device_ids = [torch.cuda.current_device()] if device.type == "cuda" else None
    ddp = {"device_ids": device_ids, **cfg.train.ddp}
    trainer = Trainer(
        create_ddp_model(model, **ddp),
        loader,
        optimizer,
        device_type=device.type,
        amp_dtype=autocast_dtype(cfg.train.amp.enabled, cfg.train.amp.dtype),
        max_grad_norm=cfg.train.clip_grad.max_norm,
        grad_norm_type=cfg.train.clip_grad.norm_type,
        accumulation_steps=cfg.train.accumulation_steps,
        interrupt=interrupt,
    )
    checkpoints = Checkpoints(folder, cfg.train.checkpointer.period)
    evaluation = Evaluation(
        cfg.train.eval_period, lambda i: evaluate(cfg, model, i), folder, **cfg.train.best_checkpointer
    )
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            Throughput(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            RecentMetrics(),
            checkpoints,
            evaluation,
        ]
    )
    return trainer, checkpoints, evaluation


def initialize(cfg: DictConfig, model: nn.Module) -> None:
    """Load train.init_checkpoint into a model that is to be trained, and say what it gave.

    Tensors that the checkpoint does not have keep their initial values: a pretrained backbone has
    no heads. Anything else that does not fit is an error, but for train.init_allow.
    """
    path = cfg.train.init_checkpoint
    weights = read_checkpoint(path)["model"]
    report = load_weights(model, weights, path, allow_missing=True, allow=cfg.train.init_allow)
    logger.info("%s: %s", path, report)


def _resume_command() -> str:
    """This command line with --resume; under a launcher it is the launcher's to repeat."""
    arguments = sys.argv if "--resume" in sys.argv else [sys.argv[0], "--resume", *sys.argv[1:]]
    return shlex.join(["python", *arguments])
