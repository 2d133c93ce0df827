"""A local sequence classifier as a judge: false refusals, safety, style.

    [[judges]]
    function = "llamarl.judges.classifier:ClassifierJudge"
    settings = {model = "classifiers/refusal", positive = "answers", response_only = true}

The checkpoint is any Hugging Face sequence classifier with two or more labels; `llamarl reward train --labels` makes
one.
"""

import math
from collections.abc import Sequence

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.functional.preference import calibrated_reward
from llamarl.judges.local_model import LocalModelJudge
from llamarl.models.classifier import TokenIds
from llamarl.scoring.classifier import LazyClassifier


class ClassifierJudge(LocalModelJudge):
    """Scores a completion by the probability of one label; it passes from a threshold on."""

    def __init__(
        self,
        model: str,
        *,
        positive: str | int = 1,
        threshold: float = 0.5,
        response_only: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        max_tokens: int | None = None,
        batch_tokens: int = 16384,
        name: str = "classifier",
    ) -> None:
        """Describes the judge.

        Args:
            model: checkpoint directory or Hub id.
            positive: name or index of the label a completion should have.
            threshold: probability of that label from which a completion passes.
            response_only: show the classifier the completion's text alone, without prompt and chat template. CGPO's
                false-refusal classifier is used so.
            device: where the model runs: as torch names it, such as `cuda`, or `auto`: CUDA, else MPS, else the CPU.
            dtype: `float32`, `bfloat16` or `float16`.
            max_tokens: longest input; None: what the model's positions allow. Longer ones fail.
            batch_tokens: most tokens of one forward pass, padding included.
            name: in verdicts and metrics.

        Raises:
            ConfigError: a threshold outside [0, 1].
        """
        if not 0.0 <= threshold <= 1.0:
            raise ConfigError(f"threshold={threshold}: a probability, from 0 to 1")
        options = {"device": device, "dtype": dtype}
        super().__init__(LazyClassifier(model, **options, max_tokens=max_tokens, batch_tokens=batch_tokens), name)
        self._positive, self._threshold, self._is_response_only = positive, threshold, response_only

    def check(self, prompt: Prompt) -> None:
        """Checks, before a run, that the checkpoint is a classifier with the wanted label.

        Raises:
            CheckpointError: no readable checkpoint.
            ConfigError: naming the checkpoint and its labels.
        """
        names = self._classifier.labels.names
        if len(names) < 2:
            raise ConfigError(
                f"{self._classifier.path}: has one label, so it gives a reward and no probability; "
                "use llamarl.judges.reward_model:RewardModel"
            )
        self._classifier.labels.index(self._positive)

    def _verdicts(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        self.check(prompt)
        rows = [self._ids(prompt, completion) for completion in completions]
        return [each if isinstance(each, Verdict) else self._verdict(each) for each in self._logits(rows)]

    def _verdict(self, logits: Sequence[float]) -> Verdict:
        labels = self._classifier.labels
        probabilities = [calibrated_reward(x) for x in logits] if labels.is_independent else _softmax(logits)
        score = probabilities[labels.index(self._positive)]
        likeliest = labels.names[probabilities.index(max(probabilities))]
        return Verdict.scored(score, score >= self._threshold, f"likeliest: {likeliest}")

    def _ids(self, prompt: Prompt, completion: Completion) -> TokenIds:
        if self._is_response_only:
            return self._classifier.encode_text(completion.text)
        return self._classifier.encode(prompt.messages, completion.text, prompt.tools)


def _softmax(logits: Sequence[float]) -> list[float]:
    weights = [math.exp(value - max(logits)) for value in logits]
    return [weight / sum(weights) for weight in weights]
