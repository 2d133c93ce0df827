"""Calls of a judge's methods beside `judge`, wherever it runs: whatever they raise, the error names the judge."""

import asyncio
import logging
import numbers
from collections.abc import Mapping

from llamarl.core.errors import ConfigError, DataError, JudgeError, LlamaRLError, MissingDependencyError, boundary
from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import Prompt

_log = logging.getLogger(__name__)


def check_declaration(judge: Judge) -> None:
    """Raises `ConfigError` for a judge whose `name` is no text or whose `info` is no `JudgeInfo`."""
    kind = type(judge).__name__
    if not isinstance(judge.name, str):
        raise ConfigError(f"a judge of class {kind} has name={judge.name!r}; give its class a 'name' that is a text")
    if not judge.name:
        raise ConfigError(f"a judge of class {kind} has no name; give its class a 'name'")
    if not isinstance(judge.info, JudgeInfo):
        raise ConfigError(f"judge '{judge.name}': info={judge.info!r}; give its class info = JudgeInfo(...), or none")


def check_prompt(judge: Judge, prompt: Prompt, where: str = "") -> None:
    """Asks the judge whether the prompt holds what it needs.

    Args:
        judge: whose `check` is called.
        prompt: a row.
        where: beginning of the error.

    Raises:
        ConfigError: names the prompt, its task and the judge, and what is missing or what `check` raised.
        MissingDependencyError: the judge needs a package.
    """
    try:
        with boundary(lambda problem: ConfigError(f"check raised {problem}"), passing=LlamaRLError):
            judge.check(prompt)
    except (ConfigError, DataError, JudgeError) as error:
        place = f"prompt {prompt.id!r}"  # some judges name it themselves
        problem = str(error).removeprefix(f"{place}: ")
        text = f"{where}{place} (task {prompt.task!r}), judge '{judge.name}': {problem}"
        raise ConfigError(text) from error.__cause__


def load(judge: Judge) -> None:
    """Loads the judge's models.

    Raises:
        ConfigError: names the judge and the setting that `load` refused.
        JudgeError: names the judge and whatever else `load` raised.
        MissingDependencyError: the judge needs a package.
    """
    try:
        with boundary(JudgeError, passing=LlamaRLError):
            judge.load()
    except MissingDependencyError:
        raise  # the package and how to get it are the whole message
    except LlamaRLError as error:
        kind = ConfigError if isinstance(error, ConfigError) else JudgeError
        raise kind(f"judge '{judge.name}' does not load: {error}") from error


def measure(judge: Judge) -> dict[str, float]:
    """Returns the judge's metrics. Raises `JudgeError` where it raised, or returned anything but numbers by name."""
    with boundary(lambda problem: JudgeError(f"metrics raised {problem}")):
        measured = judge.metrics()
        values = dict(measured) if isinstance(measured, Mapping) else {}
        floats = {name: float(value) for name, value in values.items() if isinstance(value, numbers.Real)}
    if not isinstance(measured, Mapping):
        raise JudgeError(f"metrics returned {type(measured).__name__}; return numbers by short names")
    for name, value in values.items():
        if not isinstance(name, str) or name not in floats:
            raise JudgeError(f"metrics returned {value!r:.80} as {name!r:.80}; return numbers by short names")
    return floats


def close(judge: Judge) -> None:
    """Closes the judge; a failure is logged, since what was judged stands."""
    try:
        with boundary(JudgeError):
            judge.close()
    except (JudgeError, asyncio.CancelledError) as error:  # nothing cancels plain code: the judge raised that itself
        _log.warning("judge '%s' failed while it closed: %s", judge.name, str(error) or "CancelledError")


async def aclose(judge: Judge) -> None:
    """Closes the judge and waits for that; a failure is logged, since what was judged stands."""
    try:
        with boundary(JudgeError):
            await judge.aclose()
    except JudgeError as error:
        _log.warning("judge '%s' failed while it closed: %s", judge.name, error)
    except asyncio.CancelledError:
        if (current := asyncio.current_task()) is None or current.cancelling():
            raise  # somebody ends the program
        _log.warning("judge '%s' cancelled itself while it closed", judge.name)
