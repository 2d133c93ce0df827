"""Does a generator in 8-bit integers learn as well as one in float32? The demo's task, everything else equal.

    python -m experiments.int8_generator           # three seeds, about ten minutes on two cores

The trainer stays in float32; AIPO's ratio absorbs the difference between the two, which `train/mismatch_kl` shows.
"""

from collections.abc import Mapping

from experiments.common import Curves, Experiment, curve, last
from llamarl.controller.recipe import Recipe
from llamarl.recipes import recipe_path


def arm(precision: str, seed: int) -> Recipe:
    """The shipped recipe with this precision."""
    overrides = {"--generator.precision": precision, "--seed": str(seed), "--schedule.checkpoint_every": "0"}
    return Recipe.load(recipe_path("int8_generator"), [part for pair in overrides.items() for part in pair])


def measure(records: Curves) -> Mapping[str, float]:
    """Held-out reward at the end, and the mean training reward over the last 50 steps."""
    rewards = list(curve(records, "rollout/reward/mean").values())[-50:]
    return {
        "held-out reward": last(records, "eval/reward/mean"),
        "training reward, last 50 steps": sum(rewards) / len(rewards),
        "mismatch KL": last(records, "train/mismatch_kl"),
    }


def main() -> None:
    """The command."""
    experiment = Experiment("int8_generator", __doc__)
    experiment.start()
    runs = experiment.run({p: lambda seed, p=p: arm(p, seed) for p in ("fp32", "int8")}, measure)
    experiment.plot(runs, {"rollout/reward/mean": "training reward", "train/mismatch_kl": "generator-trainer KL, nats"})
    experiment.finish(runs, compared=[("int8", "fp32")])


if __name__ == "__main__":
    main()
