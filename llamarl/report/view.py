"""The page of a run in a terminal, and the same as plain values for `--json`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from llamarl.core import metric_names as names
from llamarl.report.charts import line_chart, sparkline
from llamarl.report.health import warnings_of
from llamarl.report.metrics import column
from llamarl.report.monitors import LoggedReading, last_readings
from llamarl.report.names import describe
from llamarl.report.panel import busy_bar
from llamarl.report.recipe_values import fit_items, flatten, in_words, run_title
from llamarl.report.rollouts import LoggedGroup, LoggedSample, last_message, mark, verdict_line
from llamarl.report.rundir import ENDED_BY, RunFiles, read_run, total_steps
from llamarl.report.tasks_of_run import describe_budgets, describe_tasks
from llamarl.report.text import format_bytes, format_number, format_seconds, one_line, visible
from llamarl.report.timeline import utilisation

SHOWN = (
    names.REWARD,
    names.HELD_OUT_REWARD,
    names.STALENESS_MAX,
    names.STALENESS_MEAN,
    names.RESPONSE_LENGTH,
    names.TRUNCATED,
    names.FRAC_ZERO_STD,
    names.TOKENS_PER_SECOND,
    names.LOSS,
    names.ENTROPY,
    names.KL_REFERENCE,
    names.MISMATCH_KL,
    names.MISMATCH_PROB_MAX,
    names.GRAD_NORM,
    names.TIME_STEP,
    names.TIME_SYNC,
)
"""Rows of the table, in order, where the run recorded them; judges' means and pass rates follow."""

MAX_WIDTH = 120
MESSAGES = 5
"""Messages shown, the latest."""
MONITOR_STATES = (("green", "quiet"), ("yellow", "warns"), ("bold red", "stops"))
"""Style and word of a monitor's level."""
STATE_STYLE = {"finished": "bold green", "running": "bold cyan", "stopped": "bold yellow"}


def run_as_dict(run_dir: str | Path, ledger_counts: Mapping[str, int] | None = None) -> dict[str, Any]:
    """A run in plain values, ready for JSON: state, recipe, metrics, utilisation, summary, warnings, files.

    Args:
        run_dir: of a finished, running or crashed run.
        ledger_counts: prompts by fate, where the caller has read the ledger.

    Raises:
        DataError: see `read_run`.
    """
    run = read_run(run_dir)
    every = sorted({name for record in run.metrics for name in record} - {"step", "time", names.POLICY_VERSION})
    return {
        "run_dir": str(run.path),
        "state": run.state,
        "step": run.last_step,
        "total_steps": total_steps(run.recipe),
        "last_record_seconds_ago": run.last_record_seconds_ago,
        "recipe": dict(run.recipe),
        "environment": dict(run.environment),
        "metrics": {name: stats for name in every if (stats := metric_stats(run, name)) is not None},
        "utilisation": utilisation(run.spans),
        "ledger": None if ledger_counts is None else dict(ledger_counts),
        "summary": None if run.summary is None else asdict(run.summary),
        "warnings": warnings_about(run),
        "messages": run.messages[-MESSAGES:],
        "figures": [str(path) for path in run.figures],
        "checkpoints": run.checkpoints,
        "rollouts": len(run.rollouts),
    }


def render_run(
    run_dir: str | Path, ledger_counts: Mapping[str, int] | None = None, width: int | None = None, rollouts: int = 1
) -> RenderableType:
    """The page of a run, for `rich.print`.

    Args:
        run_dir: of a finished, running or crashed run.
        ledger_counts: prompts by fate, where the caller has read the ledger.
        width: of the page, at least 50; None takes the console's, at most 120.
        rollouts: how many of the latest logged groups to show.

    Raises:
        DataError: see `read_run`.
    """
    return _Page(read_run(run_dir), ledger_counts, width, rollouts)


