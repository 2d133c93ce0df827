"""The frozen reference policy as a pipeline stage: it scores what others sampled."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from llamarl.core.protocols import AllCores, Cores, Executor
from llamarl.core.sampling import Sampling
from llamarl.scoring.logprobs import autocast, build_scorer
from llamarl.training.config import TrainerConfig
from llamarl.training.memory import micro_batch_tokens
from llamarl.training.sft_rows import SFTRow


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

    @torch.no_grad()  # the reference is never trained, so its activations need not be kept
    def logprobs(self, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, ...]]:
        """Computes the log-prob of each completion token of each row (prompt ids, token ids), in order.

        Raises:
            DataError: a row without prompt or completion tokens.
        """
        scored = [SFTRow(tuple(prompt), tuple(tokens)) for prompt, tokens in rows]
        found: dict[int, tuple[float, ...]] = {}
        for part in self._score.split(scored, micro_batch_tokens(self._model, self._config)):
            with self._cores.using("reference"), autocast(self._model, self._config.precision):
                logprobs = self._score([scored[index] for index in part]).logprobs
            sizes = [len(scored[index].token_ids) for index in part]
            found |= {i: tuple(row.tolist()) for i, row in zip(part, torch.split(logprobs, sizes), strict=True)}
        return [found[index] for index in range(len(rows))]
