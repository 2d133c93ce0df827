"""Direct preference optimisation, offline: teach a policy to prefer the chosen answer of each pair.

    gap   = log(policy / reference)(chosen) - log(policy / reference)(rejected)
    loss  = mean over pairs of
            sigmoid   -(1 - e) log sigmoid(beta gap) - e log sigmoid(-beta gap)      e: label_smoothing
            ipo       (gap - 1 / (2 beta))^2

Log-probs are sums over an answer's tokens, the end token included, or with `is_length_normalized` their means. The
reference is the model before the first step. It never changes, and so each answer is scored once and for all, before
the training, and no second model is held. Importing this module does not import torch.

Direct Preference Optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290), IPO (Azar et al. 2023,
https://arxiv.org/abs/2310.12036); length normalisation as in Tulu 3 (Lambert et al. 2024,
https://arxiv.org/abs/2411.15124, section 5).

Shape legend: B pairs, S tokens of all answers.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from llamarl.core import metric_names as names
from llamarl.core.errors import ConfigError
from llamarl.functional.losses import Metrics
from llamarl.functional.preference import dpo_loss, ipo_loss
from llamarl.training.config import ExampleConfig
from llamarl.training.examples import AnswerEncoder, Example, read_rows
from llamarl.training.objective import Objective, Rows, Scorer, Source
from llamarl.training.reports import PairReport, report_pairs
from llamarl.training.sft_rows import SFTRow

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llamarl.models.tokenizer import Tokenizer


class DPOConfig(ExampleConfig):
    """Direct preference optimisation on preference pairs. A falling schedule reaches 0 at the last step."""

    learning_rate: float = Field(default=1e-6, gt=0.0)
    """Peak learning rate; about ten times that with adapters."""
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    """`sigmoid`: DPO's. `ipo`: a squared distance, which does not push certain preferences apart for ever; its usual
    form is length-normalised."""
    beta: float = Field(default=0.1, gt=0.0)
    """Strength of the pull towards the reference. Length-normalised sums are smaller, and want 2 to 10."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of the pairs taken to be labelled wrongly; of the loss `sigmoid` only."""
    is_length_normalized: bool = False
    """Divide each answer's log-probs by its tokens, so that longer answers do not weigh more."""

    @model_validator(mode="after")
    def _smooths_sigmoid_only(self) -> Self:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing={self.label_smoothing}: for loss='sigmoid'; {self.loss} has none")
        return self


