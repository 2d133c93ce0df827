"""Every shipped recipe parses, and trains for two steps."""

from pathlib import Path

import pytest
from rluf_product import write_rluf

from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train
from llamarl.core.errors import ConfigError
from llamarl.generation.int8 import check_int8
from llamarl.models.checkpoint import new_model, save_model
from llamarl.recipes import recipe_names, recipe_path
from llamarl.recipes.build_chain import chain_model_config, chain_tokenizer
from llamarl.tasks.chain import write_prompts

TWO_STEPS = [
    *("--schedule.steps", "2", "--schedule.prompts-per-step", "4"),
    *("--evaluation.num-prompts", "4", "--sampling.max-tokens", "16", "--generator.slots", "16"),
]
FEW = ["--schedule.samples-per-prompt", "4"]
FEW_OF_EACH_FORM = ["--coverage.0.samples", "2", "--coverage.1.samples", "2"]


def write_chain(directory: Path) -> None:
    """What `build_chain` makes in some minutes, with an untrained model."""
    tokenizer = chain_tokenizer()
    save_model(new_model(chain_model_config(tokenizer), 0), tokenizer, directory / "model")
    write_prompts(directory / "train.jsonl", 16)
    write_prompts(directory / "heldout.jsonl", 16, split="heldout")


@pytest.mark.parametrize("name", recipe_names())
def test_a_shipped_recipe_trains(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "ibpo":
        write_chain(tmp_path / "chain")
    if name.startswith("rluf"):
        write_rluf(tmp_path / "rluf")
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load(recipe_path(name), [*TWO_STEPS, *(FEW_OF_EACH_FORM if name == "ibpo" else FEW)])
    if recipe.generator.precision == "int8":
        try:
            check_int8("cpu")
        except ConfigError as error:
            pytest.skip(str(error))
    summary, _ = train(recipe, tmp_path / "run")
    assert summary.steps == 2 and summary.prompts_trained == 8 * len(recipe.all_tasks)
    assert summary.reward_before is not None and summary.reward_after is not None
    assert summary.staleness_max is not None and summary.staleness_max <= recipe.schedule.max_staleness


def test_an_unknown_recipe_is_refused_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'demo'"):
        recipe_path("demmo")
