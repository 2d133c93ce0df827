"""budget: the integer program on a file, and the data that teaches voting."""

import argparse
import contextlib
import ctypes
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.cli.common import Subparsers, add_command, add_template_args, add_view_options, print_json, say
from llamarl.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from llamarl.core.records import Prompt
    from llamarl.functional.budget import Budget, Pool, Solution

SLOTS = 64
"""Attempts that are sampled together."""


def add_commands(commands: Subparsers) -> None:
    """Adds `budget` with its own commands."""
    budget = commands.add_parser("budget", help="reasoning under an inference budget", allow_abbrev=False)
    own = budget.add_subparsers(metavar="COMMAND", required=True)
    _add_solve(own)
    _add_build(own, "build-sv")
    _add_build(own, "build-asv")


def _add_solve(commands: Subparsers) -> None:
    solve = add_command(
        commands,
        "solve",
        run_solve,
        help="choose the responses to imitate under a cap on the expensive ones",
        examples="""
llamarl budget solve --data pool.jsonl --q-plus 0.5 --out chosen.jsonl
llamarl budget solve --data pool.jsonl --cost-field tokens --mean-cost 300 --out chosen.jsonl
llamarl budget solve --data pool.jsonl --q-plus 0.5 --cap tool=0.1 --out chosen.jsonl
""",
    )
    solve.add_argument("--data", required=True, help="rows of prompt, group, correct: JSONL, Parquet, CSV or Hub id")
    solve.add_argument("--out", required=True, help="the rows, in order, each with z: 1 for a chosen one, else 0")
    solve.add_argument("--q-plus", type=float, metavar="Q", help="largest share of long responses, from 0 to 1")
    solve.add_argument("--long-group", default="long", metavar="NAME", help="the group under --q-plus (default long)")
    solve.add_argument(
        "--short-group", action="append", metavar="NAME", help="a group without a cap; repeatable (default short)"
    )
    solve.add_argument(
        "--cap", action="append", default=[], metavar="NAME=Q", help="the cap of one more group; repeatable"
    )
    solve.add_argument("--cost-field", metavar="FIELD", help="the rows' field with a response's cost, such as tokens")
    solve.add_argument("--mean-cost", type=float, metavar="B", help="largest mean cost of the chosen responses")
    solve.add_argument(
        "--form",
        choices=["accepted", "prompts"],
        default="accepted",
        help="what shares are of: the chosen responses, or all prompts (default accepted)",
    )
    solve.add_argument(
        "--method", choices=["auto", "milp", "lagrangian"], default="auto", help="the solver (default auto: by size)"
    )
    solve.add_argument("--time-limit", type=float, default=5.0, metavar="S", help="of the exact solver (default 5 s)")


def _add_build(commands: Subparsers, name: str) -> None:
    is_adaptive = name == "build-asv"
    what = "short answers and votes, mixed" if is_adaptive else "voting: trials until three agree"
    build = add_command(
        commands,
        name,
        run_build,
        help=f"write demonstrations of {what}, for llamarl sft",
        examples=f"""
llamarl budget {name} --data problems.jsonl --model MODEL --samples 16 --out sft.jsonl
llamarl budget {name} --data attempts.jsonl --out sft.jsonl
llamarl sft MODEL sft.jsonl OUT
""",
    )
    build.set_defaults(is_adaptive=is_adaptive)
    build.add_argument(
        "--data",
        required=True,
        help="rows of prompt (or problem) and answer (or solution); without --model also completions (a list of texts) "
        "or a golden solution",
    )
    build.add_argument("--out", required=True, help="rows of messages, as llamarl sft reads them")
    build.add_argument(
        "--model",
        help="checkpoint directory or Hub id that makes the attempts; they are kept in attempts/ beside --out",
    )
    build.add_argument("--samples", type=int, default=16, help="attempts per prompt with --model (default 16)")
    build.add_argument("--max-tokens", type=int, default=512, help="of an attempt (default 512)")
    build.add_argument("--temperature", type=float, default=1.0, help="of the attempts (default 1)")
    add_template_args(build, "with --model: ")
    build.add_argument("--seed", type=int, default=0, help="equal seeds give equal rows (default 0)")
    build.add_argument(
        "--rl-prompts", metavar="FILE", help="also write the instructed prompts, as data for llamarl train"
    )
    add_view_options(build)
    if is_adaptive:
        build.add_argument(
            "--voting-share",
            type=float,
            default=0.5,
            help="share of votes among the rows, from 0 to 1 (default 0.5)",
        )


