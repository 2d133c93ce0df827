"""Three tasks whose rewards conflict: one run of CGPO against PPO on a blended reward at five weightings.

    python -m experiments.cgpo_tasks             # six arms, three seeds

    ppo W          reward of every answer to every prompt = (1 - W) check + W style
    crpg           each task by itself: format and sums held to their checker, chat paid by style within four limits

`check` is the task's exact checker (of a chat: all four limits), `style` the probability that raters prefer the answer
to the prompt's baseline, by one reward model trained on their choices. All arms see the same prompts, as many samples
and steps, and the same judges; what differs is how verdicts become a gradient.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from experiments.cgpo_tasks.pareto import draw, hypervolume, is_dominated, lead
from experiments.cgpo_tasks.world import TASKS, world
from experiments.common import Curves, Done, Experiment, last
from llamarl.controller.recipe import Recipe

JUDGES = "experiments.cgpo_tasks.judges"
WEIGHTS = (0.1, 0.25, 0.5, 0.75, 0.9)
STEPS = 150
KL_MAX = 40.0
PPO: Mapping[str, Any] = {"type": "ppo", "kl_coef": 0.002}
LEARNING_RATE = 4e-4
COMPARED = [("crpg", f"ppo {weight}") for weight in WEIGHTS]
CHECKS = {"format": "format", "sums": f"{JUDGES}:sums", "chat": f"{JUDGES}:chat"}
LIMITS = ("topic", "end", "length", "fresh")


def style(directory: Path, role: str, **settings: Any) -> dict[str, Any]:
    """The reward model as a judge."""
    model = str(directory / "reward" / "model")
    return {"function": f"{JUDGES}:Style", "role": role, "settings": {"model": model, **settings}}


def blended(directory: Path, task: str, weight: float) -> dict[str, Any]:
    """A task of PPO: the same two rewards, in the same proportion, for every task."""
    judges = [
        {"function": CHECKS[task], "weight": 1.0 - weight},
        {**style(directory, "reward"), "weight": weight},
    ]
    return {"judges": judges, "algorithm": dict(PPO)}


def constrained(directory: Path, task: str, algorithm: str) -> dict[str, Any]:
    """A task of CGPO: its own constraints and, where there is one, its own reward."""
    settings = {"type": algorithm, "kl_max": KL_MAX}
    if task != "chat":
        judges = [{"function": CHECKS[task], "role": "constraint"}]
        return {"judges": judges, "algorithm": {**settings, "reward": "constant"}}
    limits = [{"function": f"{JUDGES}:{limit}", "role": "constraint"} for limit in LIMITS]
    judges = [style(directory, "reward"), *limits, {"function": CHECKS[task], "role": "watch"}]
    return {"judges": judges, "algorithm": {**settings, "reward": "as_is"}}  # style is a probability already


def task_of(directory: Path, task: str, arm: str) -> dict[str, Any]:
    """One task of one arm."""
    kind, *options = arm.split()
    found = blended(directory, task, float(options[0])) if kind == "ppo" else constrained(directory, task, kind)
    if task == "chat":
        found["judges"].append(style(directory, "watch", is_limited=True))
    return {
        "name": task,
        "data": {"source": str(directory / f"{task}.jsonl")},
        "held_out": str(directory / f"{task}-heldout.jsonl"),
        **found,
    }


def recipe(directory: Path, arm: str, seed: int) -> Recipe:
    """The recipe of one arm in the world of a directory."""
    return Recipe.parse(
        {
            "model": str(directory / "policy"),
            "tasks": [task_of(directory, task, arm) for task in TASKS],
            "sampling": {"max_tokens": 24},
            "schedule": {
                "steps": STEPS,
                "prompts_per_step": 8,
                "samples_per_prompt": 8,
                "max_staleness": 0,
                "evaluate_every": 50,
                "checkpoint_every": 0,
            },
            "evaluation": {"num_prompts": 128, "samples_per_prompt": 3},
            "generator": {"slots": 192},
            "trainer": {
                "learning_rate": LEARNING_RATE,
                "warmup_steps": 10,
                "schedule": "linear",
            },
            "guard": {"reward_fraction": 0.0},
            "seed": seed,
            "threads": 1,
        }
    )


def in_world(arm: str, seed: int) -> Recipe:
    """The recipe of one arm in the world of its seed."""
    return recipe(world(seed), arm, seed)


def measure(records: Curves) -> Mapping[str, float]:
    """Of held-out prompts, at the end."""

    def of(task: str, name: str) -> float:
        return last(records, f"task/{task}/eval/judge/{name}")

    passed = {"format": of("format", "format/pass_rate"), "sums": of("sums", "sums/pass_rate")}
    return {
        **passed,
        "checked": (passed["format"] + passed["sums"]) / 2,
        "style": of("chat", "style/mean"),
        "within limits": of("chat", "chat/pass_rate"),
        "style within limits": of("chat", "limited_style/mean"),
    }


PANELS = {
    "style": "style of chats",
    "style within limits": "style, 0 where a limit is broken",
}


def fronts(runs: Sequence[Done]) -> list[dict[str, Any]]:
    """Of each seed, arm of CGPO and panel: where its point stands among those of PPO."""
    found = []
    for run in (run for run in runs if not run.arm.startswith("ppo")):
        rivals = [other for other in runs if other.seed == run.seed and other.arm.startswith("ppo")]
        for y in PANELS:
            point, *others = ((each.numbers["checked"], each.numbers[y]) for each in (run, *rivals))
            found.append(
                {
                    "arm": run.arm,
                    "seed": run.seed,
                    "against": y,
                    "is_dominated": is_dominated(point, others),
                    "lead": lead(point, others),
                    "hypervolume": hypervolume([point]),
                    "hypervolume_of_ppo": hypervolume(others),
                }
            )
    return found


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    experiment = Experiment("cgpo_tasks", __doc__)
    experiment.start()
    arms = ["crpg", *(f"ppo {weight}" for weight in WEIGHTS)]
    runs = experiment.run({arm: partial(in_world, arm) for arm in arms}, measure)
    found = fronts(runs)
    for each in found:
        print(each)
    draw(runs, PANELS, "checked", experiment.figure_path)
    experiment.finish(runs, compared=COMPARED, fronts=found)


if __name__ == "__main__":
    main()
