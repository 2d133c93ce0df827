"""What ranks do in the tests of the sharded trainer."""

from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_policies import samples_of, step_of, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from llamarl.algorithms import GRPOConfig, PPOConfig, RLOOConfig
from llamarl.core.records import Assignment
from llamarl.core.sampling import Sampling
from llamarl.functional.shards import local_part
from llamarl.training.config import GradientSync, TrainerConfig
from llamarl.training.ranks import ALONE, Ranks
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel

UNEVEN = ("qwen3", {"tie_word_embeddings": False, "vocab_size": 27, "hidden_size": 18})
ROWS = [sample.trajectory for sample in samples_of([(4, [3, 6, 1])])]
SHAPE = [(3, [4, 1, 7]), (6, [2, 5]), (1, [3, 3, 3]), (9, [6])]


def trainer_of(
    ranks: Ranks = ALONE,
    family: str = "llama",
    sizes: Any = None,
    gradient_sync: GradientSync = "each",
    **config: Any,
) -> PolicyTrainer:
    """A trainer of a tiny model."""
    settings = TrainerConfig(**{"learning_rate": 1e-2, "warmup_steps": 0, "micro_batch_tokens": 24, **config})
    return PolicyTrainer(
        tiny_model(family, **(sizes or {})),
        GRPOConfig(kl_coef=0.0),
        settings,
        sampling=Sampling(),
        ranks=ranks,
        gradient_sync=gradient_sync,
    )


def batch(step: int = 0) -> Assignment:
    """A step's samples: groups of unlike sizes and lengths, in several micro-batches."""
    return step_of(samples_of(SHAPE, seed=step))


def gradients_of(trainer: PolicyTrainer) -> dict[str, torch.Tensor]:
    """The whole gradients, on the first rank; on the others nothing."""
    layout, found = trainer._sharded.layout, {}
    for name, parameter in trainer._sharded.parameters.items():
        assert parameter.grad is not None
        whole = layout.put_together(name, local_part(parameter.grad))
        if whole is not None:
            found[name] = whole.clone()
    return found


def weights_of(trainer: PolicyTrainer) -> dict[str, torch.Tensor]:
    """The whole weights, on the first rank; on the others nothing."""
    layout, found = trainer._sharded.layout, {}
    for name, tensor in trainer._sharded.tensors().items():
        whole = layout.put_together(name, tensor)
        if whole is not None:
            found[name] = whole.clone()
    return found


