"""IBPO on the permutation chain: does the policy learn the share, and to spend it where it helps?

    python -m experiments.ibpo.chain              # five runs a seed, three seeds

World: `llamarl.tasks.chain` and its 0.45M policy, trained anew for each seed on demonstrations in which half of the
answers are long, at every level alike. Every problem is sampled in both forms, 24 times short and twice long, and what
the budget program accepts is learnt under the adaptive mode, which names no budget.

    sft                       the demonstrations only
    q+ .25, .50, .75          one policy for each budget
    no margins                q+ .50; an answer is worth its correctness alone
    conditioned .25 .50 .75   one policy; the prompt names the budget, and what that means was demonstrated

Then each answers held-out problems, level by level. Over levels weighted as in training:

    trained     share of long answers among those that trained, last 20 steps
    share       of long answers in the adaptive mode
    accuracy    in the adaptive mode
    random      of the same share of long answers of the sft checkpoint, spent on every level alike
    oracle      of the same share, spent on the levels that gain most
    own oracle  the same with the policy's own short and long answers: what its skill would allow by now
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, cast, get_args

import torch

from experiments.common import COLOURS, WORLDS, Curves, Done, Experiment, curve, made_once
from experiments.ibpo.policy import Policy, best_gain, spread, trained
from llamarl.controller.recipe import Recipe
from llamarl.core.records import Prompt
from llamarl.core.seeds import derive_seed
from llamarl.models.checkpoint import load_model, load_tokenizer, save_model
from llamarl.recipes.build_chain import build_chain
from llamarl.report.files import write_json
from llamarl.tasks import chain
from llamarl.training.fitter import Fitter
from llamarl.training.objectives import SFT, SFTConfig
from llamarl.training.sft_rows import SFTRow

BUDGETS = (0.25, 0.5, 0.75)
ARMS: dict[str, dict[str, Any]] = {
    **{f"q+ {budget:.2f}": {"q_plus": budget} for budget in BUDGETS},
    "no margins": {"q_plus": 0.5, "worth": "correctness"},
    "conditioned": {"q_plus": 0.5, "q_plus_field": "budget"},
}
STEPS = 60
TOLD_STEPS = 250
"""Of fine-tuning on demonstrations under stated budgets."""
PER_LEVEL, NUM_ANSWERS = 128, 4
"""Held-out problems of each level, and answers to each."""
WEIGHTS = [weight / sum(chain.LEVEL_WEIGHTS) for weight in chain.LEVEL_WEIGHTS]

Row = Mapping[str, float]
"""Of one level."""
Table = Mapping[str, Sequence[Row]]
"""By how the policy was asked: `S`, `L`, `A`, or a budget."""


def world(seed: int) -> Path:
    """The checkpoint of a seed with its prompts, made once."""
    return made_once(WORLDS / f"chain-{seed}", partial(build_chain, seed=seed))


def told(seed: int) -> Path:
    """The checkpoint taught what a stated budget means: so large a share of long answers, at every level alike."""
    return made_once(WORLDS / f"chain-told-{seed}", partial(_teach, seed=seed))


def _teach(directory: Path, seed: int) -> None:
    source, task = world(seed) / "model", chain.ChainTask(derive_seed("told", seed))
    tokenizer = load_tokenizer(source)
    settings = SFTConfig(
        num_steps=TOLD_STEPS, learning_rate=1e-3, warmup_steps=20, schedule="linear", betas=(0.9, 0.98), seed=seed
    )
    fitter = Fitter(load_model(source), SFT(settings))
    for step in range(TOLD_STEPS):
        shown = [budgeted(*task.demonstration(128 * step + i)) for i in range(128)]
        fitter.step([SFTRow.of_pair(str(p.messages[0]["content"]), text, tokenizer) for p, text in shown])
    save_model(fitter.model.eval(), tokenizer, directory / "model")


def budgeted(prompt: Prompt, text: str) -> tuple[Prompt, str]:
    """A demonstration in the adaptive mode under a budget, long as often as that says; in other modes as it is."""
    if not str(prompt.messages[0]["content"]).startswith("A"):
        return prompt, text
    rng = Random(derive_seed("budgeted", prompt.id))
    budget = rng.choice(BUDGETS)
    problem = chain.Chain(prompt.info["start"], prompt.info["operations"])
    return chain.with_budget(prompt, budget), problem.response(is_long=rng.random() < budget)


def arm(name: str, seed: int) -> Recipe:
    """The recipe of one arm."""
    if name == "conditioned":
        return recipe(told(seed) / "model", world(seed) / "conditioned.jsonl", seed, ARMS[name])
    return recipe(world(seed) / "model", world(seed) / "train.jsonl", seed, ARMS[name])


def recipe(model: Path, prompts: Path, seed: int, algorithm: Mapping[str, Any]) -> Recipe:
    """What all arms share."""
    return Recipe.parse(
        {
            "model": str(model),
            "data": {"source": str(prompts)},
            "judges": [{"function": "chain"}],
            "algorithm": {"type": "ibpo", "groups": "llamarl.tasks.chain:group", **algorithm},
            "sampling": {"max_tokens": chain.MAX_TOKENS},
            "coverage": [
                {"ask": "llamarl.tasks.chain:short", "samples": 24},
                {"ask": "llamarl.tasks.chain:long", "samples": 2},
            ],
            "schedule": {"steps": STEPS, "prompts_per_step": 128, "max_staleness": 0, "checkpoint_every": 0},
            "evaluation": {"num_prompts": 0},
            "generator": {"slots": 256},
            "trainer": {"learning_rate": 3e-4, "warmup_steps": 10, "betas": (0.9, 0.98), "schedule": "linear"},
            "seed": seed,
            "threads": 1,
        }
    )


def measured(policy: Policy, seed: int, asks: Sequence[str]) -> Table:
    """Accuracy, share of long answers and tokens by level, in modes or for budgets."""
    return {ask: [level_row(policy, seed, level, ask) for level in range(1, 9)] for ask in asks}


def level_row(policy: Policy, seed: int, level: int, ask: str) -> dict[str, float]:
    """Means over the answers to held-out problems of one level."""
    weights = [float(other == level) for other in range(1, level + 1)]
    problems = chain.ChainTask(derive_seed("measure", seed), "heldout", weights).prompts(PER_LEVEL)
    asked = [with_ask(problem, ask) for problem in problems]
    found = zip(problems, policy.answers(asked, NUM_ANSWERS, seed), strict=True)
    pairs = [(problem, completion) for problem, completions in found for completion in completions]
    return {
        "accuracy": fmean(chain.judge(*pair).score or 0.0 for pair in pairs),
        "share": fmean(chain.group(*pair) == "long" for pair in pairs),
        "tokens": fmean(len(completion.token_ids) for _, completion in pairs),
    }


def with_ask(problem: Prompt, ask: str) -> Prompt:
    """The problem in a mode, or under a budget."""
    if ask in get_args(chain.Mode):
        return chain.with_mode(problem, cast(chain.Mode, ask))
    return chain.with_budget(problem, float(ask))


def numbers(forms: Table, own: Sequence[Row], own_forms: Table) -> dict[str, float]:
    """What a policy does beside what other allocations of its share would do.

    Args:
        forms: short and long answers of the sft checkpoint, `S` and `L`.
        own: the policy's, in the form that it likes.
        own_forms: its short and long ones.
    """
    share, short, long = mean(own, "share"), mean(forms["S"], "accuracy"), mean(forms["L"], "accuracy")
    return {
        "share": share,
        "accuracy": mean(own, "accuracy"),
        "random": (1 - share) * short + share * long,
        "oracle": short + best_gain(level_gains(forms), WEIGHTS, share),
        "own oracle": mean(own_forms["S"], "accuracy") + best_gain(level_gains(own_forms), WEIGHTS, share),
        "tokens": mean(own, "tokens"),
    }


def mean(rows: Sequence[Row], key: str) -> float:
    """Over levels weighted as in training."""
    return sum(weight * row[key] for weight, row in zip(WEIGHTS, rows, strict=True))


def level_gains(table: Table) -> list[float]:
    """What long answers add, by level."""
    return [long["accuracy"] - short["accuracy"] for short, long in zip(table["S"], table["L"], strict=True)]


def examined(directory: Path, seed: int, asks: Sequence[str]) -> Table:
    """The table of a run, or of a world, measured once and kept beside it."""
    path = directory / "levels.json"
    if not path.exists():
        checkpoint = trained(directory) if (directory / "recipe.json").exists() else directory / "model"
        write_json(path, measured(Policy(checkpoint, chain.MAX_TOKENS), seed, asks))
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def results(experiment: Experiment, runs: Sequence[Done]) -> tuple[list[Done], list[dict[str, Any]]]:
    """A row for each policy and budget, the untrained ones first; and the levels behind each."""
    forms = {seed: examined(world(seed), seed, ("S", "L", "A")) for seed in dict.fromkeys(run.seed for run in runs)}
    found = [(Done("sft", seed, 0.0, [], {}), table["A"], table) for seed, table in forms.items()]
    for run in runs:
        asks = [f"{budget:.2f}" for budget in BUDGETS] if run.arm == "conditioned" else ["A"]
        table = examined(experiment.folder / f"{run.arm}-{run.seed}", run.seed, ("S", "L", *asks))
        found += [(named(run, ask), table[ask], table) for ask in asks]
    rows = [
        replace(done, numbers={**done.numbers, **numbers(forms[done.seed], own, table)}) for done, own, table in found
    ]
    levels = [{"arm": done.arm, "seed": done.seed, "levels": own} for done, own, _ in found]
    return rows, [*levels, *({"arm": "forms", "seed": seed, "levels": table} for seed, table in forms.items())]


def named(run: Done, ask: str) -> Done:
    """A run as the row of one budget, where it serves several."""
    return run if ask == "A" else replace(run, arm=f"{run.arm} {ask}", numbers=trained_share(run.curves, ask))


def trained_share(records: Curves, budget: str = "") -> dict[str, float]:
    """Of the last 20 steps; of the prompts under one budget."""
    metric = f"algorithm/budget/{float(budget):g}/used/long" if budget else "algorithm/used/long"
    return {"trained": list(curve(records, metric, smooth=20).values())[-1]}


def budget_of(arm: str) -> float | None:
    """The q+ in an arm's name."""
    return float(arm.rpartition(" ")[2]) if arm.startswith(("q+", "conditioned")) else None


