"""A run's weights as a standard Hugging Face checkpoint, or its adapters in PEFT layout."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from llamarl.controller.checkpoints import CheckpointStore, warn
from llamarl.controller.directory import read_recipe
from llamarl.controller.recipe import Recipe
from llamarl.core.errors import ConfigError
from llamarl.models.checkpoint import load_model, load_tokenizer, save_model
from llamarl.models.export import check_target, write_export
from llamarl.models.tokenizer import Tokenizer
from llamarl.training.checkpoints import copy_weights, read
from llamarl.training.trained import TrainedWeights


class Trained(NamedTuple):
    """A run's model with the weights of one of its checkpoints."""

    model: nn.Module
    tokenizer: Tokenizer
    step: int


def load_trained(run_dir: str | Path, step: str = "latest", tell: Callable[[str], None] = warn) -> Trained:
    """Loads the run's model with the weights of a checkpoint; adapters are added to the weights.

    Args:
        run_dir: of a run with at least one checkpoint.
        step: `latest`, `best`, or a step number.
        tell: hears of each damaged checkpoint that `latest` skips.

    Raises:
        CheckpointError: not a run directory, no such step, or a damaged checkpoint.
    """
    recipe = read_recipe(run_dir)
    model, weights, number = _load(run_dir, recipe, step, tell)
    weights.merge()
    return Trained(model, load_tokenizer(recipe.model, recipe.chat_template_args), number)


def export_run(
    run_dir: str | Path,
    directory: str | Path,
    step: str = "latest",
    tell: Callable[[str], None] = warn,
    *,
    adapter: bool = False,
) -> int:
    """Writes the weights of a checkpoint, with tokenizer, chat template and configs, to `directory`.

    Args:
        run_dir: see `load_trained`.
        directory: absent, empty, or an earlier export; not the model that the run started from.
        step: see `load_trained`.
        tell: see `load_trained`.
        adapter: write the adapters alone instead, in PEFT layout, which names the model that they belong to.

    Returns:
        The exported step.

    Raises:
        CheckpointError: see `load_trained`; or a directory that won't do.
        ConfigError: `adapter` of a run that trains the whole model.
    """
    recipe = read_recipe(run_dir)
    check_target(directory, recipe.model)
    if adapter:
        if recipe.trainer.lora is None:
            raise ConfigError(f"--adapter: {run_dir} trains the whole model and has no adapters; export it without")
        _, weights, number = _load(run_dir, recipe, step, tell)
        write_export(directory, lambda draft: weights.save_adapter(draft, str(recipe.model)))
        return number
    trained = load_trained(run_dir, step, tell)
    save_model(trained.model, trained.tokenizer, directory)
    return trained.step


class _Loaded(NamedTuple):
    """A run's model, its trained weights in place, and the step that they are of."""

    model: nn.Module
    weights: TrainedWeights
    step: int


def _load(run_dir: str | Path, recipe: Recipe, step: str, tell: Callable[[str], None]) -> _Loaded:
    """Loads the weights of a checkpoint, adapters beside the model's own."""
    store = CheckpointStore(Path(run_dir) / "checkpoints")
    checkpoint = store.load_latest(tell) if step == "latest" else store.load(store.number(step))
    model = load_model(recipe.model)
    trained = TrainedWeights(model, recipe.trainer.lora)
    tensors = trained.tensors()
    copy_weights(read(checkpoint.path / "trainer", tensors, base=trained.base_digest).weights, tensors)
    return _Loaded(model, trained, checkpoint.step)