def gap(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of tensors of the same names."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def compare_gradients(ranks: Ranks, models: list[tuple[str, dict[str, Any]]]) -> list[tuple[float, float, float]]:
    """Of each model the largest gap of the gradients to those of one rank, and the norm of both."""
    return [_compare_gradients(ranks, family, sizes) for family, sizes in models]


def _compare_gradients(ranks: Ranks, family: str, sizes: dict[str, Any]) -> tuple[float, float, float]:
    sharded = trainer_of(ranks, family, sizes)
    sharded.loss(batch())
    norm = sharded._pending.grad_norm
    found = gradients_of(sharded)
    if not ranks.is_first:
        return 0.0, norm, norm
    alone = trainer_of(ALONE, family, sizes)
    alone.loss(batch())
    return gap(found, gradients_of(alone)), norm, alone._pending.grad_norm


def compare_runs(ranks: Ranks, family: str, sizes: dict[str, Any], folder: str) -> dict[str, float]:
    """Three steps, a checkpoint and its layouts, and the published weights, beside one rank's."""
    sharded = trainer_of(ranks, family, sizes)
    results = [sharded.train(batch(step), watched_groups=[0, 3]) for step in range(3)]
    sharded.save(f"{folder}/sharded")
    found = weights_of(sharded)
    if not ranks.is_first:
        return {}
    alone = trainer_of(ALONE, family, sizes)
    expected = [alone.train(batch(step), watched_groups=[0, 3]) for step in range(3)]
    stored = load_file(f"{folder}/sharded/model.safetensors")
    numbers = {
        "weights": gap(found, weights_of(alone)),
        "file": gap(found, stored),
        "metrics": max(
            abs(one.metrics[name] - other.metrics[name])
            for one, other in zip(results, expected, strict=True)
            for name in one.metrics.keys() | other.metrics.keys()
            if name != "time/train"
        ),
    }
    for one, other in zip(results, expected, strict=True):
        assert one.logprobs.keys() == other.logprobs.keys() and one.version == other.version
        numbers["logprobs"] = max(
            abs(a - b) for key in one.logprobs for a, b in zip(one.logprobs[key], other.logprobs[key], strict=True)
        )
    return numbers


def compare_kinds(ranks: Ranks) -> dict[str, float]:
    """Weights after two steps beside one rank's, of trainers that differ in what they do with a batch."""
    few = step_of(samples_of([(3, [4])]), num_prompts=2)
    kinds: dict[str, tuple[Any, dict[str, Any], Any]] = {
        "critic": (PPOConfig(kl_coef=0.0), {}, [batch(), batch(1)]),
        "updates": (GRPOConfig(kl_coef=0.0), {"passes": 2, "minibatches": 2}, [batch(), batch(1)]),
        "leave one out": (RLOOConfig(kl_coef=0.0), {}, [batch(), batch(1)]),
        "a rank without samples": (GRPOConfig(kl_coef=0.0), {}, [few, batch(1)]),
        "tasks": ([GRPOConfig(kl_coef=0.0), PPOConfig(kl_coef=0.0)], {}, [[batch(), batch(1)], [batch(2), few]]),
        "recomputed": (GRPOConfig(kl_coef=0.0), {"checkpointing": "selective"}, [batch(), batch(1)]),
        "small micro-batches": (GRPOConfig(kl_coef=0.0), {"micro_batch_tokens": 8}, [batch(), batch(1)]),
        "offloaded": (PPOConfig(kl_coef=0.0), {"offload": "optimizer"}, [batch(), batch(1)]),
        "synced on the last": (
            [GRPOConfig(kl_coef=0.0), PPOConfig(kl_coef=0.0)],
            {"micro_batch_tokens": 8, "gradient_sync": "last", "passes": 2},
            [[batch(), batch(1)], [batch(2), few]],
        ),
    }
    gaps = {}
    for name, (algorithms, config, steps) in kinds.items():
        found = [_train(algorithms, config, steps, each) for each in (ranks, ALONE)]
        if ranks.is_first:
            gaps[name] = gap(*found)
    return gaps


class Counted(TorchDispatchMode):
    """Counts the operations inside the block that sum gradients to where their rows are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reduce_scatters = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs `func`."""
        self.num_reduce_scatters += "reduce_scatter" in str(func)
        return func(*args, **(kwargs or {}))


def sync_on_the_last(ranks: Ranks) -> dict[str, Any]:
    """Steps of trainers that sum gradients after each micro-batch or after the last: exchanges, gradients, memory."""
    found: dict[str, Any] = {}
    gradients, trainers = {}, {}
    for how in ("each", "last"):
        trainers[how] = trainer = trainer_of(ranks, *UNEVEN, gradient_sync=how, micro_batch_tokens=8)
        found[f"micro-batches, {how}"] = len(trainer._share(0, batch().samples))
        found[f"units, {how}"] = 1 + len(trainer._sharded.module.blocks)  # type: ignore[operator, arg-type]
        with Counted() as counted:
            trainer.loss(batch())
        found[f"sums, {how}"] = counted.num_reduce_scatters
        found[f"bytes, {how}"] = trainer.memory()["gradients"]
        gradients[how] = gradients_of(trainer)
    # A loss that is no number, behind micro-batches with gradients: nothing of these may reach the next step.
    samples = samples_of(SHAPE, seed=1)
    first, *_, last = (set(part.groups) for part in trainers["last"]._share(0, samples))
    bad = (last - first).pop()
    samples = [replace(sample, advantages=float("nan")) if sample.group == bad else sample for sample in samples]
    skipped = [trainer.train(step_of(samples)) for trainer in trainers.values()]
    found["skipped"] = [result.is_skipped for result in skipped]
    for trainer in trainers.values():
        trainer.train(batch(2))
    weights = {how: weights_of(trainer) for how, trainer in trainers.items()}
    if ranks.is_first:
        alone = trainer_of(ALONE, *UNEVEN)
        alone.loss(batch())
        expected = gradients_of(alone)
        found["gap"] = {how: gap(gradients[how], expected) for how in gradients}
        found["next step"] = gap(weights["each"], weights["last"])
    return found


def compare_half_precision(ranks: Ranks) -> float:
    """The largest gap of the gradients in bf16, as a share of the largest gradient."""
    sharded = trainer_of(ranks, *UNEVEN, precision="bf16")
    sharded.loss(batch())
    found = gradients_of(sharded)
    if not ranks.is_first:
        return 0.0
    alone = trainer_of(ALONE, *UNEVEN, precision="bf16")
    alone.loss(batch())
    expected = gradients_of(alone)
    return gap(found, expected) / max(float(tensor.abs().max()) for tensor in expected.values())


def compare_adapters(ranks: Ranks, folder: str) -> dict[str, float]:
    """Two steps of adapters beside one rank's, what the model was before them, and checkpoints across layouts."""
    gaps: dict[str, float] = {}
    for family, sizes in (UNEVEN, ("gpt_neox", {})) if ranks.tp == 1 else (UNEVEN, ("qwen2", {})):
        for rank, precision in ((3, "fp32"), (1, "fp32"), (4, "bf16")):
            case = f"{family}, {precision}, {rank} rows"
            found = []
            for each in (ranks, ALONE) if ranks.is_first else (ranks,):
                place = f"{folder}/{case}, {each.count} ranks"
                trainer = trainer_of(each, family, sizes, lora={"rank": rank}, precision=precision)
                for step in range(2):
                    trainer.train(batch(step))
                trainer.save(place)
                reference = [value for row in trainer.reference_logprobs(ROWS) for value in row]
                found.append(
                    (load_file(f"{place}/model.safetensors") if each.is_first else {}, torch.tensor(reference))
                )
            if ranks.is_first:
                (weights, reference), (expected, expected_reference) = found
                gaps[f"{case}: weights"] = gap(weights, expected)
                gaps[f"{case}: reference"] = float((reference - expected_reference).abs().max())
            ranks.agree(True)  # the first rank's files are there
            resumed = trainer_of(ranks, family, sizes, lora={"rank": rank}, precision=precision)
            assert resumed.load(f"{folder}/{case}, 1 ranks") == 2  # what one rank saved, several go on with
            resumed.train(batch(2))
            resumed.save(f"{folder}/{case}, next")
            if ranks.is_first:
                alone = trainer_of(ALONE, family, sizes, lora={"rank": rank}, precision=precision)
                assert alone.load(f"{folder}/{case}, {ranks.count} ranks") == 2
                alone.train(batch(2))
                alone.save(f"{folder}/{case}, next alone")
                files = [load_file(f"{folder}/{case}, next{who}/model.safetensors") for who in ("", " alone")]
                gaps[f"{case}: next"] = gap(*files)
    return gaps


def publish_in_half_precision(ranks: Ranks) -> tuple[float, float, int]:
    """The largest gaps to one rank's of the probe and of the gradient's norm, with a rank out of work.

    And how many numbers the model still holds that this rank's part was taken from.
    """
    found, left = [], 0
    for each in (ranks, ALONE) if ranks.is_first else (ranks,):
        model = tiny_model()
        trainer = PolicyTrainer(
            model,
            GRPOConfig(kl_coef=0.0),
            TrainerConfig(precision="bf16", warmup_steps=0),
            channel=LocalChannel(),
            probe_prompts=[[3, 4, 5], [6, 7]],
            ranks=each,
        )
        left += sum(parameter.numel() for parameter in model.parameters()) * (each.count > 1)
        norm = trainer.train(step_of(samples_of([(3, [4])]), num_prompts=2)).metrics["train/grad_norm"]
        found.append((trainer._score_rows(), trainer._probe_at_start, norm))
    if not ranks.is_first:
        return 0.0, 0.0, left
    (now, start, norm), (expected_now, expected_start, expected_norm) = found
    gaps = (abs(a - b) for a, b in zip((*now, *start), (*expected_now, *expected_start), strict=True))
    return max(gaps), abs(norm / expected_norm - 1.0), left


def _train(algorithms: Any, config: dict[str, Any], steps: Any, ranks: Ranks) -> dict[str, torch.Tensor]:
    settings = {"learning_rate": 1e-2, "warmup_steps": 0, "micro_batch_tokens": 24, **config}
    where = {name: settings.pop(name) for name in ("checkpointing", "gradient_sync") if name in settings}
    trainer = PolicyTrainer(tiny_model(), algorithms, TrainerConfig(**settings), ranks=ranks, **where)
    for step in steps:
        trainer.train(step)
    critics = {f"critic {name}": tensor.clone() for name, tensor in trainer.critics.tensors().items()}
    return weights_of(trainer) | critics


def meet_a_number_that_is_none(ranks: Ranks) -> tuple[dict[str, float], bool, bool]:
    """A step in which one rank's samples have an advantage that is no number."""
    trainer = trainer_of(ranks)
    before = {name: tensor.clone() for name, tensor in trainer._sharded.tensors().items()}
    samples = samples_of(SHAPE)
    samples[0] = replace(samples[0], advantages=float("nan"))
    result = trainer.train(step_of(samples))
    return dict(result.metrics), result.is_skipped, gap(before, trainer._sharded.tensors()) == 0.0


def save_and_go_on(ranks: Ranks, folder: str) -> None:
    """Two steps, a checkpoint, and the weights after a third step."""
    trainer = trainer_of(ranks, *UNEVEN)
    for step in range(2):
        trainer.train(batch(step))
    trainer.save(f"{folder}/checkpoint")
    trainer.train(batch(2))
    found = weights_of(trainer)
    if ranks.is_first:
        save_file(found, f"{folder}/next.safetensors")


def resume_and_go_on(ranks: Ranks, folder: str) -> float:
    """The largest gap of the weights after the third step, taken from the checkpoint."""
    trainer = trainer_of(ranks, *UNEVEN)
    assert trainer.load(f"{folder}/checkpoint") == 2
    trainer.train(batch(2))
    found = weights_of(trainer)
    return gap(found, load_file(f"{folder}/next.safetensors")) if ranks.is_first else 0.0
