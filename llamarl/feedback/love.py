"""P[Love] of a store's messages: `fit` trains it, on any causal language model or an earlier P[Love].

The result is a directory like that of `llamarl reward train`: in `model/` a standard Hugging Face classifier of one
logit, which `llamarl.judges.reward_model:RewardModel` takes, and the prior to correct it by in its `config.json`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from llamarl.core.errors import ConfigError
from llamarl.feedback.settings import Fit
from llamarl.feedback.split import SplitSettings, split_store
from llamarl.feedback.store import Store
from llamarl.training.objective import Rows, Source
from llamarl.training.objectives.love import Love, LoveConfig, LoveRow

if TYPE_CHECKING:
    from llamarl.models.tokenizer import Tokenizer
    from llamarl.training.fit import OnStep


class StoreLove(Love):
    """`Love` whose data is the directory of a store; the settings divide it."""

    def read(
        self, data: Source, eval_data: Source | None, split: str | None, tokenizer: "Tokenizer", positions: int | None
    ) -> Rows[LoveRow]:
        """Reads the messages of a store, in an order that depends on them and the seed alone.

        Raises:
            DataError: no store, or nothing in it to learn from; see `split_store` and `Love.encode_rows`.
            ConfigError: other rows to measure on, or no chat template.
        """
        if eval_data is not None or split is not None:
            raise ConfigError("eval_data: a store is divided in time by held_out, and takes no other rows")
        store, config = Store.open(str(data)), self.config
        names = SplitSettings.__dataclass_fields__
        settings = SplitSettings(**{name: value for name, value in config.model_dump().items() if name in names})
        with split_store(store, settings) as parts:
            train, held_out = (
                ((str(data), number, row) for number, row in enumerate(parts.rows(side), start=1))
                for side in ("train", "held_out")
            )
            rows = self.encode_rows(train, held_out, tokenizer, positions, parts.base_rate)
            return Rows(rows.train, rows.held_out, {**parts.dropped, **rows.skipped}, parts.notes, rows.conversations)


def fit(
    settings: Fit,
    config: LoveConfig | None = None,
    *,
    on_step: "OnStep | None" = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains P[Love] on a store; returns what `summary.json` holds, with the report under `held_out`.

    Called again with the same arguments after a kill, it goes on from the last checkpoint and ends with the numbers of
    an uninterrupted training.

    Args:
        settings: the store, the model to start from, and where the result goes.
        config: of the training.
        on_step: called after each step with its number, the number of all steps, and the step's metrics.
        tell: hears, in sentences, what a user should know before the training.

    Raises:
        DataError: no store, or one from which nothing can be learned: nobody loves anything, too few do, one day only.
        ConfigError: a model without chat template, or bad settings.
        CheckpointError: `out` is finished or another training's, or the store changed since it began.
    """
    from llamarl.training import fit as shell

    objective = StoreLove(config or LoveConfig())
    return shell.fit(objective, settings.model, str(settings.store), settings.out, on_step=on_step, tell=tell)
