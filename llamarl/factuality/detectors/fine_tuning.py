"""Fine-tuning and RATE-FT: adapters that teach a model to tell its own factual claims from its hallucinated ones.

                 prompt                  target                                   rows
    detection    Is the claim true?      True            (or False)               one a claim
      rationale                          True. <why>     (or False. <why>)
    auxiliary    a question about it     <answer>. <explanation>                  at most one a claim

Fine-tuning learns the detection rows with bare labels. RATE-FT puts the rationale behind the label, so that the label's
token still decides from one forward pass, and mixes in the auxiliary rows. Both kinds are shuffled together and weigh
the same; nothing is learned of a prompt's tokens.

    loss = - sum over target tokens of w log p(token | all before it) / sum of w       w = 1; label_weight for a label

Held-out claims are measured as they will be scored: by P_factual at the one position behind the question.

Qin et al., "Learning Auxiliary Tasks Improves Reference-Free Hallucination Detection in Open-Domain Long-Form
Generation", https://arxiv.org/abs/2505.12265, section 3. Importing this module does not import torch.

Shape legend: N held-out claims, S target tokens.
"""

import hashlib
import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np
from pydantic import Field

from llamarl.core import metric_names as names
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Message, OneTurn
from llamarl.core.seeds import derive_seed
from llamarl.factuality.asking import PromptFile, load_prompt
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.detectors.labels import WORDS, Labels, score_labels
from llamarl.factuality.detectors.method import TRAINING_FOLDER, MethodSettings, TrainingJob
from llamarl.factuality.detectors.prompt_tf import PromptTF
from llamarl.factuality.labelled import LabelledClaim
from llamarl.functional.detection import balanced_accuracy, count_single, search_threshold
from llamarl.functional.losses import Metrics
from llamarl.functional.statistics import auroc
from llamarl.models.lora_config import LoraConfig
from llamarl.training.config import FitConfig
from llamarl.training.objective import Objective, Report, Rows, Scorer, Source

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llamarl.models.tokenizer import Tokenizer

Messages = list[Message]


class FineTuningSettings(FitConfig, MethodSettings):
    """Training of an adapter on labelled claims. A falling schedule reaches 0 at the last step."""

    auxiliary: bool = False
    """Mix in the question about each claim, with its true answer."""
    rationale: bool = False
    """Put the rationale behind the label to learn."""
    paraphrases: bool = False
    """Mix in one of the `paraphrases` that a claim's row has: as many rows as `auxiliary` adds, without its task."""
    data_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the training prompts that is used, chosen by a hash of seed and prompt."""
    label_weight: float = Field(default=1.0, gt=0.0)
    """Weight of a label's token in the loss; every other token has 1."""
    lora: LoraConfig = LoraConfig(rank=16, alpha=32.0)
    """The adapter: rank, scale, layers."""
    learning_rate: float = Field(default=2e-4, gt=0.0)
    """Peak learning rate."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Course of the learning rate after warm-up: it stays, or falls to 0 at the last step."""
    num_epochs: int | None = Field(default=3, ge=1)
    """Times each row is seen; instead of `num_steps`."""
    batch_size: int = Field(default=16, ge=1)
    """Rows per step."""
    evaluate_every: int | None = Field(default=None, ge=1)  # type: ignore[assignment]
    """Measure on the validation claims every so many steps, and after the last; None: after every epoch."""
    checkpoint_every: int = Field(default=25, ge=1)
    """Save what a resume needs every so many steps."""
    keep: Literal["auc", "bacc", "loss", "last"] = "auc"  # type: ignore[assignment]
    """Weights that become the adapter: those of the highest validation AUC, which needs no threshold; of the highest
    validation BAcc, in which a few claims decide; of the lowest loss; or the last."""


class RateFTSettings(FineTuningSettings):
    """Training of an adapter on labelled claims, with rationales and auxiliary questions."""

    auxiliary: bool = True
    """Mix in the question about each claim, with its true answer."""
    rationale: bool = True
    """Put the rationale behind the label to learn."""


