"""The train phase of a GRPO step: packed forward pass against plain padded rows, and against the machine's products.

    python -m benchmarks.training [--threads 1] [--repeats 5] [--sizes small,long,large]

Per size, 16 prompts x 8 completions, one GRPO step (loss, gradient, clipping, AdamW), all in one micro-batch:

    padded     one right-padded row per completion through the transformers module, output head on every position,
               log-softmax of all logits; what a plain training loop does (its products are torch's default)
    packed     `PolicyTrainer` as shipped
    products   floating-point operations of the packed linear layers, divided by the measured fp32 product rate (the
               faster of torch's two libraries): the time below which no training of these tokens can go

Seconds are CPU seconds of the process with one thread (other load on the machine disturbs them less), wall seconds
with more; the best of all repeats, contenders taking turns.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.common import Benchmark
from llamarl.algorithms.grpo import GRPOConfig
from llamarl.core.records import Assignment, TrainSample, Trajectory
from llamarl.models.checkpoint import new_config, new_model
from llamarl.models.linear import linear
from llamarl.scoring.packing import Packed
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer

VOCABULARY = 64
NUM_PROMPTS, GROUP_SIZE = 16, 8


@dataclass(frozen=True)
class Size:
    """A Llama shape and how long its completions are."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    draw_length: Callable[[random.Random], float]
    max_tokens: int


SIZES = {
    "small": Size(96, 256, 3, 4, lambda rng: rng.gauss(18, 6), 64),
    "long": Size(128, 352, 4, 4, lambda rng: rng.lognormvariate(3.75, 0.9), 256),
    "large": Size(320, 864, 6, 8, lambda rng: rng.gauss(43, 14), 64),
}


def build_policy(size: Size) -> nn.Module:
    return new_model(
        new_config(
            "llama",
            vocab_size=VOCABULARY,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        seed=0,
    )


def draw_samples(size: Size) -> list[TrainSample]:
    rng = random.Random(0)
    samples = []
    for group in range(NUM_PROMPTS):
        prompt = tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randrange(25, 46)))
        for _ in range(GROUP_SIZE):
            length = max(2, min(size.max_tokens, int(size.draw_length(rng))))
            tokens = tuple(rng.randrange(3, VOCABULARY) for _ in range(length))
            trajectory = Trajectory.sampled(prompt, tokens, (-4.2,) * length, (0,) * length)
            samples.append(TrainSample(trajectory, rng.uniform(-1, 1), group))
    return samples


class PlainStep:
    """GRPO on padded rows, written the ordinary way."""

    def __init__(self, model: nn.Module, config: TrainerConfig) -> None:
        self.model, self.config = model, config
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, betas=config.betas, weight_decay=0.0
        )

    def __call__(self, samples: list[TrainSample]) -> float:
        """Takes one step; returns the loss."""
        trajectories = [sample.trajectory for sample in samples]
        rows = [torch.tensor([*t.prompt_ids, *t.token_ids]) for t in trajectories]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        behavior = nn.utils.rnn.pad_sequence(
            [torch.tensor([*[0.0] * (len(t.prompt_ids) - 1), *t.logprobs]) for t in trajectories], batch_first=True
        )
        mask = nn.utils.rnn.pad_sequence(
            [torch.tensor([0.0] * (len(t.prompt_ids) - 1) + [1.0] * len(t.token_ids)) for t in trajectories],
            batch_first=True,
        )
        is_real = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        logits = self.model(input_ids=ids, attention_mask=is_real, use_cache=False).logits[:, :-1]
        logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
        ratio = torch.exp((logprobs - behavior) * mask)
        advantages = torch.tensor([sample.advantages for sample in samples])[:, None]
        terms = -torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages) * mask
        loss = (terms.sum(-1) / mask.sum(-1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


def product_flops(model: nn.Module, samples: list[TrainSample]) -> float:
    """Operations of the packed linear layers, forward and backward (3 products of 2 x tokens x weights)."""
    body = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name)
    head = model.config.vocab_size * model.config.hidden_size
    rows = [sample.trajectory for sample in samples]
    return 6.0 * (body * len(Packed(rows).ids) + head * sum(row.response_length for row in rows))


def product_rate(clock: Callable[[], float]) -> float:
    """Operations per second of the best fp32 product of either library."""
    x, weight = torch.randn(4096, 512), torch.randn(512, 512)
    with torch.no_grad():
        seconds = min(best_of(lambda f=f: f(x, weight), 30, clock) for f in (linear, nn.functional.linear))
    return 2.0 * x.numel() * len(weight) / seconds


def best_of(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    run()
    times = []
    for _ in range(repeats):
        started = clock()
        run()
        times.append(clock() - started)
    return min(times)


def measure(name: str, repeats: int, clock: Callable[[], float]) -> dict[str, float | str]:
    size = SIZES[name]
    samples = draw_samples(size)
    config = TrainerConfig(micro_batch_tokens=10**6)
    plain = PlainStep(build_policy(size), config)
    trainer = PolicyTrainer(build_policy(size), GRPOConfig(kl_coef=0.0), config)
    assignment = Assignment(tuple(samples), NUM_PROMPTS)
    gap = abs(plain(samples) - trainer.train(assignment).metrics["train/loss"])
    seconds = {"padded": float("inf"), "packed": float("inf")}
    for _ in range(repeats):
        for key, run in (("padded", lambda: plain(samples)), ("packed", lambda: trainer.train(assignment))):
            started = clock()
            run()
            seconds[key] = min(seconds[key], clock() - started)
    rate, flops = product_rate(clock), product_flops(trainer.model, samples)
    lengths = [sample.trajectory.response_length for sample in samples]
    return {
        "size": name,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "mean_length": sum(lengths) / len(lengths),
        "max_length": max(lengths),
        "loss_gap": gap,
        "padded_seconds": seconds["padded"],
        "packed_seconds": seconds["packed"],
        "speedup": seconds["padded"] / seconds["packed"],
        "product_gflops_per_second": rate / 1e9,
        "share_of_product_rate": flops / rate / seconds["packed"],
    }


def main() -> None:
    benchmark = Benchmark("training", __doc__, repeats=5)
    benchmark.parser.add_argument("--threads", type=int, default=1)
    benchmark.parser.add_argument("--sizes", default=",".join(SIZES))
    options = benchmark.start()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    rows = []
    for name in options.sizes.split(","):
        rows.append(measure(name, options.repeats, clock))
        benchmark.note(f"{name} done")
    headlines = {}
    for row in rows:
        headlines[f"{row['size']} share of product rate"] = row["share_of_product_rate"]
        headlines[f"{row['size']} padded / packed"] = row["speedup"]
    benchmark.finish(rows, headlines)


if __name__ == "__main__":
    main()
