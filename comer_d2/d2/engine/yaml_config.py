"""A YAML config is data: it names what is built, and only from packages that are for building models.

A Python config is code, as any program is; a YAML file, such as the config.yaml beside a checkpoint
from elsewhere, must not be. So its text is read by YAML's safe rules, and every name in it that would
be imported and called has to lie in `PACKAGES`, or in what the user allows.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from typing import Any

import yaml
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from timm.models import is_model

from ..errors import UserError

# The parts of a package that hold models, data, optimizers.
PACKAGES = (
    "comer_d2.ViTCoMer",
    *(f"comer_d2.d2.{room}" for room in ("data", "evaluation", "modeling")),
    *(f"comer_d2.d2.engine.{file}" for file in ("optim", "schedule")),
    *(f"comer_d2.{room}" for room in ("heads", "layers", "network")),
    *(
        f"detectron2.{part}"
        for part in ("data", "evaluation", "layers", "modeling", "projects", "solver", "structures")
    ),
    *(f"torch.{part}" for part in ("nn", "optim", "utils.data.DataLoader")),
    *(f"torchvision.{part}" for part in ("models", "ops", "transforms")),
    *(f"timm.{part}" for part in ("create_model", "layers", "models", "optim")),
    "fvcore.common.param_scheduler",
    "fvcore.nn",
)

# Their classes only hold what they are given, but among their functions are some that load pickles,
# which are programs, or write files: where functions may be called, too. Also the models that timm lists.
FUNCTIONS = (
    *(f"comer_d2.{room}" for room in ("heads", "layers", "network", "d2.modeling")),
    *(f"comer_d2.d2.engine.{file}" for file in ("optim", "schedule")),
    "comer_d2.d2.data.augmentation",
    "comer_d2.d2.data.loader.build_train_loader",
    "detectron2.data.build.build_detection_train_loader",
    "detectron2.data.build.build_detection_test_loader",
    "detectron2.data.build.get_detection_dataset_dicts",
    *(f"detectron2.{part}" for part in ("layers", "modeling", "solver")),
    *(f"torch.nn.{part}" for part in ("functional", "init")),
    *(f"torchvision.{part}" for part in ("models", "ops", "transforms")),
    *(f"timm.{part}" for part in ("layers", "models._factory.create_model")),
)
# Arguments that name files which would be read as pickles by Detectron2, or by some version of timm.
PICKLES = {"proposal_files", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"}

MOST_VALUES = 100_000  # of a config; the largest here have about a thousand


class _Loader(yaml.SafeLoader):
    """YAML's safe rules, and what Detectron2 writes beyond them: tuples, names, ShapeSpec, partial."""

    allowed: tuple[str, ...] = PACKAGES

    def tuple(self, node: yaml.Node) -> tuple:
        return tuple(self.construct_sequence(node, deep=True))

    def name(self, suffix: str, node: yaml.Node) -> Any:
        return locate_allowed(suffix, self.allowed)

    def shape_spec(self, node: yaml.Node) -> ShapeSpec:
        return ShapeSpec(**self.construct_mapping(node, deep=True))

    def partial(self, node: yaml.Node) -> functools.partial:
        function, args, keywords, _ = self.construct_mapping(node, deep=True)["state"]
        if args:
            raise TypeError("a partial of positional arguments")
        for key in PICKLES & keywords.keys():
            raise _NotAllowed(key, _reads_pickles(key))
        return functools.partial(function, **keywords)


_TAG = "tag:yaml.org,2002:python/"
_Loader.add_constructor(f"{_TAG}tuple", _Loader.tuple)
_Loader.add_multi_constructor(f"{_TAG}name:", _Loader.name)
_Loader.add_constructor(f"{_TAG}object:detectron2.layers.shape_spec.ShapeSpec", _Loader.shape_spec)
_Loader.add_constructor(f"{_TAG}object/apply:functools.partial", _Loader.partial)


def read_yaml(path: str, allow_targets: Sequence[str] = ()) -> DictConfig:
    """Read a YAML config without executing anything that it names.

    Args:
        path: of the file.
        allow_targets: names of packages, modules, classes or functions beyond `PACKAGES`.

    Raises:
        UserError: not YAML, objects that no config holds, or names that are not allowed.
    """
    loader = type("Loader", (_Loader,), {"allowed": (*PACKAGES, *allow_targets)})
    try:
        with open(path, encoding="utf-8") as f:
            content = yaml.load(f, Loader=loader)
        if _size(content, {}) > MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {MOST_VALUES:,} values")
    # The last three: objects of a form that Detectron2 does not write, nesting without end.
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, RecursionError) as e:
        raise UserError(f"config file '{path}' is no YAML that a config may be: {e}") from e
    except _NotAllowed as e:
        raise UserError(f"config file '{path}': {e}") from e
    if not isinstance(content, dict):
        raise UserError(f"config file '{path}' holds a {type(content).__name__}, not a config")
    return OmegaConf.create(content, flags={"allow_objects": True})