class FineTuning(PromptTF):
    """An adapter that has learned the labels; asked as Prompt-TF is."""

    name: ClassVar[str] = "fine_tuning"
    Settings: ClassVar[type[MethodSettings]] = FineTuningSettings
    has_adapter: ClassVar[bool] = True

    @classmethod
    def train(cls, job: TrainingJob) -> Self:
        """Trains the adapter; goes on with an unfinished training.

        Raises:
            DataError: training claims of one label, from which a detector learns to say it of every claim.
            LlamaRLError: what `training.fit.fit` raises.
        """
        from llamarl.report.summary import SUMMARY_FILE
        from llamarl.training.fit import fit

        settings = cast(FineTuningSettings, job.settings).model_copy(
            update={"device": job.device, "precision": job.precision}
        )
        if len({each.label for each in job.data.train}) == 1:
            raise DataError(f"train.jsonl: {len(job.data.train)} claims of one label; give claims of both")
        work = job.out / TRAINING_FOLDER
        if not (work / SUMMARY_FILE).exists():  # else only the scoring is left
            objective = ClaimObjective(settings, load_prompt("detect"))
            rows = [objective.claims(each) for each in (job.data.train, job.data.validation)]
            fit(objective, job.model, rows[0], work, eval_data=rows[1], on_step=job.on_step, tell=job.tell)
        return cls(job.load(adapter=job.out), settings)

    def write(self, directory: Path) -> list[str]:
        """Names the files of the adapter, which the training has left there."""
        from llamarl.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS

        return [ADAPTER_WEIGHTS, ADAPTER_CONFIG]


class RateFT(FineTuning):
    """An adapter that has learned labels with their reasons, beside answering questions about the claims."""

    name: ClassVar[str] = "rate_ft"
    Settings: ClassVar[type[MethodSettings]] = RateFTSettings


