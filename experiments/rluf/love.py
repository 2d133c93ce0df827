"""Does P[Love] learn what users love from a sparse log that bots and spammers wrote in too?

    python -m experiments.rluf.love               # five seeds; python -m experiments.rluf.love --tune for seeds 0 to 2

World: `llamarl feedback simulate`, 2,000 users and four weeks, 1.8 % of replies loved. A model of 0.4M random
parameters is trained on the log by `feedback fit`:

    no bots         a log of honest users, spammers and contrarians
    cleaned         the same product with 5 % bots that love a phrase, as `feedback ingest` cleans it by default
    not cleaned     the same log, suspicious users kept

Each is measured on the true love probabilities of the last week's honest messages in a log without adversaries: AUROC
where every message counts as loved and as unloved by its probability, beside the best AUROC that the text allows (how
much users truly like it). Twelve policies of different taste answer the same prompts: r is that of their mean scores
with their true love rates. `phrase` is how much the bots' phrase at the end of a reply raises its log-odds.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from pyarrow import parquet

from experiments.common import WORLDS, Done, Experiment, made_once
from experiments.rluf.world import PHRASE, SETTINGS, Users, build_base, policy_rows, simulation
from llamarl.feedback import Fit, Ingest, Store, fit, hash_user, ingest, score_policies, simulate
from llamarl.feedback.simulation import draw_messages
from llamarl.functional.statistics import pearson
from llamarl.report.files import read_jsonl
from llamarl.report.plots import BLUE, GREY, drawing
from llamarl.scoring.classifier import LazyClassifier
from llamarl.training.objectives import LoveConfig

ARMS: dict[str, tuple[float, bool]] = {
    "no bots": (0.0, False),
    "cleaned": (SETTINGS["log"]["bots"], False),
    "not cleaned": (SETTINGS["log"]["bots"], True),
}
"""Share of bots, and whether suspicious users stay."""
COMPARED = [("cleaned", "no bots"), ("not cleaned", "no bots")]
NUM_CLEAN = 4000
"""Messages that the AUROC is measured on."""
KEY, SECRET = "RLUF_EXPERIMENT_KEY", "a secret so that found users can be looked up in the truth"


@dataclass(frozen=True, slots=True)
class CleanLog:
    """Honest messages that nobody trained on, with what is true of them."""

    prompts: Sequence[str]
    replies: Sequence[str]
    chances: np.ndarray
    """[M] the true probability that the message was loved by its user."""
    liking: np.ndarray
    """[M] how much users like the reply: nothing in the text foretells love better."""


def clean_log(directory: Path, seed: int) -> CleanLog:
    """The last week of a log without adversaries."""
    settings = simulation(directory, seed + 1000, bots=0.0, adversarial=0.0, users=400)
    if not (directory / "truth.jsonl").exists():
        simulate(settings)
    log, rows = draw_messages(settings), read_jsonl(directory / "logs.jsonl")[-NUM_CLEAN:]
    last = slice(len(log.user) - len(rows), None)
    texts = [[row[name] for row in rows] for name in ("prompt", "response")]
    return CleanLog(texts[0], texts[1], log.probability[last], log.liking[last])


def auroc(scores: np.ndarray, chances: np.ndarray) -> float:
    """AUROC where each message counts as loved with its chance, and as unloved with the rest; ties count half."""
    values, place = np.unique(scores, return_inverse=True)
    loved = np.bincount(place, chances, len(values))
    unloved = np.bincount(place, 1.0 - chances, len(values))
    below = np.cumsum(unloved) - unloved / 2
    return float((loved * below).sum() / (loved.sum() * unloved.sum()))


def score(model: Path, prompts: Sequence[str], replies: Sequence[str]) -> np.ndarray:
    """[M] logits of P[Love]."""
    classifier = LazyClassifier(str(model), device="cpu", batch_tokens=16384)
    encoded = [
        classifier.encode([{"role": "user", "content": prompt}], reply)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    return np.array([logit for (logit,) in classifier(encoded)])


def build(directory: Path, arm: str, seed: int) -> None:
    """Simulates a product's log, ingests it, and trains P[Love] on it."""
    bots, keeps = ARMS[arm]
    directory.mkdir(parents=True)
    simulate(simulation(directory / "log", seed, bots=bots))
    os.environ[KEY] = SECRET
    logs = (str(directory / "log" / "logs.jsonl"),)
    ingest(Ingest(logs=logs, out=directory / "store", key_env=KEY, keep_suspicious=keeps, threads=1))
    base = build_base(directory / "base", seed)
    fit(
        Fit(store=directory / "store", model=str(base), out=directory / "love"),
        LoveConfig(**SETTINGS["fit"], seed=seed),
        tell=print,
    )


