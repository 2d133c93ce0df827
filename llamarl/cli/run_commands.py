"""train, resume, view, export: the life of a run directory."""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.cli.common import INTERRUPTED, Subparsers, add_command, add_view_options, print_json, say
from llamarl.core.errors import ConfigError

if TYPE_CHECKING:
    from llamarl.controller.reporter import Reporter
    from llamarl.report.live import LiveView


def add_commands(commands: Subparsers) -> None:
    """Adds this module's commands."""
    train = add_command(
        commands,
        "train",
        run_train,
        help="train a model by reinforcement learning, as a recipe says",
        examples="""
llamarl train recipe.toml
llamarl train recipe.toml --schedule.max-staleness 2 --trainer.learning-rate 1e-6
llamarl train recipe.toml --dry-run
llamarl train --list-settings
""",
        takes_overrides=True,
    )
    train.add_argument("recipe", nargs="?", help="TOML file; any setting can be overridden by --dotted.name VALUE")
    train.add_argument("--run-dir", help="where the run is written (default: a new folder under runs/)")
    train.add_argument(
        "--dry-run", action="store_true", help="check everything, print the resolved recipe, run nothing"
    )
    train.add_argument("--list-settings", action="store_true", help="print every setting with its default")
    add_view_options(train)

    resume = add_command(
        commands,
        "resume",
        run_resume,
        help="go on with a run that was stopped, killed or crashed",
        examples="""
llamarl resume runs/NAME
llamarl resume runs/NAME --schedule.steps 400
llamarl resume runs/NAME --step best
""",
        takes_overrides=True,
    )
    resume.add_argument("run_dir", metavar="RUN", help="run directory")
    resume.add_argument("--step", default="latest", help="go on from latest (default), best, or a step number")
    add_view_options(resume)

    view = add_command(
        commands,
        "view",
        run_view,
        help="show how a run goes or went, and draw its figures",
        examples="llamarl view runs/NAME\nllamarl view runs/NAME --json",
    )
    view.add_argument("run_dir", metavar="RUN", help="run directory")
    view.add_argument("--no-figures", action="store_true", help="don't draw PNG files")

    export = add_command(
        commands,
        "export",
        run_export,
        help="write a run's model as a Hugging Face checkpoint",
        examples="llamarl export runs/NAME model/\nllamarl export runs/NAME model/ --step best",
    )
    export.add_argument("run_dir", metavar="RUN", help="run directory")
    export.add_argument("directory", metavar="DIR", help="absent or empty, or an earlier export")
    export.add_argument("--step", default="latest", help="latest (default), best, or a step number")


def run_train(arguments: argparse.Namespace) -> int:
    """`llamarl train`."""
    from llamarl.controller.prepare import prepare
    from llamarl.controller.recipe import Recipe, describe_settings
    from llamarl.controller.run import train

    if arguments.list_settings:
        say(describe_settings(Recipe))
        return 0
    if arguments.recipe is None:
        raise ConfigError(
            "give a recipe: llamarl train recipe.toml (llamarl train --list-settings shows what it holds)"
        )
    recipe = Recipe.load(arguments.recipe, arguments.overrides)
    if arguments.dry_run:
        plan = prepare(recipe).describe()
        print_json({"recipe": recipe.record(), "plan": plan})
        return 0
    with live_view(arguments, Path(arguments.recipe).stem) as view:
        summary, reporter = train(recipe, arguments.run_dir, live=view)
    return _finish(arguments, reporter, asdict(summary))


def run_resume(arguments: argparse.Namespace) -> int:
    """`llamarl resume`."""
    from llamarl.controller.run import resume

    with live_view(arguments, Path(arguments.run_dir).name) as view:
        summary, reporter = resume(arguments.run_dir, arguments.overrides, step=arguments.step, live=view)
    return _finish(arguments, reporter, asdict(summary))


def run_view(arguments: argparse.Namespace) -> int:
    """`llamarl view`."""
    from llamarl.controller.directory import LEDGER_FILE
    from llamarl.controller.ledger import read_counts
    from llamarl.report.console import SafeConsole
    from llamarl.report.view import render_run, run_as_dict

    ledger = Path(arguments.run_dir) / LEDGER_FILE
    counts = read_counts(ledger) if ledger.is_file() else None
    if not arguments.no_figures:
        draw_figures(Path(arguments.run_dir))
    if arguments.json:
        print_json(run_as_dict(arguments.run_dir, counts))
    else:
        SafeConsole().print(render_run(arguments.run_dir, counts))
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """`llamarl export`."""
    from llamarl.controller.export import export_run

    step = export_run(arguments.run_dir, arguments.directory, arguments.step, tell=lambda text: say(text, sys.stderr))
    if arguments.json:
        print_json({"step": step, "directory": arguments.directory})
    else:
        say(f"step {step} written to {arguments.directory}; AutoModelForCausalLM.from_pretrained loads it")
    return 0


def draw_figures(run_dir: Path) -> Path | None:
    """Draws the run's figure where there is something to draw and the disk takes it; says so where not."""
    from llamarl.report.plots import plot_run

    if not (run_dir / "metrics.jsonl").is_file():
        return None
    try:
        return plot_run(run_dir, run_dir / "run.png")
    except OSError as error:
        say(f"no figure: {error}", sys.stderr)
        return None


@contextmanager
def live_view(arguments: argparse.Namespace, title: str) -> "Iterator[LiveView | None]":
    """The live view the user asked for; on standard error where standard output carries JSON."""
    if arguments.quiet:
        yield None
        return
    from llamarl.report.console import SafeConsole
    from llamarl.report.live import LiveView

    with LiveView(title, console=SafeConsole(stderr=arguments.json), plain=arguments.plain) as view:
        yield view


def stopped_early(reporter: "Reporter", steps: int) -> str | None:
    """One line on where an interrupt ended the run and how to go on; None where it came to its end."""
    if not reporter.is_interrupted or steps >= reporter.total_steps:
        return None
    return f"stopped at step {steps} of {reporter.total_steps}; llamarl resume {reporter.directory}"


def _finish(arguments: argparse.Namespace, reporter: "Reporter", summary: dict[str, Any]) -> int:
    directory, stopped = reporter.directory, stopped_early(reporter, summary["steps"])
    status = INTERRUPTED if stopped else 0
    figure = draw_figures(directory)
    if arguments.json:
        print_json({"run_dir": str(directory), **summary})
        return status
    before, after = summary["reward_before"], summary["reward_after"]
    if before is not None and after is not None:
        say(f"held-out reward {before:.3f} -> {after:.3f}")
    say(f"{summary['steps']} steps in {summary['seconds']:.0f} s; run directory {directory}")
    if figure:
        say(f"figure {figure}")
    say(stopped or f"next: llamarl view {directory} | llamarl export {directory} MODEL_DIR")
    return status
