"""A run's weights as a standard Hugging Face checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from torch import nn

from llamarl.controller.checkpoints import CheckpointStore, warn
from llamarl.controller.directory import read_recipe
from llamarl.models.checkpoint import check_target, load_model, load_tokenizer, save_model
from llamarl.models.decoder import named_tensors
from llamarl.models.tokenizer import Tokenizer
from llamarl.training.checkpoints import copy_weights, read


class Trained(NamedTuple):
    """A run's model with the weights of one of its checkpoints."""

    model: nn.Module
    tokenizer: Tokenizer
    step: int


def load_trained(run_dir: str | Path, step: str = "latest", tell: Callable[[str], None] = warn) -> Trained:
    """Loads the run's model with the weights of a checkpoint.

    Args:
        run_dir: of a run with at least one checkpoint.
        step: `latest`, `best`, or a step number.
        tell: hears of each damaged checkpoint that `latest` skips.

    Raises:
        CheckpointError: not a run directory, no such step, or a damaged checkpoint.
    """
    recipe, store = read_recipe(run_dir), CheckpointStore(Path(run_dir) / "checkpoints")
    checkpoint = store.load_latest(tell) if step == "latest" else store.load(store.number(step))
    model = load_model(recipe.model)
    weights = dict(named_tensors(model))
    copy_weights(read(checkpoint.path / "trainer", weights).weights, weights)
    return Trained(model, load_tokenizer(recipe.model, recipe.chat_template_args), checkpoint.step)


def export_run(
    run_dir: str | Path, directory: str | Path, step: str = "latest", tell: Callable[[str], None] = warn
) -> int:
    """Writes the weights of a checkpoint, with tokenizer, chat template and configs, to `directory`.

    Args:
        run_dir: see `load_trained`.
        directory: absent, empty, or an earlier export; not the model that the run started from.
        step: see `load_trained`.
        tell: see `load_trained`.

    Returns:
        The exported step.

    Raises:
        CheckpointError: see `load_trained`; or a directory that won't do.
    """
    check_target(directory, read_recipe(run_dir).model)
    trained = load_trained(run_dir, step, tell)
    save_model(trained.model, trained.tokenizer, directory)
    return trained.step
