"""Settings of A/B tests. Nothing here imports more than pydantic, so that their help is quick."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from llamarl.core.config import Config, Metavar

FIELDS = ("user", "arm", "reacted", "messages", "reactions", "ts")
"""The fields of a row, about one message or several."""


class AbTest(Config):
    """Arms, and how they are compared."""

    files: tuple[str, ...] = Field(min_length=1)
    """Files or globs of .jsonl, .csv, .tsv or .parquet: one row a message shown (user, arm, reacted, ts), or one a user
    (user, arm, messages, reactions)."""
    control: str
    """The arm that the others are compared with."""
    arms: Annotated[tuple[str, ...], Metavar("NAME")] = ()
    """Compare only this arm with the control."""
    columns: Annotated[dict[str, str], Metavar("FIELD=COLUMN")] = Field(default_factory=dict)
    """The column of a field in the files, such as arm=variant."""
    guardrails: Annotated[tuple[str, ...], Metavar("COLUMN")] = ()
    """A column of numbers that should not get worse; its mean over rows is compared."""
    margins: Annotated[dict[str, float], Metavar("COLUMN=X")] = Field(default_factory=dict)
    """A guardrail and the relative change that would be too much: turns=-0.02 must not fall by 2%,
    thumbs_down=0.05 must not rise by 5%."""
    covariate: Annotated[str | None, Metavar("COLUMN")] = None
    """A number known of each user from before the test, which takes out noise (CUPED)."""
    shares: Annotated[dict[str, float], Metavar("ARM=X")] = Field(default_factory=dict)
    """The planned share of users of every arm; equal ones by default."""
    expected_change: float = Field(default=0.1, gt=0.0, le=10.0)
    """Size of relative changes that one thinks possible, for the always-valid interval; choose it before the test."""
    resamples: int = Field(default=10_000, ge=100, le=1_000_000)
    """Resamples of the bootstrap."""
    seed: int = Field(default=0, ge=0)
    """Equal seeds give equal intervals."""
    time_zone: str = "UTC"
    """The zone of times that name none, and of days."""
    report: Annotated[Path | None, Metavar("FILE.html")] = None
    """Write the report of one page here."""
    threads: int | None = Field(default=None, ge=1)
    """Cores to use, all by default."""
    memory: str = Field(default="1GB", pattern=r"^\d+(\.\d+)?\s*[KMGT]i?B$")
    """Memory for the queries; what is more goes to the disk."""

    @property
    def guardrail_columns(self) -> tuple[str, ...]:
        """The columns of all guardrails, those with a margin behind."""
        return tuple(dict.fromkeys((*self.guardrails, *self.margins)))

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, margin in self.margins.items():
            if not -1.0 < margin <= 10.0 or margin == 0.0:
                raise ValueError(f"margins: {name}={margin:g}: a relative change above -1 that is not 0, such as -0.02")
        for name, share in self.shares.items():
            if share <= 0.0:
                raise ValueError(f"shares: {name}={share:g}: must be above 0")
        if self.control in self.arms:
            raise ValueError(f"arms: {self.control!r} is the control; name the arms to compare with it")
        return self


class AbPlan(Config):
    """The change that a test would look for, and the messages it would have."""

    base_rate: float = Field(gt=0.0, lt=1.0)
    """Reactions by messages shown, without the change."""
    change: float = Field(gt=-1.0, le=10.0)
    """The relative change to be found, such as 0.05."""
    users_per_day: float = Field(gt=0.0)
    """Users who are shown messages in a day, of all arms."""
    messages_per_user: float = Field(default=3.0, ge=1.0)
    """Messages that a user is shown in a day on which they come."""
    returning: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of a later day's users who were in the test before."""
    correlation: float = Field(default=0.03, ge=0.0, le=1.0)
    """Likeness of the messages of one user; feedback ab FILE --json has it as user_correlation."""
    spread: float = Field(default=1.0, ge=0.0)
    """Standard deviation by mean of the messages of a user; feedback ab FILE --json has it as activity_spread."""
    design_effect: float | None = Field(default=None, ge=1.0)
    """Number of messages that count as one, as feedback describe has it, in place of the two before."""
    arms: int = Field(default=2, ge=2, le=100)
    """Arms of one size, the control among them."""
    power: float = Field(default=0.8, gt=0.05, lt=1.0)
    """Probability with which a true change is to be found."""
    alpha: float = Field(default=0.05, gt=0.0, le=0.5)
    """Probability of finding one that is not there."""
    max_days: int = Field(default=365, ge=1, le=3650)
    """Longest test to think of."""
    report: Annotated[Path | None, Metavar("FILE.html")] = None
    """Write a page with the power curve here."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.change == 0.0:
            raise ValueError("change: 0 cannot be found; give the smallest change that would matter")
        if self.base_rate * (1.0 + self.change) >= 1.0:
            raise ValueError(f"change: {self.base_rate:g} changed by {self.change:+.0%} is no rate; both are below 1")
        return self
