"""Guard of the optimizer: it never applies a non-finite update, and a spike only with a warning."""

import math
from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from statistics import median
from typing import Any

HISTORY = 50
"""Gradient norms remembered."""
MIN_HISTORY = 10
"""Norms needed before one can be called a spike."""


class Health(StrEnum):
    """The guard's verdict on a gradient."""

    GOOD = "good"
    SPIKE = "spike"
    NONFINITE = "nonfinite"


@dataclass
class GradientGuard:
    """Judges gradient norms by those before."""

    spike_factor: float = 10.0
    """A norm over this times the median of the last `HISTORY` is a spike."""
    norms: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    """Finite norms, oldest first; spikes too, so that a lasting change of scale is not flagged for ever."""
    nonfinite_in_a_row: int = 0

    def judge(self, norm: float) -> Health:
        """Takes the norm of one step's whole gradient (NaN where the loss was not finite)."""
        if not math.isfinite(norm):
            self.nonfinite_in_a_row += 1
            return Health.NONFINITE
        self.nonfinite_in_a_row = 0
        is_spike = len(self.norms) >= MIN_HISTORY and norm > self.spike_factor * median(self.norms)
        self.norms.append(norm)
        return Health.SPIKE if is_spike else Health.GOOD

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"norms": list(self.norms), "nonfinite_in_a_row": self.nonfinite_in_a_row}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what `state` gave."""
        self.norms = deque(state["norms"], maxlen=HISTORY)
        self.nonfinite_in_a_row = int(state["nonfinite_in_a_row"])
