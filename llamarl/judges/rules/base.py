"""Base of every rule: its arguments, checked once, and the two ways it may judge a text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError
from llamarl.judges.rules.text import Text

Mode = Literal["official", "google", "fixed"]
"""`official`: the verdicts of the released Multi-IF grader, its defects included. `google`: those of the IFEval that it
descends from, which are the same but for three rules and replies of blanks. `fixed`: the defects repaired."""

RELATIONS = ("less than", "at least")


class Rule:
    """One instruction with its arguments. Built once, then asked about any number of texts.

    A subclass reads its arguments in `__init__`, judges in `official`, and overrides `fixed` only where the released
    grader has a defect that is repaired there.
    """

    id: ClassVar[str]
    """The instruction's name in IFEval and Multi-IF data."""
    needs_language: ClassVar[bool] = False
    """True if `fixed` asks for the text's language."""

    def __init__(self, arguments: "Arguments") -> None:
        self.mode: Mode = arguments.mode

    def describe(self) -> str:
        """The instruction in one plain sentence, for reports and reasons."""
        raise NotImplementedError

    def check_official(self, text: Text) -> bool:
        """The released grader's verdict."""
        raise NotImplementedError

    def check_google(self, text: Text) -> bool:
        """The verdict of Google's IFEval; by default the released one."""
        return self.check_official(text)

    def check_fixed(self, text: Text) -> bool:
        """The repaired verdict; by default the released one."""
        return self.check_official(text)

    def check(self, text: Text) -> bool:
        """Says whether the text follows the instruction.

        Raises:
            JudgeError: this text is too long for a keyword that is a regular expression (never in fixed mode).
        """
        if self.mode == "fixed":
            return self.check_fixed(text)
        return self.check_google(text) if self.mode == "google" else self.check_official(text)


class Arguments:
    """Reads the arguments of one instruction. Errors name instruction, argument, value and what is allowed."""

    def __init__(self, id: str, values: Mapping[str, Any], mode: Mode) -> None:
        self.id, self.mode = id, mode
        self._values = {name: value for name, value in values.items() if value is not None}
        self._known: list[str] = []

    def count(self, name: str, *, minimum: int = 0, maximum: int | None = None) -> int:
        """A whole number in [`minimum`, `maximum`]."""
        allowed = f"a whole number of at least {minimum}" + ("" if maximum is None else f" and at most {maximum}")
        value = self._value(name, allowed)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if not is_whole or value < minimum or (maximum is not None and value > maximum):
            raise self.error(name, value, allowed)
        return int(value)

    def limit(self, name: str, relation: str = "relation") -> "Limit":
        """A number with its relation, `less than` or `at least`."""
        # The released grader compares with whatever number of capital words it is given, a negative one too.
        is_signed = name == "capital_frequency" and self.mode != "fixed"
        number = self.count(name, minimum=-(2**63) if is_signed else 0)
        return Limit(self.choice(relation, RELATIONS), number)

    def choice(self, name: str, choices: tuple[str, ...]) -> str:
        """One of the given strings."""
        allowed = "one of " + ", ".join(repr(choice) for choice in choices)
        value = self._value(name, allowed)
        if value not in choices:
            raise self.error(name, value, allowed)
        return str(value)

    def text(self, name: str, *, can_be_blank: bool = False) -> str:
        """A string; with something in it unless `can_be_blank`."""
        allowed = "a text" if can_be_blank else "a text that is not blank"
        value = self._value(name, allowed)
        if not isinstance(value, str) or not (can_be_blank or value.strip()):
            raise self.error(name, value, allowed)
        return value

    def texts(self, name: str, *, can_be_blank: bool = False) -> list[str]:
        """A list of at least one string, without repeats and sorted."""
        allowed = "a list of at least one text" + ("" if can_be_blank else ", none of them blank")
        value = self._value(name, allowed)
        is_list = isinstance(value, list | tuple) and bool(value)
        if not is_list or not all(isinstance(item, str) and (can_be_blank or item.strip()) for item in value):
            raise self.error(name, value, allowed)
        return sorted(set(value))

    def finish(self) -> None:
        """Refuses arguments that the instruction does not have."""
        for name in self._values.keys() - set(self._known):
            remedy = suggest(name, self._known) if self._known else " It takes none."
            raise ConfigError(f"{self.id}: unknown argument {name!r}.{remedy}")

    def error(self, name: str, value: Any, allowed: str) -> ConfigError:
        """The error for a value that is not `allowed`."""
        return ConfigError(f"{self.id}: {name}={value!r}; give {allowed}")

    def _value(self, name: str, allowed: str) -> Any:
        self._known.append(name)
        if name not in self._values:
            raise ConfigError(f"{self.id}: {name} is missing; give {allowed}")
        return self._values[name]


@dataclass(frozen=True, slots=True)
class Limit:
    """A bound on a count. The two relations are complements: of one count, exactly one of them holds."""

    relation: str
    number: int

    def holds(self, count: int) -> bool:
        """Says whether `count` keeps to the bound."""
        return count < self.number if self.relation == "less than" else count >= self.number

    def __str__(self) -> str:
        return f"{self.relation} {self.number}"
