"""One process of a run: build from the config, then train or evaluate."""

from __future__ import annotations

import argparse
import copy
import errno
import logging
import os
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import LazyConfig
from detectron2.engine import hooks
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from omegaconf import DictConfig
from torch import nn

from ..data.custom import log_dataset, register_dataset
from ..data.kind import CheckedDataset
from ..errors import Interrupted, TrainingError, UserError
from ..modeling.compiled import compile_model
from ..modeling.images import refuse_to_cut
from .auto_batch import settle_batch
from .average import WeightAverage
from .best_model import BestModel
from .checkpoint import CheckpointFolder, frozen_source, load_checkpoint
from .checks import build, check_batch_norm, check_classes, check_together, init_checkpoints
from .config import load_config, settle_device, settle_workers
from .derived import derive, ways_to_shorten
from .early_stopping import EarlyStopping
from .evaluation import evaluate
from .hooks import Checkpoints, Evaluation, FrozenStart, Reports
from .interrupt import InterruptFlag
from .optim import VIT_BLOCK, settle_fused, vit_parameters
from .output_folder import describe, locked, make_writable, remove_half_written
from .overrides import override_keys
from .progress import EVALUATED, Forecast, MetricsFile, RecentMetrics, Throughput, Writers, writers
from .resume import resume
from .step_record import StepRecorder
from .trainer import Trainer
from .yaml_config import check_targets, read_yaml

logger = logging.getLogger(__name__)

# What a full or lost disk answers, wherever in a run something is written.
NO_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EACCES, errno.EPERM}


class Reporting(NamedTuple):
    """What writes a page on a run, in the main process.

    Args:
        write: after an evaluation of a best model, and after one alone; returns the page.
        update: at the end of a run, the page's curves; returns it, or None where there is none.
    """

    write: Callable[[DictConfig], Path]
    update: Callable[[DictConfig], Path | None]


def run(
    args: argparse.Namespace,
    dataset: CheckedDataset | None = None,
    cfg: DictConfig | None = None,
    report: Reporting | None = None,
) -> dict[str, Any]:
    """Train or evaluate as the command line says, in one of the run's processes.

    Args:
        args: config_file, opts, eval_only, resume.
        dataset: what `check_ready` returned, in the process that started this one.
        cfg: the config, loaded and checked; None: this process is a new one and loads its own.
        report: writes a page; None: there is none.

    Returns:
        In the main process the last evaluation's results, task -> metric -> value.

    Raises:
        UserError, Interrupted: see `train` and `evaluate_only`.
    """
    if cfg is None:
        cfg = load_config(args.config_file, args.opts, allow_targets=args.allow_target)
        settle_device(cfg.train)
        register_dataset(cfg, dataset)
    settle_workers(cfg, override_keys(args.opts))
    folder = cfg.train.output_dir
    main = comm.is_main_process()
    if main:
        make_writable(folder)
    try:
        with locked(folder) if main and not args.eval_only else nullcontext():
            set_up(cfg, args)
            if main:
                log_dataset(cfg, dataset)
            if not cfg.train.report:
                report = None
            if args.eval_only:
                results = evaluate_only(cfg, args.resume)
                if results and report:
                    try_report(report.write, cfg)
                return results
            return train(cfg, args.resume, given=override_keys(args.opts), report=report)
    except FileNotFoundError as e:  # an image, most likely; from a loading process, in a long text
        raise UserError(f"file not found: {str(e).strip().splitlines()[-1]}") from e
    except OSError as e:
        path = str(e.filename2 or e.filename)
        misplaced = isinstance(e, (IsADirectoryError, NotADirectoryError))
        if e.errno not in NO_WRITING and not (misplaced and path.startswith(folder)):
            raise
        raise TrainingError(f"cannot write in train.output_dir: {describe(e, folder)}") from e
    except UserError as e:
        if "Original Traceback" not in str(e):
            raise
        # From a loading process, behind its stack trace.
        raise UserError(str(e).rpartition(f"{type(e).__name__}: ")[2].strip()) from e