def run_solve(arguments: argparse.Namespace) -> int:
    """`llamarl budget solve`."""
    from llamarl.data.jsonl import write_jsonl
    from llamarl.data.pools import read_pool
    from llamarl.functional.budget import solve

    _check_files({"--out": arguments.out})
    budget = _budget(arguments)
    data = read_pool(arguments.data, budget.groups, arguments.cost_field)
    with _silenced():
        solution = solve(
            data.pool,
            budget,
            form=arguments.form,
            time_limit_seconds=arguments.time_limit,
            method=arguments.method,
        )
    marked = (dict(row) | {"z": int(z)} for row, z in zip(data.rows, solution.accepted, strict=True))
    write_jsonl(arguments.out, marked)
    if arguments.json:
        print_json(_record(data.pool, solution))
    else:
        say(describe_solution(data.pool, solution, arguments.form))
        say(f"written to {arguments.out}")
    return 0


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drops what native code prints past Python: HiGHS says some things whatever its options are.

    Standard output is the whole process's, so this is only for a command that does nothing else meanwhile.
    """
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        ctypes.CDLL(None).fflush(None)  # C's own buffer, or it would follow later
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def describe_solution(pool: "Pool", solution: "Solution", form: str) -> str:
    """What was chosen, what it used, and how good it is, in a few lines."""
    chosen = ", ".join(f"{count} {group}" for group, count in solution.num_accepted.items())
    known = {group: margin for group, margin in solution.mean_margins.items() if math.isfinite(margin)}
    margins = ", ".join(f"{group} {margin:+.3f}" for group, margin in known.items()) or "unknown"
    whole = "the chosen" if form == "accepted" else "all prompts"
    lines = [
        f"pool       {solution.num_prompts} prompts, {len(pool)} responses ({pool.groups.count(None)} malformed)",
        f"chosen     {chosen}; {solution.num_rejected} prompts rejected",
    ]
    for name, spent in solution.spending.items():
        what = "mean cost" if name == "mean_cost" else f"{name} share of {whole}"
        lines.append(f"budget     {what} {spent.used:.4g}, at most {spent.bound:.4g} (slack {spent.slack:.4g})")
    lines.append(
        f"margins    {margins} (means over prompts with another group too; {solution.num_one_sided} have none)"
    )
    gap = f", at most {solution.gap:.3g} below the optimum" if solution.status in ("near_optimal", "time_limit") else ""
    lines.append(f"objective  {solution.objective:.6g}: {STATUS[solution.status]}{gap}")
    lines.append(f"solver     {solution.solver}, {solution.seconds:.3f} s")
    return "\n".join(lines)


def run_build(arguments: argparse.Namespace) -> int:
    """`llamarl budget build-sv` and `build-asv`."""
    from llamarl.data.asks import Mode, instructed
    from llamarl.data.jsonl import write_jsonl
    from llamarl.evals.budget_samples import read_problems
    from llamarl.recipes.voting_data import build_asv, build_sv, recorded_attempts

    _check_files({"--out": arguments.out, "--rl-prompts": arguments.rl_prompts})
    prompts = read_problems(arguments.data)
    attempts = recorded_attempts if arguments.model is None else _sampled_attempts(arguments, prompts)
    if arguments.is_adaptive:
        built = build_asv(prompts, attempts, arguments.voting_share, arguments.seed)
    else:
        built = build_sv(prompts, attempts)
    if not built.rows:
        raise DataError(f"{arguments.data}: no demonstration can be made of it: {_counted(built.counts)}")
    write_jsonl(arguments.out, built.rows)
    if arguments.rl_prompts is not None:
        mode: Mode = "adaptive" if arguments.is_adaptive else "voting"
        write_jsonl(arguments.rl_prompts, (instructed(prompt, mode) for prompt in prompts))
    if arguments.json:
        record = {"prompts": len(prompts), "rows": len(built.rows), "counts": built.counts}
        print_json(record | {"voting_share": built.voting_share, "out": arguments.out})
    else:
        say(f"{len(prompts)} prompts: {_counted(built.counts)}")
        say(f"{len(built.rows)} rows, {built.voting_share:.1%} of them votes, written to {arguments.out}")
    return 0


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or "none"


def _sampled_attempts(arguments: argparse.Namespace, prompts: "Sequence[Prompt]") -> "Callable[[Prompt], list[str]]":
    """Attempts by a model, under the plain instructions; those that the token limit cut are left out.

    They are kept beside the rows: a killed command goes on, and the other kind of rows needs no second sampling.
    """
    from llamarl.core.sampling import Sampling
    from llamarl.data.asks import SHIPPED
    from llamarl.evals.budget_samples import sample
    from llamarl.evals.chats import NativeChat
    from llamarl.report.progress import make_progress
    from llamarl.models.template_args import parse_template_args

    if arguments.samples < 1:
        raise ConfigError(f"--samples {arguments.samples}: give at least 1")
    sampling = Sampling.parse({"max_tokens": arguments.max_tokens, "temperature": arguments.temperature})
    template_args = parse_template_args(arguments.chat_template_args)
    parts = [Path(arguments.data).stem, arguments.model, sampling.max_tokens, sampling.temperature, arguments.seed]
    parts += [f"{name}={value}" for name, value in template_args.items()]
    name = "-".join(re.sub(r"[^\w.]+", "-", str(part)).strip("-.") for part in parts)
    replies = sample(
        prompts,
        NativeChat(arguments.model, sampling, chat_template_args=template_args, slots=SLOTS),
        Path(arguments.out).parent / "attempts" / name,
        arguments.samples,
        ask=SHIPPED["plain"],
        max_in_flight=SLOTS,
        seed=arguments.seed,
        progress=make_progress(quiet=arguments.quiet, plain=arguments.plain),
    )
    return lambda prompt: [
        r.response for r in replies[prompt.id] if r.response is not None and r.finish_reason == "stop"
    ]


def _check_files(paths: Mapping[str, str | None]) -> None:
    """Raises `ConfigError` for a file, by its option, that cannot be written; makes its directory."""
    given = {option: Path(path) for option, path in paths.items() if path is not None}
    for option, path in given.items():
        if path.is_dir():
            raise ConfigError(f"{option} {path}: a directory; name a file in it")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{option} {path}: no directory {path.parent} can be made ({error.strerror})") from None
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(f"{option} {path}: {path.parent} is not yours to write; choose another place")
    if len({path.resolve() for path in given.values()}) < len(given):
        raise ConfigError(f"{' and '.join(given)} name the same file; give each its own")


STATUS = {
    "optimal": "optimal",
    "near_optimal": "near the optimum",
    "time_limit": "the best found within --time-limit",
    "cheapest": "nothing found within --time-limit: short responses only",
    "infeasible": "--mean-cost is too low for a response to every prompt that a short one solves: as many as it allows",
}
"""What each status of a solution means to a user."""


def _budget(arguments: argparse.Namespace) -> "Budget":
    from llamarl.functional.budget import Budget

    if arguments.q_plus is None and arguments.mean_cost is None:
        raise ConfigError("give a budget: --q-plus Q, or --cost-field FIELD with --mean-cost B")
    if (arguments.mean_cost is None) != (arguments.cost_field is None):
        raise ConfigError("--cost-field names the costs and --mean-cost bounds their mean: give both or neither")
    caps = {arguments.long_group: 1.0 if arguments.q_plus is None else arguments.q_plus}
    given = {} if arguments.q_plus is None else {arguments.long_group: "--q-plus"}
    for text in arguments.cap:
        group, cap = _cap(text)
        if group in given:
            raise ConfigError(f"--cap {text}: {group!r} has a cap by {given[group]} already; give one")
        given[group], caps[group] = f"--cap {text}", cap
    return Budget(caps, tuple(arguments.short_group or ["short"]), arguments.mean_cost)


def _cap(text: str) -> tuple[str, float]:
    group, _, value = text.partition("=")
    try:
        if not group:
            raise ValueError("no name")
        return group, float(value)
    except ValueError:
        raise ConfigError(f"--cap {text}: write NAME=Q, such as tool=0.1") from None


def _record(pool: "Pool", solution: "Solution") -> dict[str, Any]:
    record = asdict(solution)
    del record["accepted"]
    record["spending"] = {name: asdict(spent) | {"slack": spent.slack} for name, spent in solution.spending.items()}
    record |= {"num_responses": len(pool), "num_rejected": solution.num_rejected, "gap": solution.gap}
    record["mean_margins"] = {g: m if math.isfinite(m) else None for g, m in solution.mean_margins.items()}
    return record | {name: None for name in ("bound", "gap") if not math.isfinite(record[name])}