@dataclass(frozen=True, slots=True)
class ClaimRow(OneTurn):
    """A question and the answer to learn; or, with a label and nothing to learn, a held-out claim."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    weight: float = 1.0
    """Weight of the first token to learn."""
    label: bool | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens to learn."""
        return len(self.token_ids)

    @property
    def key(self) -> str:
        """A hash of all there is."""
        numbers = array("q", (len(self.prompt_ids), *self.prompt_ids, *self.token_ids))
        kind = f"{self.weight}{self.label}".encode()
        return hashlib.blake2b(numbers.tobytes() + kind, digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class ClaimReport:
    """The report on how well P_factual tells held-out claims apart."""

    loss: float
    """Mean of -log of the right label's share, nats."""
    auc: float
    bacc: float
    """Balanced accuracy at the threshold that is best on these very claims."""
    threshold: float
    mass: float
    """Mean probability of all label tokens."""
    claims: int

    def metrics(self) -> dict[str, float | None]:
        """Scalars for `metrics.jsonl`."""
        return {
            names.HELD_OUT_LOSS: self.loss,
            names.HELD_OUT_AUROC: self.auc,
            names.HELD_OUT_BACC: self.bacc,
            names.HELD_OUT_MASS: self.mass,
            names.HELD_OUT_ROWS: float(self.claims),
        }


class ClaimObjective(Objective[ClaimRow]):
    """The objective of fine-tuning and RATE-FT.

    Args:
        config: the settings.
        prompt: asks about one claim.
    """

    name: ClassVar[str] = "detection"
    model_folder: ClassVar[str] = ".."  # beside `detector.json`, where it is read from
    is_policy: ClassVar[bool] = False
    keeps_adapter: ClassVar[bool] = True
    config: FineTuningSettings

    def __init__(self, config: FineTuningSettings, prompt: PromptFile) -> None:
        self.config, self.prompt = config, prompt
        self._labels: Labels | None = None

    def claims(self, claims: Sequence[LabelledClaim]) -> list[dict[str, Any]]:
        """The claims as rows of `fit`."""
        return [{"claim": each} for each in claims]

    def load(self, path: str, tokenizer: "Tokenizer") -> "nn.Module":
        """The causal language model at `path`."""
        from llamarl.models.checkpoint import load_model

        return load_model(path, device=self.config.device)

    def read(
        self, data: Source, eval_data: Source | None, split: str | None, tokenizer: "Tokenizer", positions: int | None
    ) -> Rows[ClaimRow]:
        """Encodes claims.

        Raises:
            DataError: nothing to train on, or not both labels among the claims to measure on.
            ConfigError: a tokenizer that cannot tell the labels apart.
        """
        self._labels = Labels.of(tokenizer)
        limits = [limit for limit in (self.config.max_tokens, positions) if limit is not None]
        encode = _Encoder(tokenizer, self.prompt, self._labels, self.config, min(limits, default=None))
        chosen = choose_prompts(_unwrap(data), self.config)
        train = list(encode.learn(chosen))
        held_out = list(encode.measure(_unwrap(eval_data or ())))
        if not train:
            raise DataError(f"train.jsonl: no claim to train on, of {len(chosen)}; left out: {dict(encode.skipped)}")
        if {row.label for row in held_out} != {True, False}:
            raise DataError(f"validation.jsonl: not both labels among {len(held_out)} claims that the model can take")
        return Rows(train, held_out, skipped=encode.skipped, notes=list(encode.notes(len(chosen))))

    def build_scorer(self, model: "nn.Module") -> Scorer[ClaimRow]:
        """Log-probs of tokens to learn, or of the labels of held-out claims."""
        if self._labels is None:
            raise ConfigError("detection: read the rows first; their tokenizer says which tokens are labels")
        return _ClaimScorer(model, self._labels, self.config.precision)

    def cost(self, row: ClaimRow) -> int:
        """Tokens of the question and of the answer to learn."""
        return len(row.prompt_ids) + len(row.token_ids)

    def num_scores(self, row: ClaimRow) -> int:
        """One per token to learn; two of a held-out claim."""
        return row.num_tokens if row.label is None else 2

    def losses(self, scores: "Tensor", rows: Sequence[ClaimRow]) -> "tuple[Tensor, Metrics]":
        """`[S]` minus the weighted log-prob of each target token."""
        import torch

        weights = [weight for row in rows for weight in (row.weight, *[1.0] * (row.num_tokens - 1))]
        return -scores * torch.tensor(weights, device=scores.device), {}

    def divisor(self, rows: Sequence[ClaimRow]) -> float:
        """The sum of the weights of the step's tokens."""
        return sum(row.weight + row.num_tokens - 1 for row in rows)

    def report(self, scores: "Tensor", rows: Sequence[ClaimRow]) -> ClaimReport:
        """Measures P_factual, from the labels' log-probs `[2 N]`."""
        return report_scores(
            [score_labels(*pair) for pair in scores.view(-1, 2).tolist()], [bool(r.label) for r in rows]
        )

    def rate(self, report: Report) -> float:
        """AUC, BAcc, or minus the loss, as `keep` says."""
        measured = cast(ClaimReport, report)
        return {"auc": measured.auc, "bacc": measured.bacc}.get(self.config.keep, -measured.loss)

    def is_due(self, step: int, num_steps: int) -> bool:
        """True after every epoch, or every `evaluate_every` steps."""
        if self.config.evaluate_every is not None:
            return super().is_due(step, num_steps)
        return step == num_steps or step % max(1, round(num_steps / (self.config.num_epochs or 1))) == 0


def report_scores(scores: Sequence[Score], labels: Sequence[bool]) -> ClaimReport:
    """Measures scored claims of both labels, each of which has a score."""
    p = np.array([score.p_factual for score in scores], dtype=float)
    truth = np.array(labels, dtype=bool)
    threshold = search_threshold(p, truth)
    right = np.where(truth, p, 1.0 - p).clip(min=np.finfo(float).tiny)
    return ClaimReport(
        loss=float(-np.log(right).mean()),
        auc=auroc(p.tolist(), list(labels)) or 0.0,
        bacc=float(balanced_accuracy(count_single(p, truth, threshold).sum(axis=0))),
        threshold=threshold,
        mass=math.fsum(score.mass or 0.0 for score in scores) / len(scores),
        claims=len(scores),
    )


def choose_prompts(claims: Sequence[LabelledClaim], config: FineTuningSettings) -> list[LabelledClaim]:
    """The claims of a share of the prompts; a larger share holds the smaller one."""
    prompts = sorted({each.prompt for each in claims}, key=lambda name: derive_seed("share", config.seed, name))
    chosen = set(prompts[: max(1, round(config.data_share * len(prompts)))])
    return [each for each in claims if each.prompt in chosen]


def target_of(claim: LabelledClaim, config: FineTuningSettings) -> str:
    """The text to learn behind the question about a claim: the label first, then, where it is wanted, why."""
    word = WORDS[0] if claim.label else WORDS[1]
    return f"{word}. {claim.rationale.strip()}" if config.rationale and claim.rationale.strip() else word


class _Encoder:
    """Makes rows of claims, and counts what it leaves out."""

    def __init__(
        self, tokenizer: "Tokenizer", prompt: PromptFile, labels: Labels, config: FineTuningSettings, most: int | None
    ) -> None:
        self._tokenizer, self._prompt, self._labels, self._config, self._most = tokenizer, prompt, labels, config, most
        self.skipped: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()

    def learn(self, claims: Iterable[LabelledClaim]) -> Iterable[ClaimRow]:
        """Yields the rows to train on."""
        config = self._config
        for each in claims:
            if (row := self._detect(each.claim.text, each)) is not None:
                self.counts["detection"] += 1
                yield row
            if config.paraphrases and (others := [text for text in each.paraphrases if text != each.claim.text]):
                text = others[derive_seed("paraphrase", config.seed, each.claim.id) % len(others)]
                if (row := self._detect(text, each)) is not None:
                    self.counts["paraphrases"] += 1
                    yield row
            if config.auxiliary and each.question is not None:
                answer = f"{each.question.answer.strip().rstrip('.')}. {each.question.explanation.strip()}".strip()
                question: Messages = [{"role": "user", "content": each.question.question}]
                if (row := self._row(question, answer)) is not None:
                    self.counts["auxiliary"] += 1
                    yield row

    def measure(self, claims: Iterable[LabelledClaim]) -> Iterable[ClaimRow]:
        """Yields the rows to measure on."""
        for each in claims:
            ids = self._encode(self._prompt.fill(claim=each.claim.text))
            if ids is not None and self._fits(len(ids)):
                yield ClaimRow(ids, (), label=each.label)

    def notes(self, num_claims: int) -> Iterable[str]:
        """Yields what a user should know of the rows to train on."""
        config, count = self._config, self.counts
        if config.auxiliary and count["auxiliary"] < num_claims:
            yield f"{count['auxiliary']} of {num_claims} training claims have an auxiliary question"
        if config.paraphrases and count["paraphrases"] < num_claims:
            yield f"{count['paraphrases']} of {num_claims} training claims have a paraphrase"

    def _detect(self, text: str, claim: LabelledClaim) -> ClaimRow | None:
        target, weight = target_of(claim, self._config), self._config.label_weight
        row = self._row(self._prompt.fill(claim=text), target, weight)
        if row is None:
            return None
        side = self._labels.true_ids if claim.label else self._labels.false_ids
        if row.token_ids[0] not in side:
            piece = self._tokenizer.decode(row.token_ids[:1])
            raise ConfigError(
                f"tokenizer: an answer that begins with {WORDS[0] if claim.label else WORDS[1]}. begins with the token "
                f"{piece!r}, which is no label by itself; train without rationale, or use another model"
            )
        return row

    def _row(self, messages: Messages, answer: str, weight: float = 1.0) -> ClaimRow | None:
        ids = self._encode(messages, answer)
        if ids is None:
            return None
        target = (*self._tokenizer.encode(answer), *self._tokenizer.eos_ids[:1])
        return ClaimRow(ids, target, weight) if self._fits(len(ids) + len(target)) else None

    def _encode(self, messages: Messages, answer: str = "") -> tuple[int, ...] | None:
        """The prompt's ids; None where it or the answer holds a token that ends turns, which texts must not."""
        texts = [answer, *(message["content"] for message in messages)]
        if any(token in text for token in self._tokenizer.backend.all_special_tokens for text in texts):
            self.skipped["special_token"] += 1
            return None
        return self._tokenizer.encode_chat(messages)

    def _fits(self, length: int) -> bool:
        fits = self._most is None or length <= self._most
        self.skipped.update([] if fits else ["too_long"])
        return fits


class _ClaimScorer:
    """Log-probs of tokens to learn; of held-out claims, those of the labels, as at test time."""

    def __init__(self, model: "nn.Module", labels: Labels, precision: str) -> None:
        from llamarl.scoring.next_tokens import build_next_tokens
        from llamarl.scoring.prefixes import LogprobScorer

        self._learn, self._judge = LogprobScorer(model, precision), build_next_tokens(model, precision)
        self._labels = labels

    def __call__(self, rows: Sequence[ClaimRow]) -> "Tensor":
        """`[S]` of rows to learn, `[2 N]` of held-out claims."""
        if rows[0].label is None:
            return self._learn(rows)
        logprobs = self._judge([row.prompt_ids for row in rows], self._labels.ids, _prefix(rows))
        return self._labels.sum_up(logprobs).flatten()

    def split(self, rows: Sequence[ClaimRow], max_tokens: int) -> list[list[int]]:
        """Parts that cost at most `max_tokens` each."""
        if rows[0].label is None:
            return self._learn.split(rows, max_tokens)
        return self._judge.split([row.prompt_ids for row in rows], max_tokens, _prefix(rows))


def _prefix(rows: Sequence[ClaimRow]) -> tuple[int, ...]:
    """The ids that all prompts begin with."""
    from llamarl.scoring.next_tokens import common_length

    first = rows[0].prompt_ids
    return first[: min(common_length(first, row.prompt_ids) for row in rows)]


def _unwrap(rows: Any) -> list[LabelledClaim]:
    return [cast(Mapping[str, LabelledClaim], row)["claim"] for row in rows]
