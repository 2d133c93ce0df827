"""eval budget: accuracy against inference budget."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.cli import eval_commands
from llamarl.cli.common import Subparsers, add_command, add_view_options, print_json, say
from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.paths import full_path

if TYPE_CHECKING:
    from llamarl.core.records import Prompt
    from llamarl.data.asks import Ask
    from llamarl.evals.budget import BudgetPlan
    from llamarl.evals.budget_samples import Attempt, Reading
    from llamarl.evals.chats import Chat
    from llamarl.evals.replies import Reply

SIZES = (1, 2, 4, 8)
CHAIN_MODES = {"S": "short", "L": "long", "A": "adaptive"}
"""Functions of `llamarl.tasks.chain` by what a prompt of it reads."""
DATA_DEFAULTS = {
    "builtin": ("chain", "llamarl.tasks.chain:group", "whole"),
    "": ("math", "llamarl.judges.voting:group", "stated"),
}
"""Judge, groups and answers, for built-in problems and for any others."""
RESULTS_FILE, FIGURE_FILE, SAMPLES_FILE = "results.json", "frontier.png", "samples.jsonl"


def add_budget(benchmarks: Subparsers) -> None:
    """Adds `eval budget`."""
    budget = add_command(
        benchmarks,
        "budget",
        run_budget,
        help="accuracy against inference budget: models, self-consistency, best-of-k",
        examples="""
llamarl eval budget --data test.jsonl --model base=DIR --model asv=DIR2 --ask base=plain --ask asv=adaptive --out O
llamarl eval budget --data test.jsonl --endpoint http://127.0.0.1:8000/v1 --endpoint-model NAME --out OUT
llamarl eval budget --data builtin --model short=DIR --model trained=DIR2 --ask short=S --temperature 1 --out OUT
the same command again goes on where a killed one stopped
""",
    )
    budget.add_argument(
        "--data", required=True, metavar="DATA", help="rows of prompt (or problem) and answer (or solution), or builtin"
    )
    budget.add_argument("--split", metavar="NAME", help="of a Hub data set (default train)")
    budget.add_argument("--limit", type=int, metavar="N", help="the first N problems only (builtin: default 256)")
    budget.add_argument(
        "--on-bad-row", choices=["error", "skip"], default="error", help="stop at it (default), or skip"
    )
    budget.add_argument(
        "--out", required=True, type=full_path, metavar="DIR", help="where samples, results and figure are written"
    )
    who = budget.add_argument_group("who answers")
    who.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a checkpoint or Hub id, and its name; repeatable",
    )
    who.add_argument("--endpoint", metavar="URL", help="one more model, behind an OpenAI-compatible server")
    who.add_argument("--endpoint-model", metavar="NAME", help="its name there and in the results")
    who.add_argument(
        "--ask",
        action="append",
        default=[],
        metavar="NAME=HOW",
        help="how a model is asked: plain, voting or adaptive instructions; S, L or A with builtin; or module:function "
        "of a prompt (default: the problem as it stands)",
    )
    what = budget.add_argument_group("what is compared")
    what.add_argument(
        "--baseline", action="append", metavar="NAME", help="a model whose votes are the opponent (default: the first)"
    )
    what.add_argument("--votes", default=SIZES, metavar="K,K,...", help="sizes of majority votes (default 1,2,4,8)")
    what.add_argument("--best-of", default=SIZES, metavar="K,K,...", help="sizes of best-of-k (default 1,2,4,8)")
    what.add_argument(
        "--samples-per-prompt",
        type=int,
        metavar="N",
        help="of each model; more make votes exacter (default the largest K)",
    )
    what.add_argument(
        "--judge", metavar="JUDGE", help="math (default), module:function, file.py:function, or a TOML file of judges"
    )
    what.add_argument("--groups", metavar="FUNCTION", help="of response groups (default: votes are long)")
    what.add_argument(
        "--answers",
        metavar="FUNCTION",
        help="what a text votes for: stated (its boxed or final answer, default; equal ones in any spelling agree), "
        "whole (all behind thoughts), or module:function of the text; of these equal texts agree",
    )
    eval_commands.add_generation_options(budget.add_argument_group("how it answers"))
    add_view_options(budget)


def run_budget(arguments: argparse.Namespace) -> int:
    """`llamarl eval budget`."""
    from llamarl.evals.budget import budget_results
    from llamarl.evals.budget_samples import assess, read_problems
    from llamarl.evals.budget_table import BudgetTable
    from llamarl.report.console import SafeConsole
    from llamarl.report.files import write_json
    from llamarl.report.frontier_plot import plot_frontier

    models = _models(arguments)
    asks = {name: _ask(how, arguments.data) for name, how in _pairs("--ask", arguments.ask, models).items()}
    _settle(arguments, models)
    plan, reading = _plan(arguments, models), _reading(arguments)
    problems = read_problems(
        arguments.data, limit=arguments.limit, split=arguments.split, on_bad_row=arguments.on_bad_row
    )
    reading.check(problems)
    attempts = {}
    for name, where in models.items():
        replies = _replies(arguments, problems, name, where, asks.get(name))
        try:
            attempts[name] = assess(problems, replies, reading)
        except DataError as error:
            raise DataError(f"{error}; no reply is lost: mend it and run the same again") from error
    results = budget_results(problems, attempts, plan)
    results["settings"] = _record(arguments, models) | {"skipped_rows": [str(row) for row in problems.skipped]}
    out: Path = arguments.out
    _write_samples(out / SAMPLES_FILE, attempts)
    write_json(out / RESULTS_FILE, results)
    plot_frontier(results, out / FIGURE_FILE)
    if arguments.json:
        print_json({"out": str(out), **results})
        return 0
    SafeConsole().print(BudgetTable(results))
    say(f"everything is in {out}; the figure is {out / FIGURE_FILE}")
    return 0


def _models(arguments: argparse.Namespace) -> dict[str, str | None]:
    """Name -> checkpoint; None is the endpoint's model."""
    models: dict[str, str | None] = {}
    for text in arguments.model:
        name, _, where = text.partition("=")
        if not where or not re.fullmatch(r"[\w.-]+", name) or name in models:
            raise ConfigError(f"--model {text}: write NAME=DIR, each with a name of its own of letters, digits, . _ -")
        models[name] = where
    if bool(arguments.endpoint) != bool(arguments.endpoint_model):
        raise ConfigError("--endpoint and --endpoint-model belong together: give both or neither")
    if arguments.endpoint:
        name = re.sub(r"[^\w.-]+", "-", arguments.endpoint_model)
        if name in models:
            raise ConfigError(f"--endpoint-model {name}: --model has that name already; give that one another")
        models[name] = None
    if not models:
        raise ConfigError("who answers? give --model NAME=DIR, or --endpoint URL --endpoint-model NAME")
    return models


