"""Config file and overrides -> one checked config."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence

import torch
from detectron2.config import LazyConfig
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from ..modeling.compiled import check_compile
from .overrides import apply_overrides, override_keys
from .yaml_config import check_targets, read_yaml

SECTIONS = ("dataloader", "model", "train", "optimizer", "lr_multiplier")

# For configs written for Detectron2's own script; configs/common/train.py explains each.
TRAIN_DEFAULTS = {
    "output_dir": "./output",
    "eval_period": 5000,
    "report": True,
    "epochs": None,
    "lr_batch_size": None,
    "amp": {"enabled": False, "dtype": "bfloat16"},
    "clip_grad": {"max_norm": None, "norm_type": 2.0},
    "accumulation_steps": 1,
    "best_checkpointer": {"metric": "bbox/AP", "mode": "max"},
    "ema": {"enabled": False, "decay": 0.9998},
    "early_stopping": {
        "patience": None,
        "metric": "${..best_checkpointer.metric}",
        "mode": "${..best_checkpointer.mode}",
        "min_delta": 0.0,
    },
    "init_family": None,
    "init_allow": [],
    "init_sha256": None,
    "compile": None,
    "loggers": ["tensorboard"],
    "auto_batch_size": False,
    "spike_factor": 10.0,
    "frozen_vit": 0.0,
    "seed": -1,
    "cudnn_benchmark": False,
    "float32_precision": "",
}

# Keys of `train` that count only where another is set.
NEEDS = {
    "amp.dtype": "amp.enabled",
    "clip_grad.norm_type": "clip_grad.max_norm",
    "early_stopping.metric": "early_stopping.patience",
    "early_stopping.min_delta": "early_stopping.patience",
    "early_stopping.mode": "early_stopping.patience",
    "ema.decay": "ema.enabled",
    "init_allow": "init_checkpoint",
    "init_family": "init_checkpoint",
    "init_sha256": "init_checkpoint",
}


def load_config(
    config_file: str, overrides: Sequence[str] = (), *, allow_targets: Sequence[str] = ()
) -> DictConfig:
    """Read a LazyConfig file and apply overrides to it.

    A ``.py`` file is code and runs. A ``.yaml`` file does not: see `yaml_config`.

    Args:
        config_file: path of a ``.py`` or ``.yaml`` config with the five names of Detectron2's
            LazyConfigs: dataloader, model, train, optimizer, lr_multiplier.
        overrides: ``key=value`` strings, see `apply_overrides`.
        allow_targets: what a ``.yaml`` file may name beyond the known packages: names of packages,
            modules, classes or functions.

    Returns:
        The config, with the keys of `TRAIN_DEFAULTS` filled in.

    Raises:
        UserError: no such file, an error in it, a missing section, a wrong override, or a name in a
            ``.yaml`` file that is not allowed.
    """
    if not config_file:
        raise UserError("--config-file is missing")
    if not os.path.isfile(config_file):
        raise UserError(f"config file '{config_file}' does not exist (looked in {os.getcwd()})")
    is_yaml = config_file.endswith((".yaml", ".yml"))
    if is_yaml:
        cfg = read_yaml(config_file, allow_targets)
        check_targets(cfg, config_file, allow_targets)  # overrides look at what targets take
    else:
        try:
            cfg = LazyConfig.load(config_file)
        except Exception as e:
            raise UserError(f"config file '{config_file}': {type(e).__name__}: {e}") from e
    missing = [name for name in SECTIONS if name not in cfg]
    if missing:
        raise UserError(
            f"config file '{config_file}' does not define {', '.join(missing)}; "
            f"a config has five names: {', '.join(SECTIONS)}"
        )
    defaults = OmegaConf.create(TRAIN_DEFAULTS, flags={"allow_objects": True})
    cfg.train = OmegaConf.merge(defaults, cfg.train)
    apply_overrides(cfg, overrides)
    _check_groups(cfg)
    _check_loading(cfg)
    given = override_keys(overrides)
    _settle_contradictions(cfg.train, given)
    if is_yaml and overrides:
        check_targets(cfg, config_file, allow_targets)
    _check_train(cfg.train)
    _refuse_in_vain(cfg.train, given)
    return cfg


def _settle_contradictions(train: DictConfig, given: set[str]) -> None:
    """The command line's length and learning rate replace those that the config derives."""
    if {"train.epochs", "train.max_iter"} <= given and train.epochs is not None:
        raise UserError("train.epochs and train.max_iter both say how long the run is; give one")
    if "train.max_iter" in given:
        train.epochs = None
    if "optimizer.lr" in given and "train.lr_batch_size" not in given:
        train.lr_batch_size = None


def _refuse_in_vain(train: DictConfig, given: set[str]) -> None:
    """A key of the command line has an effect, or what it needs is off on purpose, on the same line."""
    for key, needed in NEEDS.items():
        if f"train.{key}" in given and f"train.{needed}" not in given:
            value = OmegaConf.select(train, needed)
            if not value:
                raise UserError(
                    f"train.{key} has no effect: it needs train.{needed}, which is {value!r}"
                )


def settle_device(train: DictConfig) -> bool:
    """Turn train.device into "cpu" where it is CUDA and this machine has none.

    Returns:
        Whether it was changed.
    """
    try:
        device = torch.device(train.device)
    except (RuntimeError, TypeError) as e:
        raise UserError(f"train.device={train.device!r} is no device; use cuda or cpu") from e
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"train.device={train.device!r} is not supported; use cuda or cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and 0 < count <= (device.index or 0):
        raise UserError(f"train.device={train.device!r}: the last CUDA device is cuda:{count - 1}")
    if device.type == "cpu" or count:
        return False
    train.device = "cpu"
    return True


