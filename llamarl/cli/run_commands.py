"""train, resume, view, export: the life of a run directory."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llamarl.cli.common import INTERRUPTED, print_json, say
from llamarl.cli.options import LiveOutput, Output, Overrides, Positional
from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError

if TYPE_CHECKING:
    from llamarl.controller.prepare import Prepared
    from llamarl.controller.recipe import Recipe
    from llamarl.controller.reporter import Reporter
    from llamarl.report.live import LiveView


Run = Annotated[Positional[str], Metavar("RUN")]


class TrainSettings(Config):
    """A recipe and where its run goes."""

    recipe: Positional[str | None] = None
    """TOML file; any setting of it can be overridden by --dotted.name VALUE."""
    run_dir: str | None = None
    """Folder of the run (default: a new one under runs/)."""
    dry_run: bool = False
    """Check everything, print what would run, its memory and the planner's estimate, run nothing; all with --json."""
    list_settings: bool = False
    """Print every setting of a recipe with its default."""


def train(settings: TrainSettings, output: LiveOutput, overrides: Overrides) -> int:
    """Train a model by reinforcement learning, as a recipe says.

    Examples:
        llamarl train recipe.toml
        llamarl train recipe.toml --schedule.max-staleness 2 --trainer.learning-rate 1e-6
        llamarl train recipe.toml --dry-run
        llamarl train --list-settings
    """
    from llamarl.controller.overrides import describe_settings
    from llamarl.controller.prepare import prepare
    from llamarl.controller.recipe import Recipe
    from llamarl.controller.run import train

    if settings.list_settings:
        say(describe_settings(Recipe))
        return 0
    if settings.recipe is None:
        raise ConfigError(
            "no recipe given: use llamarl train recipe.toml (llamarl train --list-settings shows what it holds)"
        )
    recipe = Recipe.load(settings.recipe, overrides)
    if settings.dry_run:
        _show_dry_run(recipe, prepare(recipe), output)
        return 0
    with live_view(output, Path(settings.recipe).stem) as view:
        summary, reporter = train(recipe, settings.run_dir, live=view)
    return _finish(output, reporter, asdict(summary))


def _show_dry_run(recipe: "Recipe", prepared: "Prepared", output: LiveOutput) -> None:
    from llamarl.cli.plan_commands import estimate_run
    from llamarl.report.console import SafeConsole
    from llamarl.report.dry_run import render_dry_run

    estimate = estimate_run(recipe, prepared.model_config, fmean(prepared.measure_prompts()))
    plan = {**prepared.describe(), "estimate": estimate}
    if output.json:
        print_json({"recipe": recipe.record(), "changes": recipe.changes(), "plan": plan})
    else:
        SafeConsole().print(render_dry_run(recipe.record(), plan, recipe.changes()))


class ResumeSettings(Config):
    """A run and where it goes on."""

    run_dir: Run
    """Run directory."""
    step: str = "latest"
    """Go on from latest, best, or a step number."""


def resume(settings: ResumeSettings, output: LiveOutput, overrides: Overrides) -> int:
    """Go on with a run that was stopped, killed or crashed.

    Examples:
        llamarl resume runs/NAME
        llamarl resume runs/NAME --schedule.steps 400
        llamarl resume runs/NAME --step best
    """
    from llamarl.controller.run import resume

    with live_view(output, Path(settings.run_dir).name) as view:
        summary, reporter = resume(settings.run_dir, overrides, step=settings.step, live=view)
    return _finish(output, reporter, asdict(summary))


class ViewSettings(Config):
    """A run to look at."""

    run_dir: Run
    """Run directory; with --serve also a folder of runs."""
    no_figures: bool = False
    """Draw no PNG files."""
    page: bool = False
    """Write the run's page for a browser, RUN/index.html, as it is now. It opens by double click."""
    out: str | None = None
    """Write the page or the figure into this file or folder instead of the run's, which may be on a read-only disk."""
    serve: bool = False
    """Serve the page, fresh while the run goes on; of a folder, all its runs side by side. Ctrl-C ends it."""
    host: str = "127.0.0.1"
    """Address to serve on. Beyond this machine the page's address holds a secret: whoever has it reads the run."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to serve on; 0 takes a free one."""


def view(settings: ViewSettings, output: Output) -> int:
    """Show how a run goes or went, and draw its figures.

    Examples:
        llamarl view runs/NAME
        llamarl view runs/NAME --page
        llamarl view /mnt/archive/NAME --page --out page.html
        llamarl view runs/NAME --serve
        llamarl view runs/ --serve --port 8000
        llamarl view runs/NAME --json
    """
    from llamarl.controller.directory import LEDGER_FILE
    from llamarl.controller.ledger import read_counts
    from llamarl.report.console import SafeConsole
    from llamarl.report.view import render_run, run_as_dict

    if settings.serve:
        return _serve(settings, output)
    if settings.page:
        page = _write_page(settings)
        print_json({"page": str(page)}) if output.json else say(f"page {page}")
        return 0
    ledger = Path(settings.run_dir) / LEDGER_FILE
    counts = read_counts(ledger) if ledger.is_file() else None
    if not settings.no_figures:
        draw_figures(Path(settings.run_dir), _choose_path(settings, "run.png", (".png",)))
    if output.json:
        print_json(run_as_dict(settings.run_dir, counts))
    else:
        SafeConsole().print(render_run(settings.run_dir, counts))
    return 0


