"""feedback simulate, ingest, describe, fit, evaluate: from a log of users' reactions to a model of them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llamarl.cli.common import print_json, say, show_progress
from llamarl.cli.fit_commands import describe_skips, run_fit
from llamarl.cli.options import LiveOutput, Output, Overrides, Positional
from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError
from llamarl.feedback.settings import Description, Evaluate, Ingest, Simulation

if TYPE_CHECKING:
    from rich.table import Table

MOST_SEGMENTS = 20
"""Rows of a table on the terminal; --json has all."""
MOST_BAD_ROWS = 10
HEADLINE = ("auroc", "auroc_interval", "base_rate", "length_correlation", "length_correlation_interval")
"""Numbers of a report that `feedback fit --json` prints first."""


class IngestSettings(Ingest):
    """Logs, and how they become a store."""

    logs: Positional[tuple[str, ...]] = Field(min_length=1)
    """Files or globs: .jsonl, .csv, .tsv or .parquet; text may be compressed as .gz."""


class FitSettings(Config):
    """A store, the model that learns from it, and where the result goes."""

    store: Annotated[Positional[Path | None], Metavar("STORE")] = None
    """Directory of a store, the --out of an ingest."""
    model: str | None = None
    """Causal language model with a chat template to start from (a directory, GGUF file or Hub id), or a P[Love]."""
    out: Annotated[str | None, Metavar("DIR")] = None
    """Directory of the training: new, empty, or one that was killed."""
    list_settings: bool = False
    """Print every setting with its default."""


class EvaluateSettings(Evaluate):
    """Policies to compare by what they answer to the same prompts."""

    policies: Annotated[Positional[dict[str, str]], Metavar("NAME=FILE")] = Field(min_length=1)
    """The responses of each policy: what llamarl generate --json prints, or rows of {prompt, completion}."""


class DescribeSettings(Description):
    """Store to describe."""

    store: Positional[Path]
    """Directory of a store, the --out of an ingest."""


def simulate(settings: Simulation, output: Output) -> int:
    """Write the log of simulated users whose preference is known, and the truth beside it.

    Examples:
        llamarl feedback simulate --out log
        llamarl feedback simulate --out log --users 5000 --days 60 --seed 7 --bots 0.05
    """
    from llamarl.feedback import simulate

    counts = simulate(settings)
    if output.json:
        print_json(counts)
        return 0
    users = ", ".join(f"{count} {kind}" for kind, count in counts["users"].items())
    say(f"{counts['rows']:,} messages, {counts['love_rate']:.2%} loved, of users {users}")
    say(f"the log is {counts['logs']}; the truth is {counts['truth']}")
    return 0


def ingest(settings: IngestSettings, output: LiveOutput) -> int:
    """Read logs of messages and reactions into one store: checked, without ids and secrets, without bots.

    The same command again goes on where a killed one stopped, if --key-env names a key. A row that is not kept is
    counted with its reason, and listed in the store with file, line and field.

    Examples:
        llamarl feedback ingest log/logs.jsonl --out store
        llamarl feedback ingest 'logs/*.parquet' --out store --columns user=uid --columns response=message.text
        llamarl feedback ingest logs.csv --out store --key-env FEEDBACK_KEY --keep stars --reactions sparkles=love
    """
    from llamarl.feedback import ingest

    with show_progress("MB", output, can_go_on=settings.key_env is not None) as update:
        store = ingest(settings, on_progress=update)
    record = store.record
    if output.json:
        print_json({name: value for name, value in record.items() if name not in ("format", "data", "settings")})
        return 0
    say(f"{record['kept']:,} of {record['rows']:,} rows kept, of {record['users']:,} users; {record['loves']:,} loved")
    for reason, count in sorted(record["dropped"].items(), key=lambda item: -item[1]):
        say(f"  dropped: {count:,} {reason}")
    if record["suspicious_users"]:
        say(f"{record['suspicious_users']:,} suspicious users, with reasons in {store.suspicious}")
    for bad in record["bad_rows"][:MOST_BAD_ROWS]:
        field = f", field {bad['field']}" if bad["field"] else ""
        say(f"  {bad['file']}, line {bad['line']}{field}: {bad['reason']}")
    for note in record["notes"]:
        say(f"note: {note}")
    say(f"the store is {store.path}; llamarl feedback describe {store.path} says what it holds")
    return 0


def describe(settings: DescribeSettings, output: Output) -> int:
    """Show how often messages of a store are loved, where and when, and which signal is worth learning from.

    Intervals are 95%, for users drawn at random. Ambiguity is the share of good signals to which another objects.

    Examples:
        llamarl feedback describe store
        llamarl feedback describe store --out description
        llamarl feedback describe store --json
    """
    from llamarl.feedback import describe
    from llamarl.feedback.description_report import RATE_COLUMNS, SIGNAL_COLUMNS, format_share, rate_rows, signal_rows
    from llamarl.report.console import SafeConsole

    result = describe(settings)
    if output.json:
        print_json(result)
        return 0
    loved = format_share(result["base_rate"], result["base_rate_interval"])
    say(f"{result['messages']:,} messages of {result['users']:,} users; {loved} loved")
    console = SafeConsole()
    for name, rates in result["by"].items():
        if len(rates) > 1:
            shown = rates[-MOST_SEGMENTS:] if name == "day" else rates[:MOST_SEGMENTS]
            console.print(build_table([name, *RATE_COLUMNS], rate_rows(shown)))
        if len(rates) > MOST_SEGMENTS:
            more = "earlier" if name == "day" else "more"
            say(f"  and {len(rates) - MOST_SEGMENTS} {more}; --out and --json have all")
    console.print(build_table(SIGNAL_COLUMNS, signal_rows(result["signals"])))
    if settings.out is not None:
        say(f"the report is {settings.out}/report.html, its figure {settings.out}/description.png")
    return 0


def fit(settings: FitSettings, output: LiveOutput, overrides: Overrides) -> int:
    """Train P[Love]: the probability that a user loves a reply, measured on later messages of other users.

    The same command again goes on where a killed one stopped. OUT/model is a Hugging Face classifier, and a reward
    model for a run; OUT/report.json, OUT/love.png and OUT/held-out.jsonl say how good it is.

    Examples:
        llamarl feedback fit store --model MODEL --out love
        llamarl feedback fit store --model MODEL --out love --lora.rank 16 --learning-rate 2e-4 --device cuda
        llamarl feedback fit store --model MODEL --out love --max-examples 20000 --num-epochs 2 --held-out 0.1
        llamarl feedback fit --list-settings
    """
    from llamarl.controller.overrides import describe_settings, dotted_names, parse_overrides
    from llamarl.feedback.love import StoreLove
    from llamarl.training.objectives import LoveConfig

    if settings.list_settings:
        say(describe_settings(LoveConfig))
        return 0
    if not (settings.store and settings.model and settings.out):
        raise ConfigError("STORE, --model or --out is missing: use llamarl feedback fit store --model model --out love")
    values = parse_overrides(overrides)
    config = LoveConfig.parse(values, overrides=dotted_names(values))
    files = (settings.model, str(settings.store), settings.out, None, None)
    summary = run_fit(StoreLove(config), config.device, files, output)
    report = summary["held_out"]
    if output.json:
        print_json({name: report[name] for name in HEADLINE} | summary)
    else:
        say("\n".join(_describe_fit(summary, settings.out)))
    return 0


def evaluate(settings: EvaluateSettings, output: LiveOutput) -> int:
    """Score the responses of policies to the same prompts: the mean probability that a user loves them.

    Intervals are 95%, from a bootstrap over prompts. Every policy is also compared with the first, prompt by prompt:
    intervals that overlap may still be a change beyond doubt. With --online, Pearson's r of the scores and the love
    rates that the policies had; it takes at least three.

    Examples:
        llamarl generate MODEL - --temperature 0 --json < prompts.txt > new.json
        llamarl feedback evaluate control=control.json new=new.json --reward-model love
        llamarl feedback evaluate a=a.json b=b.json c=c.json --reward-model love --online rates.csv --out evaluation
    """
    from llamarl.feedback import evaluate
    from llamarl.feedback.description_report import format_share

    with show_progress("responses", output, can_go_on=False) as update:
        result = evaluate(settings, on_progress=update)
    if output.json:
        print_json(result)
        return 0
    say(f"{result['prompts']:,} prompts; P[Love] at a base rate of {result['base_rate']:.2%}")
    for note in result["notes"]:
        say(f"warning: {note}")
    for name, policy in result["policies"].items():
        score = format_share(policy["score"], policy["interval"])
        say(f"{name:14} {score}, {policy['mean_characters']:.0f} characters a response")
    for name, change in result["changes"]["policies"].items():
        relative = _number(change["relative_change"], change["relative_interval"], "+.1%")
        say(f"{name:14} {relative} against {result['changes']['against']}, prompt by prompt")
    if "online" in result:
        online = result["online"]
        r = _number(online["pearson"], online["pearson_interval"], "+.3f")
        say(f"r with the love rates online, {online['policies']} policies: {r}")
        if online["unused"]:
            say(f"note: rates of policies that were not scored: {', '.join(online['unused'])}")
    if settings.out is not None:
        say(f"report         {settings.out}/report.html; all numbers: {settings.out}/evaluation.json")
    return 0


def _describe_fit(summary: Mapping[str, Any], out: str) -> Iterator[str]:
    """Yields what a user wants to know of a finished training."""
    rows, report = summary["rows"], summary["held_out"]
    yield from describe_skips(rows)
    yield f"trained        {summary['steps']} steps on {rows['train']:,} messages in {summary['seconds']:.0f} s"
    counts = f"{report['messages']:,} messages of {report['users']:,} users, {report['loves']:,} loved"
    yield f"held out       AUROC {_number(report['auroc'], report['auroc_interval'])} on {counts}"
    if report["auroc_interval"] is None or report["auroc_interval"][0] <= 0.5:
        yield (
            "warning: not shown to tell loved replies from others (AUROC 0.5 or less is not ruled out); train longer, "
            "on more, before you score policies by it"
        )
    yield (
        f"calibration    {report['mean_probability']:.2%} predicted, {report['observed_rate']:.2%} loved; expected gap "
        f"{report['calibration_error']:.2%}, Brier score {report['brier']:.4f}"
    )
    yield f"length         r {_number(report['length_correlation'], report['length_correlation_interval'], '+.2f')}"
    for name, values in report["by"].items():
        parts = [f"{value or 'not said'} {_number(part['auroc'], None)}" for value, part in values.items()]
        if len(parts) > 1:
            yield f"AUROC by {name}: {', '.join(parts[:MOST_SEGMENTS])}"
    yield f"model          {summary['model']} (weights of step {summary['model_step']})"
    yield f"figure         {out}/love.png; all numbers: {out}/report.json"


def _number(value: float | None, interval: Sequence[float] | None, form: str = ".3f") -> str:
    if value is None:
        return "-"
    return f"{value:{form}}" + (f" ({interval[0]:{form}} to {interval[1]:{form}})" if interval else "")


def build_table(columns: Sequence[str], rows: Iterator[list[str]]) -> "Table":
    """A plain table for the terminal; the first column stands left, numbers right."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table
