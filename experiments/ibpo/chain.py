"""IBPO on the permutation chain: does the policy learn the share, and to spend it where it helps?

    python -m llamarl.recipes.build_chain chain                        # once a seed: the SFT checkpoint and its prompts
    python -m experiments.ibpo.chain chain --q-plus 0.25 0.5 0.75 --seeds 0 1 2 --out results.json

Each run trains one policy for one budget, synchronously and by hand. Coverage is forced: every problem is sampled 8
times in mode S and 4 times in mode L, and what the program accepts is learnt under mode A. Then all modes answer
held-out problems, level by level, all levels alike or weighted as the training prompts are:

    share           of long answers in mode A
    accuracy        in mode A
    random          of a policy with the same share that is the same at every level
    oracle          of the best allocation by level with the same share
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch

from llamarl.algorithms.ibpo import IBPO, IBPOConfig
from llamarl.core.records import Completion, GenerationRequest, Group, Prompt, Sample
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import derive_seed, sample_seed
from llamarl.data import read_prompts
from llamarl.generation.native import NativeGenerator
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.models.tokenizer import Tokenizer
from llamarl.report.files import write_json
from llamarl.tasks import chain
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel

SAMPLING = Sampling(max_tokens=chain.MAX_TOKENS)
COVERAGE: tuple[tuple[chain.Mode, int], ...] = (("S", 8), ("L", 4))
"""Mode and samples of each problem; `(("A", 12),)` samples the policy as it is."""
PROMPTS_PER_STEP = 128
PER_LEVEL = 128


class Run:
    """One policy under one budget.

    Args:
        directory: what `build_chain` wrote.
        q_plus: the budget.
        seed: decides prompts and samples.
        steps: optimizer steps, over which the learning rate falls linearly to 0.
    """

    def __init__(self, directory: Path, q_plus: float, seed: int, steps: int) -> None:
        self.tokenizer = load_tokenizer(directory / "model")
        model = load_model(directory / "model")
        self.generator = NativeGenerator(
            load_model(directory / "model"), eos_ids=self.tokenizer.eos_ids, decode=self.tokenizer.decode, slots=256
        )
        self.channel = LocalChannel()
        self.algorithm = IBPO(IBPOConfig(q_plus=q_plus, groups="llamarl.tasks.chain:group"))
        config = TrainerConfig(learning_rate=4e-4, warmup_steps=10, betas=(0.9, 0.98), schedule="linear")
        self.trainer = PolicyTrainer(
            model, self.algorithm, config, sampling=SAMPLING, channel=self.channel, total_steps=max(11, steps)
        )
        self.pool = list(read_prompts(directory / "train.jsonl"))
        self.seed, self.steps = seed, steps

    def train(self) -> list[dict[str, float]]:
        """All steps; their metrics."""
        history = []
        for step in range(self.steps):
            prompts = Random(derive_seed("ibpo", self.seed, step)).sample(self.pool, PROMPTS_PER_STEP)
            groups = [
                Group(prompt, tuple(judged(prompt, completions)), index=index)
                for index, (prompt, completions) in enumerate(zip(prompts, self.covered(prompts, step), strict=True))
            ]
            assignment = self.algorithm.assign(groups)
            self.trainer.loss(assignment)
            result = self.trainer.step()
            manifest = self.trainer.publish()
            self.generator.set_weights(manifest.version, self.channel.fetch(manifest.version))
            history.append({**assignment.metrics, "loss": result.metrics["train/loss"]})
        return history

    def covered(self, prompts: Sequence[Prompt], step: int) -> list[list[Completion]]:
        """Each problem's answers in the modes of `COVERAGE`, as if mode A had been asked: that is what they teach."""
        found: list[list[Completion]] = [[] for _ in prompts]
        for mode, count in COVERAGE:
            for kept, answers in zip(found, self.answers(prompts, mode, count, step), strict=True):
                kept += answers
        asked = [self.tokenizer.encode_chat(prompt.messages) for prompt in prompts]
        return [[replace(c, prompt_ids=ids) for c in kept] for ids, kept in zip(asked, found, strict=True)]

    def answers(
        self, prompts: Sequence[Prompt], mode: chain.Mode, count: int, epoch: int
    ) -> list[tuple[Completion, ...]]:
        """`count` completions of each problem in a mode."""
        return self.generator.generate(
            [
                GenerationRequest(
                    key,
                    encoded(prompt, mode, self.tokenizer),
                    tuple(sample_seed(self.seed, epoch, f"{prompt.id}-{mode}", i) for i in range(count)),
                    SAMPLING,
                )
                for key, prompt in enumerate(prompts)
            ]
        )

    def measured(self, split: str) -> dict[chain.Mode, list[dict[str, float]]]:
        """Per mode and level: accuracy, share of long answers, tokens."""
        table: dict[chain.Mode, list[dict[str, float]]] = {mode: [] for mode in ("S", "L", "A")}
        for level in range(1, chain.MAX_LEVEL + 1):
            weights = [float(other == level) for other in range(1, level + 1)]
            prompts = chain.ChainTask(derive_seed("measure", self.seed), split, weights).prompts(PER_LEVEL)
            for mode, rows in table.items():
                rows.append(level_row(prompts, [answers[0] for answers in self.answers(prompts, mode, 1, -1)]))
        return table


