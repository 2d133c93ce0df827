"""The 25 instructions by id."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError
from llamarl.judges.rules import content, form, keywords, length
from llamarl.judges.rules.base import Arguments, Mode, Rule

RULES: Mapping[str, type[Rule]] = MappingProxyType(
    {
        rule.id: rule
        for rule in (
            keywords.Existence,
            keywords.Frequency,
            keywords.ForbiddenWords,
            keywords.LetterFrequency,
            form.ResponseLanguage,
            length.NumberOfSentences,
            length.NumberOfParagraphs,
            length.NumberOfWords,
            length.ParagraphFirstWord,
            content.NumberOfPlaceholders,
            content.Postscript,
            content.NumberOfBullets,
            content.ConstrainedResponse,
            content.NumberOfHighlights,
            content.MultipleSections,
            content.JsonFormat,
            content.Title,
            form.TwoResponses,
            form.RepeatPrompt,
            form.EndPhrase,
            form.CapitalWords,
            form.EnglishCapitals,
            form.EnglishLowercase,
            form.NoComma,
            form.Quotation,
        )
    }
)
"""Instruction id -> its rule."""


def build_rule(id: str, kwargs: Mapping[str, Any] | None = None, mode: Mode = "fixed") -> Rule:
    """The rule of one instruction.

    Args:
        id: such as `length_constraints:number_words`.
        kwargs: its arguments; None values count as not given.
        mode: which verdicts it gives.

    Raises:
        ConfigError: no such instruction; or an argument is missing, unknown or out of range. Nothing is ever drawn.
    """
    if id not in RULES:
        raise ConfigError(f"no instruction {id!r}.{suggest(str(id), list(RULES))}")
    if not isinstance(kwargs or {}, Mapping):
        raise ConfigError(f"{id}: kwargs={kwargs!r}; give a table of arguments by name")
    arguments = Arguments(id, kwargs or {}, mode)
    rule = RULES[id](arguments)
    arguments.finish()
    return rule