@dataclass(frozen=True, slots=True)
class _Page:
    run: RunFiles
    ledger_counts: Mapping[str, int] | None
    width: int | None
    rollouts: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = min(self.width or MAX_WIDTH, options.max_width)
        yield from console.render(Group(*self._parts(width)), options.update(width=width))

    def _parts(self, width: int) -> Iterator[RenderableType]:
        run = self.run
        yield _headline(run, width)
        yield _recipe_table(run, width)
        if not run.metrics:
            yield Text("no step yet", style="dim")
        rewards = column(run.metrics, names.REWARD)
        if len(rewards[1]) > 1:
            curve = "\n".join(line_chart(rewards[1], width - 2, 7, first=rewards[0][0]))
            yield from _section("reward", width, Text(curve, style="green", no_wrap=True))
        if run.metrics:
            yield from _section("metrics", width, _metric_table(run, width))
        tasks = describe_tasks(run)
        if run.metrics and len(tasks) > 1:
            yield from _section("tasks, first → last steps", width, _task_table(run))
        if run.metrics and any(judge["role"] != "reward" for task in tasks for judge in task["judges"]):
            yield from _section("judges, last step", width, _judge_table(run))
        if describe_budgets(run):
            yield from _section("budget, first → last steps", width, _budget_table(run))
        if readings := list(last_readings(run.metrics)):
            yield from _section("monitors, against the control", width, _monitor_table(run, readings, width))
        if run.spans:
            yield from _section("busy share of the whole run", width, _utilisation_table(run))
        if run.summary is not None or self.ledger_counts:
            yield from _section("totals", width, _totals(run, self.ledger_counts))
        if groups := run.rollouts[len(run.rollouts) - self.rollouts :] if self.rollouts else []:
            yield from _section("latest rollouts", width, *(_rollout(group, width) for group in groups))
        if run.messages:
            yield from _section("messages", width, *(Text(visible(line)) for line in run.messages[-MESSAGES:]))
        if warnings := warnings_about(run):
            yield from _section("warnings", width, *(Text(f"! {warning}", style="yellow") for warning in warnings))
        yield from _section("files", width, _files(run))


def metric_stats(run: RunFiles, name: str) -> dict[str, float] | None:
    """First, last, smallest, largest, best (where a direction is good) and count of one metric; None where absent."""
    values = column(run.metrics, name)[1]
    if not values:
        return None
    stats = {"first": values[0], "last": values[-1], "min": min(values), "max": max(values), "count": len(values)}
    better = describe(name).better
    return stats | ({"best": stats["max" if better == "up" else "min"]} if better else {})


def warnings_about(run: RunFiles) -> list[str]:
    """The things a person should look at, in sentences: files cut off, an early end, and what `health` finds."""
    found = [f"{name}: the last line was cut off by a crash and is left out" for name in run.torn]
    if run.state == "stopped" and run.summary is not None:
        total = total_steps(run.recipe)
        _, _, error = (run.messages[-1] if run.messages else "").partition(f" {ENDED_BY} ")
        why = error or "it was stopped, or ran out of prompts"
        found.append(f"the run ended at step {run.summary.steps} of {total}: {why}")
    elif run.state == "stopped":
        ago = format_seconds(run.last_record_seconds_ago)
        found.append(f"no summary, and the last record is {ago} old: the run crashed, was killed, or hangs")
    if run.summary is not None and (lost := _steps_without_checkpoint(run)):
        found.append(f"{lost} are in no checkpoint: it could not be written, or was removed")
    return [*found, *warnings_of(run.metrics)]


def _steps_without_checkpoint(run: RunFiles) -> str:
    """The last steps of a run that has ended, where their weights were not kept; empty where they were."""
    steps = [int(name.removeprefix("step_")) for name in run.checkpoints if name.removeprefix("step_").isdecimal()]
    newest, last = max(steps, default=0), run.summary.steps if run.summary else 0
    return f"steps {newest + 1} to {last}" if newest < last else ""


def _section(title: str, width: int, *parts: RenderableType) -> Iterator[RenderableType]:
    head = f"{title} "
    yield Text.assemble((head, "bold"), ("─" * (width - len(head)), "bright_black"))
    yield from parts


