"""Finds the command and runs it. Nothing heavy is imported before a command runs.

Exit status: 0 done; 1 the run failed; 2 the input is wrong; 130 interrupted.
"""

import ast
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module, resources
from typing import TYPE_CHECKING

import llamarl
from llamarl.cli.common import INTERRUPTED, announce_loading, quieten_terminal, say
from llamarl.core.errors import ConfigError, DataError, LlamaRLError, MissingDependencyError

if TYPE_CHECKING:
    from llamarl.cli.options import Command

DESCRIPTION = """\
llamarl: asynchronous, off-policy-corrected RL post-training of language models.

  llamarl demo                                        train a tiny model on this machine in two minutes, no download
  llamarl plan --model llama-3.1-8b --gpus 16         what a run takes, before it starts
  llamarl train recipe.toml                           a run from a recipe
  llamarl train recipe.toml --schedule.max-staleness 2
  llamarl resume runs/NAME                            go on after a crash or Ctrl-C
  llamarl view runs/NAME                              how it goes or went
  llamarl runs                                        the runs of a folder
  llamarl export runs/NAME model/                     a Hugging Face checkpoint
  llamarl serve runs/NAME --follow                    the policy behind an OpenAI-compatible endpoint
  llamarl sft m rows.jsonl tuned                      fine-tune on examples; llamarl dpo: on preference pairs
  llamarl reward train pairs.jsonl --model m --out rm a reward model from comparisons
  llamarl judge audit --judge rewards.py:reward       can your judge be cheated?
  llamarl eval multi-if --data builtin --model m --out results
  llamarl doctor                                      what this machine lacks, and what then does not work
"""


COMMANDS = {
    "demo": "demo:demo",
    "plan": "plan_commands:plan",
    "train": "run_commands:train",
    "resume": "run_commands:resume",
    "view": "run_commands:view",
    "runs": "run_commands:runs",
    "export": "run_commands:export",
    "worker": "host_commands:worker",
    "launch": "host_commands:launch",
    "generate": "model_commands:generate",
    "serve": "serve_commands:serve",
    "sft": "fit_commands:sft",
    "dpo": "fit_commands:dpo",
    "data instructions": "data_commands:instructions",
    "budget solve": "budget_commands:solve",
    "budget build-sv": "budget_commands:build_sv",
    "budget build-asv": "budget_commands:build_asv",
    "reward train": "reward_commands:train",
    "reward baselines": "reward_commands:baselines",
    "eval multi-if": "eval_commands:multi_if",
    "eval ifeval": "eval_commands:ifeval",
    "eval compare": "eval_commands:compare",
    "eval budget": "eval_commands:budget",
    "feedback simulate": "feedback_commands:simulate",
    "feedback ingest": "feedback_commands:ingest",
    "feedback describe": "feedback_commands:describe",
    "feedback fit": "feedback_commands:fit",
    "feedback evaluate": "feedback_commands:evaluate",
    "feedback monitor": "gate_commands:monitor",
    "feedback gate": "gate_commands:gate",
    "feedback ab": "ab_commands:compare",
    "feedback ab plan": "ab_commands:plan",
    "detect build": "detect_commands:build",
    "detect train": "detect_commands:train",
    "detect eval": "detect_commands:evaluate",
    "detect score": "score_commands:score",
    "detect serve": "score_commands:serve",
    "judge run": "judge_commands:run",
    "judge audit": "judge_commands:audit",
    "judge calibrate": "judge_commands:calibrate",
    "doctor": "doctor:doctor",
}
"""Module and function of each command, in the order of the help; a module is imported when it is asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. Expected errors print one message, never a traceback."""
    quieten_terminal()
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
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
    except OSError as error:
        if error.filename is None:  # no file of the user's
            raise
        say(f"error: {error.filename}: {error.strerror}; give a path that can be read or written", sys.stderr)
        return 1


def split_command(words: Sequence[str]) -> tuple[str, list[str]]:
    """The command that words begin with, and what follows it.

    Raises:
        ConfigError: they begin with no command.
    """
    from llamarl.core.config import suggest

    for length in (3, 2, 1):  # feedback ab plan, before feedback ab of a file
        if (name := " ".join(words[:length])) in COMMANDS:
            return name, list(words[length:])
    if not words:
        raise ConfigError("no command given: use llamarl COMMAND (llamarl --help lists them)")
    mine = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if mine and len(words) == 1:
        raise ConfigError(f"{words[0]}: no command by itself; use llamarl {' or llamarl '.join(mine)}")
    word = " ".join(words[: 2 if mine else 1])
    choices = mine or list({name.split()[0]: None for name in COMMANDS})
    raise ConfigError(f"{word}: unknown command.{suggest(word, choices)}")


def load_command(name: str) -> "Command":
    """The command of a name in `COMMANDS`."""
    from llamarl.cli.options import Command

    module, _, function = COMMANDS[name].partition(":")
    return Command(name, getattr(import_module(f"llamarl.cli.{module}"), function))


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"llamarl {llamarl.__version__}")
        return 0
    if words and words[-1] in ("-h", "--help") and " ".join(words[:-1]) not in COMMANDS:
        prefix = "".join(f"{word} " for word in words[:-1])
        if names := [name for name in COMMANDS if name.startswith(prefix)]:
            print("\n".join(_overview(prefix, names)))
            return 0
    name, rest = split_command(words)
    if "--quiet" not in rest:
        announce_loading(sys.stderr)
    return load_command(name).run(rest)


def _overview(prefix: str, names: Sequence[str]) -> Iterator[str]:
    """The help of the program, or of the commands that begin with a word."""
    yield f"usage: llamarl {prefix}COMMAND [OPTION ...]\n"
    if not prefix:
        yield DESCRIPTION
    yield "commands:"
    width = max(map(len, names)) + 2
    for name in names:
        yield f"  {name:{width}}{_summarize(name)}"
    yield "\nllamarl COMMAND --help shows what a command takes"
    if not prefix:
        yield "llamarl --version prints the version"


def _summarize(name: str) -> str:
    """The first line of a command's docstring, read without importing its module: that takes a while for them all."""
    module, _, function = COMMANDS[name].partition(":")
    tree = ast.parse(resources.files("llamarl.cli").joinpath(f"{module}.py").read_text(encoding="utf-8"))
    defined = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function)
    return (ast.get_docstring(defined) or "").partition("\n")[0].removesuffix(".")
