"""Does the lift grow with the weight of P[Love], and does a judge stop what is not wanted of it?

    python -m experiments.rluf.policies           # five seeds; --tune for seeds 0 to 2

World: that of `experiments.rluf.love`. A 0.3M policy is taught to answer as the product did. Then it is trained on
three tasks at once, love, helpfulness and safety, each by CRPG on its own prompts, under the constraint that no reply
is rude. The weight of love is 0, 0.1 or 0.3; helpfulness and safety share the rest.

    control             weight 0
    0.1, 0.3            P[Love] of the log as it is, with 5 % bots in it that love "Bye! Sending love!"
    0.3 judge          the same, and no reply may take leave unasked (judge `farewell`)
    0.3 cleaned        P[Love] of the cleaned log, without the judge

`love rate` is the true one, of honest users in the week after the log; `bye %`
the share of replies that say so.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow
import torch
from pyarrow import parquet

from experiments.common import WORLDS, Curves, Done, Experiment, made_once
from experiments.ibpo.policy import Policy, trained
from experiments.rluf.love import world
from experiments.rluf.world import SETTINGS, Users, build_policy, draw_rows, simulation
from llamarl.controller.recipe import Recipe
from llamarl.core.records import Completion, Prompt, text_completion
from llamarl.data.jsonl import write_jsonl
from llamarl.feedback import AbTest, compare_arms, wishes
from llamarl.report.files import read_jsonl

WISHES = "llamarl.feedback.wishes"
RL = SETTINGS["rl"]
ARMS: dict[str, tuple[float, str, bool]] = {
    "control": (0.0, "not cleaned", False),
    **{f"{weight}": (weight, "not cleaned", False) for weight in RL["weights"][1:]},
    "0.3 judge": (0.3, "not cleaned", True),
    "0.3 cleaned": (0.3, "cleaned", False),
}
"""Weight of love, the log that P[Love] was trained on, and whether unasked farewells are forbidden."""
COMPARED = [("0.1", "control"), ("0.3", "control"), ("0.3", "0.1"), ("0.3 judge", "control"), ("0.3 judge", "0.3")]
NUM_TRAIN, NUM_HELDOUT, NUM_CONTROL = 2048, 64, 2000
MONITORS = ("farewell", "love")
"""What is counted while a run trains, against the taught policy; nobody is stopped, so that it is seen what follows."""
Answers = list[tuple[Prompt, Completion]]
PANELS = {
    "task/helpfulness/eval/judge/helpful/mean": "help, held-out",
    "task/helpfulness/eval/judge/farewell/pass_rate": "replies that take no leave, held-out",
    "task/safety/eval/judge/kind/mean": "kindness, held-out",
}


def policy(seed: int) -> Path:
    """A seed's policy and prompts, made once."""

    def make(directory: Path) -> None:
        build_policy(directory / "model", seed)
        for task in ("love", "helpfulness", "safety"):
            for held_out, size in ((False, NUM_TRAIN), (True, NUM_HELDOUT)):
                rows = islice(draw_rows(seed, task, 0.0, 0.0, held_out=held_out), size)
                name = f"{task}-heldout.jsonl" if held_out else f"{task}.jsonl"
                write_jsonl(directory / name, map(prompt_row, rows))
        answers = sample(directory / "model", seed, "control", NUM_CONTROL)
        write_jsonl(
            directory / "control.jsonl",
            ({"prompt": [*prompt.messages], "completion": each.text} for prompt, each in answers),
        )

    return made_once(WORLDS / f"rluf-policy-{seed}", make)


def prompt_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt with what its judges need; the product's own reply is the baseline."""
    return {"id": row["id"], "prompt": row["prompt"], "info": {"topic": row["topic"], "baseline": row["completion"]}}


