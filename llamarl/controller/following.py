"""The weights of a run that goes on, as its checkpoints appear."""

from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from llamarl.controller.checkpoints import CheckpointStore, warn
from llamarl.controller.directory import read_recipe
from llamarl.controller.export import Trained, load_trained
from llamarl.core.errors import CheckpointError
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


def load_newest(
    run_dir: str | Path, tell: Callable[[str], None] = warn, load: Callable[..., Trained] = load_trained
) -> Trained:
    """Loads the newest checkpoint of a run or, before there is one, the model that it starts from, as step 0.

    Args:
        run_dir: of a run that may go on meanwhile.
        tell: hears of damaged checkpoints.
        load: reads a checkpoint, as `load_trained`.

    Raises:
        CheckpointError: not a run directory, or no checkpoint that verifies.
    """
    recipe, store = read_recipe(run_dir), CheckpointStore(Path(run_dir) / "checkpoints")
    while steps := store.steps():
        try:
            return load(run_dir, "latest", tell)
        except CheckpointError:
            if store.steps()[-1:] == steps[-1:]:
                raise
            # The run wrote newer ones meanwhile, and removed the one that was being read.
    return Trained(load_model(recipe.model), load_tokenizer(recipe.model, recipe.chat_template_args), 0)