def encoded(prompt: Prompt, mode: chain.Mode, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The problem in a mode, as token ids."""
    return tokenizer.encode_chat(chain.with_mode(prompt, mode).messages)


def judged(prompt: Prompt, completions: Sequence[Completion]) -> list[Sample]:
    """Each completion with its verdict and reward."""
    verdicts = [chain.judge(prompt, completion) for completion in completions]
    return [Sample(c, {"chain": verdict}, verdict.score) for c, verdict in zip(completions, verdicts, strict=True)]


def level_row(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
    """Means over one answer each to problems of one level."""
    pairs = list(zip(prompts, completions, strict=True))
    return {
        "accuracy": fmean(chain.judge(*pair).score or 0.0 for pair in pairs),
        "share": fmean(chain.group(*pair) == "long" for pair in pairs),
        "tokens": fmean(len(completion.token_ids) for completion in completions),
    }


def summary(table: dict[chain.Mode, list[dict[str, float]]], level_weights: Sequence[float]) -> dict[str, float]:
    """Share and accuracy in mode A beside those of other allocations of the same share."""
    weights = [weight / sum(level_weights) for weight in level_weights]

    def mean(mode: chain.Mode, key: str) -> float:
        return sum(weight * row[key] for weight, row in zip(weights, table[mode], strict=True))

    share, short, long = mean("A", "share"), mean("S", "accuracy"), mean("L", "accuracy")
    return {
        "share": share,
        "accuracy": mean("A", "accuracy"),
        "random": (1 - share) * short + share * long,
        "oracle": short + best_gain(table, weights, share),
        "tokens": mean("A", "tokens"),
    }


def best_gain(table: dict[chain.Mode, list[dict[str, float]]], weights: Sequence[float], share: float) -> float:
    """What a share of long answers adds to short ones, given to the levels that gain most."""
    gains = [long["accuracy"] - short["accuracy"] for short, long in zip(table["S"], table["L"], strict=True)]
    total, left = 0.0, share
    for gain, weight in sorted(zip(gains, weights, strict=True), reverse=True):
        spent = min(left, weight)
        total, left = total + max(0.0, gain) * spent, left - spent
    return total


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="of llamarl.recipes.build_chain")
    parser.add_argument("--q-plus", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("ibpo_chain.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for seed in options.seeds:
        for q_plus in [None, *options.q_plus]:  # None: the SFT checkpoint itself
            run = Run(options.directory, q_plus or 0.0, seed, options.steps if q_plus is not None else 0)
            history, table = run.train(), run.measured("heldout")
            trained = fmean(step["used/long"] for step in history[-20:]) if history else None
            found = {"q_plus": q_plus, "seed": seed, "trained_share": trained, **summary(table, chain.LEVEL_WEIGHTS)}
            results.append({**found, "levels": table, "history": history})
            shown = {key: round(value, 3) for key, value in found.items() if value is not None}
            print(shown, "long by level", *(f"{row['share']:.2f}" for row in table["A"]), flush=True)
            write_json(options.out, results)


if __name__ == "__main__":
    main()
