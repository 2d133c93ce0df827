"""IBPO against self-consistency, where a vote is worth its price on some problems.

    python -m experiments.ibpo.votes              # four runs a seed, three seeds

World: `llamarl.tasks.trials`. Whether a trial is right is luck that nobody can foresee or learn; how often one is
depends on the problem's kind, which the prompt shows and nothing explains. A short answer is one trial, a long one
five, and the most frequent value counts. On kinds of level 1 every trial is right and on those of level 5 one in
eight, a guess: there a vote is wasted. A 0.1M policy is taught both forms, half and half on every kind.

    q+ .25, .50, .75     IBPO; every problem sampled 16 times short and 16 times long
    on-policy            q+ .50; every problem sampled 32 times as the policy likes

The opponents answer the same problems with the taught policy, and nothing is learnt. At the mean number of answers of
each arm, straight lines between their points:

    self-consistency     so many short answers, the most frequent one wins; 1, 3, 5, 7 or 9 of them
    stopping early       the same, but sampling ends when two or three agree; the best of these rules and their mixtures
    random               five trials for a share of problems, one for the rest, regardless of the kind
    best by level        the same share for the levels that gain most by it: what allocation could reach if levels were
                         known. No opponent but a limit
"""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from experiments.common import COLOURS, WORLDS, Curves, Done, Experiment, made_once
from experiments.ibpo.policy import Policy, best_gain, spread, trained
from llamarl.controller.recipe import Recipe
from llamarl.core.records import Completion, Prompt
from llamarl.core.seeds import derive_seed
from llamarl.evals.budget import BudgetPlan, budget_results
from llamarl.evals.budget_curves import frontier, interpolate
from llamarl.evals.budget_samples import Attempt
from llamarl.models.checkpoint import new_model, save_model
from llamarl.models.tiny import char_tokenizer, tiny_config
from llamarl.tasks import trials
from llamarl.training.fitter import fit_model
from llamarl.training.objectives import SFT, SFTConfig
from llamarl.training.sft_rows import SFTRow

BUDGETS = (0.25, 0.5, 0.75)
ARMS: dict[str, dict[str, Any]] = {
    **{f"q+ {budget:.2f}": {"q_plus": budget} for budget in BUDGETS},
    "on-policy": {"q_plus": 0.5},
}
STEPS, PROMPTS_PER_STEP = 100, 64
SFT_STEPS, BATCH_SIZE = 400, 96
NUM_PROBLEMS = 2000
VOTES = (1, 3, 5, 7, 9)
NUM_SHORT, NUM_OTHERS = 16, 8
"""Samples of each held-out problem: short ones that vote, and of every other policy."""
NUM_ORDERS = 8
"""In which short samples arrive one by one."""


def build(directory: Path, seed: int) -> None:
    """Teaches a new policy both forms, and writes its prompts."""
    tokenizer = char_tokenizer("plain", trials.KINDS + "SLA0123456789:.")
    config = tiny_config(
        "llama",
        tokenizer,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
    )
    settings = SFTConfig(
        num_steps=SFT_STEPS, batch_size=BATCH_SIZE, learning_rate=3e-3, warmup_steps=50, schedule="linear", seed=seed
    )
    shown = map(trials.TrialsTask(seed).demonstration, range(SFT_STEPS * BATCH_SIZE))
    rows = [SFTRow.of_pair(str(prompt.messages[0]["content"]), text, tokenizer) for prompt, text in shown]
    model = new_model(config, seed)
    fit_model(model, SFT(settings), rows)
    save_model(model.eval(), tokenizer, directory / "model")
    trials.write_prompts(directory / "train.jsonl", STEPS * PROMPTS_PER_STEP, seed)


def world(seed: int) -> Path:
    """The checkpoint of a seed with its prompts, made once."""
    return made_once(WORLDS / f"trials-{seed}", partial(build, seed=seed))


def arm(name: str, seed: int) -> Recipe:
    """The recipe of one arm."""
    return recipe(world(seed), seed, ARMS[name], is_covered=name != "on-policy")


