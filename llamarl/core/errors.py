"""The one error tree.

    LlamaRLError
      ConfigError(ValueError)             a setting is wrong: names the field, the value and the remedy
      DataError(ValueError)               a row or file is wrong: names file, line, field and the remedy
      MissingDependencyError(ImportError) names the extra that brings the package
      CheckpointError(RuntimeError)       a checkpoint is torn, broken or of another run
        MissingCheckpointError            there is none of the name that was given, so it is a `ConfigError` too
      JudgeError(RuntimeError)            a judge broke; never turned into a reward
      EndpointError(ConnectionError)      a model server gave no usable reply, retries included
      ExecutorLostError(RuntimeError)     an executor died or fell silent; the controller may respawn it
        LostTouchError                    one of its ranks waits in vain for another, which is dead or silent
        RankMemoryError                   one of its ranks ran out of memory; all start over with smaller micro-batches
      WeightSyncError(RuntimeError)       weights that arrived are not the weights that were sent
      CollapseError(RuntimeError)         the policy degenerated; the run stopped before damage
      HackingError(RuntimeError)          a monitor of reward hacking passed its stop; the run ended with a checkpoint
      StallError(TimeoutError)            a deadline passed; names what was waited for

Each class is also a standard exception, so callers may catch either, and each pickles: it crosses process borders.
"""

import functools
import inspect
import os
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class LlamaRLError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(LlamaRLError, ValueError):
    """A setting is wrong."""


class DataError(LlamaRLError, ValueError):
    """A data row or file is wrong."""


class MissingDependencyError(LlamaRLError, ImportError):
    """An optional package is not installed."""

    @classmethod
    def for_extra(cls, package: str, extra: str) -> "MissingDependencyError":
        """The error for `package`, which `pip install 'llamarl[extra]'` brings."""
        return cls(f"{package} is not installed; run: pip install 'llamarl[{extra}]'")


class CheckpointError(LlamaRLError, RuntimeError):
    """A checkpoint cannot be used."""


class MissingCheckpointError(CheckpointError, ConfigError):
    """No checkpoint or run has the name that was given."""


class JudgeError(LlamaRLError, RuntimeError):
    """A judge broke. Its sample is failed, never scored."""


class EndpointError(LlamaRLError, ConnectionError):
    """A model server gave no usable reply, retries included."""


class ExecutorLostError(LlamaRLError, RuntimeError):
    """An executor died, was killed, or no longer answers.

    Args:
        message: which one, and why.
        event: names what took several executors at once, such as the loss of their host: it counts as one loss.
    """

    def __init__(self, message: str = "", event: str | None = None) -> None:
        super().__init__(message)
        self.event = event


class LostTouchError(ExecutorLostError):
    """A rank cannot go on, since an exchange with the others broke: another one is gone or silent."""


class RankMemoryError(ExecutorLostError):
    """One of several ranks ran out of memory: all of them start over, with smaller micro-batches."""

    def __init__(self, text: str, micro_batch_tokens: int) -> None:
        super().__init__(text)
        self.micro_batch_tokens = micro_batch_tokens
        """Tokens of the micro-batches that were too much."""

    def __reduce__(self) -> tuple[Any, ...]:  # it crosses from the rank's process to the controller's
        return RankMemoryError, (str(self), self.micro_batch_tokens)


class WeightSyncError(LlamaRLError, RuntimeError):
    """Received weights failed the version, checksum or probe proof."""


class CollapseError(LlamaRLError, RuntimeError):
    """The policy degenerated and the run stopped."""


class HackingError(LlamaRLError, RuntimeError):
    """The watch on reward hacking ended the run, with a checkpoint."""


class StallError(LlamaRLError, TimeoutError):
    """A deadline passed; the message names what was waited for."""


@contextmanager
def boundary(
    blame: Callable[[str], Exception], function: Any = None, *, passing: type[Exception] | tuple[()] = ()
) -> Iterator[None]:
    """Turns whatever a user's code raises inside the block into one error that says whose fault it was.

    Example:
        >>> with boundary(lambda problem: ConfigError(f"rewards.py: running it failed: {problem}")):
        ...     raise KeyError("answer")
        Traceback (most recent call last):
        llamarl.core.errors.ConfigError: rewards.py: running it failed: KeyError: 'answer'

    Args:
        blame: makes the error to raise from `describe`'s text: type, message and the line to look at.
        function: the user's function that is called, for `describe`.
        passing: an error that goes through as it is.
    """
    try:
        yield
    except passing:
        raise
    # A user's sys.exit() ends no run. GeneratorExit would close the coroutines that it is raised through.
    except (Exception, SystemExit, GeneratorExit) as error:
        raise blame(describe(error, function)) from error


REASON_CHARACTERS = 500


def describe(error: BaseException, function: Any = None) -> str:
    """Type, message and, where known, the line to look at.

    That is the last line of the user's own code on the way to the error, neither this package's nor a library's.

    Args:
        error: with its traceback.
        function: whose call failed. Where no line of it ran, as with a wrong keyword, its definition is the place.
    """
    frames = []
    trace = error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [frame for frame in frames if not frame[0].startswith(_FOREIGN)]
    place = (own or [*_definition(function), *reversed(frames)])[-1 if own else 0 :][:1]
    where = "".join(f" ({file}:{line})" for file, line in place)
    return f"{type(error).__name__}: {error}"[:REASON_CHARACTERS] + where


def place_of(function: Any) -> str:
    """`file:line: ` of a function's definition; empty where it has none, or one that is not the user's."""
    return "".join(f"{file}:{line}: " for file, line in _definition(function))


def _definition(function: Any) -> list[tuple[str, int]]:
    """File and line of a function of the user's."""
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function) if callable(function) else function
    if inspect.ismethod(function):
        function = function.__func__
    code = function.__code__ if inspect.isfunction(function) else None
    return [] if code is None or code.co_filename.startswith(_FOREIGN) else [(code.co_filename, code.co_firstlineno)]


_FOREIGN = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,  # this package
    *{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    "<frozen ",
)
"""Beginnings of the paths of files that are not the user's."""
