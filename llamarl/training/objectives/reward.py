"""Reward models and classifiers: teach a scoring head, and the body below it, from preferences or labels.

    pairs     mean over pairs of -log sigmoid(r(chosen) - r(rejected) - margin)
              + centering * (r(chosen) + r(rejected))^2
    labels    mean cross-entropy over rows

Rewards are read at the last token of the whole conversation. No randomness is involved: the head starts at zero, and
the rows come in an order hashed from the seed. Importing this module does not import torch.

Shape legend: N conversations, L labels, B examples.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from llamarl.core import metric_names as names
from llamarl.core.errors import ConfigError
from llamarl.functional.losses import Metrics
from llamarl.functional.preference import bradley_terry_loss, centering_penalty
from llamarl.training.examples import ConversationEncoder, Example, Kind, read_rows
from llamarl.training.objective import Rows, Source
from llamarl.training.objectives.classifier import ClassifierConfig, ClassifierObjective
from llamarl.training.reports import LabelReport, PairReport, report_labels, report_pairs

if TYPE_CHECKING:
    from torch import Tensor

    from llamarl.models.tokenizer import Tokenizer

FIGURE = "reward.png"
Points = list[tuple[float, float]]
"""(answer tokens, score) of answers."""


class RewardConfig(ClassifierConfig):
    """Training of a reward model or classifier. A falling schedule reaches 0 at the last step."""

    centering: float = Field(default=0.0, ge=0.0)
    """Coefficient of the mean of (r_chosen + r_rejected)^2, which holds the rewards around 0; 0.01 is usual."""
    is_response_only: bool = False
    """Labelled rows only: show the classifier the completion without prompt and chat template."""


class RewardObjective(ClassifierObjective[Example]):
    """Base of reward models and classifiers that learn from pairs or labels of any kind."""

    name: ClassVar[str] = "reward"
    kind: ClassVar[Kind]
    config: RewardConfig

    def read(
        self, data: Source, eval_data: Source | None, split: str | None, tokenizer: "Tokenizer", positions: int | None
    ) -> Rows[Example]:
        """Reads rows of this kind; see `examples`."""
        most = min(self.config.max_tokens, positions or self.config.max_tokens)
        config = self.config.model_copy(update={"max_tokens": most})
        encode = ConversationEncoder(tokenizer, self.config.is_response_only)
        return read_rows(data, eval_data, self.kind, encode, config, split)

    def draw(
        self, path: Path, records: Sequence[Mapping[str, Any]], scores: "Tensor | None", rows: Sequence[Example]
    ) -> None:
        """Draws `reward.png`: learning curve, calibration, score against length."""
        from llamarl.report.reward_plots import plot_reward_model

        bins = [] if scores is None else self.report(scores, rows).bins
        answers = {} if scores is None else self.answers(scores, rows)
        plot_reward_model(path / FIGURE, records, bins, answers, path.name)

    @abstractmethod
    def report(self, scores: "Tensor", rows: Sequence[Example]) -> PairReport | LabelReport:
        """Measures how good the logits `[N, L]` are."""

    @abstractmethod
    def answers(self, logits: "Tensor", examples: Sequence[Example]) -> dict[str, Points]:
        """(answer tokens, score) of each conversation, by what the rows say of it."""


class PairObjective(RewardObjective):
    """Bradley-Terry on chosen and rejected.

    Args:
        config: the settings.

    Raises:
        ConfigError: `is_response_only`.
    """

    kind: ClassVar[Kind] = "pairs"
    label_names: ClassVar[tuple[str, ...]] = ("reward",)

    def __init__(self, config: RewardConfig) -> None:
        if config.is_response_only:
            raise ConfigError(
                "is_response_only=true: for labelled rows (--labels); a pair is compared under its prompt"
            )
        self.config = config

    def losses(self, scores: "Tensor", rows: Sequence[Example]) -> "tuple[Tensor, Metrics]":
        """`[B]` losses, `train/margin` and `train/accuracy`; scores are those of chosen, rejected, chosen, ..."""
        import torch

        chosen, rejected = scores.view(-1, 2).unbind(-1)
        margins = torch.tensor([example.target for example in rows], device=scores.device)
        losses = bradley_terry_loss(chosen, rejected, margins)
        if self.config.centering:
            losses = losses + self.config.centering * centering_penalty(chosen, rejected)
        gaps = (chosen - rejected).detach()
        metrics: Metrics = {
            names.MARGIN: (gaps.sum(), len(gaps)),
            names.ACCURACY: ((gaps > 0).sum(), len(gaps)),
        }
        return losses, metrics

    def report(self, scores: "Tensor", rows: Sequence[Example]) -> PairReport:
        """Accuracy, loss, length bias and calibration; see `PairReport`."""
        chosen, rejected = scores.view(-1, 2).unbind(-1)
        lengths = [(example.lengths[0], example.lengths[1]) for example in rows]
        return report_pairs(chosen.tolist(), rejected.tolist(), lengths)

    def answers(self, logits: "Tensor", examples: Sequence[Example]) -> dict[str, Points]:
        """Points of the chosen and of the rejected answers."""
        columns = zip(("chosen", "rejected"), logits.view(-1, 2).unbind(-1), strict=True)
        return {
            name: [
                (float(example.lengths[place]), score) for example, score in zip(examples, scores.tolist(), strict=True)
            ]
            for place, (name, scores) in enumerate(columns)
        }


class LabelObjective(RewardObjective):
    """Cross-entropy of two labels.

    Args:
        config: the settings.

    Raises:
        ConfigError: `centering`.
    """

    kind: ClassVar[Kind] = "labels"
    label_names: ClassVar[tuple[str, ...]] = ("negative", "positive")

    def __init__(self, config: RewardConfig) -> None:
        if config.centering:
            raise ConfigError(f"centering={config.centering}: for pairs; labelled rows have no free constant")
        self.config = config

    def losses(self, scores: "Tensor", rows: Sequence[Example]) -> "tuple[Tensor, Metrics]":
        """`[B]` losses and `train/accuracy`."""
        import torch
        from torch.nn import functional as F

        labels = torch.tensor([int(example.target) for example in rows], device=scores.device)
        is_right = scores.detach().argmax(-1) == labels
        return F.cross_entropy(scores, labels, reduction="none"), {names.ACCURACY: (is_right.sum(), len(labels))}

    def report(self, scores: "Tensor", rows: Sequence[Example]) -> LabelReport:
        """Accuracy, loss, recalls and calibration; see `LabelReport`."""
        return report_labels((scores[:, 1] - scores[:, 0]).tolist(), [example.target for example in rows])

    def answers(self, logits: "Tensor", examples: Sequence[Example]) -> dict[str, Points]:
        """Points of the rows labelled true and false, by the log-odds of `positive`."""
        scored = list(zip(examples, (logits[:, 1] - logits[:, 0]).tolist(), strict=True))
        return {
            name: [(float(example.lengths[0]), score) for example, score in scored if example.target == label]
            for name, label in (("labelled true", 1.0), ("labelled false", 0.0))
        }


def reward_objective(kind: Kind, config: RewardConfig) -> RewardObjective:
    """The objective of a kind of rows. Raises `ConfigError` for settings that do not belong to it."""
    return PairObjective(config) if kind == "pairs" else LabelObjective(config)