def check_and_run(
    args: argparse.Namespace,
    cfg: DictConfig,
    report: Reporting | None = None,
) -> dict[str, Any]:
    """`run` in one of the processes that another program started; nothing was checked yet."""
    dataset = check_together(cfg, eval_only=args.eval_only, resume=args.resume)
    return run(args, dataset, cfg, report)


def set_up(cfg: DictConfig, args: argparse.Namespace) -> None:
    """What Detectron2's `default_setup` does: logs, seeds, precision."""
    folder, rank = cfg.train.output_dir, comm.get_rank()
    for name, short in (("fvcore", "fvcore"), ("detectron2", "d2"), ("comer_d2", "comer")):
        setup_logger(folder, distributed_rank=rank, name=name, abbrev_name=short)
    logger.info(
        "Process %d of %d; environment:\n%s", rank, comm.get_world_size(), collect_env_info()
    )
    logger.info("Command line: %s", args)
    seed_all_rng(None if cfg.train.seed < 0 else cfg.train.seed + rank)
    torch.backends.cudnn.benchmark = cfg.train.cudnn_benchmark and not args.eval_only
    if cfg.train.float32_precision:
        torch.set_float32_matmul_precision(cfg.train.float32_precision)
        torch.backends.cudnn.allow_tf32 = cfg.train.float32_precision != "highest"


def save_config(cfg: DictConfig) -> None:
    """Write config.yaml; predictions load it, and now is the time to say that they will need a flag."""
    path = os.path.join(cfg.train.output_dir, "config.yaml")
    LazyConfig.save(cfg, path)
    logger.info("Config saved to %s", path)
    try:
        check_targets(read_yaml(path), path)
    except UserError as e:
        logger.warning("This config can be loaded again only so: %s", e)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Inside, a library's logger says nothing below a warning."""
    library = logging.getLogger(name)
    before = library.level
    library.setLevel(logging.WARNING)
    try:
        yield
    finally:
        library.setLevel(before)


def try_report(report: Callable[[DictConfig], Path | None], cfg: DictConfig) -> None:
    """Write a report; a run of hours does not end because that failed."""
    try:
        with quiet("detectron2"):  # it tells of the same data again
            page = report(cfg)
        if page:
            logger.info("Report: %s", page)
    except UserError as e:
        logger.warning("No report: %s", e)
    except Exception:
        logger.exception("No report, for a mistake in it; the run goes on")


def evaluate_only(cfg: DictConfig, resume_last: bool = False) -> dict[str, Any]:
    """Evaluate train.init_checkpoint, or with `resume_last` the run's last checkpoint.

    Raises:
        UserError: not everything in the checkpoint fits the model.
    """
    path = CheckpointFolder(cfg.train.output_dir).last() if resume_last else None
    loader = build(cfg, "dataloader.test")
    check_classes(cfg, "test")
    model = build_model(cfg)
    if path:
        state = load_checkpoint(model, path, complete=True, average=cfg.train.ema.enabled)
    else:
        [state] = initialize(cfg, model, complete=True).values()
    return evaluate(cfg, model, loader, state.get("iteration"))


