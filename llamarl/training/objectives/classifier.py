"""The common part of objectives that train a scoring head and the body below it: the model, its scores, their settings.

Scores are read at the last token of the whole conversation, as the chat template ends it. No randomness is involved:
the head starts at zero. Importing this module does not import torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from pydantic import Field

from llamarl.training.config import ExampleConfig
from llamarl.training.examples import TokenIds
from llamarl.training.objective import FitRow, Objective, Scorer

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llamarl.models.tokenizer import Tokenizer
    from llamarl.scoring.conversations import ConversationScorer


class ClassifierConfig(ExampleConfig):
    """Training of a scoring head and the body below it. A falling schedule reaches 0 at the last step."""

    num_epochs: int | None = Field(default=1, ge=1)
    """Times each row is seen; instead of `num_steps`. Reward models overfit from the second on."""
    batch_size: int = Field(default=64, ge=1)
    """Pairs (or labelled rows) per optimizer step."""
    is_head_only: bool = False
    """Train the scoring head alone and leave the body as it is."""


class ConversationRow(FitRow, Protocol):
    """One row of conversations, encoded."""

    @property
    def sequences(self) -> tuple[TokenIds, ...]:
        """Whole conversations that are scored: of a pair both, or the one that is labelled."""


C = TypeVar("C", bound=ConversationRow)


class ClassifierObjective(Objective[C]):
    """Base of what trains a `*ForSequenceClassification` that scores whole conversations."""

    model_folder: ClassVar[str] = "model"
    is_policy: ClassVar[bool] = False
    head_name: ClassVar[str] = "score"
    label_names: ClassVar[tuple[str, ...]]
    """One name per output of the head."""
    config: ClassifierConfig

    def load(self, path: str, tokenizer: "Tokenizer") -> "nn.Module":
        """The model at `path` with a head for these labels, new where it has none, and a padding token."""
        from llamarl.models.checkpoint import load_classifier
        from llamarl.models.classifier import ensure_padding

        model: Any = load_classifier(path, new_labels=len(self.label_names), device=self.config.device)
        ensure_padding(model, tokenizer)
        model.config.id2label = dict(enumerate(self.label_names))
        model.config.label2id = {name: index for index, name in enumerate(self.label_names)}
        return model  # type: ignore[no-any-return]

    def freeze(self, model: "nn.Module") -> None:
        """Freezes the body with `is_head_only`."""
        if self.config.is_head_only:
            model.requires_grad_(False)
            head: Any = model.score
            head.requires_grad_(True)

    def build_scorer(self, model: "nn.Module") -> Scorer[C]:
        """Logits of conversations."""
        from llamarl.scoring.conversations import build_conversation_scorer

        return _ConversationRowScorer(build_conversation_scorer(model, self.config.precision))

    def cost(self, row: C) -> int:
        """Tokens of the conversations."""
        return sum(map(len, row.sequences))

    def num_scores(self, row: C) -> int:
        """One row of logits per conversation."""
        return len(row.sequences)


@dataclass(frozen=True, slots=True)
class _ConversationRowScorer:
    """Scores the conversations of rows."""

    score: "ConversationScorer"

    def __call__(self, rows: Sequence[ConversationRow]) -> "Tensor":
        return self.score([row.sequences for row in rows])

    def split(self, rows: Sequence[ConversationRow], max_tokens: int) -> list[list[int]]:
        from llamarl.scoring.conversations import split_groups

        return split_groups([row.sequences for row in rows], max_tokens)
