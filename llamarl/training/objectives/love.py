"""P[Love]: the probability that a user loves a reply, learned from what users did.

    P[Love](context, reply) = sigmoid(h(context, reply))       pointwise: no reply is compared with another
    loss = mean over draws of -(y log p + (1 - y) log(1 - p))

Few replies are loved. So an epoch draws loved ones more often, until they are a fixed share of the draws; the logits
learn that share, and `correct_prior` brings probabilities back to the rate outside. What is measured is never drawn
so: every held-out message counts once. Importing this module does not import torch.

Han et al., "Reinforcement Learning from User Feedback" (arXiv 2505.14946), section 3.
"""

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from sys import intern
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from llamarl.core import metric_names as names
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.seeds import derive_seed
from llamarl.data.prompts import RawRow, raw_rows
from llamarl.data.rows import BadRow, RowError
from llamarl.functional.losses import Metrics
from llamarl.report.files import encode, write_json
from llamarl.training.examples import ConversationEncoder, TokenIds, read_labelled
from llamarl.training.love_report import LoveReport, Prior, Scored, report_love
from llamarl.training.objective import Rows, Source
from llamarl.training.objectives.classifier import ClassifierConfig, ClassifierObjective

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llamarl.models.tokenizer import Tokenizer

FIGURE, REPORT, SCORES = "love.png", "report.json", "held-out.jsonl"
PRIOR = "love"
"""Name in the checkpoint's `config.json` under which the prior stands."""
SEGMENTS = ("surface", "language", "model_version")
LEAST_LOVES = 10
"""Fewer loved messages, to train on or to measure on, say nothing."""


