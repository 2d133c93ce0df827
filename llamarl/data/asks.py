"""Ways to ask a problem: functions of a prompt that change what is asked, never the problem or its answer.

One function serves training and evaluation. Recipes (`coverage`) and commands (`--ask`) name it: a shipped one, or
`module:function` or `path/to/file.py:function` of a prompt that returns a prompt.

    plain                        with instructions to answer once
    voting                       with instructions to answer by a vote
    adaptive                     with instructions to vote where the problem is hard
    llamarl.tasks.chain:short    the permutation chain, to be answered at once
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError, boundary
from llamarl.core.loading import load_object
from llamarl.core.records import Message, Prompt

Ask = Callable[[Prompt], Prompt]
"""The problem as a model is asked it: with its instructions, or in its mode."""

Mode = Literal["plain", "voting", "adaptive"]
"""A prompt asks for one answer, for a vote, or for a vote where the problem is hard."""

FORM = (
    "Solve the problem below. If two steps or fewer are enough, be brief. Otherwise give each step a heading "
    "`## Step N:` and explain it in a sentence or two. Finish every solution with a line of its own:\n"
    "The final answer is $\\boxed{...}$."
)
VOTE = (
    "Give up to eight different solutions, and never refer back to an earlier one. Write each between [TRIAL] and "
    "[/TRIAL]. As soon as three of them agree on an answer, stop: this is the final answer. If no answer comes up "
    "three times, choose the most plausible one. State the final answer once more after the last [/TRIAL]."
)
CONDITIONS: dict[Mode, str] = {
    "plain": "",
    "voting": VOTE,
    "adaptive": f"If the problem is easy, solve it once, without any tags. If it is medium or hard: {VOTE}",
}
"""The instruction that stands between the form and the problem."""


def instruct(prompt: Prompt, mode: Mode) -> tuple[Message, ...]:
    """The prompt's messages, the last one wrapped in the instructions of a mode, in place of those of another.

    Raises:
        ConfigError: no such mode.
    """
    if mode not in CONDITIONS:
        raise ConfigError(f"mode {mode!r}:{suggest(mode, list(CONDITIONS))}")
    *before, last = prompt.messages
    problem = last["content"]
    for other in CONDITIONS:
        problem = problem.removeprefix(_instructions(other))
    return (*before, {"role": "user", "content": _instructions(mode) + problem})


def ask_in_mode(prompt: Prompt, mode: Mode) -> Prompt:
    """The prompt as reinforcement learning asks it: in a mode, without the attempts and solution of its row."""
    info = {key: value for key, value in prompt.info.items() if key not in ("completions", "solution")}
    return replace(prompt, messages=instruct(prompt, mode), info=info)


SHIPPED: dict[str, Ask] = {mode: partial(ask_in_mode, mode=mode) for mode in CONDITIONS}
"""Ways to ask that have a name of their own."""


def load_ask(spec: str, known: Mapping[str, Ask] = SHIPPED) -> Ask:
    """The function that `spec` names; what it returns is checked whenever it is called.

    Args:
        spec: a name among `known`, `module:function` or `path/to/file.py:function`.
        known: ways to ask by name.

    Raises:
        ConfigError: there is none of that name, or it does not take a prompt.
    """
    if spec in known:
        return known[spec]
    if ":" not in spec:
        raise ConfigError(f"ask {spec!r}: choose from {', '.join(known)}, or name a function, module:function")
    function: Any = load_object(spec)
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        raise ConfigError(f"ask {spec!r}: no function of a prompt") from None
    return partial(_call_ask, spec, function)


def _call_ask(spec: str, function: Ask, prompt: Prompt) -> Prompt:
    """Calls a user's function. Raises `DataError`, naming the prompt, where it fails or returns no prompt to ask."""
    with boundary(lambda problem: DataError(f"ask {spec!r} failed on prompt {prompt.id!r}: {problem}")):
        asked = function(prompt)
    if not isinstance(asked, Prompt) or not asked.messages:
        raise DataError(f"ask {spec!r} made no prompt of {prompt.id!r} but {asked!r:.80}; return a core.records.Prompt")
    return asked


def _instructions(mode: Mode) -> str:
    """All that stands before the problem."""
    return "\n\n".join(part for part in (FORM, CONDITIONS[mode], "Problem: ") if part)