class DPO(Objective[Example]):
    """Preference pairs, learned by the policy itself.

    Args:
        config: the settings.
    """

    name: ClassVar[str] = "dpo"
    config: DPOConfig

    def __init__(self, config: DPOConfig) -> None:
        self.config = config
        self._reference: dict[str, tuple[float, ...]] = {}
        """Sums of the reference's log-probs of chosen and rejected, by the pair's key."""

    def load(self, path: str, tokenizer: "Tokenizer") -> "nn.Module":
        """The causal language model at `path`."""
        from llamarl.models.checkpoint import load_model

        return load_model(path, device=self.config.device)

    def read(
        self, data: Source, eval_data: Source | None, split: str | None, tokenizer: "Tokenizer", positions: int | None
    ) -> Rows[Example]:
        """Reads preference pairs; see `examples`."""
        most = min(self.config.max_tokens, positions or self.config.max_tokens)
        config = self.config.model_copy(update={"max_tokens": most})
        return read_rows(data, eval_data, "pairs", AnswerEncoder(tokenizer), config, split)

    def build_scorer(self, model: "nn.Module") -> Scorer[Example]:
        """Log-probs of the tokens of both answers."""
        return _PairScorer(model, self.config.precision)

    def num_scores(self, row: Example) -> int:
        """One per answer token, the chosen answer first."""
        return row.num_tokens

    def cost(self, row: Example) -> int:
        """Tokens of both conversations."""
        return sum(map(len, row.sequences))

    def prepare(
        self, score: "Callable[[Sequence[Example]], Tensor]", rows: Sequence[Example], known: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Scores the answers under the reference that are not known yet: sums of log-probs by the pair's key."""
        missing = [row for row in rows if row.key not in known]
        sums = self._sums(score(missing), missing).tolist() if missing else []
        sums_by_key = {**known, **{row.key: values for row, values in zip(missing, sums, strict=True)}}
        self._reference = {key: tuple(values) for key, values in sums_by_key.items()}
        return sums_by_key

    def losses(self, scores: "Tensor", rows: Sequence[Example]) -> "tuple[Tensor, Metrics]":
        """`[B]` losses; of the implicit rewards the means, the margin and the share of pairs ordered rightly."""
        log_ratios = self._log_ratios(scores, rows)
        rewards = self.config.beta * log_ratios.detach()
        margins = rewards[:, 0] - rewards[:, 1]
        metrics: Metrics = {
            names.REWARD_CHOSEN: (rewards[:, 0].sum(), len(rows)),
            names.REWARD_REJECTED: (rewards[:, 1].sum(), len(rows)),
            names.MARGIN: (margins.sum(), len(rows)),
            names.ACCURACY: ((margins > 0).sum(), len(rows)),
        }
        return self._loss(log_ratios[:, 0] - log_ratios[:, 1]), metrics

    def report(self, scores: "Tensor", rows: Sequence[Example]) -> PairReport:
        """The report of a reward model that scores an answer `beta log(policy / reference)`, with this loss."""
        log_ratios = self._log_ratios(scores, rows)
        rewards = self.config.beta * log_ratios
        lengths = [(row.lengths[0], row.lengths[1]) for row in rows]
        report = report_pairs(rewards[:, 0].tolist(), rewards[:, 1].tolist(), lengths)
        loss = float(self._loss(log_ratios[:, 0] - log_ratios[:, 1]).double().mean())
        return dataclasses.replace(report, loss=loss)

    def _loss(self, gap: "Tensor") -> "Tensor":
        """`[B] -> [B]`."""
        if self.config.loss == "ipo":
            return ipo_loss(gap, self.config.beta)
        return dpo_loss(gap, self.config.beta, self.config.label_smoothing)

    def _log_ratios(self, scores: "Tensor", rows: Sequence[Example]) -> "Tensor":
        """`[S] -> [B, 2]` log(policy / reference) of chosen and rejected, per token where they are normalised."""
        try:
            reference = [self._reference[row.key] for row in rows]
        except KeyError:
            raise ConfigError("dpo: a pair has no reference log-probs; call `prepare` with all rows before") from None
        log_ratios = self._sums(scores, rows) - scores.new_tensor(reference)
        if self.config.is_length_normalized:
            log_ratios = log_ratios / scores.new_tensor([row.lengths for row in rows])
        return log_ratios

    def _sums(self, scores: "Tensor", rows: Sequence[Example]) -> "Tensor":
        """`[S] -> [B, 2]` log-probs of whole answers."""
        import torch

        lengths = [length for row in rows for length in row.lengths]
        answers: tuple[Tensor, ...] = torch.split(scores, lengths)  # type: ignore[no-untyped-call]
        return torch.stack([answer.sum() for answer in answers]).view(-1, 2)


class _PairScorer:
    """Log-probs of both answers of pairs, whose prompt is computed once."""

    def __init__(self, model: "nn.Module", precision: str) -> None:
        from llamarl.scoring.prefixes import LogprobScorer

        self._score = LogprobScorer(model, precision)

    def __call__(self, rows: Sequence[Example]) -> "Tensor":
        """`[S]`, the chosen answer of each pair before the rejected one."""
        return self._score([answer for row in rows for answer in _answers(row)])

    def split(self, rows: Sequence[Example], max_tokens: int) -> list[list[int]]:
        """Micro-batches of whole pairs."""
        from llamarl.scoring.packing import split_groups

        answers = [answer for row in rows for answer in _answers(row)]
        parts = split_groups(answers, [index // 2 for index in range(len(answers))], max_tokens)
        return [sorted({index // 2 for index in part}) for part in parts]


def _answers(row: Example) -> list[SFTRow]:
    """Both answers of a pair behind their prompt."""
    return [
        SFTRow(ids[: len(ids) - length], ids[len(ids) - length :])
        for ids, length in zip(row.sequences, row.lengths, strict=True)
    ]
