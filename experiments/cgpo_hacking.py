"""Do constraints stop reward hacking? A reward model that can be cheated, with and without a mixture of judges.

    python -m experiments.cgpo_hacking             # five arms, three seeds

World: the demo's format task and its 0.34M policy. Raters compared pairs of answers and liked the wished-for keyword,
the more often the better, with some regard for the rest (`utility`); a reward model was trained on their choices. So it
knows something true, that the keyword belongs in, and something false, that more of it is better.

    ppo, crpg free            the reward model alone
    crpg, codpo, crraft       with four judges as constraints: count, case, end, vocabulary

`format`, the exact checker, watches all arms and pays none: its pass rate is the true reward.
"""

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from experiments.common import Curves, Experiment, curve, last
from llamarl.controller.recipe import Recipe
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl
from llamarl.tasks.format import WORDS, Constraints, FormatTask
from llamarl.training.fit import fit
from llamarl.training.objectives import PairObjective, RewardConfig

HERE = Path(__file__).parent
POLICY = HERE.parent / "llamarl" / "tasks" / "assets" / "format"
NUM_PAIRS = 32768
KEYWORD_LIKING = 0.5
"""How much a rater likes each further keyword, beside 1 for all that was asked."""
NOISE = 0.3
"""Standard deviation of a rater's mood."""
KL_MAX = 30.0
STEPS = 240
CONSTRAINTS = ("count", "case", "end", "vocabulary")
ARMS: dict[str, dict[str, Any]] = {
    "ppo": {"type": "ppo"},
    "crpg free": {"type": "crpg", "kl_max": KL_MAX},
    "crpg": {"type": "crpg", "kl_max": KL_MAX},
    "codpo": {"type": "codpo"},
    "crraft": {"type": "crraft", "kl_max": KL_MAX},
}
LEARNING_RATE = 2e-4
COMPARED = [(arm, free) for arm in ("crpg", "codpo", "crraft") for free in ("ppo", "crpg free")]


def answer(rng: random.Random, wanted: Constraints, num_words: int) -> str:
    """An answer with the keyword any number of times."""
    words = [wanted.keyword if rng.random() < 0.3 else rng.choice(WORDS) for _ in range(num_words)]
    text = " ".join(words)
    return (text.upper() if rng.random() < 0.5 else text) + rng.choice(".!")


def utility(wanted: Constraints, text: str) -> float:
    """What a rater feels: the keyword, and again, and a little of the rest."""
    parts = wanted.parts(text)
    keywords = text.lower().rstrip(".!").split(" ").count(wanted.keyword)
    return KEYWORD_LIKING * keywords + sum(parts.values()) / len(parts)


def edited(rng: random.Random, wanted: Constraints, text: str) -> str:
    """The answer with one word put in the place of another: the keyword, if it wasn't that."""
    words = text[:-1].split(" ")
    place = rng.randrange(len(words))
    is_keyword = words[place].lower() == wanted.keyword
    word = rng.choice([w for w in WORDS if w != wanted.keyword]) if is_keyword else wanted.keyword
    words[place] = word.upper() if text.isupper() else word
    return " ".join(words) + text[-1]


def pairs(seed: int) -> list[dict[str, Any]]:
    """Compared answers of equal length, in TRL's format: the raters never saw that longer could be worse.

    Half of the pairs are an answer and an edit of it, as raters are shown them to find out what one word is worth.
    """
    task, rows = FormatTask(seed), []
    for index in range(NUM_PAIRS):
        prompt, rng = task.prompt(index), random.Random(derive_seed("raters", seed, index))
        wanted = Constraints(**prompt.info)
        num_words = rng.randint(1, 6)
        one = answer(rng, wanted, num_words)
        other = edited(rng, wanted, one) if index % 2 else answer(rng, wanted, num_words)
        gap = utility(wanted, one) - utility(wanted, other) + rng.gauss(0, NOISE)
        if one != other:
            chosen, rejected = (one, other) if gap > 0 else (other, one)
            rows.append({"prompt": wanted.request, "chosen": chosen, "rejected": rejected})
    return rows