def _size(value: Any, known: dict[int, float]) -> float:
    """Values in a tree of dicts and lists, with what aliases repeat; infinite for one inside itself."""
    if not isinstance(value, dict | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(value)]


def check_targets(cfg: DictConfig, path: str, allow_targets: Sequence[str] = ()) -> None:
    """Look at every ``_target_`` of a config, as it is after interpolation.

    Args:
        cfg: what `read_yaml` returned, before or after overrides.
        path: of its file, for the message.
        allow_targets: as of `read_yaml`.

    Raises:
        UserError: naming key and target.
    """
    allowed = (*PACKAGES, *allow_targets)
    try:
        _check_node(cfg, "", allowed)
    except (_NotAllowed, OmegaConfBaseException) as e:
        raise UserError(f"config file '{path}': {e}") from e


def locate_allowed(name: str, allowed: Sequence[str]) -> Any:
    """Import what a name stands for, if it lies in what is allowed, by name and in truth.

    Args:
        name: dotted.
        allowed: beginnings of dotted names.

    Raises:
        _NotAllowed: it does not, or is nothing.
    """
    if not _is_below(name, allowed):  # before anything is imported
        raise _NotAllowed(name)
    try:
        found = locate(name)
    except Exception as e:
        raise _NotAllowed(name, f"'{name}' cannot be imported: {e}") from e
    if found is None:
        raise _NotAllowed(name, f"there is no '{name}'")
    # torch.nn.modules.module.os.system lies in torch.nn by name alone.
    home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', '')}"
    if inspect.ismodule(found) or not _is_below(home, (*allowed, *_roots(allowed, name))):
        raise _NotAllowed(name)
    own = [beginning for beginning in allowed if beginning not in PACKAGES]  # the user's
    if not (
        inspect.isclass(found)
        or _is_below(home, (*FUNCTIONS, *own, *_roots(own, name)))
        or (_is_below(home, ["timm.models"]) and is_model(found.__name__))
    ):
        raise _NotAllowed(name)
    return found


def _is_below(name: str, beginnings: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{beginning}.") for beginning in beginnings)


def _roots(allowed: Sequence[str], name: str) -> list[str]:
    """`comer_d2.ViTCoMer` is defined elsewhere: names that are allowed whole may be."""
    return [name.partition(".")[0]] if name in allowed else []


def _reads_pickles(key: str) -> str:
    return (
        f"{key}: such files can be programs, and a YAML config names none; weights are given with "
        "train.init_checkpoint, and a Python config may do anything"
    )


class _NotAllowed(Exception):
    def __init__(self, name: str, why: str | None = None) -> None:
        super().__init__(
            why
            or f"'{name}' is not built from a YAML config, which names only models, data and "
            "optimizers of comer_d2, detectron2, torch, torchvision, timm and fvcore. If you trust "
            f"the file: --allow-target {name} (or its package; in Python allow_targets=[...])"
        )


def _check_node(node: DictConfig | ListConfig, prefix: str, allowed: Sequence[str]) -> None:
    """Raise _NotAllowed, with its key, for anything in a config that must not be."""
    names = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for name in names:
        key = f"{prefix}{name}"
        raw = node._get_node(name)
        if OmegaConf.is_interpolation(node, name):
            _check_interpolation(key, raw._value())
        if name == "_target_" and not OmegaConf.is_missing(node, name):
            target = node[name]
            if isinstance(target, str):
                try:
                    locate_allowed(target, allowed)
                except _NotAllowed as e:
                    raise _NotAllowed(target, f"{key}: {e}") from e
        if name in PICKLES and raw._value() is not None:
            raise _NotAllowed(key, _reads_pickles(key))
        # What an interpolation stands for is elsewhere in the config, and is looked at there.
        if isinstance(raw, (DictConfig, ListConfig)) and not (
            raw._is_none() or raw._is_missing() or raw._is_interpolation()
        ):
            _check_node(raw, f"{key}.", allowed)


def _check_interpolation(key: str, text: str) -> None:
    """Resolvers can make new nodes out of text; only the one for the environment may be used."""
    if ":" in text.replace("${oc.env:", ""):
        raise _NotAllowed(
            text, f"{key}: a YAML config has no resolvers in interpolations but oc.env: {text!r}"
        )
