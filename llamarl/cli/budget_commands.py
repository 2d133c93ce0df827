"""budget solve, budget build-sv, budget build-asv: the integer program on a file, and the data that teaches voting."""

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llamarl.cli.common import print_json, say
from llamarl.cli.options import LiveOutput, Output
from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError, DataError
from llamarl.models.template_args import ChatTemplateArgs

if TYPE_CHECKING:
    from llamarl.core.records import Prompt
    from llamarl.functional.budget import Budget, Pool, Solution


class SolveSettings(Config):
    """A pool of responses and a budget."""

    data: str
    """Rows of prompt, group, correct: JSONL, Parquet, CSV or a Hub id."""
    out: str
    """The rows, in order, each with z: 1 for a chosen one, else 0."""
    q_plus: Annotated[float | None, Metavar("Q")] = Field(default=None, ge=0.0, le=1.0)
    """Largest share of long responses."""
    long_group: Annotated[str, Metavar("NAME")] = "long"
    """The group under --q-plus."""
    short_group: Annotated[tuple[str, ...], Metavar("NAME")] = ("short",)
    """A group without a cap."""
    cap: Annotated[dict[str, Annotated[float, Field(ge=0.0, le=1.0)]], Metavar("NAME=Q")] = Field(default_factory=dict)
    """The cap of one more group, such as tool=0.1."""
    cost_field: str | None = None
    """The rows' field with a response's cost, such as tokens."""
    mean_cost: Annotated[float | None, Metavar("B")] = Field(default=None, gt=0.0)
    """Largest mean cost of the chosen responses."""
    form: Literal["accepted", "prompts"] = "accepted"
    """Whole that shares are taken of: the chosen responses, or all prompts."""
    method: Literal["auto", "milp", "lagrangian"] = "auto"
    """The solver; auto chooses by size."""
    time_limit: Annotated[float, Metavar("SECONDS")] = Field(default=5.0, gt=0.0)
    """Seconds that the exact solver may take."""

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        if self.q_plus is None and self.mean_cost is None:
            raise ValueError("no budget given: use --q-plus Q, or --cost-field FIELD with --mean-cost B")
        if (self.mean_cost is None) != (self.cost_field is None):
            raise ValueError("--cost-field names the costs and --mean-cost bounds their mean: give both or neither")
        if self.q_plus is not None and self.long_group in self.cap:
            raise ValueError(f"--cap {self.long_group}: the group has a cap by --q-plus already; give one")
        return self

    @property
    def budget(self) -> "Budget":
        """The bounds on the chosen responses. Raises `ConfigError` where a group is free and capped."""
        from llamarl.functional.budget import Budget

        caps = {self.long_group: 1.0 if self.q_plus is None else self.q_plus} | self.cap
        return Budget(caps, self.short_group, self.mean_cost)


def solve(settings: SolveSettings, output: Output) -> int:
    """Choose the responses to imitate under a cap on the expensive ones.

    Examples:
        llamarl budget solve --data pool.jsonl --q-plus 0.5 --out chosen.jsonl
        llamarl budget solve --data pool.jsonl --cost-field tokens --mean-cost 300 --out chosen.jsonl
        llamarl budget solve --data pool.jsonl --q-plus 0.5 --cap tool=0.1 --out chosen.jsonl
    """
    from llamarl.data.jsonl import write_jsonl
    from llamarl.data.pools import read_pool
    from llamarl.functional.budget import solve

    _check_files({"--out": settings.out})
    budget = settings.budget
    data = read_pool(settings.data, budget.groups, settings.cost_field)
    with _silence_stdout():
        solution = solve(
            data.pool, budget, form=settings.form, time_limit_seconds=settings.time_limit, method=settings.method
        )
    marked = (dict(row) | {"z": int(z)} for row, z in zip(data.rows, solution.accepted, strict=True))
    write_jsonl(settings.out, marked)
    if output.json:
        print_json(_record(data.pool, solution))
    else:
        say(describe_solution(data.pool, solution, settings.form))
        say(f"written to {settings.out}")
    return 0


@contextlib.contextmanager
def _silence_stdout() -> Iterator[None]:
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


STATUS = {
    "optimal": "optimal",
    "near_optimal": "near the optimum",
    "time_limit": "the best found within --time-limit",
    "cheapest": "nothing found within --time-limit: short responses only",
    "infeasible": "--mean-cost is too low for a response to every prompt that a short one solves: as many as it allows",
}
"""Meaning of each status of a solution, for a user."""


def describe_solution(pool: "Pool", solution: "Solution", form: str) -> str:
    """Describes in a few lines the choice, what it spends, and how good it is."""
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


