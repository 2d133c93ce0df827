"""budget: the integer program on a file, and the data that teaches voting."""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llamarl.cli.common import Subparsers, add_command, print_json
from llamarl.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from llamarl.core.records import Prompt
    from llamarl.functional.budget import Budget, Pool, Solution


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
        help="rows of prompt and answer; without --model also completions (a list of texts) or a golden solution",
    )
    build.add_argument("--out", required=True, help="rows of messages, as llamarl sft reads them")
    build.add_argument("--model", help="checkpoint directory or Hub id that makes the attempts")
    build.add_argument("--samples", type=int, default=16, help="attempts per prompt with --model (default 16)")
    build.add_argument("--max-tokens", type=int, default=512, help="of an attempt (default 512)")
    build.add_argument("--temperature", type=float, default=1.0, help="of the attempts (default 1)")
    build.add_argument("--seed", type=int, default=0, help="equal seeds give equal rows (default 0)")
    build.add_argument(
        "--rl-prompts", metavar="FILE", help="also write the instructed prompts, as data for llamarl train"
    )
    if is_adaptive:
        build.add_argument(
            "--voting-share",
            type=float,
            default=0.5,
            help="share of votes among the prompts, from 0 to 1 (default 0.5)",
        )


def run_solve(arguments: argparse.Namespace) -> int:
    """`llamarl budget solve`."""
    from llamarl.data.jsonl import write_jsonl
    from llamarl.data.pools import read_pool
    from llamarl.functional.budget import solve

    budget = _budget(arguments)
    data = read_pool(arguments.data, budget.groups, arguments.cost_field)
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
        print(describe_solution(data.pool, solution, arguments.form))
        print(f"written to {arguments.out}")
    return 0


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
    lines.append(f"margins    {margins} (mean over prompts with every group; {solution.num_one_sided} lack one)")
    gap = f", at most {solution.gap:.3g} below the optimum" if solution.status in ("near_optimal", "time_limit") else ""
    lines.append(f"objective  {solution.objective:.6g}: {STATUS[solution.status]}{gap}")
    lines.append(f"solver     {solution.solver}, {solution.seconds:.3f} s")
    return "\n".join(lines)


def run_build(arguments: argparse.Namespace) -> int:
    """`llamarl budget build-sv` and `build-asv`."""
    from llamarl.data.asks import Mode, instructed
    from llamarl.data.jsonl import write_jsonl
    from llamarl.data.prompts import read_prompts
    from llamarl.recipes.voting_data import build_asv, build_sv, recorded_attempts

    prompts = read_prompts(arguments.data)
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
        print_json({"prompts": len(prompts), "rows": len(built.rows), "counts": built.counts, "out": arguments.out})
    else:
        print(f"{len(prompts)} prompts: {_counted(built.counts)}; {len(built.rows)} rows written to {arguments.out}")
    return 0


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or "none"


def _sampled_attempts(arguments: argparse.Namespace, prompts: "Sequence[Prompt]") -> "Callable[[Prompt], list[str]]":
    """Attempts by a model, under the plain instructions; those that the token limit cut are left out."""
    from llamarl.core.records import GenerationRequest
    from llamarl.core.sampling import Sampling
    from llamarl.core.seeds import sample_seed
    from llamarl.data.asks import instruct
    from llamarl.generation.executor import GeneratorConfig, build_batcher
    from llamarl.models.checkpoint import load_model, load_tokenizer

    if arguments.samples < 1:
        raise ConfigError(f"--samples {arguments.samples}: give at least 1")
    sampling = Sampling.parse({"max_tokens": arguments.max_tokens, "temperature": arguments.temperature})
    tokenizer = load_tokenizer(arguments.model)
    generator = build_batcher(load_model(arguments.model), GeneratorConfig(), tokenizer)
    requests = [
        GenerationRequest(
            key,
            tokenizer.encode_chat(instruct(prompt, "plain")),
            tuple(sample_seed(arguments.seed, 0, prompt.id, i) for i in range(arguments.samples)),
            sampling,
        )
        for key, prompt in enumerate(prompts)
    ]
    answers = dict(zip((prompt.id for prompt in prompts), generator.generate(requests), strict=True))
    return lambda prompt: [c.text for c in answers[prompt.id] if c.finish_reason == "stop"]


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
    caps |= dict(_cap(text) for text in arguments.cap)
    return Budget(caps, tuple(arguments.short_group or ["short"]), arguments.mean_cost)


def _cap(text: str) -> tuple[str, float]:
    group, _, value = text.partition("=")
    try:
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