def recipe(directory: Path, seed: int, algorithm: Mapping[str, Any], is_covered: bool) -> Recipe:
    """What all arms share; with each form asked for, or as many samples as the policy likes."""
    coverage = [
        {"ask": "llamarl.tasks.trials:short", "samples": 16},
        {"ask": "llamarl.tasks.trials:long", "samples": 16},
    ]
    return Recipe.parse(
        {
            "model": str(directory / "model"),
            "data": {"source": str(directory / "train.jsonl")},
            "judges": [{"function": "trials"}],
            "algorithm": {"type": "ibpo", "groups": "llamarl.tasks.trials:group", **algorithm},
            "sampling": {"max_tokens": trials.MAX_TOKENS},
            "coverage": coverage if is_covered else [],
            "schedule": {
                "steps": STEPS,
                "prompts_per_step": PROMPTS_PER_STEP,
                "samples_per_prompt": 32,
                "max_staleness": 0,
                "checkpoint_every": 0,
            },
            "evaluation": {"num_prompts": 0},
            "generator": {"slots": 256},
            "trainer": {"learning_rate": 1e-3, "warmup_steps": 5, "schedule": "linear"},
            "seed": seed,
            "threads": 1,
        }
    )


def attempts(checkpoint: Path, problems: Sequence[Prompt], mode: trials.Mode, count: int) -> dict[str, list[Attempt]]:
    """A policy's samples, by problem."""
    asked = [trials.with_mode(problem, mode) for problem in problems]
    found = Policy(checkpoint, trials.MAX_TOKENS).answers(asked, count, seed=0)
    return {
        problem.id: [attempt(problem, mode, number, completion) for number, completion in enumerate(completions)]
        for problem, completions in zip(problems, found, strict=True)
    }


def attempt(problem: Prompt, mode: trials.Mode, number: int, completion: Completion) -> Attempt:
    """One sample: what it comes to, whether that is right, what it cost. Modes differ in luck, policies don't."""
    said = trials.answer(problem, completion.text, place=100 * "SLA".index(mode) + number)
    return Attempt(
        problem.id,
        number,
        is_right=said == int(problem.answer),
        answer=None if said is None else str(said),
        group=trials.group(problem, completion),
        num_answers=trials.num_trials(problem, completion.text) or 1,
        prompt_tokens=len(completion.trajectory.prompt_ids),
        completion_tokens=len(completion.token_ids),
    )


def measured(seed: int, runs: Mapping[str, Path]) -> dict[str, Any]:
    """Everything about one seed: `eval budget`'s results, and the votes that stop early."""
    problems = trials.TrialsTask(derive_seed("measure", seed), "heldout").prompts(NUM_PROBLEMS)
    taught = world(seed) / "model"
    found = {
        "short": attempts(taught, problems, "S", NUM_SHORT),
        "long": attempts(taught, problems, "L", NUM_OTHERS),
        "sft": attempts(taught, problems, "A", NUM_OTHERS),
        **{name: attempts(trained(run), problems, "A", NUM_OTHERS) for name, run in runs.items()},
    }
    results = budget_results(problems, found, BudgetPlan(("short",), VOTES, (1,)))
    return {**results, "stopping": stopping(found["short"], problems)}


def stopping(samples: Mapping[str, Sequence[Attempt]], problems: Sequence[Prompt]) -> list[tuple[float, float]]:
    """(answers, accuracy) of votes that end as soon as two or three agree, for every largest number of votes."""
    points = []
    for enough in (2, 3):
        for most in range(enough + 1, VOTES[-1] + 1):
            results = [
                stopped(order, str(problem.answer), enough, most)
                for problem in problems
                for order in orders(samples[problem.id])
            ]
            points.append((fmean(used for used, _ in results), fmean(is_right for _, is_right in results)))
    return points


