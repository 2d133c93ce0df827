"""The seat of a judge in a mixture: its role, its weight, and what watches over it.

Seat(correct)
Seat(concise, weight=0.2)
Seat(safe, role="constraint", timeout_seconds=20.0)
"""

from dataclasses import dataclass

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError
from llamarl.core.judge import Judge
from llamarl.core.records import MAX_SCORE, Prompt
from llamarl.judges.calls import check_declaration
from llamarl.judges.combine import ROLES, Role


@dataclass(frozen=True, slots=True)
class Canary:
    """One completion of known worth."""

    prompt: Prompt
    text: str
    should_pass: bool
    place: str
    """File and line that it stands in."""


@dataclass(frozen=True, slots=True)
class Seat:
    """One judge of a panel. Checked when built.

    Raises:
        ConfigError: the judge has no name or no `JudgeInfo`, or only scores where it must pass or fail; an unknown
            role; a weight, share or number of groups out of range; a share for a judge that decides about every sample.
    """

    judge: Judge
    role: Role = "reward"
    weight: float = 1.0
    """Weight in the mean of the reward judges, at least 0; a judge of weight 0 only watches."""
    share: float = 1.0
    """Share of the groups that the judge sees, in (0, 1]; it abstains from the others. Below 1 only for a judge that
    watches."""
    timeout_seconds: float | None = 60.0
    """Deadline of the judge on one group, retries included; None: no deadline. A judge that has its own
    (`JudgeInfo.has_deadline`) is left to that."""
    canaries: tuple[Canary, ...] = ()
    """Completions whose verdict is known, to find a judge that broke (`judges.canary`)."""
    canaries_every: int = 256
    """Judged groups between two looks at the canaries."""
    is_borrowed: bool = False
    """True for a judge that is left open when the panel closes, since somebody else built it and closes it."""

    def __post_init__(self) -> None:
        check_declaration(self.judge)
        judge = f"judge '{self.name}'"
        if self.role not in ROLES:
            raise ConfigError(f"role of {judge}: got {self.role!r}.{suggest(str(self.role), list(ROLES))}")
        if not 0 <= self.weight <= MAX_SCORE:
            raise ConfigError(
                f"weight of {judge}: got {self.weight}; use a number from 0 to {MAX_SCORE:g} (turn the score's sign)"
            )
        if not 0 < self.share <= 1:
            raise ConfigError(f"share of {judge}: got {self.share}; use a number above 0, at most 1")
        if self.share < 1 and self.decides:
            raise ConfigError(
                f"{judge} sees a share of {self.share:g}, but decides about every sample; use role 'watch' or a share "
                "of 1"
            )
        if self.role == "constraint" and not self.judge.info.can_pass:
            raise ConfigError(
                f"{judge} is a constraint, but only scores; give it a threshold from which on a completion passes"
            )

    @property
    def name(self) -> str:
        """The judge's name."""
        return self.judge.name

    @property
    def decides(self) -> bool:
        """True if anything depends on what the judge says."""
        return self.role == "constraint" or self.reward_weight > 0

    @property
    def reward_weight(self) -> float:
        """The judge's weight in the reward; 0 for a judge of another role."""
        return self.weight if self.role == "reward" else 0.0

    @property
    def deadline_seconds(self) -> float | None:
        """Seconds that the panel gives the judge for one group; None where nobody but the judge watches the time."""
        return None if self.judge.info.has_deadline else self.timeout_seconds
