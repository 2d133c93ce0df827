"""Who judges the three tasks: an exact checker each, the chat's four limits by themselves, and the raters' taste."""

from collections.abc import Sequence

from experiments.cgpo_tasks.world import Chat
from llamarl.core.judge import Judge
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.functional.preference import calibrated_reward
from llamarl.judges.reward_model import RewardModel


def sums(prompt: Prompt, completion: Completion) -> bool:
    """The right number and nothing else."""
    return bool(completion.text == prompt.answer)


def chat(prompt: Prompt, completion: Completion) -> bool:
    """All four limits at once."""
    return all(_parts(prompt, completion).values())


def topic(prompt: Prompt, completion: Completion) -> bool:
    """Speaks of both topics."""
    return _parts(prompt, completion)["topic"]


def end(prompt: Prompt, completion: Completion) -> bool:
    """Ends with a full stop."""
    return _parts(prompt, completion)["end"]


def length(prompt: Prompt, completion: Completion) -> bool:
    """No longer than allowed."""
    return _parts(prompt, completion)["length"]


def fresh(prompt: Prompt, completion: Completion) -> bool:
    """Says no word twice."""
    return _parts(prompt, completion)["fresh"]


def _parts(prompt: Prompt, completion: Completion) -> dict[str, bool]:
    return Chat(prompt.info["first"], prompt.info["second"]).parts(completion.text)


class Style(Judge):
    """The reward model's probability that raters prefer an answer to the prompt's baseline, in (0, 1).

    Args:
        model: checkpoint of the reward model.
        is_limited: a reply that breaks one of the chat's limits scores 0.
    """

    def __init__(self, model: str, is_limited: bool = False) -> None:
        self.name = "limited_style" if is_limited else "style"
        self._model, self._is_limited = RewardModel(model, calibrated=True), is_limited

    def check(self, prompt: Prompt) -> None:
        """Checks, before a run, that there is a baseline."""
        self._model.check(prompt)

    def load(self) -> None:
        """Loads the reward model."""
        self._model.load()

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion."""
        margins = await self._model.judge(prompt, completions)
        return [self._verdict(prompt, *pair) for pair in zip(completions, margins, strict=True)]

    def _verdict(self, prompt: Prompt, completion: Completion, margin: Verdict) -> Verdict:
        if margin.score is None:
            return margin
        is_void = self._is_limited and not chat(prompt, completion)
        return Verdict.scored(0.0 if is_void else calibrated_reward(margin.score))
