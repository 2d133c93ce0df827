"""A command line from functions: a command is a function, and its options are the fields of the settings it takes.

    def solve(settings: PoolSettings, output: Output) -> int:
        '''Choose the responses to imitate under a cap on the expensive ones.

Examples:
            llamarl budget solve --data pool.jsonl --q-plus 0.5 --out chosen.jsonl
        '''

Each parameter whose type is a `Config` adds one option per field: the name with dashes, the help from the field's
docstring with its range, choices and default. A field that holds a `Config` adds `--field.name` for each of its own.
Fields that come from a base class stand under a heading, the first line of that class's docstring. The config checks
the values, and its errors name the option. The other parameters that a command may have are an `Output` and
`Overrides`. Nothing here imports torch, so that `--help` is quick.
"""

import argparse
import dataclasses
import inspect
import json
import types
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from llamarl.core.config import Config, Metavar, suggest
from llamarl.core.errors import ConfigError

T = TypeVar("T")
_POSITIONAL = "positional"
Positional = Annotated[T, _POSITIONAL]
"""A setting that is given by its place, as in `run_dir: Positional[str]`."""


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """Form of a command's result: a parameter of this type adds `--json`."""

    json: bool = dataclasses.field(default=False, metadata={"help": "print one JSON object instead of text"})


@dataclasses.dataclass(frozen=True, slots=True)
class LiveOutput(Output):
    """Form of a command's progress and result: a parameter of this type adds `--json`, `--plain` and `--quiet`."""

    plain: bool = dataclasses.field(
        default=False, metadata={"help": "progress as plain lines (the default without a terminal)"}
    )
    quiet: bool = dataclasses.field(default=False, metadata={"help": "no progress"})


class Overrides(tuple[str, ...]):
    """Arguments that are no options, such as `--schedule.steps 50`; a parameter of this type takes them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """One field of a command's settings, as a command line has it."""

    name: str
    """The dotted name of the field."""
    field: FieldInfo
    heading: str
    """The heading it stands under in `--help`; "" for the command's own options."""

    @property
    def flag(self) -> str:
        """The name as a user types it."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_positional(self) -> bool:
        """True if the value is given by its place."""
        return _POSITIONAL in self.field.metadata

    @property
    def type(self) -> Any:
        """The field's type without None and annotations."""
        return _bare(self.field.annotation)

    @property
    def form(self) -> Literal["flag", "value", "list", "table", "json"]:
        """Form of the value: none, one text, one text per entry, `NAME=VALUE`s, or a JSON object."""
        origin = get_origin(self.type)
        if origin is dict:
            return "json" if get_args(self.type)[1] is Any else "table"
        return "flag" if self.type is bool else "list" if origin is tuple else "value"

    @property
    def holds_numbers(self) -> bool:
        """True if the value, or each entry, is a number."""
        place = {"list": 0, "table": 1}.get(self.form)
        return (self.type if place is None else _bare(get_args(self.type)[place])) in (int, float)

    @property
    def metavar(self) -> str:
        """The word that stands for the value in `--help`."""
        if given := [item for item in self.field.metadata if isinstance(item, Metavar)]:
            return given[0]
        if get_origin(self.type) is Literal:
            return "{" + ",".join(map(str, get_args(self.type))) + "}"
        if self.form == "list" and self.holds_numbers:
            return "N,N,..."
        last_word = self.name.rpartition(".")[2].rpartition("_")[2].upper()
        by_form = {"json": "JSON", "table": "NAME=VALUE"}
        return by_form.get(self.form) or {int: "N", float: "X", Path: "PATH"}.get(self.type, last_word)

    @property
    def usage(self) -> str:
        """The option's part of the usage line, which names what must be given, and what may be given by its place."""
        if self.is_positional:
            text = f"{self.metavar} [{self.metavar} ...]" if self.form in ("list", "table") else self.metavar
            return text if self.field.is_required() else f"[{text}]"
        return f"{self.flag} {self.metavar}" if self.field.is_required() else ""

    @property
    def meaning(self) -> str:
        """The field's docstring on one line, without its full stop."""
        return " ".join((self.field.description or "").split()).removesuffix(".")

    @property
    def help(self) -> str:
        """The field's docstring, with the range of the value, whether it may be repeated, and the default."""
        signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        bounds = [
            (signs[key], getattr(item, key)) for item in self.field.metadata for key in signs if hasattr(item, key)
        ]
        facts = [f"{sign} {bound}" if isinstance(bound, int) else f"{sign} {bound:g}" for sign, bound in bounds]
        if self.form in ("list", "table") and not (self.is_positional or (self.holds_numbers and self.form == "list")):
            facts.append("repeatable")
        default = None if self.field.is_required() else self.field.get_default(call_default_factory=True)
        if default not in (None, False, "", (), {}):
            entries = default if isinstance(default, tuple) else (default,)
            facts.append(
                "default " + ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in entries)
            )
        text = self.meaning
        if not facts:
            return text
        return f"{text[:-1]}, {', '.join(facts)})" if text.endswith(")") else f"{text} ({', '.join(facts)})"

    def add_to(self, parser: "argparse._ActionsContainer") -> None:
        """Adds the option to a parser or to a group of one; it leaves no trace in the result where it is not given."""
        form: dict[str, Any] = {"help": self.help.replace("%", "%%"), "default": argparse.SUPPRESS}
        if self.is_positional:
            nargs = "+" if self.form in ("list", "table") else None if self.field.is_required() else "?"
            parser.add_argument(self.name, nargs=nargs, metavar=self.metavar, **form)
            return
        form |= {"dest": self.name, "required": self.field.is_required()}
        if self.form == "flag":
            parser.add_argument(self.flag, action="store_true", **form)
        else:
            action = "append" if self.form in ("list", "table") else "store"
            parser.add_argument(self.flag, action=action, metavar=self.metavar, **form)

    def read(self, given: Any) -> Any:
        """The value that stands on the command line, for the config to check.

        Args:
            given: a text; True for a flag; texts for a list or table.

        Raises:
            ConfigError: an entry of a table is not `NAME=VALUE` or is given twice, or a text is no JSON.
        """
        read = _number if self.holds_numbers else str
        if self.form == "json":
            try:
                return json.loads(given)
            except (ValueError, RecursionError) as error:
                raise ConfigError(
                    f"{self.flag} {given!r}: no JSON ({error}); give an object, such as '{{\"top_k\": 20}}'"
                ) from None
        if self.form == "list":
            return [read(part) for text in given for part in (text.split(",") if self.holds_numbers else [text])]
        if self.form != "table":
            return given if self.form == "flag" else read(given)
        table: dict[str, Any] = {}
        for text in given:
            name, _, value = text.partition("=")
            if not name or not value:
                raise ConfigError(f"{self.flag} {text}: write {self.metavar}")
            if name in table:
                raise ConfigError(f"{self.flag} {text}: {name}={table[name]} is given already; give each name once")
            table[name] = read(value)
        return table


