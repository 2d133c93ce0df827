"""Supervised fine-tuning: teach a model completions.

    loss = - sum over completion tokens of log p(token | all before it) / divisor

Nothing is learnt of the prompt's tokens. Importing this module does not import torch.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from llamarl.core import metric_names as names
from llamarl.core.errors import ConfigError
from llamarl.core.seeds import derive_seed
from llamarl.functional.losses import Metrics
from llamarl.training.config import FitConfig
from llamarl.training.objective import Objective, Rows, Scorer, Source
from llamarl.training.sft_rows import SFTRow, encode_chats, read_chats

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llamarl.models.tokenizer import Tokenizer


class SFTConfig(FitConfig):
    """Supervised fine-tuning. A falling schedule reaches 0 at the last step."""

    batches_cross_epochs: ClassVar[bool] = True

    num_steps: int | None = Field(default=500, ge=1)
    """Optimizer steps; instead of `num_epochs`."""
    reduction: Literal["token_mean", "sequence_sum"] = "token_mean"
    """`token_mean`: each completion token of the step weighs the same. `sequence_sum`: mean over rows of their sum."""
    held_out: int = Field(default=0, ge=0)
    """Rows kept apart to measure the loss on: the last ones; none with `--eval-data`."""
    keep: Literal["loss", "last"] = "last"
    """Weights that become the model: the last, or those of the lowest held-out loss."""


@dataclass(frozen=True, slots=True)
class TokenReport:
    """The loss on held-out completions."""

    loss: float
    """Mean over completion tokens, nats."""
    tokens: int
    """Completion tokens."""

    def metrics(self) -> dict[str, float | None]:
        """Scalars for `metrics.jsonl`."""
        return {names.HELD_OUT_LOSS: self.loss, names.HELD_OUT_TOKENS: float(self.tokens)}


class SFT(Objective[SFTRow]):
    """Likelihood of completions.

    Args:
        config: the settings.
    """

    name: ClassVar[str] = "sft"
    config: SFTConfig

    def __init__(self, config: SFTConfig) -> None:
        self.config = config

    def load(self, path: str, tokenizer: "Tokenizer") -> "nn.Module":
        """The causal language model at `path`."""
        from llamarl.models.checkpoint import load_model

        return load_model(path, device=self.config.device)

    def read(
        self, data: Source, eval_data: Source | None, split: str | None, tokenizer: "Tokenizer", positions: int | None
    ) -> Rows[SFTRow]:
        """Reads conversations; see `sft_rows`.

        Raises:
            DataError: the first bad row, with its place.
            ConfigError: `held_out` leaves no row to train on.
        """
        notes: list[str] = []
        chats = read_chats(data, split)
        rows = encode_chats(chats, tokenizer, positions, tell=notes.append)
        num_held_out = 0 if eval_data is not None else self.config.held_out
        if num_held_out >= len(rows):
            raise ConfigError(f"held_out={num_held_out}: the data has {len(rows)} rows, and some must train")
        cut = len(rows) - num_held_out
        held_out = rows[cut:]
        if eval_data is not None:
            others = read_chats(eval_data, split)
            held_out, chats = encode_chats(others, tokenizer, positions, tell=notes.append), [*chats, *others]
        conversations = [(messages[:-1], tools) for _, (messages, tools) in chats]
        return Rows(rows[:cut], held_out, notes=notes, conversations=conversations)

    def build_scorer(self, model: "nn.Module") -> Scorer[SFTRow]:
        """Log-probs of completion tokens."""
        from llamarl.scoring.prefixes import LogprobScorer

        return LogprobScorer(model, self.config.precision)

    def cost(self, row: SFTRow) -> int:
        """Tokens of prompt and completion."""
        return len(row.prompt_ids) + len(row.token_ids)

    def num_scores(self, row: SFTRow) -> int:
        """One per completion token."""
        return row.num_tokens

    def losses(self, scores: "Tensor", rows: Sequence[SFTRow]) -> "tuple[Tensor, Metrics]":
        """`[S]` minus the log-prob of each completion token."""
        return -scores, {}

    def divisor(self, rows: Sequence[SFTRow]) -> int:
        """The step's completion tokens, or with `sequence_sum` its rows."""
        return sum(row.num_tokens for row in rows) if self.config.reduction == "token_mean" else len(rows)

    def report(self, scores: "Tensor", rows: Sequence[SFTRow]) -> TokenReport:
        """The mean loss over the completion tokens of all rows, whatever the reduction."""
        return TokenReport(-float(scores.double().mean()), len(scores))

    def epoch_order(self, rows: Sequence[SFTRow], epoch: int) -> list[int]:
        """A shuffle that depends on seed, epoch and number of rows only."""
        order = list(range(len(rows)))
        random.Random(derive_seed("sft", self.config.seed, epoch)).shuffle(order)
        return order
