"""Do adapters learn the demo's task as well as training of the whole model does, and what do they save?

    python -m experiments.lora           # three seeds; python -m experiments.lora --tune for the grid on seeds 0 to 2

The demo's task with synchronous steps, which repeat bit for bit. Both arms had the same number of learning rates to
choose from. `trained MB` is what the optimizer's steps take beside the weights: gradients, moments and what is
published; `step seconds` is the median over a run's steps of forward, backward and update.
"""

import statistics
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from experiments.common import Curves, Experiment, curve, last
from llamarl.controller.recipe import Recipe
from llamarl.recipes import recipe_path

SETTINGS: Mapping[str, Any] = tomllib.loads((Path(__file__).parent / "settings.toml").read_text())
ARMS = ("whole", "adapters")


def arm(name: str, learning_rate: float, seed: int) -> Recipe:
    """The demo's recipe with this arm's trainer."""
    trainer: dict[str, Any] = {"learning_rate": learning_rate}
    if name == "adapters":
        trainer["lora"] = SETTINGS["adapters"]
    return Recipe.load(recipe_path("demo"), {**SETTINGS["run"], "trainer": trainer, "seed": seed})


def measure(records: Curves) -> Mapping[str, float]:
    """Held-out reward at the end, training reward over the last 50 steps, and what a step costs."""
    rewards = list(curve(records, "rollout/reward/mean").values())[-50:]
    return {
        "held-out reward": last(records, "eval/reward/mean"),
        "training reward, last 50 steps": statistics.fmean(rewards),
        "published MB": last(records, "weights/published_bytes") / 1e6,
        "step seconds": statistics.median(curve(records, "time/train").values()),
    }


def main() -> None:
    """The command."""
    experiment = Experiment("lora", __doc__, seeds=range(10, 13))
    options = experiment.start()
    rates = {name: SETTINGS["grid"][name] if options.tune else [SETTINGS["learning_rate"][name]] for name in ARMS}
    arms: dict[str, Callable[[int], Recipe]] = {
        f"{name} {rate:g}" if options.tune else name: partial(arm, name, rate) for name in ARMS for rate in rates[name]
    }
    runs = experiment.run(arms, measure)
    experiment.plot(
        runs, {"rollout/reward/mean": "training reward", "train/entropy": "entropy, nats", "time/train": "seconds"}
    )
    experiment.finish(runs, compared=[("adapters", "whole")])


if __name__ == "__main__":
    main()