def train(
    cfg: DictConfig,
    resume_run: bool = False,
    given: Collection[str] = (),
    report: Reporting | None = None,
) -> dict[str, Any]:
    """Train from train.init_checkpoint, from nothing, or from where a run stopped.

    Args:
        cfg: the config; what `derive` computes is filled in.
        resume_run: go on from the last checkpoint, if there is one.
        given: keys of the command line.
        report: writes a page.

    Raises:
        UserError: a checkpoint does not fit, or training cannot go on.
        Interrupted: a signal came; a checkpoint was written.
    """
    folder = CheckpointFolder(cfg.train.output_dir, cfg.train.checkpointer.get("max_to_keep"))
    last = folder.last() if resume_run else None
    if resume_run and not last:
        logger.info("Nothing to go on from in %s: the run starts anew", cfg.train.output_dir)
    if comm.is_main_process():
        remove_half_written(cfg.train.output_dir)
    with InterruptFlag() as interrupt:
        loader = build(cfg, "dataloader.train")
        if cfg.train.auto_batch_size:
            logger.info("%s", settle_batch(cfg, loader, lambda: build_model(cfg)))
            loader = build(cfg, "dataloader.train")
        for note in derive(cfg, loader, given):
            logger.info("%s", note)
        written = copy.deepcopy(cfg)  # before the optimizer's part is given the model
        trainer, checkpoints, evaluation = build_trainer(
            cfg, loader, folder, interrupt, resumes=bool(last)
        )
        start = 0
        if last:
            seed = loader.state_dict() if hasattr(loader, "state_dict") else None
            start = resume(trainer, folder, last, evaluation.average)
            if cfg.train.seed >= 0 and seed and loader.state_dict() != seed:
                logger.warning(
                    "train.seed=%d is not that of the run so far, whose order of images, augmentations and random "
                    "numbers go on",
                    cfg.train.seed,
                )
            if start > cfg.train.max_iter:
                raise UserError(
                    f"train.max_iter={cfg.train.max_iter}, but {last} was written after {start} iterations: "
                    "give at least as many, or start anew in another folder"
                )
            checkpoints.last_written = last
            logger.info("Going on after %d iterations, from %s", start, last)
        elif cfg.train.init_checkpoint:
            loaded = initialize(cfg, trainer.bare_model, complete=False)
            if comm.is_main_process():
                folder.frozen = frozen_source(
                    trainer.bare_model, loaded, cfg.train.init_family, cfg.train.init_allow
                )
        else:
            warn_of_noise(cfg, trainer.bare_model)
        if comm.is_main_process():
            # Not earlier: the folder of a run that is not gone on with stays as it is.
            save_config(written)
        record_metrics(cfg, trainer, evaluation, start)
        if report and comm.is_main_process():
            pages = [partial(try_report, function, cfg) for function in report]
            trainer.register_hooks([Reports(evaluation, *pages)])
        trainer.train(start, cfg.train.max_iter)
        if trainer.interrupted_by and not evaluation.finished:
            raise Interrupted(
                trainer.interrupted_by,
                f"stopped after {trainer.iter + 1} of {trainer.max_iter} iterations; "
                f"{checkpoints.last_written} is complete. To go on:\n  {_resume_command()}",
            )
    return evaluation.results


def warn_of_noise(cfg: DictConfig, model: nn.Module) -> None:
    """Say so if the config takes the ViT for a pretrained one, and it is not.

    Args:
        cfg: the config, without a train.init_checkpoint.
        model: its model, with the weights that it was made with.
    """
    factor = cfg.optimizer.params.get("vit_lr_factor", 1.0)
    blocks = (p for name, p in model.named_parameters() if VIT_BLOCK.match(name))
    if not all(parameter.requires_grad for parameter in blocks):
        kept, change = "frozen", "the ViT's freeze_at=0"
    elif factor < 0.5:
        kept, change = f"at {factor:g} of the rate", "optimizer.params.vit_lr_factor=1"
    else:
        return
    logger.warning(
        "The ViT's weights are random, and stay nearly so: it is %s. Set train.init_checkpoint to a pretrained ViT, "
        "or %s to train from scratch",
        kept,
        change,
    )


