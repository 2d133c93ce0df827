"""One contender of `grpo_step`: llamarl's six verbs, synchronously, a step a turn. Started by that benchmark.

python -m benchmarks.grpo_ours WORKLOAD CHECKPOINT
"""

import sys
import time
from collections.abc import Iterator

from benchmarks.common import Turns
from benchmarks.workloads import GROUP_SIZE, LEARNING_RATE, NUM_PROMPTS, WORKLOADS, prompts
from llamarl.algorithms import GRPOConfig
from llamarl.core.protocols import WeightChannel
from llamarl.core.records import GenerationRequest, Group, Sample, Verdict
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import sample_seed
from llamarl.generation.native import NativeGenerator
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel


def steps(
    workload_name: str,
    checkpoint: str,
    learning_rate: float = LEARNING_RATE,
    channel: WeightChannel | None = None,
) -> Iterator[dict[str, float]]:
    """Runs one step after the other; says what each took."""
    workload = WORKLOADS[workload_name]
    rows, sampling = prompts(), Sampling(max_tokens=workload.max_tokens)
    tokenizer, channel = load_tokenizer(checkpoint), channel or LocalChannel()
    algorithm = GRPOConfig(kl_coef=0.0)
    credit = algorithm.credit()
    generator = NativeGenerator(
        load_model(checkpoint), eos_ids=tokenizer.eos_ids, decode=tokenizer.decode, slots=NUM_PROMPTS * GROUP_SIZE
    )
    trainer = PolicyTrainer(
        load_model(checkpoint),
        algorithm,
        TrainerConfig(learning_rate=learning_rate, warmup_steps=0, betas=(0.9, 0.999)),
        sampling=sampling,
        channel=channel,
    )
    while True:
        clock = [time.perf_counter()]
        start = trainer.version * NUM_PROMPTS
        batch = [rows[i % len(rows)] for i in range(start, start + NUM_PROMPTS)]
        completions = generator.generate(
            [
                GenerationRequest(
                    key=start + index,
                    prompt_ids=tokenizer.encode_chat(prompt.messages),
                    seeds=tuple(sample_seed(0, start, prompt.id, i) for i in range(GROUP_SIZE)),
                    sampling=sampling,
                )
                for index, prompt in enumerate(batch)
            ]
        )
        clock.append(time.perf_counter())
        groups = []
        for index, (prompt, answers) in enumerate(zip(batch, completions, strict=True)):
            scores = [workload.reward(answer.text, prompt.info) for answer in answers]
            judged = (Sample(a, {"reward": Verdict.scored(r)}, r) for a, r in zip(answers, scores, strict=True))
            groups.append(Group(prompt, tuple(judged), index))
        assignment = credit.assign(groups)
        clock.append(time.perf_counter())
        trainer.loss(assignment)
        trainer.step()
        clock.append(time.perf_counter())
        manifest = trainer.publish()
        with channel.reading(manifest.version) as tensors:
            generator.set_weights(manifest.version, tensors)
        clock.append(time.perf_counter())
        lengths = [len(answer.token_ids) for answers in completions for answer in answers]
        yield {
            "step": clock[4] - clock[0],
            "generate": clock[1] - clock[0],
            "judge": clock[2] - clock[1],
            "train": clock[3] - clock[2],
            "publish": clock[4] - clock[3],
            "tokens": sum(lengths),
            "longest": max(lengths),
            "prompt_tokens": sum(len(answers[0].trajectory.prompt_ids) for answers in completions),
            "has_gradient": sum(sample.advantages != 0.0 for sample in assignment.samples) / len(assignment.samples),
        }


if __name__ == "__main__":
    turns, work = Turns(), steps(*sys.argv[1:])
    while True:
        turns.wait()
        turns.report(**next(work))
