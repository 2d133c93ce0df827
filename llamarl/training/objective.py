"""Protocol of an objective of supervised training: its settings, rows, loss and report. `training.fit` does the rest.

Importing an objective does not import torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from llamarl.core import metric_names as names
from llamarl.core.records import Message
from llamarl.core.seeds import derive_seed
from llamarl.functional.losses import Metrics
from llamarl.training.config import FitConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from llamarl.models.tokenizer import Tokenizer

Source = str | Path | Iterable[Mapping[str, Any]]
"""A file, a glob, a Hub id, or rows."""


class FitRow(Protocol):
    """One row to learn from, encoded."""

    @property
    def num_tokens(self) -> int:
        """Answer tokens."""

    @property
    def key(self) -> str:
        """A hash of everything that is learned from."""


R = TypeVar("R", bound=FitRow)
R_contra = TypeVar("R_contra", contravariant=True)


Conversations = Sequence[tuple[Sequence[Message], Any]]
"""Messages and tools, as the chat template gets them."""


@dataclass(frozen=True)
class Rows(Generic[R]):
    """Rows to train and to measure on."""

    train: Sequence[R]
    held_out: Sequence[R]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    notes: Sequence[str] = ()
    """Sentences on what a user should know of the rows."""
    conversations: Conversations = ()
    """Conversations of the rows, as the chat template gets them: its limits are told where these meet them."""


class Report(Protocol):
    """Measures of a model on held-out rows: a dataclass of plain values."""

    @property
    def loss(self) -> float:
        """The mean loss; lower is better."""

    def metrics(self) -> dict[str, float | None]:
        """Scalars for `metrics.jsonl`, with names that start with `eval/`."""


class Scorer(Protocol[R_contra]):
    """Computes what a loss reads off a model, under its current weights; gradients flow to its parameters."""

    def __call__(self, rows: Sequence[R_contra]) -> "Tensor":
        """One tensor for all rows, row after row along its first dimension."""

    def split(self, rows: Sequence[R_contra], max_tokens: int) -> list[list[int]]:
        """Micro-batches of row indices that cost at most `max_tokens` each; every index once."""


class Objective(ABC, Generic[R]):
    """One kind of supervised training: which rows, which loss, which report."""

    name: ClassVar[str]
    """Stands in messages and in the record of the training."""
    model_folder: ClassVar[str] = ""
    """Folder of the checkpoint in the directory that the user names; empty: that directory is the checkpoint."""
    is_policy: ClassVar[bool] = True
    """True where the result generates, so that its chat template must be fit for that."""
    keeps_adapter: ClassVar[bool] = False
    """True where the result is the adapters alone, in PEFT layout, instead of a checkpoint they are merged into."""
    head_name: ClassVar[str] = "lm_head"
    """Attribute of the model that holds its output head."""
    config: FitConfig

    @abstractmethod
    def load(self, path: str, tokenizer: "Tokenizer") -> "nn.Module":
        """The model to start from, on the device of the settings. It may complete the tokenizer."""

    @abstractmethod
    def read(
        self, data: Source, eval_data: Source | None, split: str | None, tokenizer: "Tokenizer", positions: int | None
    ) -> Rows[R]:
        """Reads and encodes the rows.

        Args:
            data: rows to train on.
            eval_data: rows to measure on; None: those that the settings keep apart of `data`.
            split: of a Hub data set; None: `train`.
            tokenizer: of the model.
            positions: most tokens that the model takes; None: no limit.

        Raises:
            DataError: bad or missing rows.
        """

    def freeze(self, model: "nn.Module") -> None:
        """Switches the gradients off of what stays as it is, once adapters are there: by default of nothing."""

    @abstractmethod
    def build_scorer(self, model: "nn.Module") -> Scorer[R]:
        """Scores rows under the model's weights, its adapters included.

        Args:
            model: what `load` gave, or a decoder over it: this rank's part, where there are several.
        """

    @abstractmethod
    def cost(self, row: R) -> int:
        """Tokens that the model reads of a row, by which rows are dealt out over ranks."""

    @abstractmethod
    def num_scores(self, row: R) -> int:
        """Entries that the scorer gives of a row."""

    @abstractmethod
    def losses(self, scores: "Tensor", rows: Sequence[R]) -> "tuple[Tensor, Metrics]":
        """The loss of each thing that counts (a token, a pair, a row), and further sums and counts to log."""

    @abstractmethod
    def report(self, scores: "Tensor", rows: Sequence[R]) -> Report:
        """Measures how good the scores of at least one row are."""

    def divisor(self, rows: Sequence[R]) -> float:
        """Returns the divisor of the sum of a whole step's losses: by default the number of its rows."""
        return len(rows)

    def rate(self, report: Report) -> float:
        """Returns how good a measurement is, where the settings keep the best weights; higher is better."""
        return (report.metrics()[names.HELD_OUT_ACCURACY] or 0.0) if self.config.keep == "accuracy" else -report.loss

    def is_due(self, step: int, num_steps: int) -> bool:
        """Returns True where the held-out rows are measured after this step, counted from 1, of so many."""
        return step == num_steps or step % self.config.evaluate_every == 0

    def epoch_order(self, rows: Sequence[R], epoch: int) -> Sequence[int]:
        """The indices of all rows in the order of an epoch: by default hashed from seed, epoch and content alone."""
        hashes = [(derive_seed(self.name, self.config.seed, epoch, row.key), row.key) for row in rows]
        return sorted(range(len(rows)), key=hashes.__getitem__)

    def prepare(
        self, score: "Callable[[Sequence[R]], Tensor]", rows: Sequence[R], known: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Computes what the loss needs of the model's first weights.

        Args:
            score: gives the scores of rows, without gradient, row after row.
            rows: all rows, those to measure on included.
            known: what it returned before an interruption.

        Returns:
            Plain JSON values to keep for a resume; none where there is nothing to keep.
        """
        return {}

    def draw(
        self, path: Path, records: Sequence[Mapping[str, Any]], scores: "Tensor | None", rows: Sequence[R]
    ) -> None:
        """Draws a figure of the finished training into the directory `path`, where the objective has one.

        Args:
            path: the directory.
            records: of `metrics.jsonl`.
            scores: of the held-out rows; None where there are none.
            rows: the held-out rows.
        """
