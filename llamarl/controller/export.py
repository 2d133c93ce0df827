"""A run's weights as a standard Hugging Face checkpoint."""

from pathlib import Path

from llamarl.controller.checkpoints import CheckpointStore
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import RECIPE_FILE
from llamarl.core.errors import CheckpointError
from llamarl.models.checkpoint import load_model, load_tokenizer, save_model
from llamarl.models.decoder import named_tensors
from llamarl.training.checkpoints import copy_weights, read


def export_run(run_dir: str | Path, directory: str | Path, step: str = "latest") -> int:
    """Writes the weights of a checkpoint, with tokenizer, chat template and configs, to `directory`.

    Args:
        run_dir: of a run with at least one checkpoint.
        directory: absent, empty, or an earlier export.
        step: `latest`, `best`, or a step number.

    Returns:
        The exported step.

    Raises:
        CheckpointError: not a run directory, no such step, or a damaged checkpoint.
    """
    run_dir = Path(run_dir)
    if not (run_dir / RECIPE_FILE).is_file():
        raise CheckpointError(f"{run_dir}: no {RECIPE_FILE}; give the directory of a llamarl run")
    recipe = Recipe.load(run_dir / RECIPE_FILE)
    store = CheckpointStore(run_dir / "checkpoints")
    checkpoint = store.load_latest() if step == "latest" else store.load(store.number(step))
    model = load_model(recipe.model)
    weights = dict(named_tensors(model))
    copy_weights(read(checkpoint.path / "trainer", weights).weights, weights)
    save_model(model, load_tokenizer(recipe.model), directory)
    return checkpoint.step
