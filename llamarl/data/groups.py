"""Groups of responses: which are expensive. A group is told by a response's form, never by its length or its merit.

One function serves training, reward, data and evaluation: `(prompt, completion) -> group`, or None for a response that
has no valid form. Recipes and commands name it: `module:function` or `path/to/file.py:function`.

    llamarl.judges.voting:group     a vote of several trials is long, a plain answer short
    llamarl.data.groups:thinking    an answer after thoughts is long, one without them short
    llamarl.tasks.chain:group       the same, for the permutation chain
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from llamarl.core.errors import ConfigError, DataError, boundary
from llamarl.core.loading import load_object
from llamarl.core.records import Completion, Prompt

GroupFunction = Callable[[Prompt, Completion], str | None]
"""The group of a completion; None where its form is invalid."""


def thinking(prompt: Prompt, completion: Completion) -> str | None:
    """`long` for an answer after thoughts, `short` for one without: a hybrid model's thinking, on or off.

    Thoughts stand before `</think>`; the opening tag may belong to the prompt. An empty block counts as none. None for
    an unclosed or repeated block, and for a completion that the token limit cut.
    """
    if completion.finish_reason == "length":
        return None
    thoughts, closing, answer = completion.text.rpartition("</think>")
    if not closing:
        return "short" if "<think>" not in answer else None
    thoughts = thoughts.lstrip().removeprefix("<think>")
    if any(tag in thoughts + answer for tag in ("<think>", "</think>")):
        return None
    return "long" if thoughts.strip() else "short"


def load_group_function(spec: str) -> GroupFunction:
    """The function that `spec` names; what it returns is checked whenever it is called.

    Raises:
        ConfigError: there is none of that name, or it does not take (prompt, completion).
    """
    function: Any = load_object(spec)
    try:
        inspect.signature(function).bind(None, None)
    except (TypeError, ValueError):
        raise ConfigError(f"groups: {spec} is no function of (prompt, completion)") from None
    return partial(_call_group, spec, function)


def _call_group(spec: str, function: GroupFunction, prompt: Prompt, completion: Completion) -> str | None:
    """Calls a user's function. Raises `DataError`, naming the prompt, where it fails or returns no group."""
    with boundary(
        lambda problem: DataError(
            f"group function {spec!r} failed on a completion of prompt {prompt.id!r}: {problem}; "
            "return None for a completion that it cannot read"
        )
    ):
        group = function(prompt, completion)
    if not (group is None or (isinstance(group, str) and group)):
        raise DataError(
            f"group function {spec!r} gave a completion of prompt {prompt.id!r} the group {group!r:.80}; return a "
            "group's name, or None where the form is invalid"
        )
    return group
