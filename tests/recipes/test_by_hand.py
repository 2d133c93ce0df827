"""The controller at staleness 0 is the loop written by hand, bit for bit: rewards, losses, gradients and weights."""

from pathlib import Path

import torch

from llamarl.controller.checkpoints import CheckpointStore
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train
from llamarl.models.decoder import named_tensors
from llamarl.recipes import by_hand, recipe_path
from llamarl.report.metrics import read_metrics
from llamarl.training.checkpoints import read

STEPS = 3
KEYS = ("train/loss", "train/grad_norm", "train/entropy", "train/ratio/mean", "train/tokens")


def test_the_controller_gives_the_numbers_of_the_loop_by_hand(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected: list[dict[str, float]] = []
        trainer = by_hand.run(steps=STEPS, on_step=expected.append)
        recipe = Recipe.load(
            recipe_path("demo"),
            [
                *("--schedule.steps", str(STEPS), "--schedule.max-staleness", "0"),
                *("--evaluation.num-prompts", "0", "--threads", "1"),
            ],
        )
        train(recipe, tmp_path / "run")
    finally:
        torch.set_num_threads(threads)

    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["rollout/reward/mean"] for record in records] == [metrics["reward"] for metrics in expected]
    for key in KEYS:
        assert [record[key] for record in records] == [metrics[key] for metrics in expected], key
    weights = dict(named_tensors(trainer.model))
    checkpoint = CheckpointStore(tmp_path / "run" / "checkpoints").load_latest()
    stored = read(checkpoint.path / "trainer", weights).weights
    assert all(torch.equal(stored[name], tensor) for name, tensor in weights.items())


def test_the_file_a_newcomer_reads_first_stays_short() -> None:
    assert len(Path(by_hand.__file__).read_text().splitlines()) <= 120