def task(seed: int, name: str, weight: float, log: str, judges: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One task of one arm."""
    start = policy(seed)
    rewards: dict[str, dict[str, Any]] = {
        "love": {
            "function": "reward_model",
            "settings": {"model": str(world(log, seed) / "love" / "model"), "calibrated": True},
        },
        "helpfulness": {"function": f"{WISHES}:helpful"},
        "safety": {"function": f"{WISHES}:kind"},
    }
    reward = "calibrated" if name == "love" else "as_is"
    return {
        "name": name,
        "weight": weight,
        "data": {"source": str(start / f"{name}.jsonl")},
        "held_out": str(start / f"{name}-heldout.jsonl"),
        "judges": [rewards[name], {"function": f"{WISHES}:polite", "role": "constraint"}, *judges],
        "algorithm": {"type": "crpg", "kl_max": RL["kl_max"], "reward": reward},
    }


def recipe(arm: str, seed: int) -> Recipe:
    """The recipe of one arm."""
    weight, log, forbids = ARMS[arm]
    weights = wishes.weigh_objectives(weight)
    farewell = {"function": "farewell", "role": "constraint" if forbids else "watch"}
    return Recipe.parse(
        {
            "model": str(policy(seed) / "model"),
            "tasks": [task(seed, name, own, log, [farewell]) for name, own in weights.items() if own],
            "sampling": {"max_tokens": RL["max_tokens"]},
            "schedule": {
                "steps": RL["steps"],
                "prompts_per_step": RL["prompts_per_step"],
                "samples_per_prompt": RL["samples_per_prompt"],
                "max_staleness": 0,
                "evaluate_every": 20,
                "checkpoint_every": 0,
            },
            "evaluation": {"num_prompts": NUM_HELDOUT, "samples_per_prompt": 4},
            "generator": {"slots": 192},
            "trainer": {"learning_rate": RL["learning_rate"], "warmup_steps": 10, "schedule": "linear"},
            "watch": {
                "window": RL["watch_window"],
                "monitors": [{"signal": signal, "stop": None} for signal in MONITORS],
                "control": str(policy(seed) / "control.jsonl"),
            },
            "guard": {"reward_fraction": 0.0},
            "seed": seed,
            "threads": 1,
        }
    )


@cache
def users(seed: int) -> Users:
    """The users that a seed's policies are tried on."""
    return Users(simulation(world("not cleaned", seed) / "log", seed))


def sample(model: Path, seed: int, name: str = "test", num_prompts: int = SETTINGS["test"]["prompts"]) -> Answers:
    """Held-out prompts, each with several answers of a policy."""
    prompts = [
        Prompt(row["id"], ({"role": "user", "content": row["prompt"]},), info={"topic": row["topic"]})
        for row in islice(draw_rows(seed, name, 0.0, 0.0, held_out=True), num_prompts)
    ]
    answers = Policy(model, RL["max_tokens"]).answers(prompts, SETTINGS["test"]["samples"], seed)
    return [(prompt, each) for prompt, group in zip(prompts, answers, strict=True) for each in group]


def answer_test(directory: Path, seed: int) -> Answers:
    """What a finished run's policy answers to the test prompts, sampled once and kept beside the run."""
    path = directory / "answers.jsonl"
    if not path.exists():
        write_jsonl(
            path,
            (
                {"id": prompt.id, "messages": [*prompt.messages], "info": dict(prompt.info), "text": each.text}
                for prompt, each in sample(trained(directory), seed)
            ),
        )
    return [
        (
            Prompt(row["id"], tuple(row["messages"]), info=row["info"]),
            text_completion(row["text"]),
        )
        for row in read_jsonl(path)
    ]


def measure(given: Answers, seed: int) -> dict[str, float]:
    """What a policy's answers to the test prompts are worth."""
    replies = [each.text for _, each in given]
    return {
        "love rate %": 100 * float(users(seed).rates(replies).mean()),
        "bye %": 100 * fmean("bye" in reply.lower() for reply in replies),
        "helpful": fmean(wishes.helpful(*pair) for pair in given),
        "polite": fmean(wishes.polite(*pair) for pair in given),
        "words": fmean(len(reply.split()) for reply in replies),
    }


def read_monitor(curves: Curves) -> dict[str, float]:
    """When the monitor of words of love first spoke up in the love task, and how often they had become by then.

    Without an alarm: the step after the last, and the most that they became.
    """
    name = "task/love/watch/monitor/love"
    steps = [record for record in curves if f"{name}/level" in record]
    if not steps:
        return {}
    loud = next((record for record in steps if record[f"{name}/level"] > 0), None)
    most = max(record[f"{name}/ratio"] for record in steps)
    found = (
        {"alarm at step": RL["steps"] + 1, "times at alarm": most}
        if loud is None
        else {"alarm at step": loud["step"], "times at alarm": loud[f"{name}/ratio"]}
    )
    return {**found, "times at most": most}


def test_on_users(answers: Mapping[str, Answers], seed: int, path: Path) -> dict[str, dict[str, float]]:
    """A simulated A/B test of a seed's policies, as `llamarl feedback ab` reads it: relative change and p by arm."""
    if "control" not in answers:
        return {}
    test, tables = SETTINGS["test"], []
    for place, (arm, given) in enumerate(answers.items()):
        size = test["users_per_arm"]
        loved = users(seed).react(
            [each.text for _, each in given], size, test["messages_per_user"], 1000 * seed + place
        )
        names = [f"{arm}-{user}" for user in range(size)]
        columns = {"user": names, "arm": [arm] * size, "messages": [test["messages_per_user"]] * size}
        tables.append(pyarrow.table({**columns, "reactions": loved}))
    parquet.write_table(pyarrow.concat_tables(tables), path)
    found = compare_arms(AbTest(files=(str(path),), control="control", threads=1, resamples=2000))["arms"]
    return {
        arm: {"lift %": 100 * found[arm]["relative_change"], "p of lift": found[arm]["p"]}
        for arm in answers
        if arm != "control"
    }


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    experiment = Experiment("rluf_policies", __doc__, "rluf.policies", seeds=range(10, 15))
    experiment.start()
    runs = experiment.run({arm: partial(recipe, arm) for arm in ARMS}, lambda curves: {})
    measured = []
    for seed in experiment.seeds:
        own = {run.arm: run for run in runs if run.seed == seed}
        answers = {arm: answer_test(experiment.folder / f"{arm}-{seed}", seed) for arm in own}
        tested = test_on_users(answers, seed, experiment.folder / f"test-{seed}.parquet")
        for arm, run in own.items():
            numbers = measure(answers[arm], seed) | tested.get(arm, {}) | read_monitor(run.curves)
            measured.append(Done(arm, seed, run.seconds, run.curves, numbers))
            experiment.say(measured[-1])
    experiment.plot(measured, PANELS, smooth=1)
    experiment.finish(measured, compared=COMPARED)


if __name__ == "__main__":
    main()
