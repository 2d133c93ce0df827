"""Settings as a command line writes them: listed, read, named, and laid over those of a file."""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from llamarl.core.config import models_in, suggest
from llamarl.core.errors import ConfigError


def describe_settings(model: type[BaseModel], prefix: str = "") -> str:
    """Every setting below `model`: dotted name, default, meaning; one a line, tables after their heading."""
    lines = []
    for name, field in model.model_fields.items():
        nested = models_in(field.annotation)
        default = "required" if field.is_required() else repr(field.get_default(call_default_factory=True))
        meaning = " ".join((field.description or "").split())
        if not nested:
            lines.append(f"{prefix}{name} = {default}" + (f"  # {meaning}" if meaning else ""))
        for each in nested:
            tag = each.model_fields.get("type")
            title = f"{prefix}{name}" + (f" (type = {tag.default!r})" if tag is not None else "")
            lines += [
                "",
                f"[{title}]" + (f"  # {meaning}" if meaning else ""),
                describe_settings(each, f"{prefix}{name}."),
            ]
    return "\n".join(lines)


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`["--schedule.max-staleness", "2", "--engine=monarch"]` as nested values: TOML's syntax, plain text, or `none`.

    A plain name where settings follow is their type: `--algorithm grpo` is `--algorithm.type grpo`.

    Raises:
        ConfigError: an argument without `--`, one without a value, or two that contradict each other.
    """
    values: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        name, equals, text = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise ConfigError(f"{name!r}: expected an override such as --schedule.steps 50")
        if not equals:
            if not rest:
                raise ConfigError(f"{name}: needs a value, as in {name} VALUE")
            text = rest.pop(0)
        try:
            value = None if text.lower() == "none" else tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        target = values
        *parents, leaf = name[2:].replace("-", "_").split(".")
        for parent in parents:
            if isinstance(target.get(parent), str):
                target[parent] = {"type": target[parent]}
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{name}: {parent!r} was already given a plain value")
        if isinstance(target.get(leaf), dict) and isinstance(value, str):
            target[leaf]["type"] = value
        elif isinstance(target.get(leaf), dict) and not isinstance(value, dict):
            raise ConfigError(f"{name}: settings below {leaf!r} were already given, so it can't be {value!r}")
        else:
            target[leaf] = value
    return values


def dotted_names(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The names of nested values, as an override writes them."""
    return [
        name
        for key, value in values.items()
        for name in (
            dotted_names(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else [f"{prefix}{key}"]
        )
    ]


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table. `judges.0.weight` style keys address list entries."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, (list, tuple)) and isinstance(value, Mapping):
            merged[key] = [
                merge(entry, value[str(i)]) if isinstance(value.get(str(i)), Mapping) else entry
                for i, entry in enumerate(old)
            ]
            if unknown := sorted(set(value) - {str(i) for i in range(len(old))}):
                raise ConfigError(f"{key}.{unknown[0]}: {suggest(unknown[0], [str(i) for i in range(len(old))])[1:]}")
        elif isinstance(old, Mapping) and "type" in old and isinstance(value, str):
            merged[key] = merge({key: old}, {key: {"type": value}})[key]
        elif isinstance(old, Mapping) and isinstance(value, Mapping):
            switches_type = "type" in value and value["type"] != old.get("type")
            merged[key] = dict(value) if switches_type else merge(old, value)
        else:
            merged[key] = value
    return merged
