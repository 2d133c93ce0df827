"""Base of every user-facing configuration: frozen, keyword-only, refuses unknown keys with a suggestion."""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, model_validator

from llamarl.core.errors import ConfigError


class Metavar(str):
    """Placeholder for a setting's value in a command's `--help`, as in `Annotated[str, Metavar("URL")]`."""


def _split_commas(value: Any) -> Any:
    return [part.strip() for text in value for part in text.split(",")] if isinstance(value, (list, tuple)) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
"""A setting of several words, which may be joined by commas, such as `en,fr`."""


class Config(BaseModel):
    """A frozen configuration record. Values are checked when it is built; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _read_none_as_a_choice(cls, values: Any) -> Any:
        """`none` on a command line unsets a setting, but is a choice of some, such as `--algorithm.scale none`."""
        if not isinstance(values, Mapping):
            return values
        unset = {name for name, value in values.items() if value is None} & cls.model_fields.keys()
        chosen = {name: "none" for name in unset if "none" in get_args(cls.model_fields[name].annotation)}
        return {**values, **chosen} if chosen else values

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str = "", overrides: Collection[str] = ()) -> Self:
        """Builds the config from plain values.

        Args:
            values: nested mapping, as read from TOML or JSON.
            source: where the values came from, named in the error.
            overrides: dotted names of those that came from the command line instead.

        Raises:
            ConfigError: names each wrong field, its value and what to do.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(describe_errors(error, cls, source, overrides)) from None

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
    close = difflib.get_close_matches(word, choices, n=3, cutoff=0.6)
    close.sort(key=lambda choice: sorted(choice) != sorted(word))  # two letters that changed places are likeliest
    return f" Did you mean {close[0]!r}?" if close else f" Choose one of: {', '.join(sorted(choices))}."


def describe_errors(
    error: ValidationError, model: type[BaseModel], source: str = "", overrides: Collection[str] = ()
) -> str:
    """One line per wrong field: dotted name, what is wrong, the value, and a suggestion for unknown keys.

    A field among `overrides` is named as on the command line, `--dotted.long-name`; the source is not blamed for it.
    """
    from_source, from_command = [], []
    items = error.errors()
    for item in items:
        if item["type"] == "too_short" and any(_is_inside(other["loc"], item["loc"]) for other in items):
            continue  # pydantic counts the good entries only, and the wrong one is named beside
        names, tables = _place(model, item["loc"])
        if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            names.append("type")
        field = ".".join(names)
        line = f"{field}: {_problem(item, names, tables, model)}".removeprefix(": ")
        override = next((name for name in overrides if f"{field}.".startswith(f"{name}.")), None)
        if override is not None:
            below = re.sub(r"(\.\d+)+$", "", field.removeprefix(override))  # which entry of a list, its value tells
            from_command.append(f"--{override}{below}".replace("_", "-") + line.removeprefix(field))
        else:
            from_source.append(line)
            if source and overrides and not field:  # several settings together: the command line may be to blame
                source = f"{source} with {' '.join(f'--{name}'.replace('_', '-') for name in overrides)}"
    if from_source and source:
        from_source[0] = f"{source}: {from_source[0]}"
    return ("\n" + " " * 2).join([*from_source, *from_command])


def _is_inside(loc: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


_PLAIN = {
    "missing": "required, but not given",
    "union_tag_not_found": "required beside other settings, but not given",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "string_too_short": "must have at least {min_length} characters",
    "string_pattern_mismatch": "must match the pattern {pattern}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type", "set_type"), "must be a list"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be a table of settings"),
}
"""Plain message for each of pydantic's types of error."""
_MAX_SHOWN = 200


def _problem(item: Any, names: Sequence[str], tables: Sequence[type[BaseModel]], root: type[BaseModel]) -> str:
    """Says what is wrong with one field, in words that name neither pydantic nor its types."""
    kind, context, value = item["type"], item.get("ctx", {}), item["input"]
    if kind == "extra_forbidden":
        return "unknown key." + _suggest_setting(names, tables, root)
    if kind == "union_tag_invalid":
        return f"{context['tag']!r} is unknown.{suggest(context['tag'], _find_quotes(context['expected_tags']))}"
    if kind == "literal_error" and isinstance(value, str):
        return f"{value!r} is unknown.{suggest(value, _find_quotes(context['expected']))}"
    text = _PLAIN[kind].format(**context) if kind in _PLAIN else item["msg"]
    text = text.removeprefix("Value error, ").replace("Input should be", "must be")
    is_shown = kind not in ("missing", "union_tag_not_found") and not isinstance(value, (dict, BaseModel))
    return text + (f"; got {value!r:.{_MAX_SHOWN}}" if is_shown else "")


def _find_quotes(choices: str) -> list[str]:
    return re.findall(r"'([^']*)'", choices)


def _place(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], list[type[BaseModel]]]:
    """The names that a user writes for a location, and the configs that may stand where its last name is looked up.

    The tag of a union, such as `grpo` in `("algorithm", "grpo", "kl_coef")`, is no name: it chooses the config.
    """
    names: list[str] = []
    tables, inner = [model], [model]
    for part in location:
        if isinstance(part, int):
            names.append(str(part))
            continue
        if chosen := [each for each in inner if _tag(each) == part and len(inner) > 1]:
            inner = chosen
            continue
        names.append(part)
        tables = inner
        inner = [
            m for each in tables if part in each.model_fields for m in models_in(each.model_fields[part].annotation)
        ]
    return names, tables


def _suggest_setting(names: Sequence[str], tables: Sequence[type[BaseModel]], root: type[BaseModel]) -> str:
    """A setting of this table with a similar name, or the same name in another table of the whole config."""
    fields = list(dict.fromkeys(name for table in tables for name in table.model_fields))
    dotted = dict.fromkeys(_settings(root))
    word, mine = names[-1], ".".join(names)  # `mine` may be known to another algorithm
    same = [name for name in dotted if name.rpartition(".")[2] == word and name != mine]
    if same and word not in fields:
        fewest = min(name.count(".") for name in same)
        return f" Did you mean {' or '.join(repr(name) for name in same if name.count('.') == fewest)}?"
    leaves = {name.rpartition(".")[2]: name for name in reversed(dotted)}
    if not difflib.get_close_matches(word, fields, n=1) and (close := difflib.get_close_matches(word, leaves, n=1)):
        return f" Did you mean {leaves[close[0]]!r}?"
    return suggest(word, fields)


def _settings(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings; a list's entries stand for themselves by the number 0."""
    for name, field in model.model_fields.items():
        nested = models_in(field.annotation)
        is_list = "tuple[" in str(field.annotation)
        for each in nested:
            yield from _settings(each, f"{prefix}{name}." + ("0." if is_list else ""))
        if not nested:
            yield prefix + name


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("type")
    return None if field is None else str(field.default)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The configs named in a field's annotation: itself, or members of its unions and containers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in getattr(annotation, "__args__", ()) for model in models_in(argument)]
