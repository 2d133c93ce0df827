"""Parses the command line and dispatches. Nothing heavy is imported before a command runs.

Exit status: 0 done; 1 the run failed; 2 the input is wrong; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence

import llamarl
from llamarl.cli import (
    budget_commands,
    data_commands,
    demo,
    doctor,
    eval_commands,
    fit_commands,
    judge_commands,
    model_commands,
    reward_commands,
    run_commands,
)
from llamarl.cli.common import INTERRUPTED, quieten_terminal, say
from llamarl.core.errors import ConfigError, DataError, LlamaRLError, MissingDependencyError

DESCRIPTION = """\
llamarl: asynchronous, off-policy-corrected RL post-training of language models.

  llamarl demo                                        train a tiny model on this machine in two minutes, no download
  llamarl train recipe.toml                           a run from a recipe
  llamarl train recipe.toml --schedule.max-staleness 2
  llamarl resume runs/NAME                            go on after a crash or Ctrl-C
  llamarl view runs/NAME                              how it goes or went
  llamarl export runs/NAME model/                     a Hugging Face checkpoint
  llamarl sft m rows.jsonl tuned                      fine-tune on examples; llamarl dpo: on preference pairs
  llamarl reward train pairs.jsonl --model m --out rm a reward model from comparisons
  llamarl judge audit --judge rewards.py:reward       can your judge be cheated?
  llamarl eval multi-if --data builtin --model m --out results
  llamarl doctor                                      what this machine lacks, and what then does not work
"""


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
        fit_commands,
        data_commands,
        budget_commands,
        reward_commands,
        eval_commands,
        judge_commands,
        doctor,
    ):
        module.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. Expected errors print one message, never a traceback."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and not arguments.takes_overrides:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    arguments.overrides = rest
    quieten_terminal()
    try:
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
