"""Base of every user-facing configuration: frozen, keyword-only, refuses unknown keys with a suggestion."""

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from llamarl.core.errors import ConfigError


class Config(BaseModel):
    """A frozen configuration record. Values are checked when it is built; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "") -> Self:
        """Builds the config from plain values.

        Args:
            values: nested mapping, as read from TOML or JSON.
            source: where the values came from, named in the error.

        Raises:
            ConfigError: names each wrong field, its value and what to do.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe_errors(error, cls, source)) from None

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Reads a TOML file. Raises `ConfigError` naming the file for unreadable files, bad syntax or bad values."""
        return cls.parse(read_toml(path), source=str(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parses a TOML file into a dictionary. Raises `ConfigError` that names file and line."""
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a TOML recipe") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path}: {error}") from None


def suggest(word: str, choices: "list[str]") -> str:
    """` Did you mean 'x'?` or, where nothing is close, the list of choices."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" Choose one of: {', '.join(sorted(choices))}."


def describe_errors(error: ValidationError, model: type[BaseModel], source: str = "") -> str:
    """One line per wrong field: dotted name, what is wrong, the value, and a suggestion for unknown keys."""
    lines = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"]) or "(top level)"
        if item["type"] == "extra_forbidden":
            line = f"{field}: unknown key.{suggest(str(item['loc'][-1]), _fields_at(model, item['loc'][:-1]))}"
        elif item["type"] == "missing":
            line = f"{field}: required, but not given"
        elif item["type"] == "union_tag_not_found":
            line = f"{field}.type: required beside other settings, but not given"
        else:
            got = "" if isinstance(item["input"], (dict, BaseModel)) else f"; got {item['input']!r}"
            line = f"{field}: {item['msg'].removeprefix('Value error, ')}{got}"
            line = line.removeprefix("(top level): ")
        lines.append(line)
    prefix = f"{source}: " if source else ""
    return prefix + ("\n" + " " * 2).join(lines)


def _fields_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Field names of the nested model at `location` (union tags and list indices are stepped over)."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # a discriminator tag of a union: pick the member whose `type` is that tag
            continue
        nested = models_in(field.annotation)
        tags = {str(part) for part in location}
        chosen = [m for m in nested if _tag(m) in tags] or nested
        if not chosen:
            return []
        model = chosen[0]
    return list(model.model_fields)


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("type")
    return None if field is None else str(field.default)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The configs named in a field's annotation: itself, or members of its unions and containers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in models_in(argument)]