def record_metrics(cfg: DictConfig, trainer: Trainer, evaluation: Evaluation, start: int) -> None:
    """Let the main process write metrics, and all processes know of an unfinished evaluation."""
    if comm.is_main_process():
        metrics = MetricsFile(cfg.train.output_dir)
        last = start - 1
        evaluation.unfinished = evaluation.is_due(last) and not metrics.has(last, EVALUATED)
        metrics.forget_from(last if evaluation.unfinished else start)
        stopping = evaluation.early_stopping
        if stopping:
            stopping.observe(metrics.values(stopping.metric))
        ended = start >= cfg.train.max_iter or (stopping is not None and stopping.is_due)
        if not ended or evaluation.unfinished:
            events = writers(cfg.train.output_dir, start, cfg.train.max_iter, cfg.train.loggers)
            lacks_line = not metrics.has(last)
            trainer.register_hooks([Writers(events, cfg.train.log_period, lacks_line)])
    evaluation.unfinished = comm.all_gather(evaluation.unfinished)[0]


def build_model(cfg: DictConfig) -> nn.Module:
    """The config's model, on the config's device."""
    model = build(cfg, "model").to(cfg.train.device)
    refuse_to_cut(model)
    compile_model(model, cfg.train.compile, "train.compile")
    count = sum(p.numel() for p in model.parameters())
    logger.info("Model: %s, %.1f M parameters", type(model).__name__, count / 1e6)
    return model


def build_trainer(
    cfg: DictConfig,
    loader: Iterable[list[Any]],
    folder: CheckpointFolder,
    interrupt: InterruptFlag,
    *,
    resumes: bool,
) -> tuple[Trainer, Checkpoints, Evaluation]:
    """Model, optimizer and hooks, ready to train on what `loader` gives."""
    test_loader = build(cfg, "dataloader.test")  # now, so that a mistake in it shows before hours
    for split in ("train", "test"):
        check_classes(cfg, split)
    model = build_model(cfg)
    check_batch_norm(cfg, model)
    device = torch.device(cfg.train.device)
    cfg.optimizer.params.model = model
    settle_fused(cfg.optimizer, device.type)
    optimizer = build(cfg, "optimizer")
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
        recorder=StepRecorder(cfg.train.output_dir, cfg.train.spike_factor),
    )
    average = WeightAverage(model, cfg.train.ema.decay) if cfg.train.ema.enabled else None
    checkpoints = Checkpoints(folder, cfg.train.checkpointer.period, average)
    best = None
    if cfg.train.best_checkpointer.metric is not None:
        best = BestModel(folder, **cfg.train.best_checkpointer)
        if resumes and comm.is_main_process():
            best.restore()
    evaluation = Evaluation(
        cfg.train.eval_period,
        lambda iteration: evaluate(
            cfg, average.model if average else model, test_loader, iteration, interrupt
        ),
        cfg.train.max_iter,
        best,
        average,
        None
        if cfg.train.early_stopping.patience is None
        else EarlyStopping(**cfg.train.early_stopping),
    )
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            Throughput(),
            Forecast(device.type, ways_to_shorten(cfg)),
            hooks.LRScheduler(scheduler=build(cfg, "lr_multiplier")),
            RecentMetrics(),
            *(
                [FrozenStart(vit_parameters(model), cfg.train.frozen_vit)]
                if cfg.train.frozen_vit
                else []
            ),
            *([average] if average else []),
            checkpoints,
            evaluation,
        ]
    )
    return trainer, checkpoints, evaluation


def initialize(cfg: DictConfig, model: nn.Module, *, complete: bool) -> dict[str, dict[str, Any]]:
    """Load train.init_checkpoint, or each of several, into a model; see `load_checkpoint`.

    Returns:
        What each of them holds besides the weights.
    """
    return {
        source: load_checkpoint(
            model,
            source,
            complete=complete,
            family=cfg.train.init_family,
            allow=cfg.train.init_allow,
            sha256=cfg.train.init_sha256,
            average=complete and cfg.train.ema.enabled,
        )
        for source in init_checkpoints(cfg)
    }


def _resume_command() -> str:
    """This command line with --resume; under a launcher it is the launcher's to repeat."""
    arguments = sys.argv if "--resume" in sys.argv else [*sys.argv, "--resume"]
    return shlex.join(["python", *arguments])