def _write_page(settings: ViewSettings) -> Path:
    from llamarl.controller.page import write_page
    from llamarl.report.page import SUFFIXES
    from llamarl.report.site.document import PAGE_FILE

    path = _choose_path(settings, PAGE_FILE, SUFFIXES)
    try:
        return write_page(settings.run_dir, path)
    except OSError as error:
        what = f"{error.filename}: " if error.filename and Path(error.filename).parent != path.parent else ""
        raise ConfigError(
            f"{path}: the page cannot be written ({what}{error.strerror}); --out FILE.html writes it elsewhere"
        ) from None


def _choose_path(settings: ViewSettings, name: str, suffixes: tuple[str, ...]) -> Path:
    """The file to write: in the run's folder, in the folder that the user named, or the user's own file."""
    path = Path(settings.run_dir if settings.out is None else settings.out)
    if settings.out is None or path.is_dir():
        return path / name
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"--out {path}: give a folder that is there, or a file that ends in {suffixes[0]}")
    return path


def _serve(settings: ViewSettings, output: Output) -> int:
    from llamarl.controller.page import account_of
    from llamarl.report.site.server import Site, SiteServer

    server = SiteServer(Site(settings.run_dir, account_of), settings.host, settings.port)
    if output.json:
        print_json({"url": server.url})
    else:
        say(f"{server.url} shows {settings.run_dir}; Ctrl-C ends it")
    try:
        server.serve()
    except KeyboardInterrupt:
        return 0
    finally:
        server.close()
    return 0


class RunsSettings(Config):
    """A folder of runs."""

    folder: Annotated[Positional[str], Metavar("FOLDER")] = "runs"
    """Folder that holds runs, at most three folders down."""


def runs(settings: RunsSettings, output: Output) -> int:
    """List the runs of a folder: state, steps, reward, held-out reward, age.

    Examples:
        llamarl runs
        llamarl runs experiments/ --json
    """
    from llamarl.report.console import SafeConsole
    from llamarl.report.runs_table import runs_table
    from llamarl.report.site.folder import describe_row, find_runs

    rows = [describe_row(name, path) for name, path in find_runs(settings.folder).items()]
    rows.sort(key=lambda row: float("inf") if row.age is None else row.age)
    if output.json:
        print_json([row.as_dict() for row in rows])
    elif not rows:
        say(f"no runs in {settings.folder}; llamarl demo makes one")
    else:
        SafeConsole().print(runs_table(rows))
    return 0


class ExportSettings(Config):
    """A run and where its model goes."""

    run_dir: Run
    """Run directory."""
    directory: Annotated[Positional[str], Metavar("DIR")]
    """Directory of the checkpoint: absent or empty, or an earlier export."""
    step: str = "latest"
    """The model of latest, best, or a step number."""
    adapter: bool = False
    """Write the adapters alone, in PEFT layout, of a run with trainer.lora."""


def export(settings: ExportSettings, output: Output) -> int:
    """Write a run's model as a Hugging Face checkpoint, adapters added to its weights; or its adapters alone.

    Examples:
        llamarl export runs/NAME model/
        llamarl export runs/NAME model/ --step best
        llamarl export runs/NAME adapter/ --adapter
    """
    from llamarl.controller.export import export_run

    step = export_run(
        settings.run_dir,
        settings.directory,
        settings.step,
        tell=lambda text: say(text, sys.stderr),
        adapter=settings.adapter,
    )
    loader = "peft.PeftModel.from_pretrained(base, ...)" if settings.adapter else "AutoModelForCausalLM.from_pretrained"
    if output.json:
        print_json({"step": step, "directory": settings.directory})
    else:
        say(f"step {step} written to {settings.directory}; {loader} loads it")
    return 0


def draw_figures(run_dir: Path, path: Path | None = None) -> Path | None:
    """Draws the run's figure where there is something to draw and the disk takes it; says so where not."""
    from llamarl.report.plots import plot_run

    if not (run_dir / "metrics.jsonl").is_file():
        return None
    try:
        return plot_run(run_dir, path or run_dir / "run.png")
    except OSError as error:
        say(f"no figure: {error}; llamarl view {run_dir} --out FILE.png draws it elsewhere", sys.stderr)
        return None


@contextmanager
def live_view(output: LiveOutput, title: str) -> "Iterator[LiveView | None]":
    """The live view the user asked for; on standard error where standard output carries JSON."""
    if output.quiet:
        yield None
        return
    from llamarl.report.console import SafeConsole
    from llamarl.report.live import LiveView

    with LiveView(title, console=SafeConsole(stderr=output.json), plain=output.plain) as view:
        yield view


def stopped_early(reporter: "Reporter", steps: int) -> str | None:
    """One line on where an interrupt ended the run and how to go on; None where it came to its end."""
    if not reporter.is_interrupted or steps >= reporter.total_steps:
        return None
    return f"stopped at step {steps} of {reporter.total_steps}; llamarl resume {reporter.directory}"


def _finish(output: LiveOutput, reporter: "Reporter", summary: dict[str, Any]) -> int:
    from llamarl.report.site.document import PAGE_FILE

    directory, stopped = reporter.directory, stopped_early(reporter, summary["steps"])
    status = INTERRUPTED if stopped else 0
    figure = draw_figures(directory)
    if output.json:
        print_json({"run_dir": str(directory), **summary})
        return status
    before, after = summary["reward_before"], summary["reward_after"]
    if before is not None and after is not None:
        say(f"held-out reward {before:.3f} -> {after:.3f}")
    say(f"{summary['steps']} steps in {summary['seconds']:.0f} s; run directory {directory}")
    if figure:
        say(f"figure {figure}")
    if (directory / PAGE_FILE).is_file():
        say(f"page {directory / PAGE_FILE} opens in a browser")
    say(stopped or f"next: llamarl view {directory} | llamarl export {directory} MODEL_DIR")
    return status
