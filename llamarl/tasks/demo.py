"""The shipped demo checkpoint: a 0.34M-parameter policy that solves the format task about one time in six."""

from importlib.resources import files
from pathlib import Path

DEMO_CHECKPOINT = Path(str(files("llamarl.tasks"))) / "assets" / "format"
"""Hugging Face directory; `python -m llamarl.recipes.build_demo DIR` rebuilds it."""