def _headline(run: RunFiles, width: int) -> Panel:
    total = total_steps(run.recipe)
    step = f"step {run.last_step}/{total}" if total else f"step {run.last_step}"
    line = Text.assemble((run.state, STATE_STYLE[run.state]), f"  {step}")
    summary = run.summary
    if summary is not None:
        line.append(f"  {format_seconds(summary.seconds)}")
        if summary.reward_before is not None and summary.reward_after is not None:
            before, after = format_number(summary.reward_before), format_number(summary.reward_after)
            line.append(f"  held-out reward {before} → {after}", style="bold")
    elif run.last_record_seconds_ago is not None:
        line.append(f"  last record {format_seconds(run.last_record_seconds_ago)} ago", style="dim")
    if title := run_title(run.recipe):
        line.append(f"\n{one_line(title, width - 4)}", style="dim")
    return Panel(line, title=Text(one_line(str(run.path), width - 6)), title_align="left", width=width)


def _recipe_table(run: RunFiles, width: int) -> Table:
    """Each section of the recipe, and the machine, in at most two lines of whole settings."""
    plain = {key: value for key, value in run.recipe.items() if not isinstance(value, (Mapping, list))}
    sections = {"recipe": plain} | {key: value for key, value in run.recipe.items() if key not in plain}
    room = 2 * (width - 16)
    texts = {}
    for name, section in sections.items():
        said = [(key, value) for key, value in flatten(section) if key and value not in (None, [], {})]
        texts[name] = fit_items([one_line(f"{key}={in_words(value)}", room) for key, value in said], room)
    table = Table.grid(padding=(0, 1))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in (texts | {"environment": _environment_line(run.environment)}).items():
        if text:
            table.add_row(one_line(name, 12), Text(one_line(text, room)))
    return table


def _environment_line(environment: Mapping[str, Any]) -> str:
    if not environment:
        return ""
    packages, git = environment.get("packages") or {}, environment.get("git") or {}
    parts = [f"llamarl {environment.get('llamarl')}", f"python {environment.get('python')}"]
    parts += [f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages]
    if git:
        parts.append(f"commit {str(git.get('commit'))[:10]}{' + changes' if git.get('is_dirty') else ''}")
    return ", ".join(parts)


def _task_table(run: RunFiles) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("task", overflow="fold")
    table.add_column("algorithm", no_wrap=True)
    for header in ("weight", "reward", "held-out", "violations"):
        table.add_column(header, justify="right", no_wrap=True)
    for task in describe_tasks(run):
        violations = task["violations"] or (task["satisfied"] and [1 - share for share in task["satisfied"]])
        weight = "its share" if task["weight"] is None else format_number(task["weight"])
        table.add_row(
            one_line(task["name"]), one_line(task["algorithm"]), weight,
            _change(task["reward"]), _change(task["held_out"]), _change(violations, is_share=True),
        )  # fmt: skip
    return table


def _judge_table(run: RunFiles) -> Table:
    """The last step's numbers of each judge; a constraint's violations are what does not pass."""
    tasks = describe_tasks(run)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("judge", overflow="fold")
    table.add_column("role", no_wrap=True)
    for header in ("mean", "violations", "abstained", "failed"):
        table.add_column(header, justify="right", no_wrap=True)
    for task in tasks:
        for judge in task["judges"]:
            name = f"{task['name']}: {judge['name']}" if len(tasks) > 1 else judge["name"]
            violations = judge["violation_rate"] if judge["role"] == "constraint" else None
            shares = [_share(value) for value in (violations, judge["abstain_rate"], judge["error_rate"])]
            table.add_row(one_line(name), one_line(judge["role"]), format_number(judge["mean"]), *shares)
    return table


def _budget_table(run: RunFiles) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("group", overflow="fold")
    for header in ("sampled share", "trained share", "slack"):
        table.add_column(header, justify="right", no_wrap=True)
    for each in describe_budgets(run):
        table.add_row(one_line(each["name"]), *(_change(each[key]) for key in ("sampled", "used", "slack")))
    return table


