"""What several commands share."""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from llamarl.report.text import visible

Subparsers = Any
"""What `add_subparsers` returns; argparse keeps the type private."""

INTERRUPTED = 130
"""Exit status after Ctrl-C or SIGTERM."""


def add_command(
    commands: Subparsers,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    *,
    help: str,
    examples: str,
    takes_overrides: bool = False,
) -> argparse.ArgumentParser:
    """A subcommand whose `--help` ends with examples."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog="examples:\n" + "\n".join(f"  {line}" for line in examples.strip().splitlines()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(run=run, takes_overrides=takes_overrides)
    return parser


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """How progress is shown."""
    parser.add_argument("--plain", action="store_true", help="progress as plain lines (the default without a terminal)")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def add_template_args(parser: Any, prefix: str = "") -> None:
    """The option `--chat-template-args`, read by `models.template_args.parse_template_args`."""
    parser.add_argument(
        "--chat-template-args",
        metavar="JSON",
        help=f"""{prefix}arguments of the chat template, such as '{{"enable_thinking": false}}'""",
    )


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Prints text that may hold other people's words, by default on standard output, and steers no terminal.

    Control characters become pictures; what the stream cannot encode becomes a question mark.
    """
    stream = stream or sys.stdout
    encoding = stream.encoding or "utf-8"
    print(visible(text).encode(encoding, errors="replace").decode(encoding), file=stream)


def quieten_terminal() -> None:
    """Log records and warnings, which may hold other people's words too, are shown like `say` shows text."""
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(_VisibleFormatter())
    warnings.formatwarning = _format_warning


class _VisibleFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return visible(f"{filename}:{lineno}: {category.__name__}: {message}") + "\n"


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2, default=str))
