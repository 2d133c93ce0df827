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
      WeightSyncError(RuntimeError)       weights that arrived are not the weights that were sent
      CollapseError(RuntimeError)         the policy degenerated; the run stopped before damage
      StallError(TimeoutError)            a deadline passed; names what was waited for

Each class is also a standard exception, so callers may catch either, and each pickles: it crosses process borders.
"""


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
    """An executor died, was killed, or no longer answers."""


class WeightSyncError(LlamaRLError, RuntimeError):
    """Received weights failed the version, checksum or probe proof."""


class CollapseError(LlamaRLError, RuntimeError):
    """The policy degenerated and the run stopped."""


class StallError(LlamaRLError, TimeoutError):
    """A deadline passed; the message names what was waited for."""


REASON_CHARACTERS = 500


def describe(error: BaseException) -> str:
    """Type, message and, where known, the line that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"
    return f"{type(error).__name__}: {error}"[:REASON_CHARACTERS] + place
