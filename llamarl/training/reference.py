"""The frozen reference policy as a pipeline stage: it scores what others sampled."""

from array import array
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from llamarl.core.protocols import AllCores, Cores, Executor
from llamarl.core.records import Trajectory
from llamarl.core.sampling import Sampling
from llamarl.scoring.logprobs import Scorer, autocast, build_scorer
from llamarl.training.config import TrainerConfig
from llamarl.training.memory import micro_batch_tokens


class ReferenceExecutor(Executor):
    """Log-probs under weights that never change.

    Args:
        config: its precision and micro-batches are the trainer's, so that both compute alike.
        load_model: builds the `*ForCausalLM`, where the executor lives: the checkpoint the run starts from.
        sampling: how the completions are drawn; the temperature divides the logits, as it does in the trainer.
        cores: shares cores with other executors; by default torch's settings are left alone.
    """

    def __init__(
        self,
        config: TrainerConfig,
        load_model: Callable[[], nn.Module],
        sampling: Sampling,
        cores: Cores | None = None,
    ) -> None:
        self._config, self._load_model, self._sampling = config, load_model, sampling
        self._cores = cores or AllCores()

    def setup(self) -> None:
        """Loads and freezes the model."""
        self._model = self._load_model().eval().requires_grad_(False)
        self._score = build_scorer(self._model, self._sampling.temperature)

    def logprobs(self, rows: Sequence[Trajectory]) -> "list[array[float]]":
        """Computes the log-prob of each response token of each trajectory, in order.

        Raises:
            DataError: a trajectory without prompt or response tokens.
        """
        return response_logprobs(self._score, self._model, self._config, rows, lambda: self._cores.using("reference"))


@torch.no_grad()  # the reference is never trained, so its activations need not be kept
def response_logprobs(
    score: Scorer,
    model: nn.Module,
    config: TrainerConfig,
    rows: Sequence[Trajectory],
    using_cores: Callable[[], AbstractContextManager[object]],
) -> "list[array[float]]":
    """Computes the log-prob of each response token of each trajectory, in order, as the model is now.

    Args:
        score: of `model`.
        model: decides the device and the default size of micro-batches.
        config: its precision and micro-batches.
        rows: what others sampled.
        using_cores: entered around each micro-batch.
    """
    found: dict[int, array[float]] = {}
    for part in score.split(rows, micro_batch_tokens(model, config)):
        with using_cores(), autocast(model, config.precision):
            logprobs = score([rows[index] for index in part]).logprobs
        sizes = [rows[index].response_length for index in part]
        found |= {i: array("f", row.tolist()) for i, row in zip(part, torch.split(logprobs, sizes), strict=True)}
    return [found[index] for index in range(len(rows))]