def family(arm: str) -> str:
    """The arm without its budget."""
    return arm if budget_of(arm) is None else arm.rpartition(" ")[0]


def claims(rows: Sequence[Done]) -> list[str]:
    """What the issue claims of each row, over its seeds, and what came out."""
    found = []
    for name in dict.fromkeys(row.arm for row in rows):
        mine = [row.numbers for row in rows if row.arm == name]
        gaps = {
            "minus random": [100 * (n["accuracy"] - n["random"]) for n in mine],
            "minus oracle": [100 * (n["accuracy"] - n["oracle"]) for n in mine],
            "minus own oracle": [100 * (n["accuracy"] - n["own oracle"]) for n in mine],
        }
        if (budget := budget_of(name)) is not None:
            gaps = {"share minus q+": [100 * (n["share"] - budget) for n in mine], **gaps}
        found.append(f"{name}: " + "; ".join(f"{what} {spread(values)}" for what, values in gaps.items()) + " points")
    return found


def plot(experiment: Experiment, rows: Sequence[Done], levels: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy against share, and share by level; means over seeds, and each seed as a dot."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11.5, 4.4), layout="constrained")
    tables = [each["levels"] for each in levels if each["arm"] == "forms"]
    shares = [index / 50 for index in range(51)]
    for label, style, best in (("spent at random", "--", False), ("spent on the best levels (oracle)", "-", True)):
        values = [fmean(allocated(table, share, best) for table in tables) for share in shares]
        left.plot(shares, values, style, color="#8A8A8A", label=f"{label}, sft")
    for colour, name in zip(COLOURS, dict.fromkeys(family(row.arm) for row in rows), strict=False):
        arms = dict.fromkeys(row.arm for row in rows if family(row.arm) == name)
        means = [mean_of([row for row in rows if row.arm == arm]) for arm in arms]
        mine = [row.numbers for row in rows if row.arm in arms]
        left.plot([n["share"] for n in mine], [n["accuracy"] for n in mine], ".", color=colour, alpha=0.5)
        left.plot(*zip(*means, strict=True), "D", color=colour, markeredgecolor="white", label=name)
        for arm in arms:
            runs = [each["levels"] for each in levels if each["arm"] == arm]
            line = [fmean(run[level]["share"] for run in runs) for level in range(8)]
            right.plot(range(1, 9), line, ":" if name == "conditioned" else "-", marker=".", color=colour)
            if name != "conditioned":
                right.annotate(arm, (8.1, line[-1]), fontsize=7, color=colour, va="center", annotation_clip=False)
    left.set(xlabel="share of long answers, held-out", ylabel="accuracy", title="Where the budget goes")
    right.set(
        xlabel="level", ylabel="share of long answers", title="By difficulty (dotted: conditioned)", xlim=(0.8, 9.2)
    )
    right.set_xticks(range(1, 9))
    for budget in BUDGETS:
        left.axvline(budget, color="#E4E4E4", zorder=0)
    left.legend(fontsize=8, frameon=False)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(experiment.figure_path, dpi=150)
    print(f"figure: {experiment.figure_path}")


def allocated(forms: Table, share: float, is_best: bool) -> float:
    """Accuracy of short and long answers mixed, by level or regardless of it."""
    short, long = mean(forms["S"], "accuracy"), mean(forms["L"], "accuracy")
    return short + (best_gain(level_gains(forms), WEIGHTS, share) if is_best else share * (long - short))


def mean_of(rows: Sequence[Done]) -> tuple[float, float]:
    """Share and accuracy over the seeds."""
    return fmean(row.numbers["share"] for row in rows), fmean(row.numbers["accuracy"] for row in rows)


def main() -> None:
    """The command."""
    experiment = Experiment("ibpo_chain", __doc__, "ibpo.chain")
    experiment.start()
    torch.set_num_threads(1)
    runs = experiment.run({name: partial(arm, name) for name in ARMS}, trained_share)
    rows, levels = results(experiment, runs)
    notes = claims(rows)
    print(*notes, sep="\n")
    plot(experiment, rows, levels)
    experiment.finish(rows, notes, levels=levels)


if __name__ == "__main__":
    main()
