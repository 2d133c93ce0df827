"""The weights of a run that goes on, as its checkpoints appear."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from llamarl.controller.checkpoints import CheckpointStore, warn
from llamarl.controller.directory import read_recipe
from llamarl.controller.export import Trained, load_trained
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.models.decoder import named_tensors


class RunWeights:
    """Looks for newer checkpoints of a run. Every byte is verified against the checkpoint's manifest.

    Args:
        run_dir: of the run.
        step: that of the weights which are had already.
    """

    def __init__(self, run_dir: str | Path, step: int) -> None:
        self._run_dir, self.step = run_dir, step
        self._store = CheckpointStore(Path(run_dir) / "checkpoints")

    def look(self) -> tuple[int, Mapping[str, Tensor]] | None:
        """Step and weights of the newest checkpoint, if it is newer than at the last look.

        Raises:
            CheckpointError: it is damaged, or was removed while it was read because a newer one came.
        """
        steps = self._store.steps()
        if not steps or steps[-1] <= self.step:
            return None
        trained = load_trained(self._run_dir, str(steps[-1]))
        self.step = trained.step
        return trained.step, dict(named_tensors(trained.model))


def load_newest(run_dir: str | Path, tell: Callable[[str], None] = warn) -> Trained:
    """Loads the newest checkpoint of a run or, before there is one, the model that it starts from, as step 0.

    Raises:
        CheckpointError: not a run directory, or no checkpoint that verifies.
    """
    recipe = read_recipe(run_dir)
    if CheckpointStore(Path(run_dir) / "checkpoints").steps():
        return load_trained(run_dir, "latest", tell)
    return Trained(load_model(recipe.model), load_tokenizer(recipe.model, recipe.chat_template_args), 0)