Point = tuple[float, float]
"""A policy's mean score, and its true love rate."""


def world(arm: str, seed: int) -> Path:
    """A log with its store and its P[Love], made once."""
    return made_once(WORLDS / f"rluf-{arm.replace(' ', '-')}-{seed}", partial(build, arm=arm, seed=seed))


def measure(directory: Path, clean: CleanLog, arm: str, seed: int) -> tuple[dict[str, float], list[Point]]:
    """What one P[Love] is worth, and where it puts the policies."""
    model = directory / "love" / "model"
    logits = score(model, clean.prompts, clean.replies)
    users = Users(simulation(directory / "log", seed, bots=ARMS[arm][0]))
    rows = {f"taste {taste:+.1f}": policy_rows(taste, 0.0, seed) for taste in SETTINGS["policies"]["tastes"]}
    scores = score_policies(rows, directory / "love", device="cpu")
    rates = [float(users.rates([row["completion"] for row in each]).mean()) for each in rows.values()]
    means = scores.probabilities.mean(axis=1).tolist()
    plain = rows["taste +0.0"]
    prompts, replies = [row["prompt"] for row in plain], [row["completion"] for row in plain]
    with_phrase = score(model, prompts, [f"{reply} {PHRASE}" for reply in replies])
    lengths = [float(len(reply)) for reply in clean.replies]
    found = {
        "AUROC": auroc(logits, clean.chances),
        "best AUROC": auroc(clean.liking, clean.chances),
        "r of policies": pearson(means, rates),
        "r with length": pearson(logits.tolist(), lengths),
        "true r with length": pearson(clean.liking.tolist(), lengths),
        "phrase": float((with_phrase - score(model, prompts, replies)).mean()),
    }
    numbers = {name: value for name, value in found.items() if value is not None} | find_bots(directory)
    return numbers, list(zip(means, rates, strict=True))


def find_bots(directory: Path) -> dict[str, float]:
    """How many bots the ingest found, and how many honest users it took for suspicious."""
    kinds: dict[str, set[str]] = {}
    for row in read_jsonl(directory / "log" / "truth.jsonl"):
        kinds.setdefault(row["kind"], set()).add(hash_user(row["user"], SECRET.encode()))
    found = {row["user_hash"] for row in parquet.read_table(Store.open(directory / "store").suspicious).to_pylist()}
    shares = {"bots found": kinds.get("bot", set()), "honest accused": kinds["honest"]}
    return {name: len(users & found) / len(users) for name, users in shares.items() if users}


def plot(path: Path, runs: Sequence[Done], points: Sequence[tuple[float, float]]) -> None:
    """AUROC of each arm beside the best there is, and the policies of all cleaned logs: score against true rate."""
    with drawing(path, 9, 3.6) as figure:
        left, right = figure.subplots(1, 2)
        for place, arm in enumerate(ARMS):
            own = [run.numbers for run in runs if run.arm == arm]
            left.scatter([place] * len(own), [each["AUROC"] for each in own], color=BLUE)
            left.scatter([place] * len(own), [each["best AUROC"] for each in own], color=GREY, marker="_")
        left.set_xticks(range(len(ARMS)), list(ARMS))
        left.set_title("AUROC on true chances; grey: the best there is")
        right.scatter(*zip(*points, strict=True), color=BLUE, s=14)
        right.set_title("policies: mean score, and true love rate")
        right.set_xlabel("mean P[Love]")
        right.set_ylabel("love rate")


def main() -> None:
    """The command."""
    experiment = Experiment("rluf_love", __doc__, "rluf.love", seeds=range(10, 15))
    experiment.start()
    runs, points = [], []
    for seed in experiment.seeds:
        clean = clean_log(experiment.folder / f"clean-{seed}", seed)
        for arm in experiment.choose(ARMS):
            started = time.monotonic()
            numbers, policies = measure(world(arm, seed), clean, arm, seed)
            runs.append(Done(arm, seed, time.monotonic() - started, [], numbers))
            points += policies if arm == "cleaned" else []
            experiment.say(runs[-1])
    plot(experiment.figure_path, runs, points)
    experiment.finish(runs, compared=COMPARED)


if __name__ == "__main__":
    main()