def orders(samples: Sequence[Attempt]) -> list[list[str | None]]:
    """The answers as they come, in some orders."""
    rng = random.Random(derive_seed("orders", samples[0].prompt_id))
    return [[sample.answer for sample in rng.sample(samples, len(samples))] for _ in range(NUM_ORDERS)]


def stopped(answers: Sequence[str | None], right: str, enough: int, most: int) -> tuple[int, bool]:
    """How many answers were asked for until `enough` agreed, at most `most`, and whether the most frequent is right."""
    counts: Counter[str | None] = Counter()
    for said in answers[:most]:
        counts[said] += 1
        if said is not None and counts[said] == enough:
            break
    used = counts.total()
    del counts[None]
    return used, bool(counts) and counts.most_common(1)[0][0] == right


def numbers(results: Mapping[str, Any], name: str) -> dict[str, float]:
    """A policy's budget and accuracy beside what others reach with as many answers."""
    models, model = results["models"], results["models"][name]
    answers, accuracy = model["budget"]["answers"]["value"], model["accuracy"]["value"]
    short, long = models["short"]["accuracy"]["value"], models["long"]["accuracy"]["value"]
    share = (answers - 1) / (trials.NUM_TRIALS - 1)
    votes = results["baselines"]["short"]["gain"][name]
    return {
        "share": sum(part["share"] for group, part in model["groups"].items() if group == "long"),
        "answers": answers,
        "tokens": model["budget"]["total_tokens"]["value"],
        "accuracy": accuracy,
        "self-consistency": votes["answers"]["opponent"],
        "gain": votes["answers"]["value"],
        "gain, tokens": votes["total_tokens"]["value"],
        "stopping early": early(results, answers),
        "random": short + share * (long - short),
        "best by level": short + best_gain(*level_gains(models), share),
    }


def early(results: Mapping[str, Any], answers: float) -> float:
    """What stopping early reaches with so many answers on average."""
    short = results["models"]["short"]["accuracy"]["value"]
    budgets, accuracies = zip(*frontier(*zip((1.0, short), *results["stopping"], strict=True)), strict=True)
    return float(interpolate(answers, np.array(budgets), np.array(accuracies)))


def level_gains(models: Mapping[str, Any]) -> tuple[list[float], list[float]]:
    """What a vote gains over one trial, and the share of problems, by level."""
    short, long = (list(models[name]["levels"].values()) for name in ("short", "long"))
    total = sum(level["problems"] for level in short)
    gains = [after["accuracy"] - before["accuracy"] for before, after in zip(short, long, strict=True)]
    return gains, [level["problems"] / total for level in short]


