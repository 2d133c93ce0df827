"""One contender of `grpo_step`: TRL's GRPOTrainer, a step a turn. Started by that benchmark; needs the extra `bench`.

python -m benchmarks.grpo_trl WORKLOAD CHECKPOINT SETTING

Its settings are the fastest we know on a CPU: float32 (there are no bf16 units), no gradient checkpointing, no
reference model, old log-probs not recomputed (one update per batch), fused AdamW, no logging, no saving.
"""

import sys
import tempfile
import time
from typing import Any

from benchmarks.common import Turns
from benchmarks.workloads import GROUP_SIZE, LEARNING_RATE, NUM_PROMPTS, WORKLOADS, prompts

BATCH = NUM_PROMPTS * GROUP_SIZE

SETTINGS: dict[str, dict[str, Any]] = {
    "batch 128": {"per_device_train_batch_size": BATCH},
    "batch 32": {"per_device_train_batch_size": 32},
    "static cache": {"per_device_train_batch_size": BATCH, "cache_implementation": "static"},
    "continuous batching": {"per_device_train_batch_size": BATCH, "use_transformers_continuous_batching": True},
}
"""Ways to run it; `grpo_step --all-settings` tries them all."""


def serve(turns: Turns, workload_name: str, checkpoint: str, setting: str) -> None:
    """Trains; each optimizer step waits for its turn."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]  # extra `bench`

    workload = WORKLOADS[workload_name]
    seen: dict[str, float] = {}

    def reward(completions: list[Any], info: list[Any], **columns: Any) -> list[float]:
        return [workload.reward(turn[0]["content"], row) for turn, row in zip(completions, info, strict=True)]

    class TimedTrainer(GRPOTrainer):  # type: ignore[misc]
        """Says how long generation took and how much came of it."""

        def _generate_single_turn(self, prompt_ids: Any, *arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = super()._generate_single_turn(prompt_ids, *arguments, **options)
            seen["generate"] = time.perf_counter() - started
            lengths = [len(ids) for ids in result[0]]
            seen.update(tokens=sum(lengths), longest=max(lengths))
            seen["prompt_tokens"] = sum(len(ids) for ids in prompt_ids) / GROUP_SIZE
            return result

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            started = time.perf_counter()
            result = super()._generate_and_score_completions(inputs)
            seen["judge"] = time.perf_counter() - started - seen["generate"]
            seen["has_gradient"] = (result["advantages"] != 0).float().mean().item()
            return result

    class TakeTurns(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            turns.wait()
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step = time.perf_counter() - self.started
            train = step - seen["generate"] - seen["judge"]
            turns.report(step=step, train=train, publish=0.0, **seen)

    options = SETTINGS[setting]
    with tempfile.TemporaryDirectory() as directory:
        config = GRPOConfig(
            output_dir=directory,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            gradient_accumulation_steps=BATCH // options["per_device_train_batch_size"],
            num_generations=GROUP_SIZE,
            max_completion_length=workload.max_tokens,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            beta=0.0,
            epsilon=0.2,
            loss_type="grpo",
            scale_rewards="group",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=1.0,
            optim="adamw_torch_fused",
            shuffle_dataset=False,
            max_steps=1_000_000,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **options,
        )
        rows = [{"prompt": [dict(m) for m in prompt.messages], "info": dict(prompt.info)} for prompt in prompts()]
        TimedTrainer(
            model=checkpoint,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list(rows),
            callbacks=[TakeTurns()],
        ).train()


if __name__ == "__main__":
    serve(Turns(), *sys.argv[1:])
