"""sft, dpo: train a checkpoint on rows. Reward models have a command of their own."""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from llamarl.cli.common import Subparsers, add_command, print_json, say
from llamarl.cli.model_commands import MODEL_HELP
from llamarl.core.errors import ConfigError

if TYPE_CHECKING:
    from llamarl.training.config import FitConfig
    from llamarl.training.objective import Objective

ROWS_HELP = "JSONL, Parquet, CSV, a glob or a Hub id"


def add_commands(commands: Subparsers) -> None:
    """Adds this module's commands."""
    _add_fit(
        commands,
        "sft",
        help="fine-tune a checkpoint on examples",
        rows="{messages, tools?} or {prompt, completion, tools?}",
        examples="""
llamarl sft MODEL data.jsonl OUT --num-steps 500 --learning-rate 1e-5
llamarl sft MODEL data.parquet OUT --num-epochs 2 --schedule linear --held-out 50 --keep loss
llamarl sft MODEL data.jsonl OUT --lora.rank 16 --learning-rate 2e-4 --device cuda
""",
    )
    _add_fit(
        commands,
        "dpo",
        help="train a checkpoint to prefer the chosen answers of pairs",
        rows="{chosen, rejected, prompt?, tools?}",
        examples="""
llamarl dpo MODEL pairs.jsonl OUT --learning-rate 1e-6 --beta 0.1
llamarl dpo MODEL pairs.jsonl OUT --lora.rank 16 --learning-rate 1e-5 --device cuda
llamarl dpo MODEL pairs.jsonl OUT --loss ipo --is-length-normalized true
llamarl dpo MODEL owner/name OUT --eval-data held-out.parquet --on-bad-row skip
""",
    )


def _add_fit(commands: Subparsers, name: str, *, help: str, rows: str, examples: str) -> None:
    """Adds the command of one objective."""
    command = add_command(commands, name, partial(run_fit, name), help=help, examples=examples, takes_overrides=True)
    command.add_argument("model", nargs="?", help=MODEL_HELP)
    command.add_argument("data", nargs="?", help=f"rows of {rows}: {ROWS_HELP}")
    command.add_argument("out", nargs="?", help="where the trained checkpoint goes: new, empty, or an earlier result")
    command.add_argument("--eval-data", metavar="DATA", help="rows to measure on (default: those that held_out keeps)")
    command.add_argument("--split", help="split of a Hub data set (default train)")
    command.add_argument("--list-settings", action="store_true", help="print every setting with its default")
    command.add_argument("--quiet", action="store_true", help="no progress")


def run_fit(name: str, arguments: argparse.Namespace) -> int:
    """Runs `llamarl sft` or `llamarl dpo`."""
    from llamarl.controller.recipe import describe_settings, dotted_names, parse_overrides
    from llamarl.training.objectives import DPO, SFT, DPOConfig, SFTConfig

    objectives: dict[str, tuple[type[FitConfig], Callable[[Any], Objective[Any]]]]
    objectives = {"sft": (SFTConfig, SFT), "dpo": (DPOConfig, DPO)}
    config_type, build = objectives[name]
    if arguments.list_settings:
        say(describe_settings(config_type))
        return 0
    if arguments.out is None:
        raise ConfigError(f"give MODEL DATA OUT: llamarl {name} model/ data.jsonl out/")
    settings = parse_overrides(arguments.overrides)
    config = config_type.parse(settings, overrides=dotted_names(settings))
    from llamarl.models.device import describe_device, resolve_device
    from llamarl.training.fit import fit

    if not arguments.json:
        say(f"device: {describe_device(resolve_device(config.device))}", sys.stderr)
    with show_progress(arguments, name) as advance:
        summary = fit(
            build(config),
            arguments.model,
            arguments.data,
            arguments.out,
            eval_data=arguments.eval_data,
            split=arguments.split,
            on_step=lambda step, total, metrics: advance(step, total, f"loss {metrics['train/loss']:.4f}"),
            tell=lambda note: say(f"note: {note}", sys.stderr),
        )
    if arguments.json:
        print_json(summary)
    else:
        say("\n".join(_describe(summary, has_adapters=config.lora is not None)))
    return 0


def describe_pairs(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a report on held-out pairs says, a line each."""
    error = report["calibration_error"]
    yield f"held out       accuracy {describe_share(report['accuracy'])}, calibration error {error:.3f}"
    correlation = report["length_correlation"]
    yield (
        f"length         correlation {'-' if correlation is None else f'{correlation:+.2f}'}; accuracy where the "
        f"chosen is shorter {describe_share(report['accuracy_where_chosen_is_shorter'])}, longer "
        f"{describe_share(report['accuracy_where_chosen_is_longer'])}"
    )


def describe_share(share: Mapping[str, Any]) -> str:
    """A proportion with its interval."""
    if share["value"] is None:
        return "- (no pairs)"
    return f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}] of {share['count']}"


def describe_skipped(rows: Mapping[str, Any]) -> Iterator[str]:
    """Yields how many rows were left out, where some were."""
    if rows["skipped"]:
        yield "left out       " + ", ".join(f"{count} {reason}" for reason, count in rows["skipped"].items())


def _describe(summary: Mapping[str, Any], has_adapters: bool) -> Iterator[str]:
    """Yields what a user wants to know of a finished training."""
    before, after = summary["held_out_before"], summary["held_out"]
    yield from describe_skipped(summary["rows"])
    scope = f" with {summary['trained_parameters']:,} adapter parameters" if has_adapters else ""
    change = "" if after is None else f", held-out loss {before['loss']:.4f} -> {after['loss']:.4f}"
    yield (
        f"{summary['steps']} steps on {summary['rows']['train']} rows{scope}{change}; weights of step "
        f"{summary['model_step']} written to {summary['model']}"
    )
    if after is not None and "accuracy" in after:
        yield from describe_pairs(after)


@contextmanager
def show_progress(arguments: argparse.Namespace, title: str) -> Iterator[Callable[..., None]]:
    """Shows a progress bar on standard error; yields what to call with what is done, the total, and a note."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from llamarl.report.console import SafeConsole

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=SafeConsole(stderr=True), disable=arguments.json or arguments.quiet) as progress:
        bar = progress.add_task(title, total=None, note="")
        yield lambda done, total, note="": progress.update(bar, completed=done, total=total, note=note)
