"""The terminal that commands write to. What it shows may be text of strangers: a model, a judge, a server, a file."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from llamarl.report.text import visible


class SafeConsole(Console):
    """A rich console on which no text can steer the terminal, whoever wrote it.

    Control characters of every renderable become pictures (`visible`); only rich's own styling reaches the terminal.
    Square brackets and `:names:` are text, not markup. In a notebook it writes lines of plain text.
    """

    def __init__(self, **options: Any) -> None:
        plain = {"markup": False, "emoji": False, "highlight": False, "force_jupyter": False}
        if Console().is_jupyter:  # whose output stream says it were a terminal
            plain["force_terminal"] = False
        super().__init__(**{**plain, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yields what to write, piece by piece; every renderable comes through here."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)