class LoveConfig(ClassifierConfig):
    """Training of P[Love]. A falling schedule reaches 0 at the last step."""

    positive_share: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of loved messages among the draws of training, reached by drawing them more often; a higher rate stays."""
    held_out: float = Field(default=0.05, gt=0.0, lt=0.5)
    """Share of a store's messages to measure on: the last ones, of users (and conversations) of whom nothing is trained
    on. It takes the square root of this share of users and of time, and what lies between is left out."""
    reacting_users_only: bool = True
    """Train on messages of users who reacted at least once in the time that is trained on: of the others nobody knows
    whether they know how to. Held-out messages are of all users."""
    max_examples: int = Field(default=1_000_000, ge=20)
    """Most messages to train on, held in memory as token ids. Of more, a seeded draw stays: loved ones up to
    `positive_share` of them, and others."""
    max_held_out: int = Field(default=20_000, ge=20)
    """Most messages to measure on; of more, a seeded draw of all alike stays."""
    on_bad_row: Literal["error", "skip"] = "skip"
    """`skip` leaves messages out and counts them that are too long, or that the chat template refuses."""
    keep: Literal["loss", "last"] = "last"
    """Weights that become the model: the last, so that the held-out messages choose nothing, or those of the lowest
    held-out loss."""
    evaluate_every: int = Field(default=500, ge=1)
    """Measure on the held-out messages every so many steps, and after the last."""


@dataclass(frozen=True, slots=True)
class LoveRow:
    """One reply with its context, encoded; small, since there may be a million."""

    ids: bytes
    """Token ids of the conversation, four bytes each."""
    num_tokens: int
    """Tokens of the reply."""
    is_loved: bool
    user: str
    """The user, whose messages are alike; "" where nobody knows."""
    segments: tuple[str | None, ...]
    """Values of `SEGMENTS`."""

    @property
    def sequences(self) -> tuple[TokenIds, ...]:
        """The conversation."""
        return (tuple(array("i", self.ids)),)

    @property
    def key(self) -> str:
        """A hash of everything that is learned from."""
        return hashlib.blake2b(self.ids + bytes([self.is_loved]), digest_size=16).hexdigest()


class Love(ClassifierObjective[LoveRow]):
    """Binary cross-entropy of one logit, positives drawn more often.

    Args:
        config: the settings.
    """

    name: ClassVar[str] = "love"
    label_names: ClassVar[tuple[str, ...]] = ("love",)
    config: LoveConfig

    def __init__(self, config: LoveConfig) -> None:
        self.config = config
        self._prior: Prior | None = None

    @property
    def prior(self) -> Prior:
        """Known when the rows are read."""
        if self._prior is None:
            raise ConfigError("love: the rows are not read yet; call `read` before")
        return self._prior

    def load(self, path: str, tokenizer: "Tokenizer") -> "nn.Module":
        """The model at `path` with a head of one logit; its config says by what prior the logit is to be corrected."""
        model: Any = super().load(path, tokenizer)
        model.config.problem_type = "multi_label_classification"  # one label, with a probability of its own
        setattr(model.config, PRIOR, asdict(self.prior))
        return model  # type: ignore[no-any-return]

    def read(
        self, data: Source, eval_data: Source | None, split: str | None, tokenizer: "Tokenizer", positions: int | None
    ) -> Rows[LoveRow]:
        """Reads rows of {prompt, completion, label, user?, surface?, language?, model_version?}.

        Raises:
            DataError: a bad row with `on_bad_row="error"`; too few loved rows, or nothing else.
            ConfigError: no `eval_data`, or a tokenizer without chat template.
        """
        if eval_data is None:
            raise ConfigError("eval_data: missing; P[Love] is measured on later messages of other users: give them")
        return self.encode_rows(raw_rows(data, split), raw_rows(eval_data, split), tokenizer, positions)

    def encode_rows(
        self,
        train: Iterable[RawRow],
        held_out: Iterable[RawRow],
        tokenizer: "Tokenizer",
        positions: int | None,
        base_rate: float | None = None,
    ) -> Rows[LoveRow]:
        """Encodes rows, and settles the prior.

        Args:
            train: to train on.
            held_out: to measure on.
            tokenizer: of the model.
            positions: most tokens that the model takes.
            base_rate: at which messages are loved outside; None: the rate of `train`.
        """
        if not tokenizer.has_chat_template:
            raise ConfigError(
                "model: its tokenizer has no chat template, so where a reply ends is not told; put a "
                "chat_template.jinja beside its tokenizer.json, or take an instruction-tuned model"
            )
        reader = _Reader(tokenizer, self.config, positions)
        rows, skipped = reader.read(train)
        measured, skipped_there = reader.read(held_out)
        loves, loves_there = (sum(row.is_loved for row in side) for side in (rows, measured))
        if min(loves, loves_there) < LEAST_LOVES:
            raise DataError(
                f"love: {loves} loved messages to train on and {loves_there} to measure on, and it takes "
                f"{LEAST_LOVES} of each; add days or users to the log, or change held_out "
                f"(--held-out), now {self.config.held_out}"
            )
        if loves == len(rows):
            raise DataError("love: every message to train on is loved; the log must hold the others, too")
        rate = loves / len(rows)
        self._prior = Prior(rate if base_rate is None else base_rate, max(self.config.positive_share, rate))
        counts = dict(skipped.most_common()) | {f"held out: {name}": n for name, n in skipped_there.most_common()}
        return Rows(rows, measured, counts, conversations=[((), None)])

    def epoch_order(self, rows: Sequence[LoveRow], epoch: int) -> list[int]:
        """The draws of an epoch: as many as there are rows, `positive_share` of them loved."""
        rng = random.Random(derive_seed(self.name, self.config.seed, epoch))
        return draw_rows([row.is_loved for row in rows], self.prior.positive_share, rng)

    def losses(self, scores: "Tensor", rows: Sequence[LoveRow]) -> "tuple[Tensor, Metrics]":
        """`[B]` losses, and the share of loved rows."""
        from torch.nn import functional as F

        labels = scores.new_tensor([row.is_loved for row in rows])
        losses = F.binary_cross_entropy_with_logits(scores[:, 0], labels, reduction="none")
        return losses, {names.POSITIVES: (labels.sum(), len(rows))}

    def report(self, scores: "Tensor", rows: Sequence[LoveRow]) -> LoveReport:
        """Discrimination, calibration and length bias; see `LoveReport`."""
        return report_love(_score(scores, rows), self.prior)

    def draw(
        self, path: Path, records: Sequence[Mapping[str, Any]], scores: "Tensor | None", rows: Sequence[LoveRow]
    ) -> None:
        """Draws `love.png`; writes `report.json`, and `held-out.jsonl`: raw logit and love of each held-out message."""
        from llamarl.report.love_plots import plot_love

        if scores is None:
            return
        scored = _score(scores, rows)
        report = report_love(scored, self.prior)
        (path / SCORES).write_bytes(b"".join(encode(asdict(each)) + b"\n" for each in scored))
        plot_love(
            path / FIGURE,
            records,
            asdict(report),
            [(each.tokens, each.logit + self.prior.offset, each.is_loved) for each in scored],
            path.name,
        )
        write_json(path / REPORT, asdict(report))


def draw_rows(is_loved: Sequence[bool], share: float, rng: random.Random) -> list[int]:
    """Indices of as many rows as there are, a share of them loved, in random order.

    Rows of the kind that is wanted less often than it occurs are drawn without repetition; of the other, each row the
    same number of times, give or take one.

    Args:
        is_loved: `[N]`, of both kinds.
        share: of loved rows among the draws.
        rng: decides.
    """
    sides = [[index for index, loved in enumerate(is_loved) if loved is side] for side in (True, False)]
    num_loved = round(share * len(is_loved))
    drawn = [
        index
        for side, count in zip(sides, (num_loved, len(is_loved) - num_loved), strict=True)
        for index in _draw_evenly(side, count, rng)
    ]
    rng.shuffle(drawn)
    return drawn


def _draw_evenly(members: Sequence[int], count: int, rng: random.Random) -> list[int]:
    whole, rest = divmod(count, len(members))
    return [*members] * whole + rng.sample(members, rest)


class _Reader:
    """Reads and encodes labelled rows."""

    def __init__(self, tokenizer: "Tokenizer", config: LoveConfig, positions: int | None) -> None:
        self._encode, self._is_strict = ConversationEncoder(tokenizer), config.on_bad_row == "error"
        self._most = min(config.max_tokens, positions or config.max_tokens)

    def read(self, raw: Iterable[RawRow]) -> tuple[list[LoveRow], Counter[str]]:
        """The good rows, and how many were left out, by reason."""
        rows: list[LoveRow] = []
        skipped: Counter[str] = Counter()
        first: BadRow | None = None
        for source, line, row in raw:
            try:
                rows.append(self._read(row))
            except RowError as error:
                bad = error.at(source, line)
                if self._is_strict:
                    raise DataError(f"{bad}, or set on_bad_row='skip'") from None
                first = first or bad
                skipped[error.reason] += 1
        if not rows:
            cause = f"; the first of {sum(skipped.values())} bad rows: {first}" if first else ""
            raise DataError(f"love: no usable row to train or to measure on{cause}")
        return rows, skipped

    def _read(self, row: dict[str, Any] | RowError) -> LoveRow:
        """One row. Raises `RowError`."""
        if isinstance(row, RowError):
            raise row
        prompt, (answer,), label = read_labelled(row)
        try:
            ids, length = self._encode(prompt, answer, None)
        except ConfigError as error:
            raise RowError("template", "", str(error), "change the messages") from None
        if len(ids) > self._most:
            raise RowError("too_long", "", f"{len(ids)} tokens", f"max_tokens is {self._most}; raise it")
        segments = tuple(None if row.get(name) is None else intern(str(row[name])) for name in SEGMENTS)
        return LoveRow(array("i", ids).tobytes(), length, bool(label), intern(str(row.get("user") or "")), segments)


def _score(scores: "Tensor", rows: Sequence[LoveRow]) -> list[Scored]:
    """The rows with their logits `[N, 1]`. A row of nobody's is a user of its own."""
    return [
        Scored(
            logit=logit,
            is_loved=row.is_loved,
            user=row.user or f"row {number}",
            tokens=row.num_tokens,
            segments=dict(zip(SEGMENTS, row.segments, strict=True)),
        )
        for number, (logit, row) in enumerate(zip(scores[:, 0].tolist(), rows, strict=True))
    ]
