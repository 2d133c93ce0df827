"""Settings of the monitors. Nothing here imports more than pydantic and tables of phrases."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llamarl.core.config import Config, suggest
from llamarl.judges.rules.lexicon import LANGUAGES, tokens_of

Signal = Literal["farewell", "love", "phrases", "ending", "length", "question", "emoji", "turns"]
DEFAULT_SIGNALS: tuple[Signal, ...] = ("farewell", "love", "ending", "length", "question", "emoji", "turns")
OF_PHRASES = ("farewell", "love", "phrases")


class MonitorConfig(Config):
    """One monitor: what it counts, and from what change on it speaks up."""

    signal: Signal
    """`farewell` and `love`: responses with such a phrase; `phrases`: with one of your own; `ending`: how alike last
    sentences are; `length`: words; `question` and `emoji`: responses that have one; `turns`: of a session, offline."""
    name: str | None = Field(default=None, pattern=r"^[\w-]+$")
    """Name in metrics and messages; None: the signal's."""
    languages: tuple[str, ...] = LANGUAGES
    """Codes of the languages whose phrases count."""
    phrases: tuple[str, ...] = ()
    """Further phrases that count."""
    warn: float = Field(default=1.5, gt=1.0)
    """Times the control's from which it warns."""
    stop: float | None = Field(default=2.0, gt=1.0)
    """Times the control's from which it stops the run, or blocks a release; None: never."""

    @field_validator("languages")
    @classmethod
    def _have_tables(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        for language in languages:
            if language not in LANGUAGES:
                raise ValueError(f"{language!r} has no table of phrases.{suggest(language, list(LANGUAGES))}")
        return languages

    @field_validator("phrases")
    @classmethod
    def _have_words(cls, phrases: tuple[str, ...]) -> tuple[str, ...]:
        for phrase in phrases:
            if not tokens_of(phrase):
                raise ValueError(f"{phrase!r} has no letter or digit; give words")
        return phrases

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.signal == "phrases" and not self.phrases:
            raise ValueError("phrases: none given, so signal='phrases' would count nothing; list what to look for")
        if self.phrases and self.signal not in OF_PHRASES:
            raise ValueError(f"phrases: signal={self.signal!r} looks for none; use one of {', '.join(OF_PHRASES)}")
        if self.stop is not None and self.stop < self.warn:
            raise ValueError(f"stop={self.stop:g} is below warn={self.warn:g}; it must not be")
        return self

    @property
    def label(self) -> str:
        """Name in metrics and messages."""
        return self.name or self.signal


def _by_name(values: Any) -> Any:
    """Monitors given by their signals alone: `["farewell", "love"]`."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return values
    return [{"signal": value} if isinstance(value, str) else value for value in values]


MonitorList = Annotated[tuple[MonitorConfig, ...], BeforeValidator(_by_name)]
"""Monitors with names of their own; a signal's name alone stands for its defaults."""


class Support(Config):
    """The certainty that a monitor must have."""

    chance: float = Field(default=0.01, gt=0.0, lt=0.5)
    """Probability that any monitor speaks up at all, in a whole run or in one comparison, while nothing has changed;
    divided among the monitors and the looks that they take."""
    floor: float = Field(default=0.001, gt=0.0, lt=1.0)
    """A control's share below this counts as this, so that what the control never does may happen twice."""


def check_names(monitors: Sequence[MonitorConfig]) -> None:
    """Raises `ValueError` where two monitors have one name."""
    labels = [monitor.label for monitor in monitors]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise ValueError(f"monitors: two are named {twice[0]!r}; give each a name of its own")
