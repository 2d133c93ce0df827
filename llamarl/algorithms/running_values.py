"""Running mean, over earlier epochs, of the worth of each group of responses on each prompt."""

from collections.abc import Mapping
from typing import Any


class RunningValues:
    """A mean of each prompt's group values over the epochs, older ones fading.

        V <- decay V + (1 - decay) share of right responses in this epoch       for the groups that it saw

    An epoch counts once, however often it is given: after a resume a step may be taken again. Entries are replaced,
    never changed, so `state` may be asked while another thread updates.

    Args:
        decay: weight of what was known before, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._entries: dict[str, tuple[int, dict[str, float]]] = {}

    def of(self, prompt_id: str) -> Mapping[str, float]:
        """Values by group, of the groups seen so far."""
        return self._entries.get(prompt_id, (0, {}))[1]

    def update(self, prompt_id: str, epoch: int, values: Mapping[str, float]) -> None:
        """Takes in the values that an epoch's responses have, by group."""
        last, known = self._entries.get(prompt_id, (-1, {}))
        if epoch > last:
            means = {g: self._decay * known.get(g, value) + (1 - self._decay) * value for g, value in values.items()}
            self._entries[prompt_id] = (epoch, {**known, **means})

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {prompt_id: [epoch, values] for prompt_id, (epoch, values) in self._entries.copy().items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self._entries = {prompt_id: (epoch, dict(values)) for prompt_id, (epoch, values) in state.items()}
