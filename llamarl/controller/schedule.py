"""Settings of the amount of work, its order, and the longest waits."""

from pydantic import Field, model_validator

from llamarl.core.config import Config


class Schedule(Config):
    """The shape of a run."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Groups in one optimizer step."""
    samples_per_prompt: int = Field(default=8, ge=1)
    """Completions of one prompt: the group size."""
    max_staleness: int = Field(default=1, ge=0)
    """No trained token is older than this many policy versions. 0 is the synchronous run."""
    lookahead: int | None = Field(default=None, ge=0)
    """Steps of work under way beyond the next one; at most `max_staleness` (the default). Less leaves long completions
    more steps to finish while younger ones overtake them."""
    evaluate_every: int = Field(default=0, ge=0)
    """Evaluate on the held-out prompts every so many steps; 0: only before and after."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Steps between checkpoints; 0: only at the end."""
    max_rounds: int | None = Field(default=20, ge=1)
    """The run ends with a checkpoint when so many times `prompts_per_step` groups were dropped since the last step:
    unscored, or of equal rewards where the algorithm replaces such groups. None: no bound."""
    stall_seconds: float = Field(default=600.0, gt=0.0)
    """A wait for work longer than this ends the run with the names of the pending prompts."""
    call_seconds: float = Field(default=300.0, gt=0.0)
    """An executor that answers no call within this counts as lost and is replaced; a trainer that doesn't ends the run,
    since its next try would take as long."""
    judge_seconds: float = Field(default=600.0, gt=0.0)
    """Deadline for judging one group."""
    max_restarts: int = Field(default=3, ge=0)
    """Executors replaced in one run before a loss is final."""

    @property
    def is_synchronous(self) -> bool:
        """True if every step waits for its own groups: nothing is generated while the trainer works."""
        return self.max_staleness == 0

    @model_validator(mode="after")
    def _check_lookahead(self) -> "Schedule":
        if self.lookahead is not None and self.lookahead > self.max_staleness:
            raise ValueError(
                f"lookahead={self.lookahead} exceeds max_staleness={self.max_staleness}: work started that far ahead "
                "would be too old to train; lower schedule.lookahead or raise schedule.max_staleness"
            )
        return self
