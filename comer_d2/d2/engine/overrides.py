"""Strict ``key=value`` overrides: Detectron2's own create a misspelt key without a word."""

from __future__ import annotations

import difflib
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..errors import UserError

# Characters that start hydra's own syntax in a value; anything else may be taken as plain text.
_GRAMMAR = set("[]{}()'\"$")


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Change values of a config in place, and refuse what is not there.

    Args:
        cfg: a loaded LazyConfig.
        overrides: ``key=value`` strings; ``a.0.b`` reaches into lists, the value follows hydra's
            grammar (``null``, ``true``, ``[1,2]``). ``+key=value`` adds a key on purpose. A key
            that is not written in the config is also accepted where it is a named parameter of
            the call (``_target_``) it belongs to.

    Returns:
        The same `cfg`.

    Raises:
        UserError: a key that does not exist (with the nearest one that does), a value inside an
            object that is no config node, a group of keys overridden by a single value, or a value of
            another kind than the one that is there.
    """
    for override in overrides:
        key, value, add = _parse(override)
        if not add:
            _check(cfg, key, value)
        try:
            OmegaConf.update(cfg, key, value, merge=True, force_add=add)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError) as e:
            raise UserError(f"override '{override}' cannot be applied: {_first_line(e)}") from e
    return cfg


def text_override(key: str, text: str) -> str:
    """An override that sets a key to this text, also where it looks like a number or a list: ``12``, ``a,b``."""
    escaped = re.sub(
        r'(\\*)("|$)', lambda m: m[1] * 2 + (m[2] and '\\"'), text.replace("${", "\\${")
    )
    return f'{key}="{escaped}"'


def typed_overrides(values: Mapping[str, object]) -> str:
    """Overrides of texts and paths as they are typed in a shell; quoted where they would mean something else."""
    words = []
    for key, value in values.items():
        plain = f"{key}={value}"
        try:
            same = _parse(plain)[1] == str(value)
        except UserError:
            same = False
        words.append(shlex.quote(plain if same else text_override(key, str(value))))
    return " ".join(words)


def override_keys(overrides: Sequence[str]) -> set[str]:
    """The full names of the keys that ``key=value`` strings change."""
    return {_parse(override)[0] for override in overrides}


def _parse(override: str) -> tuple[str, Any, bool]:
    """Split ``key=value`` into the key, the typed value, and whether it began with ``+``."""
    if "=" not in override:
        raise UserError(f"override '{override}' is not of the form key=value")
    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as e:
        key, value = override.split("=", 1)
        if _GRAMMAR & set(value):
            raise UserError(f"override '{override}' cannot be read: {_first_line(e)}") from e
        return key.lstrip("+"), value, key.startswith("+")  # a path or address with odd characters
    if parsed.is_delete():
        raise UserError(f"override '{override}': deleting keys is not supported; set it to null")
    if parsed.is_sweep_override():
        key, value = override.split("=", 1)
        raise UserError(
            f"override '{override}' is a choice in hydra's syntax: for a list write '{key}=[{value}]', for text "
            f"'{key}=\"{value}\"'"
        )
    return parsed.key_or_group, parsed.value(), parsed.is_add()


def _check(cfg: DictConfig, key: str, value: Any) -> None:
    """Walk down `key` and raise a UserError at the first part that is not there."""
    node: Any = cfg
    parts = key.split(".")
    for depth, part in enumerate(parts):
        here = ".".join(parts[:depth])
        if isinstance(node, ListConfig):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(
                    f"override '{key}': '{here}' is a list of {len(node)}; "
                    f"use '{here}.0' to '{here}.{len(node) - 1}', not '{part}'"
                )
            node = node[int(part)]
        elif isinstance(node, DictConfig):
            if part not in node:
                if depth == len(parts) - 1 and part in _parameters(node):
                    return
                raise _unknown(cfg, key, here, part, node)
            # An interpolation may point at what is not resolvable yet; its own text is enough.
            node = node._get_node(part) if OmegaConf.is_interpolation(node, part) else node[part]
        else:
            raise UserError(
                f"override '{key}': '{here}' is {_describe(node)}, not a group of keys, so nothing "
                f"inside it can be overridden from the command line; change it in the config file"
            )
    if isinstance(node, DictConfig):
        _check_group(cfg, key, node, value)
    else:
        _check_kind(key, node, value)


def _check_group(cfg: DictConfig, key: str, node: DictConfig, value: Any) -> None:
    """A group takes a dict of its own keys, or null; a single value would wipe it out."""
    if value is None:
        return
    if not isinstance(value, dict):
        keys = ", ".join(str(k) for k in node)
        raise UserError(f"override '{key}={value}': '{key}' is a group of keys ({keys}); set those")
    for inner, inner_value in value.items():
        _check(cfg, f"{key}.{inner}", inner_value)


def _check_kind(key: str, old: Any, value: Any) -> None:
    """Numbers stay numbers, texts texts; one or a list of them are as good, and null and ${...} always."""
    kinds, given = _kinds(old), _kinds(value)
    wrong = given - kinds
    if not kinds or _ANY in kinds or not wrong:
        return
    example = _first_of(old)
    hint = ""
    if "text" in kinds and len(kinds) == 1 and "a number" in wrong:
        hint = f"; for the text, quote it: '{key}=\"{value}\"'"
    raise UserError(
        f"override '{key}={value}' is {' and '.join(sorted(wrong))}, but '{key}' holds "
        f"{' and '.join(sorted(kinds))} (now {_describe_value(example)}){hint}"
    )


_ANY = "anything"


def _kinds(value: Any) -> set[str]:
    """What a value is made of; empty where that says nothing: null, an empty list, ``${...}``."""
    if isinstance(value, (list, tuple)):
        return set().union(*(_kinds(item) for item in value))
    if isinstance(value, ListConfig):
        return set().union(*(_kinds(value._get_node(i)) for i in range(len(value))))
    if isinstance(value, Node) and not isinstance(value, DictConfig):
        value = value._value()
    if value is None or (isinstance(value, str) and ("${" in value or value == "???")):
        return set()
    if isinstance(value, (dict, DictConfig)):
        return {"a group of keys"}
    if isinstance(value, bool):
        return {"true or false"}
    if isinstance(value, (int, float)):
        return {"a number"}
    return {"text"} if isinstance(value, str) else {_ANY}


def _first_of(value: Any) -> Any:
    return next(iter(value), value) if isinstance(value, (list, ListConfig)) else value


def _describe_value(value: Any) -> str:
    return "a group of keys" if isinstance(value, DictConfig) else repr(value)


def _parameters(node: DictConfig) -> list[str]:
    """Names of the parameters of the call that a node describes; empty where it describes none."""
    target = node.get("_target_")
    if isinstance(target, str):
        try:
            target = locate(target)
        except Exception:  # a target that cannot be imported fails later, with its own message
            return []
    if not callable(target):
        return []
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named]


def _unknown(cfg: DictConfig, key: str, here: str, part: str, node: DictConfig) -> UserError:
    siblings = [str(k) for k in node if k != "_target_"] + _parameters(node)
    prefix = f"{here}." if here else ""
    near = [prefix + name for name in difflib.get_close_matches(part, siblings, n=1)]
    # A right name in the wrong place (max_iter for train.max_iter) beats a similar sibling.
    wanted = key.split(".")[-1]
    elsewhere = [k for k in known_keys(cfg) if k.split(".")[-1] == wanted]
    near += sorted(elsewhere, key=len)[:1] or difflib.get_close_matches(key, known_keys(cfg), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    names = ", ".join(dict.fromkeys(siblings))
    where = f"'{here}' has: {names}" if here else f"the config has: {names}"
    return UserError(
        f"unknown key '{prefix}{part}' in override '{key}'{hint}\n  {where}\n"
        f"  ('+{key}=...' adds a new key on purpose)"
    )


def known_keys(cfg: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    """Every full key of a config, groups included, ``_target_`` left out."""
    names = range(len(cfg)) if isinstance(cfg, ListConfig) else [k for k in cfg if k != "_target_"]
    for name in names:
        key = f"{prefix}{name}"
        yield key
        node = cfg._get_node(name)
        is_group = isinstance(node, (DictConfig, ListConfig))
        if is_group and not node._is_none() and not node._is_interpolation():
            yield from known_keys(node, key + ".")


def _describe(node: Any) -> str:
    if isinstance(node, (str, int, float, bool, type(None))):
        return f"the value {node!r}"
    return f"a Python object of type {type(node).__module__}.{type(node).__qualname__}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
