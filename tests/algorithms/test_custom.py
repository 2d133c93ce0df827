"""An algorithm of the user's own, named in a recipe by file."""

from pathlib import Path

import pytest

from llamarl.algorithms import CustomConfig
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train
from llamarl.core.errors import ConfigError
from llamarl.recipes import recipe_path

SOURCE = """
from typing import Literal

from llamarl.algorithms import AIPOConfig

class DoubledConfig(AIPOConfig):
    type: Literal["doubled"] = "doubled"

    def advantages(self, rewards, groups):
        return [2 * value for value in super().advantages(rewards, groups)]

def doubled(rho):
    return DoubledConfig(rho=rho)

def nothing():
    return object()

def broken():
    return {}["rho"]
"""

SMALL = [
    *("--schedule.steps", "1", "--schedule.prompts-per-step", "2", "--schedule.samples-per-prompt", "4"),
    *("--evaluation.num-prompts", "0", "--sampling.max-tokens", "16", "--schedule.max-staleness", "0"),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


@pytest.mark.parametrize("factory", ["doubled", "DoubledConfig"])
def test_a_recipe_trains_with_an_algorithm_from_a_file(tmp_path: Path, file: Path, factory: str) -> None:
    own = ["--algorithm.type", "custom", "--algorithm.factory", f"{file}:{factory}", "--algorithm.settings.rho", "2.0"]
    recipe = Recipe.load(recipe_path("demo"), [*SMALL, *own])
    assert isinstance(recipe.algorithm, CustomConfig) and type(recipe.algorithm.load()).__name__ == "DoubledConfig"
    assert train(recipe, tmp_path / "run")[0].steps == 1
    assert Recipe.load(tmp_path / "run" / "recipe.json") == recipe


def test_rejects_a_factory_that_is_missing_fails_or_returns_no_algorithm(file: Path) -> None:
    with pytest.raises(ConfigError, match="has no 'double'"):
        CustomConfig(factory=f"{file}:double").load()
    with pytest.raises(ConfigError, match=r"algorithm\.settings"):
        CustomConfig(factory=f"{file}:doubled", settings={"roh": 1.0}).load()
    with pytest.raises(ConfigError, match=r"algorithm\.settings: roh: unknown key\. Did you mean 'rho'"):
        CustomConfig(factory=f"{file}:DoubledConfig", settings={"roh": 1.0}).load()
    with pytest.raises(ConfigError, match=r"broken: KeyError: 'rho' \(.*mine\.py:\d+\); check algorithm\.settings"):
        CustomConfig(factory=f"{file}:broken").load()
    with pytest.raises(ConfigError, match="returned a object, but a recipe needs an Algorithm"):
        CustomConfig(factory=f"{file}:nothing").load()
