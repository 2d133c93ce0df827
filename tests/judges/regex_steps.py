"""A backtracking matcher that counts its steps: how much work a regular expression is, whatever the machine.

It works from the parsed pattern as `re` does: the same matches, and about the same order of attempts.
"""

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

op: Any = import_module("re._constants")
parser: Any = import_module("re._parser")

Continue = Callable[[int], int | None]
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    op.CATEGORY_DIGIT: str.isdecimal,
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_WORD: lambda character: character.isalnum() or character == "_",
}
_NOT = {
    op.CATEGORY_NOT_DIGIT: op.CATEGORY_DIGIT,
    op.CATEGORY_NOT_SPACE: op.CATEGORY_SPACE,
    op.CATEGORY_NOT_WORD: op.CATEGORY_WORD,
}


class StepCounter:
    """Searches one text with one pattern."""

    def __init__(self, pattern: re.Pattern[str], text: str) -> None:
        self.text, self.steps = text, 0
        self._flags = pattern.flags
        self._parsed = list(parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE))
        self._groups: dict[int, tuple[int, int]] = {}

    def spans(self) -> Iterator[tuple[int, int]]:
        """As of `finditer`."""
        start, floor = 0, -1
        while start <= len(self.text):
            self._groups.clear()
            end = self._run(self._parsed, start, lambda end, floor=floor: None if end == floor else end)  # type: ignore[misc]
            if end is None:
                start, floor = start + 1, -1
                continue
            yield start, end
            floor = end if end == start else -1  # there is no second empty match at one place
            start = end

    def fullmatch(self) -> int | None:
        """As of `fullmatch`."""
        return self._run(self._parsed, 0, lambda end: end if end == len(self.text) else None)

    def _run(self, items: list[Any], at: int, then: Continue) -> int | None:
        if not items:
            return then(at)
        self.steps += 1
        (operator, argument), rest = items[0], items[1:]

        def go_on(at: int) -> int | None:
            return self._run(rest, at, then)

        if operator in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
            return go_on(at + 1) if at < len(self.text) and self._is_one(operator, argument, self.text[at]) else None
        if operator is op.SUBPATTERN:
            group, _, _, body = argument

            def close(end: int) -> int | None:
                if group is not None:
                    self._groups[group] = at, end
                return go_on(end)

            return self._run(list(body), at, close)
        if operator is op.BRANCH:
            ends = (self._run(list(branch), at, go_on) for branch in argument[1])
            return next((end for end in ends if end is not None), None)
        if operator in (op.MAX_REPEAT, op.MIN_REPEAT):
            least, most, body = argument
            return self._repeat(operator is op.MAX_REPEAT, least, most, list(body), at, 0, go_on)
        if operator in (op.ASSERT, op.ASSERT_NOT):
            direction, body = argument
            start = at if direction > 0 else at - body.getwidth()[0]
            is_there = start >= 0 and self._run(list(body), start, lambda end: end) is not None
            return go_on(at) if is_there is (operator is op.ASSERT) else None
        if operator is op.GROUPREF:
            first, last = self._groups[argument]
            piece = self.text[first:last]
            return go_on(at + len(piece)) if self.text.startswith(piece, at) else None
        assert operator is op.AT, operator
        return go_on(at) if self._is_place(argument, at) else None

    def _repeat(
        self, is_greedy: bool, least: int, most: Any, body: list[Any], at: int, count: int, then: Continue
    ) -> int | None:
        def again(end: int) -> int | None:
            if end == at and count >= least:
                return None
            return self._repeat(is_greedy, least, most, body, end, count + 1, then)

        def once_more() -> int | None:
            return self._run(body, at, again) if most is op.MAXREPEAT or count < most else None

        def stop() -> int | None:
            return then(at) if count >= least else None

        first, second = (once_more, stop) if is_greedy else (stop, once_more)
        end = first()
        return second() if end is None else end

    def _is_one(self, operator: Any, argument: Any, character: str) -> bool:
        if operator is op.ANY:
            return character != "\n" or bool(self._flags & re.DOTALL)
        if operator is op.NOT_LITERAL:
            return not self._is_one(op.LITERAL, argument, character)
        if operator is op.LITERAL:
            return chr(argument) in self._cases(character)
        is_negated = argument[0][0] is op.NEGATE
        return any(self._is_in(*each, character) for each in argument[is_negated:]) is not is_negated

    def _is_in(self, operator: Any, argument: Any, character: str) -> bool:
        if operator is op.CATEGORY:
            return bool(_CATEGORIES[_NOT.get(argument, argument)](character)) is not (argument in _NOT)
        if operator is op.RANGE:
            return any(argument[0] <= ord(case) <= argument[1] for case in self._cases(character))
        return chr(argument) in self._cases(character)

    def _cases(self, character: str) -> tuple[str, ...]:
        cases = (character, character.lower(), character.upper()) if self._flags & re.IGNORECASE else (character,)
        return tuple(case for case in cases if len(case) == 1)

    def _is_place(self, place: Any, at: int) -> bool:
        before, after = self.text[max(at - 1, 0) : at], self.text[at : at + 1]
        if place in (op.AT_BEGINNING, op.AT_BEGINNING_STRING):
            return not before or (before == "\n" and bool(self._flags & re.MULTILINE))
        if place is op.AT_END:
            return not after or (after == "\n" and (bool(self._flags & re.MULTILINE) or at + 1 == len(self.text)))
        is_word = _CATEGORIES[op.CATEGORY_WORD]
        is_boundary = bool(before and is_word(before)) is not bool(after and is_word(after))
        return is_boundary is (place is op.AT_BOUNDARY)


def pieces(pattern: re.Pattern[str]) -> list[str]:
    """Characters and strings that the pattern speaks of: what a text must be made of to keep it busy."""
    found: dict[str, None] = {}

    def look(items: Any) -> None:
        literal = ""
        for operator, argument in items:
            if operator is op.LITERAL:
                literal += chr(argument)
                continue
            found[literal] = None
            literal = ""
            if operator is op.IN:
                found.update(dict.fromkeys(map(_example, argument)))
            for body in _bodies(argument):
                look(body)
        found[literal] = None

    look(parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE))
    return [piece for piece in found if piece]


def _bodies(argument: Any) -> list[Any]:
    if isinstance(argument, parser.SubPattern):
        return [argument]
    return [body for each in argument for body in _bodies(each)] if isinstance(argument, tuple | list) else []


def _example(item: Any) -> str:
    operator, argument = item
    if operator is op.CATEGORY:
        return {op.CATEGORY_DIGIT: "1", op.CATEGORY_SPACE: " ", op.CATEGORY_WORD: "a"}.get(argument, "!")
    if operator is op.RANGE:
        return chr(argument[0])
    return chr(argument) if operator is op.LITERAL else ""