def _pairs(option: str, texts: Sequence[str], models: Mapping[str, Any]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not value:
            raise ConfigError(f"{option} {text}: write NAME=HOW, such as {next(iter(models))}=plain")
        _check_name(option, name, models)
        pairs[name] = value
    return pairs


def _check_name(option: str, name: str, models: Mapping[str, Any]) -> None:
    if name not in models:
        raise ConfigError(f"{option} {name}: no model of that name.{suggest(name, list(models))}")


def _ask(how: str, data: str) -> "Ask":
    """How a model is asked."""
    from llamarl.data.asks import SHIPPED, load_ask
    from llamarl.tasks import chain

    modes = {mode: getattr(chain, name) for mode, name in CHAIN_MODES.items()} if data == "builtin" else {}
    return load_ask(how, {**SHIPPED, **modes})


def _settle(arguments: argparse.Namespace, models: Mapping[str, str | None]) -> None:
    """Fills in defaults; refuses options that would do nothing."""
    kinds = (
        (eval_commands.DEFAULTS, True, ""),
        (eval_commands.NATIVE_DEFAULTS, any(where is not None for where in models.values()), "an endpoint alone"),
        (eval_commands.ENDPOINT_DEFAULTS, None in models.values(), "checkpoints alone"),
    )
    for defaults, is_used, without in kinds:
        for name, value in defaults.items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
            elif not is_used:
                raise ConfigError(f"--{name.replace('_', '-')} does nothing with {without}; leave it out")
    if arguments.seed is None:
        arguments.seed = eval_commands.SAMPLING_SEED
    of_data = DATA_DEFAULTS.get(arguments.data, DATA_DEFAULTS[""])
    for name, value in zip(("judge", "groups", "answers"), of_data, strict=True):
        setattr(arguments, name, getattr(arguments, name) or value)
    if arguments.judge == "math":
        arguments.judge = "llamarl.judges.voting:judge"  # the same for a plain answer; reads the final answer of a vote


def _sizes(option: str, text: str | tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(text, tuple):
        return text
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise ConfigError(f"{option} {text}: give numbers of samples, such as 1,2,4,8")
    return tuple(int(size) for size in text.split(","))


def _plan(arguments: argparse.Namespace, models: Mapping[str, str | None]) -> "BudgetPlan":
    """What is compared; settles the number of samples."""
    from llamarl.evals.budget import BudgetPlan
    from llamarl.evals.groups import Bootstrap

    baselines = dict.fromkeys(arguments.baseline or [next(iter(models))])
    for name in baselines:
        _check_name("--baseline", name, models)
    votes, best_of = _sizes("--votes", arguments.votes), _sizes("--best-of", arguments.best_of)
    plan = BudgetPlan(tuple(baselines), votes, best_of, Bootstrap(arguments.seed), arguments.answers == "stated")
    if arguments.samples_per_prompt is None:
        arguments.samples_per_prompt = plan.num_needed
    if arguments.samples_per_prompt < plan.num_needed:
        raise ConfigError(
            f"--samples-per-prompt {arguments.samples_per_prompt}: votes and best-of-k ask for {plan.num_needed}; give "
            "at least as many, or smaller --votes and --best-of"
        )
    if arguments.samples_per_prompt > 1 and not arguments.temperature:
        raise ConfigError("--temperature 0: all samples of a problem would be equal; give a temperature above 0")
    return plan


def _replies(
    arguments: argparse.Namespace, problems: "Sequence[Prompt]", name: str, where: str | None, ask: "Ask | None"
) -> "dict[str, list[Reply]]":
    """One model's samples."""
    from llamarl.evals.budget_samples import sample
    from llamarl.evals.progress import make_progress
    from llamarl.report.console import SafeConsole

    if not arguments.quiet:
        SafeConsole(stderr=True).print(f"{name}:", style="bold")
    return sample(
        problems,
        _chat(arguments, where),
        arguments.out / "samples" / name,
        arguments.samples_per_prompt,
        ask=ask,
        max_in_flight=arguments.max_in_flight,
        seed=arguments.seed,
        system=arguments.system,
        strip_thinking=arguments.strip_thinking,
        progress=make_progress(quiet=arguments.quiet, plain=arguments.plain),
    )


def _chat(arguments: argparse.Namespace, where: str | None) -> "Chat":
    mine = {"model": arguments.endpoint_model} if where is None else {"model": where, "endpoint": None}
    return eval_commands.build_chat(argparse.Namespace(**vars(arguments) | mine))


def _reading(arguments: argparse.Namespace) -> "Reading":
    """Judge, groups and answers."""
    from llamarl.data.groups import load_group_function
    from llamarl.evals.budget_samples import Reading, load_answer_function

    return Reading(arguments.judge, load_group_function(arguments.groups), load_answer_function(arguments.answers))


def _record(arguments: argparse.Namespace, models: Mapping[str, str | None]) -> dict[str, Any]:
    """What the numbers depend on; how replies were made is beside them, in `samples/NAME/settings.json`."""
    names = ["data", "split", "limit", "ask", "judge", "groups", "answers", "samples_per_prompt", "seed", "system"]
    names += ["max_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "strip_thinking"]
    where = {
        name: f"{arguments.endpoint_model} at {arguments.endpoint}" if d is None else d for name, d in models.items()
    }
    return {"models": where, **{name: getattr(arguments, name) for name in names}}


def _write_samples(path: Path, attempts: "Mapping[str, Mapping[str, Sequence[Attempt]]]") -> None:
    from dataclasses import asdict

    from llamarl.data.jsonl import write_jsonl

    write_jsonl(
        path,
        (
            {"model": name, **asdict(attempt)}
            for name, by_id in attempts.items()
            for each in by_id.values()
            for attempt in each
        ),
    )
