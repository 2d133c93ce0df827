"""Grading replies: each instruction strictly and loosely.

    grader = Grader("fixed")
    grade = grader.grade("NO COMMAS HERE", [{"id": "punctuation:no_comma", "kwargs": {}}])
    grade.strict, grade.loose        # ((True,), (True,))

Strict judges the reply as it is. Loose lets an instruction pass if any of eight versions of the reply passes: whole,
without its first line, without its last, without both; each as it is and without stars.

An instruction whose arguments make no sense is ungradable. The released grader draws random arguments then, or stops;
here its position is named with the reason, and the verdict is None (excluded) in fixed mode, False in the others.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from llamarl.core.errors import ConfigError, DataError, JudgeError
from llamarl.judges.rules.base import Mode, Rule
from llamarl.judges.rules.folding import as_read
from llamarl.judges.rules.registry import build_rule
from llamarl.judges.rules.text import Text
from llamarl.judges.rules.tools import RuleTools, SentenceSplitter
from llamarl.tasks.instructions.catalog import Instruction


@dataclass(frozen=True, slots=True)
class Grade:
    """Verdicts on one reply, by the position of the instruction: an id may occur twice."""

    strict: tuple[bool | None, ...]
    """Verdicts on the reply as it is. None: ungradable, in fixed mode."""
    loose: tuple[bool | None, ...]
    """Verdicts on any of the eight versions of the reply."""
    ungradable: Mapping[int, str]
    """Position -> why this instruction cannot be judged."""

    @property
    def passes_strict(self) -> bool:
        """True if all instructions with a verdict are followed strictly; True where there is none."""
        return all(verdict is not False for verdict in self.strict)


class Checklist:
    """The instructions of one turn, ready to grade any number of replies."""

    def __init__(self, rules: Sequence[Rule | str], tools: RuleTools) -> None:
        """Made by `Grader.checklist`.

        Args:
            rules: by position; a string says why there is none.
            tools: of the grader.
        """
        self.rules = tuple(rules)
        self._tools = tools

    @property
    def ungradable(self) -> dict[int, str]:
        """Position -> what is wrong with the instruction."""
        return {position: rule for position, rule in enumerate(self.rules) if isinstance(rule, str)}

    def grade(self, reply: str | None) -> Grade:
        """The verdicts on a reply; None or an empty one, a failed generation, follows nothing."""
        reply = as_read(reply or "") if self._tools.mode == "fixed" else reply or ""
        texts = {version: Text(version, self._tools) for version in loose_versions(reply)}
        strict: list[bool | None] = []
        loose: list[bool | None] = []
        ungradable = self.ungradable
        for position, rule in enumerate(self.rules):
            try:
                verdicts = self._verdicts(rule, reply, texts)
            except JudgeError as error:
                ungradable[position] = f"{rule if isinstance(rule, str) else rule.id}: {error}"
                verdicts = self._without_verdict()
            strict.append(verdicts[0])
            loose.append(verdicts[1])
        return Grade(tuple(strict), tuple(loose), ungradable)

    def _verdicts(self, rule: Rule | str, reply: str, texts: Mapping[str, Text]) -> tuple[bool | None, bool | None]:
        if isinstance(rule, str):
            return self._without_verdict()
        is_graded = bool(reply) if self._tools.mode == "official" else bool(reply.strip())
        whole = texts.get(reply) or Text(reply, self._tools)
        strict = is_graded and rule.check(whole)
        return strict, (strict and bool(texts)) or any(rule.check(text) for text in texts.values() if text is not whole)

    def _without_verdict(self) -> tuple[bool | None, bool | None]:
        return (None, None) if self._tools.mode == "fixed" else (False, False)


class Grader:
    """Grades replies in one mode, with the same verdict for the same text in any process, order or thread."""

    def __init__(
        self, mode: Mode = "fixed", *, sentence_splitter: SentenceSplitter | None = None, seed: int | None = 0
    ) -> None:
        """Loads what the mode needs.

        Args:
            mode: `official` reproduces the released Multi-IF grader, `google` IFEval's; `fixed` repairs their defects.
            sentence_splitter: `punkt` (default but for fixed mode; needs NLTK and its data) or `rules` (ours). With
                `rules`, number_sentences and capital_word_frequency are only close to the released verdicts.
            seed: of language detection by langdetect (not in fixed mode); None draws anew on each call, as the released
                grader does.

        Raises:
            ConfigError: no such mode or splitter, or NLTK's data is missing (names the command that gets it).
            MissingDependencyError: a package is missing; names the extra.
        """
        if mode not in get_args(Mode):
            raise ConfigError(f"mode={mode!r}; choose 'official', 'google' or 'fixed'")
        self.mode: Mode = mode
        self._tools = RuleTools(mode, sentence_splitter or ("rules" if mode == "fixed" else "punkt"), seed)

    def record(self) -> dict[str, str]:
        """Mode, detector, seed, splitter and package versions: what to write beside every score."""
        return self._tools.record()

    def checklist(self, instructions: Sequence[Instruction], *, is_strict: bool = False) -> Checklist:
        """The instructions of one turn, checked.

        Args:
            instructions: each `{"id": ..., "kwargs": {...}}`.
            is_strict: raise on an instruction that is wrong, instead of leaving it ungradable.

        Raises:
            DataError: an entry is no such mapping.
            ConfigError: `is_strict`, and an instruction is wrong.
            MissingDependencyError: an instruction needs the language, and the detector's package is missing.
        """
        rules: list[Rule | str] = []
        for position, instruction in enumerate(instructions):
            if not isinstance(instruction, Mapping) or not isinstance(instruction.get("id"), str):
                raise DataError(f"instructions[{position}]: {instruction!r}; give {{'id': ..., 'kwargs': {{...}}}}")
            try:
                rules.append(build_rule(instruction["id"], instruction.get("kwargs"), self.mode))
            except ConfigError as error:
                if is_strict:
                    raise
                rules.append(str(error))
        if any(isinstance(rule, Rule) and rule.needs_language for rule in rules):
            self._tools.load_language()
        return Checklist(rules, self._tools)

    def grade(self, reply: str | None, instructions: Sequence[Instruction]) -> Grade:
        """The verdicts on one reply."""
        return self.checklist(instructions).grade(reply)


def loose_versions(reply: str) -> list[str]:
    """The versions of a reply that loose grading looks at, without blank ones and repeats; the reply itself first."""
    lines = reply.split("\n")
    cuts = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    versions = [version for cut in cuts for version in (cut, cut.replace("*", ""))]
    return list(dict.fromkeys(version for version in versions if version.strip()))


@functools.cache
def _grader(mode: Mode) -> Grader:
    return Grader(mode)


def grade(reply: str | None, instructions: Sequence[Instruction], mode: Mode = "fixed") -> Grade:
    """The verdicts on one reply, by a grader of default settings that is kept. Raises what `Grader` raises."""
    return _grader(mode).grade(reply, instructions)