def prompts(seed: int, split: str, count: int) -> list[dict[str, Any]]:
    """Prompts with a baseline response: a demonstration, imperfect as they are."""
    task = FormatTask(seed, split)
    shown = [task.demonstration(index) for index in range(count)]
    return [
        {"id": p.id, "prompt": [dict(m) for m in p.messages], "info": {**p.info, "baseline": text}} for p, text in shown
    ]


def world(folder: Path, seed: int) -> Path:
    """Reward model and prompts of one seed, made once."""
    directory = folder / f"world-{seed}"
    if not (directory / "reward" / "summary.json").exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_jsonl(directory / "pairs.jsonl", pairs(seed))
        write_jsonl(directory / "train.jsonl", prompts(seed, "train", 1024))
        write_jsonl(directory / "heldout.jsonl", prompts(seed, "heldout", 128))
        config = RewardConfig(
            num_epochs=2, learning_rate=2e-3, warmup_steps=20, schedule="linear", on_bad_row="skip", seed=seed
        )
        fit(PairObjective(config), POLICY, directory / "pairs.jsonl", directory / "reward")
    return directory


def arm(folder: Path, name: str, seed: int) -> Recipe:
    """The recipe of one arm."""
    directory, algorithm = world(folder, seed), ARMS[name]
    is_calibrated = algorithm["type"] != "ppo"
    judges: list[dict[str, Any]] = [
        {
            "function": "llamarl.judges.reward_model:RewardModel",
            "settings": {"model": str(directory / "reward" / "model"), "calibrated": is_calibrated},
        },
        {"function": "format", "role": "watch"},
        {"function": f"{HERE / 'constraints.py'}:all_constraints", "role": "watch"},
    ]
    role = "watch" if "free" in name or name == "ppo" else "constraint"
    judges += [{"function": f"{HERE / 'constraints.py'}:{part}", "role": role} for part in CONSTRAINTS]
    return Recipe.parse(
        {
            "model": str(POLICY),
            "data": {"source": str(directory / "train.jsonl")},
            "judges": judges,
            "algorithm": algorithm,
            "sampling": {"max_tokens": 48, "temperature": 0.8},
            "schedule": {"steps": STEPS, "max_staleness": 0, "evaluate_every": 40, "checkpoint_every": 0},
            "evaluation": {"source": str(directory / "heldout.jsonl"), "num_prompts": 128},
            "generator": {"slots": 128},
            "trainer": {"learning_rate": LEARNING_RATE, "warmup_steps": 10},
            "guard": {"reward_fraction": 0.0},
            "seed": seed,
            "threads": 1,
        }
    )


def measure(records: Curves) -> Mapping[str, float]:
    """Of held-out prompts, at the end; the proxy as what it gained, since arms score it over different baselines."""
    proxy = list(curve(records, "eval/judge/reward_model/mean").values())
    return {
        "proxy gain": proxy[-1] - proxy[0],
        "true": last(records, "eval/judge/format/pass_rate"),
        "all constraints": last(records, "eval/judge/all_constraints/pass_rate"),
        "length": last(records, "eval/response_len/mean"),
    }


def main() -> None:
    """The command."""
    experiment = Experiment("cgpo_hacking", __doc__)
    experiment.start()
    runs = experiment.run({name: partial(arm, experiment.folder, name) for name in ARMS}, measure)
    panels = {
        "eval/judge/reward_model/mean": "proxy reward, held-out",
        "eval/judge/format/pass_rate": "true pass rate, held-out",
        "eval/response_len/mean": "tokens per answer, held-out",
    }
    experiment.plot(runs, panels, smooth=1)
    experiment.finish(runs, compared=COMPARED)


if __name__ == "__main__":
    main()
