"""The comparison of detectors once more, on models that are small enough to train each of them many times.

    python -m experiments.rate_ft.knowledge       # five worlds; --tune for worlds 0 to 2

World: `experiments.rate_ft.knowledge_world`, a tiny model that has read of invented people, and states facts of them
that it may never have read. The claims of its sampled answers are labelled by the table of facts, exactly. Arms are
those of `experiments.rate_ft.detectors`; `exposures` is an oracle: how many documents mention the fact.
"""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.common import WORLDS, Done, Experiment, made_once
from experiments.rate_ft.knowledge_world import KnowledgeWorld, build_model, state, teach_to_speak
from llamarl.core.sampling import Sampling
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality.building import Answering, Pipeline, build
from llamarl.factuality.decomposition import FactDecomposer
from llamarl.factuality.facts import FactTable
from llamarl.factuality.labels import FactLabeller
from llamarl.factuality.questions import FactQuestioner
from llamarl.factuality.settings import Build, Train
from llamarl.factuality.splits import SPLITS as PARTS
from llamarl.factuality.training import train
from llamarl.functional.detection import balanced_accuracy, count_single, search_threshold
from llamarl.functional.statistics import auroc
from llamarl.generation.chats import NativeChat
from llamarl.report.files import read_jsonl

MAX_TOKENS = 16
NUM_PEOPLE, NUM_EPOCHS = 300, 4
TRAINING = {"num_epochs": 4, "learning_rate": 2e-3, "batch_size": 16}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "token states": ("token_probability", {"pool": "geometric", "tokens": "values"}),
    "prompt-tf": ("prompt_tf", {}),
    "probing": ("probe", {}),
    "ft": ("fine_tuning", TRAINING),
    "rate-ft": ("rate_ft", TRAINING),
    "no questions": ("rate_ft", {**TRAINING, "auxiliary": False}),
    "no reasons": ("rate_ft", {**TRAINING, "rationale": False}),
    "ft + paraphrases": ("fine_tuning", {**TRAINING, "paraphrases": True}),
    "rate-ft half": ("rate_ft", {**TRAINING, "data_share": 0.5}),
    "ft half": ("fine_tuning", {**TRAINING, "data_share": 0.5}),
}
COMPARED = [
    ("prompt-tf", "token states"),
    ("ft", "prompt-tf"),
    ("ft", "probing"),
    *(("rate-ft", arm) for arm in ("ft", "no questions", "no reasons", "ft + paraphrases", "probing")),
    ("rate-ft half", "ft"),
    ("rate-ft half", "ft half"),
]


def world(seed: int) -> Path:
    """A seed's model, policy, claims and detector, made once."""
    return made_once(WORLDS / f"knowledge-{seed}", partial(fill_world, seed=seed))


def fill_world(directory: Path, seed: int, num_people: int = NUM_PEOPLE, num_epochs: int = NUM_EPOCHS) -> None:
    """Fills a directory."""
    people = KnowledgeWorld(seed, num_people)
    people.write(directory)
    for split in ("study", "test"):
        write_jsonl(directory / f"{split}.jsonl", people.prompts(split))
    build_model(people, directory / "base", num_epochs)
    teach_to_speak(people, directory / "base", directory / "policy")
    write_claims(directory)
    settings = Train(
        data=directory / "claims", model=str(directory / "policy"), method="fine_tuning", out=directory / "detector"
    )
    train(settings, {**TRAINING, "seed": seed})


def write_claims(directory: Path) -> None:
    """Labelled claims of sampled answers of the policy about the people of the study."""
    table = FactTable.read([str(directory / "facts.csv")], directory / "relations.toml")
    chat = NativeChat(str(directory / "policy"), Sampling(max_tokens=MAX_TOKENS), slots=64)
    pipeline = Pipeline(
        Answering(chat), FactDecomposer(table), FactLabeller(table), questioner=FactQuestioner(table), chats=[chat]
    )
    settings = Build(
        prompts=(str(directory / "study.jsonl"),),
        model=str(directory / "policy"),
        facts=(str(directory / "facts.csv"),),
        relations=directory / "relations.toml",
        out=directory / "claims",
        split=(0.6, 0.2, 0.2),
    )
    build(settings, pipeline=pipeline)
    for part in PARTS:
        rows = read_jsonl(directory / "claims" / f"{part}.jsonl")
        write_jsonl(directory / "claims" / f"{part}.jsonl", [{**row, "paraphrases": [reword(row)]} for row in rows])


def reword(row: Mapping[str, Any]) -> str:
    """A claim in the other wording."""
    fact = row["facts"][0]
    return state(fact["subject"], fact["relation"], fact["value"], 1)


def run(experiment: Experiment, arm: str, seed: int) -> Done:
    """One detector of one world."""
    started = time.monotonic()
    method, settings = ARMS[arm]
    claims, model, out = world(seed) / "claims", world(seed) / "policy", experiment.folder / f"{arm}-{seed}"
    if not (out / "summary.json").exists():
        chosen = Train(data=claims, model=str(model), method=method, out=out)
        train(chosen, {**settings, **({"seed": seed} if method in ("probe", "fine_tuning", "rate_ft") else {})})
    scores = {row["id"]: row["score"] for row in read_jsonl(out / "scores.jsonl")}
    return Done(arm, seed, time.monotonic() - started, [], measure(claims, scores))


def measure(claims: Path, scores: Mapping[str, float]) -> dict[str, float]:
    """BAcc and AUC on the test claims; a claim without a score is neither."""
    found = {}
    for part in PARTS[1:]:
        rows = read_jsonl(claims / f"{part}.jsonl")
        found[part] = (
            np.array([scores.get(row["id"], 0.5) for row in rows]),
            np.array([row["label"] for row in rows], dtype=bool),
        )
    threshold, (values, labels) = search_threshold(*found["validation"]), found["test"]
    bacc = balanced_accuracy(count_single(values, labels, threshold).sum(axis=0))
    return {"BAcc": float(bacc), "AUC": auroc(values.tolist(), labels.tolist()) or 0.0}


def measure_oracle(seed: int) -> Done:
    """What the number of documents that mention a fact tells."""
    people = {person.name: person for person in KnowledgeWorld(seed, NUM_PEOPLE).people}
    claims = world(seed) / "claims"
    facts = {row["id"]: row["facts"][0] for part in PARTS[1:] for row in read_jsonl(claims / f"{part}.jsonl")}
    counts = {name: people[fact["subject"]].exposures[fact["relation"]] for name, fact in facts.items()}
    return Done("exposures", seed, 0.0, [], measure(claims, counts))


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    experiment = Experiment("rate_ft_knowledge", __doc__, "rate_ft.knowledge", seeds=range(10, 15))
    experiment.start()
    runs = []
    for seed in experiment.seeds:
        runs.append(measure_oracle(seed))
        for arm in experiment.choose(ARMS):
            runs.append(run(experiment, arm, seed))
            experiment.say(runs[-1])
    experiment.finish(runs, compared=COMPARED)


if __name__ == "__main__":
    main()