def claims(rows: Sequence[Done], seeds: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Gains in points at equal numbers of answers, with the luck of training in the intervals."""
    found = []
    for name in dict.fromkeys(row.arm for row in rows):
        mine = [row for row in rows if row.arm == name]
        gaps = {
            f"over {opponent}": [100 * (row.numbers["accuracy"] - row.numbers[opponent]) for row in mine]
            for opponent in ("self-consistency", "stopping early", "random", "best by level")
        }
        own, votes = (
            [100 * (row.numbers[key] - seeds[row.seed]["models"]["short"]["accuracy"]["value"]) for row in mine]
            for key in ("accuracy", "self-consistency")
        )
        gaps = {"over one trial": own, **gaps}
        ratio = f"; {fmean(own) / fmean(votes):.2f} times self-consistency" if fmean(votes) > 0 else ""
        found.append(
            f"{name}: points " + "; ".join(f"{what} {spread(values)}" for what, values in gaps.items()) + ratio
        )
    areas = [100 * each["baselines"]["short"]["area"]["answers"]["difference"]["value"] for each in seeds.values()]
    return [*found, f"area under the frontier of all policies over self-consistency's: points {spread(areas)}"]


def rows_of(seeds: Mapping[int, Mapping[str, Any]], runs: Sequence[Done]) -> list[Done]:
    """A row for each policy and seed, the taught one's first."""
    rows = [Done("sft", seed, 0.0, [], numbers(results, "sft")) for seed, results in seeds.items()]
    return rows + [Done(run.arm, run.seed, run.seconds, run.curves, numbers(seeds[run.seed], run.arm)) for run in runs]


def plot(experiment: Experiment, rows: Sequence[Done], seeds: Mapping[int, Mapping[str, Any]]) -> None:
    """The frontier, and the share of votes by level; means over seeds, and each seed as a dot."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11.5, 4.4), layout="constrained")
    grid = [1 + index / 10 for index in range(41)]
    for label, style, line in opponents(seeds.values(), grid):
        left.plot(grid, line, style, color="#8A8A8A", label=label)
    points = [each["baselines"]["short"]["self_consistency"] for each in seeds.values()]
    line = [fmean(each[str(k)]["accuracy"]["value"] for each in points) for k in VOTES]
    left.plot(VOTES, line, "o-", color="#333333", markersize=4, label="self-consistency")
    for colour, name in zip(COLOURS, dict.fromkeys(row.arm for row in rows), strict=False):
        mine = [row for row in rows if row.arm == name]
        x, y = ([row.numbers[key] for row in mine] for key in ("answers", "accuracy"))
        left.plot(x, y, ".", color=colour, alpha=0.5)
        left.plot(fmean(x), fmean(y), "D", color=colour, markeredgecolor="white", label=name)
        tables = [seeds[row.seed]["models"][name]["levels"] for row in mine]
        shares = [fmean(t[level]["shares"].get("long", 0.0) for t in tables) for level in tables[0]]
        right.plot(list(tables[0]), shares, ".-", color=colour)
    left.set(xlabel="answers per problem", ylabel="accuracy", title="Accuracy against budget", xlim=(0.8, 5.4))
    right.set(xlabel="level", ylabel="share of votes", title="Where the budget goes", ylim=(0, None))
    left.legend(fontsize=8, frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(experiment.figure_path, dpi=150)
    print(f"figure: {experiment.figure_path}")


def opponents(seeds: Iterable[Mapping[str, Any]], grid: Sequence[float]) -> list[tuple[str, str, list[float]]]:
    """Name, line style and mean accuracy over seeds at each budget, of everything but self-consistency."""
    lines: dict[tuple[str, str], list[list[float]]] = {}
    for results in seeds:
        models = results["models"]
        short, long = models["short"]["accuracy"]["value"], models["long"]["accuracy"]["value"]
        shares = [(answers - 1) / (trials.NUM_TRIALS - 1) for answers in grid]
        best = [short + best_gain(*level_gains(models), share) for share in shares]
        lines.setdefault(("random: one or five", "--"), []).append([short + s * (long - short) for s in shares])
        lines.setdefault(("stopping early", "-."), []).append([early(results, answers) for answers in grid])
        lines.setdefault(("best by level", "-"), []).append(best)
    return [(*key, [fmean(column) for column in zip(*each, strict=True)]) for key, each in lines.items()]


def share_trained(records: Curves) -> dict[str, float]:
    """What is shown while the runs go on: the share of votes among the samples that trained."""
    return {"trained": fmean(float(record["algorithm/used/long"]) for record in records[-20:])}


def main() -> None:
    """The command."""
    experiment = Experiment("ibpo_votes", __doc__, "ibpo.votes")
    experiment.start()
    torch.set_num_threads(1)
    runs = experiment.run({name: partial(arm, name) for name in ARMS}, share_trained)
    seeds = {
        seed: measured(seed, {run.arm: experiment.folder / f"{run.arm}-{seed}" for run in runs if run.seed == seed})
        for seed in dict.fromkeys(run.seed for run in runs)
    }
    rows = rows_of(seeds, runs)
    notes = claims(rows, seeds)
    print(*notes, sep="\n")
    plot(experiment, rows, seeds)
    experiment.finish(rows, notes, budgets=[{"seed": seed, **results} for seed, results in seeds.items()])


if __name__ == "__main__":
    main()
