"""Shipped recipes: whole runs, ready to start."""

from importlib.resources import files
from pathlib import Path

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError


def recipe_names() -> list[str]:
    """Names of the shipped TOML recipes."""
    return sorted(Path(entry.name).stem for entry in files(__package__).iterdir() if entry.name.endswith(".toml"))


def recipe_path(name: str) -> Path:
    """The TOML file of a shipped recipe. Raises `ConfigError` with a suggestion for an unknown name."""
    if name not in recipe_names():
        raise ConfigError(f"recipe {name!r}: not shipped.{suggest(name, recipe_names())}")
    return Path(str(files(__package__))) / f"{name}.toml"
