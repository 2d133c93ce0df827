"""Parses the command line and dispatches. Nothing heavy is imported before a command runs.

Exit status: 0 done; 1 the run failed; 2 the input is wrong; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

import llamarl
from llamarl.cli import (
    data_commands,
    demo,
    doctor,
    judge_commands,
    model_commands,
    reward_commands,
    run_commands,
)
from llamarl.cli.common import INTERRUPTED, quieten_terminal, say
from llamarl.cli.options import Command
from llamarl.core.errors import ConfigError, DataError, LlamaRLError, MissingDependencyError

DESCRIPTION = """\
llamarl: asynchronous, off-policy-corrected RL post-training of language models.

  llamarl demo                                        train a tiny model on this machine in two minutes, no download
  llamarl train recipe.toml                           a run from a recipe
  llamarl train recipe.toml --schedule.max-staleness 2
  llamarl resume runs/NAME                            go on after a crash or Ctrl-C
  llamarl view runs/NAME                              how it goes or went
  llamarl export runs/NAME model/                     a Hugging Face checkpoint
  llamarl reward train pairs.jsonl --model m --out rm a reward model from comparisons
  llamarl judge audit --judge rewards.py:reward       can your judge be cheated?
  llamarl eval multi-if --data builtin --model m --out results
  llamarl doctor                                      what this machine lacks, and what then does not work
"""


COMMANDS = {
    "budget solve": "llamarl.cli.budget_commands:solve",
    "budget build-sv": "llamarl.cli.budget_commands:build_sv",
    "budget build-asv": "llamarl.cli.budget_commands:build_asv",
    "eval multi-if": "llamarl.cli.eval_commands:multi_if",
    "eval ifeval": "llamarl.cli.eval_commands:ifeval",
    "eval compare": "llamarl.cli.eval_commands:compare",
    "eval budget": "llamarl.cli.eval_commands:budget",
}
"""The function of each command. Its module is imported when the command, or a list that names it, is asked for."""
GROUPS = {
    "budget": "reasoning under an inference budget",
    "eval": "measure a model",
}
"""What the commands that begin with a word have in common."""


def load_command(name: str) -> Command:
    """The command of a name in `COMMANDS`."""
    module, _, function = COMMANDS[name].partition(":")
    return Command(name, getattr(import_module(module), function))


def split_command(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The command that words begin with, None where it is none, and what follows it."""
    name = " ".join(words[: 2 if words[:1] and words[0] in GROUPS else 1])
    return (name, list(words[len(name.split()) :])) if name in COMMANDS else (None, list(words))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="llamarl",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"llamarl {llamarl.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (
        demo,
        run_commands,
        model_commands,
        data_commands,
        reward_commands,
        judge_commands,
        doctor,
    ):
        module.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. Expected errors print one message, never a traceback."""
    quieten_terminal()
    name, words = split_command(sys.argv[1:] if argv is None else argv)
    if name is None:
        parser = build_parser()
        arguments, rest = parser.parse_known_args(argv)
        if rest and not arguments.takes_overrides:
            parser.error(f"unknown arguments: {' '.join(rest)}")
        arguments.overrides = rest
    try:
        if name is not None:
            return load_command(name).run(words)
        return int(arguments.run(arguments) or 0)
    except (ConfigError, DataError, MissingDependencyError) as error:
        say(f"error: {error}", sys.stderr)
        return 2
    except LlamaRLError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe went away
        sys.stderr.close()
        return 0


if __name__ == "__main__":
    from llamarl.cli.program import run

    run(main)