def _record(pool: "Pool", solution: "Solution") -> dict[str, Any]:
    record = asdict(solution)
    del record["accepted"]
    record["spending"] = {name: asdict(spent) | {"slack": spent.slack} for name, spent in solution.spending.items()}
    record |= {"num_responses": len(pool), "num_rejected": solution.num_rejected, "gap": solution.gap}
    record["mean_margins"] = {g: m if math.isfinite(m) else None for g, m in solution.mean_margins.items()}
    return record | {name: None for name in ("bound", "gap") if not math.isfinite(record[name])}


class VotingSettings(Config):
    """Demonstrations of voting: from which attempts, and where they go."""

    data: str
    """Rows of prompt (or problem) and answer (or solution); without --model also completions (a list of texts) or a
    golden solution."""
    out: str
    """Rows of messages, as llamarl sft reads them."""
    rl_prompts: Annotated[str | None, Metavar("FILE")] = None
    """File for the instructed prompts too, as data for llamarl train (default: none)."""
    seed: int = 0
    """Equal seeds give equal rows."""
    model: str | None = None
    """Checkpoint directory or Hub id that makes the attempts; they are kept in attempts/ beside --out."""
    samples: int = Field(default=16, ge=1)
    """Attempts per prompt, with --model."""
    max_tokens: int = Field(default=512, ge=1)
    """Token limit of an attempt, with --model; those that are cut are left out."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Sampling temperature, with --model; 0 is greedy."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the chat template, with --model, such as '{"enable_thinking": false}'."""


class AdaptiveVotingSettings(VotingSettings):
    """Demonstrations that vote on some prompts and answer the others once."""

    voting_share: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of votes among the rows."""


def build_sv(settings: VotingSettings, output: LiveOutput) -> int:
    """Write demonstrations of voting, trials until three agree, for llamarl sft.

    Examples:
        llamarl budget build-sv --data problems.jsonl --model MODEL --samples 16 --out sft.jsonl
        llamarl budget build-sv --data attempts.jsonl --out sft.jsonl
        llamarl sft MODEL sft.jsonl OUT
    """
    return _build(settings, output)


def build_asv(settings: AdaptiveVotingSettings, output: LiveOutput) -> int:
    """Write demonstrations of short answers and votes, mixed, for llamarl sft.

    Examples:
        llamarl budget build-asv --data problems.jsonl --model MODEL --samples 16 --out sft.jsonl
        llamarl budget build-asv --data attempts.jsonl --out sft.jsonl
        llamarl sft MODEL sft.jsonl OUT
    """
    return _build(settings, output, settings.voting_share)


def _build(settings: VotingSettings, output: LiveOutput, voting_share: float | None = None) -> int:
    from llamarl.core.sampling import Sampling
    from llamarl.data.asks import SHIPPED
    from llamarl.data.jsonl import write_jsonl
    from llamarl.evals.budget_samples import read_problems
    from llamarl.recipes.voting_data import build_asv, build_sv, recorded_attempts, sample_attempts
    from llamarl.report.progress import make_progress

    _check_files({"--out": settings.out, "--rl-prompts": settings.rl_prompts})
    prompts = read_problems(settings.data)
    attempts: Callable[[Prompt], list[str]] = recorded_attempts
    if settings.model is not None:
        attempts = sample_attempts(
            prompts,
            settings.model,
            Path(settings.out).parent / "attempts",
            settings.samples,
            sampling=Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature),
            chat_template_args=settings.chat_template_args,
            seed=settings.seed,
            source=Path(settings.data).stem,
            progress=make_progress(quiet=output.quiet, plain=output.plain),
        )
    if voting_share is None:
        built = build_sv(prompts, attempts)
    else:
        built = build_asv(prompts, attempts, voting_share, settings.seed)
    counted = ", ".join(f"{count} {outcome}" for outcome, count in built.counts.items() if count) or "none"
    if not built.rows:
        raise DataError(f"{settings.data}: no demonstration can be made of it: {counted}")
    write_jsonl(settings.out, built.rows)
    if settings.rl_prompts is not None:
        write_jsonl(settings.rl_prompts, map(SHIPPED["voting" if voting_share is None else "adaptive"], prompts))
    if output.json:
        record = {"prompts": len(prompts), "rows": len(built.rows), "counts": built.counts}
        print_json(record | {"voting_share": built.voting_share, "out": settings.out})
    else:
        say(f"{len(prompts)} prompts: {counted}")
        say(f"{len(built.rows)} rows, {built.voting_share:.1%} of them votes, written to {settings.out}")
    return 0


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
