"""What both experiments share: a checkpoint that answers prompts, the best allocation, intervals in words."""

from collections.abc import Sequence
from pathlib import Path

from experiments.common import Interval
from llamarl.controller.export import export_run
from llamarl.core.records import Completion, GenerationRequest, Prompt
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import sample_seed
from llamarl.generation.native import NativeGenerator
from llamarl.models.checkpoint import load_model, load_tokenizer


class Policy:
    """Samples completions at temperature 1.

    Args:
        directory: a checkpoint in Hugging Face format.
        max_tokens: of a completion.
    """

    def __init__(self, directory: Path, max_tokens: int) -> None:
        self._tokenizer = load_tokenizer(directory)
        self._generator = NativeGenerator(
            load_model(directory), eos_ids=self._tokenizer.eos_ids, decode=self._tokenizer.decode, slots=256
        )
        self._sampling = Sampling(max_tokens=max_tokens)

    def answers(self, prompts: Sequence[Prompt], count: int, seed: int) -> list[tuple[Completion, ...]]:
        """`count` completions of each prompt; equal seeds draw equal random numbers, whatever the policy."""
        requests = [
            GenerationRequest(
                key,
                self._tokenizer.encode_chat(prompt.messages),
                tuple(sample_seed(seed, 0, prompt.id, index) for index in range(count)),
                self._sampling,
            )
            for key, prompt in enumerate(prompts)
        ]
        return self._generator.generate(requests)


def trained(run_dir: Path) -> Path:
    """The checkpoint of a finished run, exported once."""
    directory = run_dir / "model"
    if not directory.exists():
        export_run(run_dir, directory)
    return directory


def best_gain(gains: Sequence[float], weights: Sequence[float], share: float) -> float:
    """What a share of long answers adds to short ones, given to the levels that gain most.

    Args:
        gains: accuracy of long answers minus that of short ones, by level.
        weights: shares of the levels, of sum 1.
        share: in [0, 1]; what would gain nothing stays unspent.
    """
    total, left = 0.0, share
    for gain, weight in sorted(zip(gains, weights, strict=True), reverse=True):
        spent = min(left, weight)
        total, left = total + max(0.0, gain) * spent, left - spent
    return total


def spread(values: Sequence[float]) -> str:
    """Mean with its interval over seeds, then each seed."""
    interval = Interval.of(values)
    return f"{interval.mean:+.1f} ± {interval.half_width:.1f} ({', '.join(f'{value:+.1f}' for value in values)})"
