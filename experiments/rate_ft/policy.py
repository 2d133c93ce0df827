"""Does a policy hallucinate less where a detector of its hallucinations is its judge?

    python -m experiments.rate_ft.policy          # three seeds; --tune for seeds 0 to 2

World: `experiments.rate_ft.knowledge_world`. A policy states two facts of a person, any two, known to it or not. A
detector is trained on the claims of its own answers about some people, labelled by the table of facts: that needs the
truth about those people, and no others. Then the policy is trained by CRPG on prompts about the same people and tried
on others. What every arm asks of an answer is that it be helpful: two facts of the person, and nothing else.

    start       the policy as it is
    control     trained to be helpful
    detector    trained to be helpful, and to say nothing that the detector doubts

`hallucinated` is the share of false facts among those stated, by the table; `words` and `helpful` say at what price.
"""

import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from experiments.common import Done, Experiment
from experiments.ibpo.policy import Policy, trained
from experiments.rate_ft.knowledge import MAX_TOKENS, world
from experiments.rate_ft.knowledge_world import helpful, read_facts
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train as train_policy
from llamarl.core.records import Prompt
from llamarl.report.files import read_jsonl

STEPS = 80
ARMS = ("start", "control", "detector")
COMPARED = [("detector", "control"), ("control", "start")]
HERE = "experiments.rate_ft.knowledge_world"


def recipe(arm: str, seed: int) -> Recipe:
    """The recipe of an arm."""
    start = world(seed)
    judges: list[dict[str, Any]] = [{"function": f"{HERE}:helpful", "role": "constraint"}]
    if arm == "detector":
        settings = {
            "detector": str(start / "detector"),
            "mode": "none_hallucinated",
            "facts": str(start / "facts.csv"),
            "relations": str(start / "relations.toml"),
        }
        judges.append({"function": "detector", "role": "constraint", "settings": settings})
    return Recipe.parse(
        {
            "model": str(start / "policy"),
            "data": {"source": str(start / "study.jsonl")},
            "judges": judges,
            "algorithm": {"type": "crpg", "kl_max": 40.0, "reward": "constant"},
            "sampling": {"max_tokens": MAX_TOKENS},
            "schedule": {
                "steps": STEPS,
                "prompts_per_step": 8,
                "samples_per_prompt": 8,
                "max_staleness": 0,
                "checkpoint_every": 0,
            },
            "generator": {"slots": 64},
            "trainer": {"learning_rate": 3e-4, "warmup_steps": 5, "schedule": "linear"},
            "guard": {"reward_fraction": 0.0},
            "seed": seed,
            "threads": 1,
        }
    )


def measure(policy: Path, seed: int) -> dict[str, float]:
    """What a policy says of people that nobody was trained on."""
    prompts = [
        Prompt(row["id"], ({"role": "user", "content": row["prompt"]},), info=row["info"])
        for row in read_jsonl(world(seed) / "test.jsonl")
    ]
    answers = Policy(policy, MAX_TOKENS).answers(prompts, 4, seed)
    given = [(prompt, each) for prompt, group in zip(prompts, answers, strict=True) for each in group]
    stated = [fact for pair in given for fact in read_facts(*pair)]
    return {
        "hallucinated": 1.0 - fmean(stated),
        "helpful": fmean(helpful(*pair) for pair in given),
        "words": fmean(len(each.text.split()) for _, each in given),
        "facts": len(stated) / len(given),
    }


def run(experiment: Experiment, arm: str, seed: int) -> Done:
    """One arm of one seed."""
    started = time.monotonic()
    directory, policy = experiment.folder / f"{arm}-{seed}", world(seed) / "policy"
    if arm != "start":
        if not (directory / "finished.json").exists():
            train_policy(recipe(arm, seed), directory)
            (directory / "finished.json").write_text(json.dumps({"arm": arm, "seed": seed}))
        policy = trained(directory)
    numbers = measure(policy, seed)
    return Done(arm, seed, time.monotonic() - started, [], numbers)


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    experiment = Experiment("rate_ft_policy", __doc__, "rate_ft.policy", seeds=range(10, 15))
    experiment.start()
    runs = []
    for seed in experiment.seeds:
        for arm in experiment.choose(ARMS):
            runs.append(run(experiment, arm, seed))
            experiment.say(runs[-1])
    experiment.finish(runs, compared=COMPARED)


if __name__ == "__main__":
    main()
