"""A run's weights as a standard Hugging Face checkpoint."""

from collections.abc import Callable
from pathlib import Path

from llamarl.controller.checkpoints import CheckpointStore, warn
from llamarl.controller.directory import read_recipe
from llamarl.models.checkpoint import check_target, load_model, load_tokenizer, save_model
from llamarl.models.decoder import named_tensors
from llamarl.training.checkpoints import copy_weights, read


def export_run(
    run_dir: str | Path, directory: str | Path, step: str = "latest", tell: Callable[[str], None] = warn
) -> int:
    """Writes the weights of a checkpoint, with tokenizer, chat template and configs, to `directory`.

    Args:
        run_dir: of a run with at least one checkpoint.
        directory: absent, empty, or an earlier export; not the model that the run started from.
        step: `latest`, `best`, or a step number.
        tell: hears of each damaged checkpoint that `latest` skips.

    Returns:
        The exported step.

    Raises:
        CheckpointError: not a run directory, no such step, a damaged checkpoint, or a directory that won't do.
    """
    run_dir = Path(run_dir)
    recipe = read_recipe(run_dir)
    check_target(directory, recipe.model)
    store = CheckpointStore(run_dir / "checkpoints")
    checkpoint = store.load_latest(tell) if step == "latest" else store.load(store.number(step))
    model = load_model(recipe.model)
    weights = dict(named_tensors(model))
    copy_weights(read(checkpoint.path / "trainer", weights).weights, weights)
    save_model(model, load_tokenizer(recipe.model, recipe.chat_template_args), directory)
    return checkpoint.step
