"""generate, sft: a checkpoint by itself."""

from llamarl.cli.common import Subparsers


def add_commands(commands: Subparsers) -> None:
    """Adds this module's commands."""
