"""demo: the whole thing on a laptop, from one command."""

from dataclasses import asdict
from pathlib import Path

from llamarl.cli.common import INTERRUPTED, print_json
from llamarl.cli.options import LiveOutput, Overrides
from llamarl.core.config import Config


class DemoSettings(Config):
    """Settings of the demo: its length, and the folder of its run."""

    steps: int | None = None
    """Optimizer steps (default: the recipe's)."""
    run_dir: str | None = None
    """Folder of the run (default: a new one under runs/)."""


def demo(settings: DemoSettings, output: LiveOutput, overrides: Overrides) -> int:
    """Train a tiny shipped model on this machine by asynchronous RL; no download, no GPU.

    Examples:
        llamarl demo
        llamarl demo --steps 100
        llamarl demo --engine monarch --schedule.max-staleness 4
    """
    from rich.text import Text

    from llamarl.cli.run_commands import draw_figures, live_view, stopped_early
    from llamarl.controller.recipe import Recipe
    from llamarl.controller.run import train
    from llamarl.recipes import recipe_path
    from llamarl.report.console import SafeConsole
    from llamarl.report.rollouts import side_by_side
    from llamarl.report.site.document import PAGE_FILE

    steps = [] if settings.steps is None else ["--schedule.steps", str(settings.steps)]
    recipe = Recipe.load(recipe_path("demo"), [*steps, *overrides])
    console = SafeConsole(stderr=output.json)
    if not output.quiet:
        console.print(
            "A 0.34M-parameter model learns to follow instructions such as",
            Text("write 3 words with moon, upper, end !", style="bold"),
        )
    with live_view(output, "llamarl demo") as view:
        summary, reporter = train(recipe, settings.run_dir, live=view)
    figure = draw_figures(reporter.directory)
    stopped = stopped_early(reporter, summary.steps)
    status = INTERRUPTED if stopped else 0
    if output.json:
        print_json({"run_dir": str(reporter.directory), "figure": str(figure), **asdict(summary)})
        return status
    console.print(side_by_side(list(reporter.before)[:6], list(reporter.after)[:6], width=console.width))
    before, after = summary.reward_before, summary.reward_after
    if before is not None and after is not None:
        count = len(reporter.after)
        change = Text(f"{before:.2f} -> {after:.2f}", style="bold")
        console.print("held-out reward", change, f"over {count} prompts")
    console.print(
        f"{summary.steps} steps in {summary.seconds:.0f} s, {summary.tokens_generated} tokens, largest staleness "
        f"{summary.staleness_max} of {recipe.schedule.max_staleness} allowed"
    )
    console.print(f"figure         {figure}", soft_wrap=True)
    console.print(f"page           {Path(reporter.directory) / PAGE_FILE}", soft_wrap=True)
    console.print(f"run directory  {Path(reporter.directory)}", soft_wrap=True)
    console.print(stopped or f"next           llamarl view {reporter.directory}", soft_wrap=True)
    return status
