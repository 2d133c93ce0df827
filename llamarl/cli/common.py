"""What several commands share."""

import argparse
import json
from collections.abc import Callable
from typing import Any

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


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2, default=str))