class Command:
    """A command made from a function.

    Args:
        name: the words behind `llamarl`.
        function: takes `Config`s, at most one `Output` and one `Overrides`; returns the exit status, None for 0. Its
            docstring is the help, with an `Examples` section.
    """

    def __init__(self, name: str, function: Callable[..., int | None]) -> None:
        self.name = name
        self._function = function
        text, _, examples = inspect.cleandoc(function.__doc__ or "").partition("\nExamples:\n")
        self.description, self.examples = text.strip(), inspect.cleandoc(examples)

    @property
    def summary(self) -> str:
        """The first line of the help, for a list of commands."""
        return self.description.partition("\n")[0].removesuffix(".")

    @property
    def takes_overrides(self) -> bool:
        """True if arguments that are no options are settings of something else."""
        return self._overrides is not None

    @cached_property
    def configs(self) -> dict[str, type[Config]]:
        """The configs that the function takes, by parameter."""
        return {key: kind for key, kind in self._types.items() if issubclass(kind, Config)}

    @cached_property
    def parser(self) -> argparse.ArgumentParser:
        """The parser of the options; it leaves no trace of those that are not given."""
        options = [option for options in self._options.values() for option in options]
        parser = _Parser(
            prog=f"llamarl {self.name}",
            usage=" ".join(["%(prog)s", *(each.usage for each in options if each.usage), "[OPTION ...]"]),
            description=self.description,
            epilog="examples:\n" + "\n".join(f"  {line}" for line in self.examples.splitlines()),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        groups: dict[str, argparse._ActionsContainer] = {"": parser}
        for option in sorted(options, key=lambda option: (option.heading != "", not option.field.is_required())):
            if option.heading not in groups:
                groups[option.heading] = parser.add_argument_group(option.heading)
            option.add_to(groups[option.heading])
        if self._output is not None:
            group = parser.add_argument_group("output")
            for each in dataclasses.fields(self._output[1]):
                group.add_argument(f"--{each.name}", action="store_true", help=each.metadata["help"])
        return parser

    def run(self, arguments: Sequence[str]) -> int:
        """Runs the command and returns its exit status. Raises what `parse` and the function raise."""
        return int(self._function(**self.parse(arguments)) or 0)

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """The keyword arguments for the function.

        Raises:
            ConfigError: an option is unknown, misses or lacks its value, or a config refuses its value.
        """
        found, rest = self.parser.parse_known_args(arguments)
        given = vars(found)
        keywords: dict[str, Any] = {}
        if self._overrides is not None:
            if rest and rest[-1].startswith("--") and "=" not in rest[-1]:
                self._refuse_mistyped(rest[-1])
            keywords[self._overrides] = Overrides(rest)
        elif rest:
            self._refuse(rest[0])
        for key, options in self._options.items():
            values: dict[str, Any] = {}
            for option in options:
                if option.name in given:
                    *sections, last = option.name.split(".")
                    section = values
                    for name in sections:
                        section = section.setdefault(name, {})
                    section[last] = option.read(given[option.name])
            keywords[key] = self.configs[key].parse(values, overrides=[option.name for option in options])
        if self._output is not None:
            key, kind = self._output
            keywords[key] = kind(**{each.name: given.get(each.name, False) for each in dataclasses.fields(kind)})
        return keywords

    @cached_property
    def _types(self) -> dict[str, type]:
        return {key: kind for key, kind in get_type_hints(self._function).items() if key != "return"}

    @cached_property
    def _options(self) -> dict[str, list[Option]]:
        return {key: list(_options_of(kind)) for key, kind in self.configs.items()}

    @cached_property
    def _output(self) -> tuple[str, type[Output]] | None:
        return next(((key, kind) for key, kind in self._types.items() if issubclass(kind, Output)), None)

    @cached_property
    def _overrides(self) -> str | None:
        return next((key for key, kind in self._types.items() if issubclass(kind, Overrides)), None)

    def _refuse_mistyped(self, argument: str) -> None:
        """Raises `ConfigError` for an override without a value whose name is nearly that of an option."""
        close = suggest(argument, self._flags())
        if "Did you mean" in close:
            self.parser.error(f"{argument}: unknown option.{close}")

    def _flags(self) -> list[str]:
        return [flag for action in self.parser._actions for flag in action.option_strings]

    def _refuse(self, argument: str) -> NoReturn:
        """Raises `ConfigError` for an argument that the parser does not know."""
        if not argument.startswith("-"):
            self.parser.error(f"{argument!r}: more arguments than this command takes")
        name = argument.partition("=")[0]
        close = suggest(name, self._flags())
        self.parser.error(f"{name}: unknown option.{close if 'Did you mean' in close else ''}")


class _Parser(argparse.ArgumentParser):
    """A parser that raises `ConfigError` where argparse exits; its usage may be longer than a screen."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}\n`{self.prog} --help` shows what it takes")


def _options_of(config: type[Config], prefix: str = "", heading: str = "") -> Iterator[Option]:
    """The options of a config, those of its base classes in the order of the bases, each base under its heading.

    Lists of configs, and choices among several, are left to overrides.
    """
    groups = [base for base in config.__mro__[1:] if base.__bases__ == (Config,)]
    headings = {
        name: (inspect.getdoc(group) or "").partition("\n")[0].removesuffix(".")
        for group in groups
        for name in cast(type[Config], group).model_fields
    }
    order = ["", *dict.fromkeys(headings.values())]
    fields = sorted(config.model_fields.items(), key=lambda item: order.index(headings.get(item[0], "")))
    for name, field in fields:
        option = Option(f"{prefix}{name}", field, heading)
        if isinstance(option.type, type) and issubclass(option.type, Config):
            yield from _options_of(option.type, f"{option.name}.", option.meaning)
            continue
        yield dataclasses.replace(option, heading=headings.get(name, heading))


def _bare(annotation: Any) -> Any:
    """A type without None and annotations."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _bare(next(each for each in get_args(annotation) if each is not type(None)))
    return annotation


def _number(text: str) -> Any:
    """The number that a text is; a text that is none, for the config to refuse."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
