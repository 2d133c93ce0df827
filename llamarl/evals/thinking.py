r"""Thinking blocks: what a reasoning model writes before its answer, taken out before grading and out of the history.

    thinking_rule("think").split("<think>2 and 3 fail</think>\n\nYes")     # ("Yes", "2 and 3 fail")

    none            nothing is taken out
    think           <think> ... </think>
    OPEN,CLOSE      another pair of marks, such as [THINK],[/THINK]
    ,CLOSE          the chat template opens the block, so that a reply without CLOSE is thinking and nothing else

Blank characters around the answer go under every rule, as in the released Multi-IF runner.
"""

from dataclasses import dataclass

from llamarl.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ThinkingRule:
    """The texts with which a thinking block begins and ends."""

    opening: str = ""
    """Empty: the reply begins inside the block."""
    closing: str = ""
    """Empty: nothing is taken out."""

    def __str__(self) -> str:
        """The text from which `thinking_rule` makes the same rule."""
        pair = f"{self.opening},{self.closing}"
        return {",": "none", "<think>,</think>": "think"}.get(pair, pair)

    def split(self, text: str) -> tuple[str, str | None]:
        """The answer without blanks around it, and what was taken out (None if there was no block).

        A block that is never closed, as a token limit leaves it, goes on to the end. A closing mark before any opening
        one ends a block that the chat template opened. What several blocks hold is joined by newlines.
        """
        if not self.closing:
            return text.strip(), None
        kept: list[str] = []
        thoughts: list[str] = []
        is_inside = self._begins_inside(text)
        rest = text
        while rest:
            mark = self.closing if is_inside else self.opening
            part, found, rest = rest.partition(mark) if mark else (rest, "", "")
            (thoughts if is_inside else kept).append(part)
            is_inside = bool(found) and not is_inside
            if is_inside and not rest:
                thoughts.append("")
        answer = "".join(kept).strip()
        return answer, "\n".join(thought.strip() for thought in thoughts) if thoughts else None

    def _begins_inside(self, text: str) -> bool:
        if not self.opening:
            return True
        before, is_closed, _ = text.partition(self.closing)
        return bool(is_closed) and self.opening not in before


def thinking_rule(name: str) -> ThinkingRule:
    """The rule by its name: `none`, `think`, or a pair of marks `OPEN,CLOSE`.

    Raises:
        ConfigError: neither of these.
    """
    if name == "none":
        return ThinkingRule()
    if name == "think":
        return ThinkingRule("<think>", "</think>")
    opening, comma, closing = (part.strip() for part in name.partition(","))
    if not comma or not closing or opening == closing:
        raise ConfigError(
            f"thinking rule {name!r} is unknown; choose none, think, or two different marks with a comma between them, "
            "such as '[THINK],[/THINK]'"
        )
    return ThinkingRule(opening, closing)