def _change(pair: Sequence[float] | None, is_share: bool = False) -> str:
    write = _share if is_share else format_number
    return " → ".join(write(value) for value in pair) if pair else "–"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def _metric_table(run: RunFiles, width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    table.add_column("metric", no_wrap=True)
    for header in ("first", "last", "best"):
        table.add_column(header, justify="right", no_wrap=True)
    spark_width = min(36, width - 64)
    if spark_width >= 8:
        table.add_column("curve", no_wrap=True, style="green")
    judges = {name for record in run.metrics for name in record if name.startswith("judge/")}
    for name in [*SHOWN, *sorted(name for name in judges if name.endswith(("/mean", "/pass_rate")))]:
        stats = metric_stats(run, name)
        if stats is None:
            continue
        metric = describe(name)
        label = f"{metric.title} ({metric.unit})" if metric.unit and metric.unit != metric.title else metric.title
        cells = [format_number(stats[key]) if key in stats else "" for key in ("first", "last", "best")]
        if spark_width >= 8:
            cells.append(sparkline(column(run.metrics, name)[1], spark_width))
        table.add_row(one_line(label, 28), *cells)
    return table


def _monitor_table(run: RunFiles, readings: Sequence[LoggedReading], width: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    table.add_column("monitor", no_wrap=True)
    for header in ("control", "now", "times", "between"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    spark_width = min(36, width - 76)
    if spark_width >= 8:
        table.add_column("curve of times", no_wrap=True, style="green")
    for each in readings:
        style, word = MONITOR_STATES[int(each.level)]
        between = f"{format_number(each.low)} to {format_number(each.high)}"
        numbers = [format_number(value) for value in (each.control, each.value, each.ratio)]
        cells: list[RenderableType] = [one_line(each.name, 20), *numbers, between, Text(word, style=style)]
        if spark_width >= 8:
            cells.append(sparkline(column(run.metrics, f"{each.prefix}ratio")[1], spark_width))
        table.add_row(*cells)
    return table


def _utilisation_table(run: RunFiles) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, fraction in utilisation(run.spans).items():
        table.add_row(one_line(name, 24), busy_bar(fraction, 30), f"{fraction:.0%}")
    return table


def _totals(run: RunFiles, ledger_counts: Mapping[str, int] | None) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    summary = run.summary
    if summary is not None:
        speed = f"{format_number(summary.tokens_generated)} ({format_number(summary.tokens_per_second)} per second)"
        table.add_row("tokens", speed)
        table.add_row(
            "staleness, mismatch",
            f"max {format_number(summary.staleness_max)}, max {format_number(summary.mismatch_max)}",
        )
        table.add_row("weight sync", f"median {format_seconds(summary.weight_sync_seconds_median)}")
        table.add_row("peak memory", format_bytes(summary.peak_memory_bytes))
        counts = {name: getattr(summary, f"prompts_{name}") for name in ("issued", "trained", "dropped", "failed")}
        table.add_row("prompts", _counts(counts))
    if ledger_counts:
        table.add_row("ledger", _counts(ledger_counts))
    return table


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{format_number(count)} {name}" for name, count in counts.items())


def _rollout(group: LoggedGroup, width: int) -> RenderableType:
    head = Text(f"step {group.step}, {group.task}, prompt {one_line(group.prompt_id, 24)}: ", style="dim")
    head.append(one_line(last_message(group.messages), width), style="bold")
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold", max_width=width - 12)
    for sample in group.samples[:4]:
        table.add_row(mark(sample.is_passed), format_number(sample.reward), _sample_text(sample, width - 12))
    return Group(head, table)


def _sample_text(sample: LoggedSample, width: int) -> Text:
    text = Text(one_line(sample.text.strip(), 3 * width))
    details = [f"{len(sample.token_ids)} tokens", f"staleness {sample.staleness}"]
    if sample.finish_reason == "length":
        details.append("cut by the token limit")
    details += [verdict_line(name, verdict, 80) for name, verdict in sample.verdicts.items()]
    return text.append(f"\n{', '.join(details)}", style="dim")


def _files(run: RunFiles) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    for path in run.figures:
        table.add_row("figure", Text(str(path)))
    if run.checkpoints:
        table.add_row("checkpoints", Text(f"{run.path / 'checkpoints'}: {', '.join(run.checkpoints)}"))
    table.add_row("everything", Text(str(run.path)))
    return table
