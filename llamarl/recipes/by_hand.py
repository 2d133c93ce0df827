"""One run, written by hand with the six verbs: generate, judge, assign, loss, step, publish. Read this file first.

    python -m llamarl.recipes.by_hand --steps 20

It trains the shipped 0.34M-parameter model on the format task, synchronously. `llamarl train` does the same with
executors, overlap, a ledger and checkpoints around it: at `max_staleness = 0` it gives these numbers bit for bit
(tests/recipes/test_by_hand.py).
"""

import argparse
from collections.abc import Callable, Iterator

from llamarl.algorithms import AIPOConfig
from llamarl.core.records import Completion, GenerationRequest, Group, Prompt, Sample
from llamarl.core.sampling import Sampling
from llamarl.core.seeds import sample_seed
from llamarl.data import PromptStream, read_prompts
from llamarl.generation.native import NativeGenerator
from llamarl.models.checkpoint import load_model, load_tokenizer
from llamarl.recipes import recipe_path
from llamarl.tasks import format as task
from llamarl.tasks.demo import DEMO_CHECKPOINT
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel

PROMPTS = recipe_path("demo").parent.parent / "tasks" / "assets" / "format_prompts.jsonl"


def run(
    steps: int = 20,
    prompts_per_step: int = 16,
    samples_per_prompt: int = 8,
    seed: int = 0,
    on_step: Callable[[dict[str, float]], None] = lambda metrics: None,
) -> PolicyTrainer:
    """Trains for some steps and returns the trainer, whose model is the result."""
    sampling = Sampling(max_tokens=48)
    tokenizer = load_tokenizer(DEMO_CHECKPOINT)
    algorithm = AIPOConfig()
    credit = algorithm.credit()
    channel = LocalChannel()
    generator = NativeGenerator(
        load_model(DEMO_CHECKPOINT), eos_ids=tokenizer.eos_ids, decode=tokenizer.decode, slots=128
    )
    trainer = PolicyTrainer(
        load_model(DEMO_CHECKPOINT),
        algorithm,
        TrainerConfig(learning_rate=2e-4, warmup_steps=10),
        sampling=sampling,
        channel=channel,
    )
    stream = PromptStream(read_prompts(PROMPTS), seed=seed)

    for _ in range(steps):
        # generate: every completion has its own seed, so it does not matter who samples it, or when
        issues = stream.take(prompts_per_step)
        requests = [
            GenerationRequest(
                key=issue.position,
                prompt_ids=tokenizer.encode_chat(issue.prompt.messages),
                seeds=tuple(sample_seed(seed, issue.epoch, issue.prompt.id, i) for i in range(samples_per_prompt)),
                sampling=sampling,
                priority=issue.position,
            )
            for issue in issues
        ]
        completions = generator.generate(requests)

        # judge: a verdict per completion; here its score is the reward
        groups = [
            Group(issue.prompt, tuple(judge_samples(issue.prompt, answers)), index=issue.position, epoch=issue.epoch)
            for issue, answers in zip(issues, completions, strict=True)
        ]

        # assign: rewards to advantages; then loss: forward and backward; then step: clip and update
        trainer.loss(credit.assign(groups))
        result = trainer.step()

        # publish: the generator takes the new weights before it draws another token
        manifest = trainer.publish()
        with channel.reading(manifest.version) as tensors:
            generator.set_weights(manifest.version, tensors)

        rewards = [reward for group in groups for reward in group.rewards]
        on_step({"step": result.version, "reward": sum(rewards) / len(rewards), **result.metrics})
    return trainer


def judge_samples(prompt: Prompt, completions: tuple[Completion, ...]) -> Iterator[Sample]:
    """Judges completions; yields each with its verdict and reward."""
    for completion in completions:
        verdict = task.judge(prompt, completion)
        yield Sample(completion, {"judge": verdict}, verdict.score)


def main() -> None:
    """Runs and prints one line a step."""
    parser = argparse.ArgumentParser(description="A whole run by hand, on the shipped tiny model.")
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    def show(metrics: dict[str, float]) -> None:
        print(
            f"step {metrics['step']:>3}  reward {metrics['reward']:.3f}  gradient norm {metrics['train/grad_norm']:.3f}"
        )

    run(steps=options.steps, on_step=show)


if __name__ == "__main__":
    main()
