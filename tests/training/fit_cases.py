"""What ranks do in the tests of supervised training on several ranks."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tiny_policies import VOCABULARY, tiny_model
from torch import nn
from transformers import LlamaForSequenceClassification

from llamarl.core.metric_names import ACCURACY
from llamarl.models.lora_config import LoraConfig
from llamarl.training.examples import Example
from llamarl.training.fitter import Fitter
from llamarl.training.objective import Objective
from llamarl.training.objectives import DPO, SFT, DPOConfig, RewardConfig, SFTConfig, reward_objective
from llamarl.training.ranks import ALONE, Ranks
from llamarl.training.sft_rows import SFTRow

EXACT: dict[str, Any] = {"learning_rate": 1e-3, "warmup_steps": 0, "micro_batch_tokens": 24, "num_steps": 3}


def random_ids(count: int, seed: int) -> tuple[int, ...]:
    """Token ids, none of them special."""
    return tuple(torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed)).tolist())


def sft_rows() -> list[SFTRow]:
    """Prompts and completions of unlike lengths."""
    lengths = [(3, 4), (1, 9), (6, 2), (2, 2), (5, 7), (1, 1)]
    return [SFTRow(random_ids(p, seed), random_ids(c, 100 + seed)) for seed, (p, c) in enumerate(lengths)]


def pairs() -> list[Example]:
    """Pairs of answers to one prompt."""
    found = []
    for seed, (prompt, chosen, rejected) in enumerate([(3, 4, 2), (1, 9, 3), (6, 2, 2), (2, 1, 8), (4, 5, 5)]):
        begin, answers = random_ids(prompt, seed), (random_ids(chosen, 50 + seed), random_ids(rejected, 70 + seed))
        found.append(Example(tuple(begin + a for a in answers), (chosen, rejected), str(seed), 0.1 * seed))
    return found


def labelled() -> list[Example]:
    """Labelled conversations."""
    return [Example(((1, *random_ids(n, n)),), (n,), str(n), float(n % 2)) for n in (3, 8, 5, 2)]


def classifier(labels: int) -> nn.Module:
    """A tiny classifier whose head says something."""
    config = tiny_model().config
    config.num_labels = labels
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            shape, generator = parameter.shape, torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(shape, generator=generator) * 0.3 if len(shape) > 1 else torch.ones(shape))
    return model


def cases() -> dict[str, tuple[Objective[Any], nn.Module, Sequence[Any]]]:
    """Objective, model and rows by name; all of them fresh."""
    untied = {"tie_word_embeddings": False, "vocab_size": 27}
    lora = LoraConfig(rank=3)
    return {
        "sft": (SFT(SFTConfig(**EXACT)), tiny_model(), sft_rows()),
        "sft, untied, sums": (
            SFT(SFTConfig(**EXACT, reduction="sequence_sum", checkpointing="full", gradient_sync="last")),
            tiny_model("qwen3", **untied),
            sft_rows(),
        ),
        "dpo": (DPO(DPOConfig(**EXACT)), tiny_model("qwen2"), pairs()),
        "reward": (reward_objective("pairs", RewardConfig(**EXACT)), classifier(1), pairs()),
        "labels, head only": (
            reward_objective("labels", RewardConfig(**EXACT, is_head_only=True)),
            classifier(2),
            labelled(),
        ),
        "offloaded": (SFT(SFTConfig(**EXACT, offload="optimizer")), tiny_model(), sft_rows()),
        "adapters": (SFT(SFTConfig(**EXACT, lora=lora)), tiny_model(), sft_rows()),
        "reward, adapters": (reward_objective("pairs", RewardConfig(**EXACT, lora=lora)), classifier(1), pairs()),
    }


def compare_fits(ranks: Ranks, names: Sequence[str], folder: str) -> dict[str, float]:
    """Of each case the largest gap to one rank: of metrics, weights and scores, and of a step on its checkpoint."""
    gaps = {}
    for name in names:
        place = Path(folder) / name
        found = [_fit(name, each, place) for each in ((ranks, ALONE) if ranks.is_first else (ranks,))]
        if ranks.is_first:
            (metrics, weights, scores), (expected, expected_weights, expected_scores) = found
            assert weights.keys() == expected_weights.keys() and all(
                m.keys() == e.keys() for m, e in zip(metrics, expected, strict=True)
            )
            gaps[f"{name}: metrics"] = max(
                abs(m[key] - e[key]) / max(1.0, abs(e[key]))
                for step, (m, e) in enumerate(zip(metrics, expected, strict=True))
                for key in e
                # At DPO's first step all margins are 0, and rounding decides which pairs are in order.
                if (name, step, key) != ("dpo", 0, ACCURACY)
            )
            gaps[f"{name}: weights"] = max(float((weights[n] - expected_weights[n]).abs().max()) for n in weights)
            gaps[f"{name}: scores"] = float((scores - expected_scores).abs().max())
        ranks.agree(True)  # the first rank's files are there
        several = _next(name, ranks, place / "1")
        if ranks.is_first:
            alone = _next(name, ALONE, place / str(ranks.count))
            gaps[f"{name}: resumed"] = max(float((several[n] - alone[n]).abs().max()) for n in several)
    return gaps


def _fit(name: str, ranks: Ranks, place: Path) -> tuple[list[dict[str, float]], dict[str, torch.Tensor], torch.Tensor]:
    objective, model, rows = cases()[name]
    fitter = Fitter(model, objective, 5, ranks)
    objective.prepare(fitter.scores, rows, {})
    metrics = [fitter.step(rows), fitter.step(rows[:1]), fitter.step(rows[1:])]
    fitter.save(place / str(ranks.count), {})
    return metrics, fitter.collect(), fitter.scores(rows)


def _next(name: str, ranks: Ranks, place: Path) -> dict[str, torch.Tensor]:
    objective, model, rows = cases()[name]
    fitter = Fitter(model, objective, 5, ranks)
    objective.prepare(fitter.scores, rows, {})
    fitter.load(place)
    fitter.step(rows)
    return fitter.collect()


def meet_then_fall_silent(ranks: Ranks, _: Any) -> None:
    """All meet; then the second says nothing more."""
    ranks.agree(True)
    if ranks.rank == 1:
        time.sleep(600)
    ranks.agree(True)


def fail_on_the_second(ranks: Ranks, _: Any) -> None:
    """The second rank raises, while the first waits for it."""
    if ranks.rank == 1:
        raise ValueError("second")
    ranks.agree(True)