def settle_workers(cfg: DictConfig, given: Collection[str] = ()) -> None:
    """Take as many loading processes as there are CPUs at most: more are slower, and PyTorch warns of them each time.

    Args:
        cfg: the config; changed in place. The samples do not depend on it.
        given: keys of the command line, whose values stay as they are.
    """
    usable = hasattr(os, "sched_getaffinity")
    cpus = len(os.sched_getaffinity(0)) if usable else os.cpu_count() or 1
    for split in ("train", "test"):
        key = f"dataloader.{split}.num_workers"
        asked = OmegaConf.select(cfg, key)
        if isinstance(asked, int) and asked > cpus and key not in given:
            OmegaConf.update(cfg, key, cpus)


def _check_groups(cfg: DictConfig) -> None:
    inside = [key for key, value in TRAIN_DEFAULTS.items() if isinstance(value, dict)]
    for key in (*SECTIONS, *(f"train.{name}" for name in (*inside, "checkpointer"))):
        value = OmegaConf.select(cfg, key, default=cfg)  # not there: a run that needs it says so
        if not isinstance(value, DictConfig):
            raise UserError(f"{key}={value!r} must be a group of keys")


def _check_loading(cfg: DictConfig) -> None:
    """Loading processes are counted, and images have one order of channels, wherever they are read."""
    for split in ("train", "test"):
        workers = OmegaConf.select(cfg, f"dataloader.{split}.num_workers")
        if workers is not None and (type(workers) is not int or workers < 0):
            raise UserError(f"dataloader.{split}.num_workers={workers!r} must be a whole number")
    keys = ("dataloader.train.mapper.image_format", "dataloader.test.mapper.image_format")
    orders = [OmegaConf.select(cfg, key) for key in keys]
    if None not in orders and orders[0] != orders[1]:
        shown = " and ".join(f"{key}={order}" for key, order in zip(keys, orders))
        raise UserError(f"the model would see two orders of channels: {shown}; give one")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_train(train: DictConfig) -> None:
    if train.amp.dtype not in ("bfloat16", "float16"):
        raise UserError(f"train.amp.dtype={train.amp.dtype!r}; use bfloat16 or float16")
    check_compile(train.compile, "train.compile")
    for key in ("best_checkpointer.mode", "early_stopping.mode"):
        mode = OmegaConf.select(train, key)
        if mode not in ("max", "min"):
            raise UserError(f"train.{key}={mode!r}: max or min")
    for key in ("epochs", "lr_batch_size"):
        value = train[key]
        if value is not None and not (_is_number(value) and 0 < value < math.inf):
            raise UserError(f"train.{key}={value!r} must be positive, or null")
    if isinstance(train.loggers, str):
        train.loggers = [train.loggers]
    factor = train.spike_factor
    if factor is not None and not (_is_number(factor) and factor > 0):
        raise UserError(f"train.spike_factor={factor!r} must be positive, or null")
    if not (_is_number(train.frozen_vit) and 0 <= train.frozen_vit <= 1):
        raise UserError(f"train.frozen_vit={train.frozen_vit!r} is a share of the run, 0 to 1")
    if not (_is_number(train.ema.decay) and 0 < train.ema.decay < 1):
        raise UserError(f"train.ema.decay={train.ema.decay!r} must be between 0 and 1")
    patience = train.early_stopping.patience
    if patience is not None and (type(patience) is not int or patience < 1):
        raise UserError(
            f"train.early_stopping.patience={patience!r} must be a whole number of at least 1, or null"
        )
    delta = train.early_stopping.min_delta
    if not (_is_number(delta) and delta >= 0):
        raise UserError(f"train.early_stopping.min_delta={delta!r} must be a number of at least 0")
    if patience is not None and train.early_stopping.metric is None:
        raise UserError("train.early_stopping.patience needs train.early_stopping.metric")
    if patience is not None and train.eval_period == 0:
        raise UserError(
            "train.early_stopping.patience counts evaluations, and train.eval_period=0 has none before the end"
        )
    counts = ["max_iter", "log_period", "accumulation_steps"]
    counts += [f"checkpointer.{key}" for key in train.get("checkpointer", ())]
    for key in counts:
        value = OmegaConf.select(train, key)
        if key == "checkpointer.max_to_keep" and value is None:  # all of them
            continue
        if not isinstance(value, int) or value < 1:
            raise UserError(f"train.{key}={value!r} must be a whole number of at least 1")
    if not isinstance(train.output_dir, str) or not train.output_dir:
        raise UserError(f"train.output_dir={train.output_dir!r} must be the path of a folder")
    if not isinstance(train.eval_period, int) or train.eval_period < 0:
        raise UserError(
            f"train.eval_period={train.eval_period!r} must be a whole number; 0: at the end alone"
        )
    seed = train.seed
    if not isinstance(seed, int) or seed >= 2**31:  # NumPy takes 32 bits; ranks are added
        raise UserError(
            f"train.seed={seed!r} must be a whole number below 2**31; below 0: a new one each time"
        )
    norm = train.clip_grad.max_norm
    if norm is not None and not (_is_number(norm) and norm > 0):
        raise UserError(f"train.clip_grad.max_norm={norm!r} must be positive, or null for none")
