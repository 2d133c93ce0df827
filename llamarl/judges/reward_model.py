"""A trained reward model as a judge.

    [[judges]]
    function = "llamarl.judges.reward_model:RewardModel"
    settings = {model = "rewards/helpful/model", calibrated = true}

The checkpoint is any Hugging Face sequence classifier with one label; `llamarl reward train` makes one. Prompt and
completion text are rendered by the reward model's own chat template and tokenizer, which may differ from the policy's.
"""

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.functional.preference import calibrated_reward
from llamarl.judges.local_model import LocalModelJudge
from llamarl.models.classifier import TokenIds
from llamarl.scoring.classifier import LazyClassifier

BaselineField = Literal["info", "answer"]


class RewardModel(LocalModelJudge):
    """Scores completions by r(s, a), or by their margin r(s, a) - r(s, baseline) over the prompt's frozen baseline.

    The margin is unbounded. `functional.preference.calibrated_reward` makes the probability of CGPO's eq. 5 of it;
    algorithms that need it do so themselves, so that the order of completions is never lost to saturation. With
    `as_probability` the judge does so, for a reward that is added to others.

    Each baseline is scored once, alone, with the template and limits of the completions, and remembered.
    """

    def __init__(
        self,
        model: str,
        *,
        calibrated: bool = False,
        baseline: BaselineField = "info",
        threshold: float | None = None,
        cut_penalty: float = 0.0,
        as_probability: bool = False,
        device: str = "auto",
        dtype: str = "float32",
        max_tokens: int | None = None,
        batch_tokens: int = 16384,
        name: str = "reward_model",
    ) -> None:
        """Describes the judge.

        Args:
            model: checkpoint directory or Hub id.
            calibrated: score the margin over the baseline.
            baseline: where it stands: `info` for `prompt.info["baseline"]` (`llamarl reward baselines` writes it),
                `answer` for a reference answer that is a whole response.
            threshold: scores from here on pass; None: the judge only scores.
            cut_penalty: subtracted from r where the token limit cut the text; for a baseline, where
                `info["baseline_finish_reason"]` is `length`.
            as_probability: score sigmoid(r) or sigmoid(margin), in (0, 1), to be added to other rewards; the algorithm
                then takes rewards `as_is`.
            device: where the model runs: as torch names it, such as `cuda`, or `auto`: CUDA, else MPS, else the CPU.
            dtype: `float32`, `bfloat16` or `float16`; the halves round scores to two or three digits.
            max_tokens: longest prompt with completion; None: what the model's positions allow. Longer ones fail.
            batch_tokens: most tokens of one forward pass, padding included.
            name: in verdicts and metrics.

        Raises:
            ConfigError: `baseline` is neither of the two.
        """
        if baseline not in ("info", "answer"):
            raise ConfigError(f"baseline={baseline!r}; choose 'info' (info.baseline) or 'answer'")
        options = {"device": device, "dtype": dtype}
        super().__init__(LazyClassifier(model, **options, max_tokens=max_tokens, batch_tokens=batch_tokens), name)
        self._baseline = baseline
        self._threshold, self._cut_penalty = threshold, cut_penalty
        self._is_margin, self._is_probability = calibrated, as_probability
        self.info = replace(
            self.info,
            can_pass=threshold is not None,
            is_calibrated=calibrated and not as_probability,  # else its sigmoid would be taken twice
            pass_score=0.0 if calibrated and not as_probability else 0.5,  # as good as the baseline
        )
        self._frozen: dict[bytes, float] = {}

    def check(self, prompt: Prompt) -> None:
        """Checks, before a run, that the checkpoint is a reward model and that the prompt has its baseline.

        Raises:
            CheckpointError: no readable checkpoint.
            ConfigError: naming the checkpoint, or the prompt and the field it lacks.
        """
        labels = self._classifier.labels.names
        if len(labels) != 1:
            raise ConfigError(
                f"{self._classifier.path}: a classifier of {len(labels)} labels, not a reward model, which has one; "
                "use llamarl.judges.classifier:ClassifierJudge"
            )
        if self._is_margin:
            self._baseline_text(prompt)

    def _verdicts(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        self.check(prompt)
        known: dict[TokenIds, float] = {}
        zero = 0.0
        if self._is_margin:
            row = self._ids(prompt, self._baseline_text(prompt))
            known[row] = self._frozen_reward(prompt, row)
            zero = known[row] - self._penalty(prompt.info.get("baseline_finish_reason"))
        rows = [self._ids(prompt, completion.text) for completion in completions]
        return [
            logits
            if isinstance(logits, Verdict)
            else self._verdict(known.get(row, logits[0]) - self._penalty(completion.finish_reason) - zero)
            for row, completion, logits in zip(rows, completions, self._logits(rows), strict=True)
        ]

    def _verdict(self, reward: float) -> Verdict:
        score = calibrated_reward(reward) if self._is_probability else reward
        return Verdict.scored(score, None if self._threshold is None else score >= self._threshold)

    def _penalty(self, finish_reason: str | None) -> float:
        return self._cut_penalty if finish_reason == "length" else 0.0

    def _ids(self, prompt: Prompt, text: str) -> TokenIds:
        return self._classifier.encode(prompt.messages, text, prompt.tools)

    def _frozen_reward(self, prompt: Prompt, row: TokenIds) -> float:
        """r(s, baseline), computed alone so that it does not depend on what else is in the batch."""
        key = hashlib.blake2b(array("q", row).tobytes(), digest_size=16).digest()
        if key not in self._frozen:
            (logits,) = self._logits([row])
            if isinstance(logits, Verdict):
                raise ConfigError(f"prompt {prompt.id!r}: its baseline cannot be scored: {logits.reason}")
            self._frozen[key] = logits[0]
        return self._frozen[key]

    def _baseline_text(self, prompt: Prompt) -> str:
        text = prompt.answer if self._baseline == "answer" else prompt.info.get("baseline")
        if isinstance(text, str):
            return text
        field = "answer" if self._baseline == "answer" else "info.baseline"
        raise ConfigError(
            f"prompt {prompt.id!r}: {field} is {text!r:.60}, but judge '{self.name}' compares each completion with a "
            "baseline response there; write them with 'llamarl reward baselines', or set calibrated = false"
        )
