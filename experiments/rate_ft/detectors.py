"""Which detector tells a real model's true claims from its false ones?

    python -m experiments.rate_ft.detectors --model MODEL --atlas atlas              # five seeds; --tune: seeds 0 to 2
    python -m experiments.rate_ft.detectors --model MODEL --atlas atlas --finished   # the table of what is there

Detectors learn from city claims of one part (`experiments.rate_ft.data`), thresholds come from a second, and all
numbers from a third. Then they go on, with the same threshold, to `matched` city claims, of which the named country and
the city's size tell nothing; to claims about countries and elements; and to those of long answers.

    value, size                 what the named country, or the city's size, tells without knowing anything
    token states                probability or entropy of the claim's tokens, the way to pool chosen on seeds 0 to 2
    prompt-tf, prompt-prob, cot-tf, selfcheck      the model is asked; nothing is learned
    probing                     an MLP on frozen states
    ft, rate-ft                 adapters: labels; labels, reasons and questions
    no questions, no reasons    RATE-FT without one of its parts
    ft + paraphrases            as many rows as RATE-FT, without its tasks
    rate-ft half, ft half       half of the training pairs

`hybrid` is the balanced accuracy where a checker decides what the detector leaves open, `open` the share of those.
"""

import json
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.common import COLOURS, Done, Experiment
from experiments.rate_ft.data import PARTS_FILE, Atlas, Row, digest, kind_of, read_parts
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.internal_states import InternalStates, TokenEntropy, TokenProbability
from llamarl.factuality.detectors.method import TrainingJob, find_method
from llamarl.factuality.labelled import Data, LabelledClaim, read_data
from llamarl.functional.detection import (
    Array,
    RankedPairs,
    balanced_accuracy,
    cluster_interval,
    count_claims,
    count_single,
    search_band,
    search_threshold,
    share_unknown,
    sum_clusters,
)
from llamarl.functional.pooling import SHIPPED
from llamarl.functional.statistics import auroc, percentile_interval, resample_sums
from llamarl.report.files import read_jsonl

SETTINGS: dict[str, Any] = tomllib.loads((Path(__file__).parent / "settings.toml").read_text())
CONTROLS = ("value", "size")
ASKED = {"prompt-tf": "prompt_tf", "prompt-prob": "prompt_prob", "cot-tf": "cot_tf", "selfcheck": "selfcheck"}
LEARNED = {
    "probing": "probe",
    "ft": "fine_tuning",
    "rate-ft": "rate_ft",
    "no questions": "rate_ft",
    "no reasons": "rate_ft",
    "ft + paraphrases": "fine_tuning",
    "rate-ft half": "rate_ft",
    "ft half": "fine_tuning",
}
STATES = "token states"
ARMS = (*CONTROLS, STATES, *ASKED, *LEARNED)
COMPARED = [
    *((arm, "value") for arm in (STATES, *ASKED, "probing", "ft", "rate-ft")),
    ("probing", STATES),
    ("probing", "prompt-tf"),
    ("ft", "prompt-tf"),
    ("ft", "probing"),
    ("rate-ft", "probing"),
    *(("rate-ft", arm) for arm in ("ft", "no questions", "no reasons", "ft + paraphrases", "ft half")),
    ("rate-ft half", "ft"),
]
CHUNK = 128
Scores = Mapping[str, float]
"""P_factual by claim."""


class Bench:
    """All that is scored, and where the scores are kept.

    Args:
        model: checkpoint under study.
        atlas: its claims.
        folder: of scores and trained detectors.
        settings: as `settings.toml` holds them.
    """

    def __init__(self, model: str, atlas: Atlas, folder: Path, settings: Mapping[str, Any] = SETTINGS) -> None:
        self.model, self.atlas, self.folder, self.settings = model, atlas, folder, settings

    @cached_property
    def backbone(self) -> Backbone:
        """The model."""
        return Backbone.load(self.model, precision=self.settings["precision"])

    def data(self, seed: int) -> Data:
        """The claims of a seed."""
        self.parts(seed)
        return read_data(self.place(seed))

    def place(self, seed: int) -> Path:
        """Where the claims of a seed are."""
        return self.folder / f"data-{seed}"

    @cache  # noqa: B019
    def parts(self, seed: int) -> dict[str, list[Row]]:
        """The rows of a seed's parts. Once drawn they are read from there: a resume needs no builds."""
        if not (self.place(seed) / PARTS_FILE).exists():
            self.atlas.write(self.atlas.split(seed, self.settings["claims"]), self.place(seed))
        return read_parts(self.place(seed))

    def score(self, arm: str, seed: int) -> Scores:
        """The scores of a seed's validation and test claims."""
        data = self.data(seed)
        judged = [*data.validation, *data.test]
        if arm in CONTROLS:
            return self._score_control(arm, seed, data)
        if arm in LEARNED:
            return self._train(arm, seed, data)
        chosen = [each for each in judged if self._is_asked(arm, each)]
        return self._ask(arm, chosen)

    def _score_control(self, arm: str, seed: int, data: Data) -> Scores:
        """What value or size alone tell: the share of true training claims of the value, or the city's size."""
        rows = {row["id"]: row for part in self.parts(seed).values() for row in part}
        judged = [each.claim.id for each in (*data.validation, *data.test)]
        if arm == "size":
            sizes = {name: self.atlas.sizes.get(rows[name]["subject"], 0.0) for name in judged}
            most = max(sizes.values())
            return {name: size / most for name, size in sizes.items()}
        seen: dict[str, list[bool]] = {}
        for each in data.train:
            seen.setdefault(rows[each.claim.id]["facts"][0]["value"], []).append(each.label)
        return {name: float(np.mean(seen.get(rows[name]["facts"][0]["value"], [True, False]))) for name in judged}

    def is_finished(self, arm: str, seed: int) -> bool:
        """True where nothing is left to compute."""
        if arm in CONTROLS:
            return True
        if arm in LEARNED:
            return (self.folder / f"{arm}-{seed}" / "scores.jsonl").exists()
        path = self.folder / "asked" / f"{arm}.jsonl"
        known = {row["id"] for row in read_jsonl(path)} if path.exists() else set()
        data = self.data(seed)
        return all(each.claim.id in known for each in (*data.validation, *data.test) if self._is_asked(arm, each))

    def _is_asked(self, arm: str, claim: LabelledClaim) -> bool:
        return arm not in self.settings["cities_only"] or kind_of({"prompt": claim.prompt}) == "cities"

    def _ask(self, arm: str, claims: Sequence[LabelledClaim]) -> Scores:
        """Scores of methods that learn nothing, so that every claim is scored once for all seeds."""
        path = self.folder / "asked" / f"{arm}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {row["id"]: row for row in read_jsonl(path)} if path.exists() else {}
        missing = [each for each in claims if each.claim.id not in known]
        with open(path, "a", encoding="utf-8") as file:
            for part in (missing[start : start + CHUNK] for start in range(0, len(missing), CHUNK)):
                started = time.process_time()
                found = self._detector(arm).score([each.claim for each in part])
                seconds = (time.process_time() - started) / len(part)
                for each, score in zip(part, found, strict=True):
                    row = {"id": each.claim.id, "p": score.p_factual, "mass": score.mass, "problem": score.problem}
                    known[each.claim.id] = {**row, "seconds": round(seconds, 4)}
                    file.write(json.dumps(known[each.claim.id]) + "\n")
                file.flush()
                print(f"{arm}: {len(known)} claims, {seconds:.3f} s each", flush=True)
        return {each.claim.id: _or_half(known[each.claim.id]["p"]) for each in claims}

    def _detector(self, arm: str) -> Any:
        if arm == STATES:
            chosen = self.settings["states"]
            kind = TokenEntropy if chosen["quantity"] == "entropy" else TokenProbability
            return kind(self.backbone, kind.Settings.parse({"pool": chosen["pool"], "tokens": chosen["tokens"]}))
        kind = find_method(ASKED[arm])
        settings = dict(self.settings["asked"].get(ASKED[arm], {}))
        if arm == "selfcheck":
            settings["facts"] = [str(self.atlas.directory / "facts.csv")]
            settings["relations"] = str(self.atlas.directory / "relations.toml")
        return kind(self.backbone, kind.Settings.parse(settings))

    def _train(self, arm: str, seed: int, data: Data) -> Scores:
        """Scores of a detector that is trained for the seed."""
        place = self.folder / f"{arm}-{seed}"
        path = place / "scores.jsonl"
        if not path.exists():
            place.mkdir(parents=True, exist_ok=True)
            kind = find_method(LEARNED[arm])
            chosen = {**self.settings["learned"][LEARNED[arm]], **self.settings["arms"].get(arm, {}), "seed": seed}
            settings = kind.Settings.parse(chosen)
            job = TrainingJob(
                model=self.model, data=data, out=place, settings=settings, precision=self.settings["precision"]
            )
            detector = kind.train(job)
            judged = [each for each in (*data.validation, *data.test) if self._is_asked(arm, each)]
            scores = detector.score([each.claim for each in judged])
            rows = ({"id": e.claim.id, "p": s.p_factual, "mass": s.mass} for e, s in zip(judged, scores, strict=True))
            write_jsonl(path, rows)
        return {row["id"]: _or_half(row["p"]) for row in read_jsonl(path)}


def _or_half(p: float | None) -> float:
    """A claim without a score is neither."""
    return 0.5 if p is None else p


# ---- numbers --------------------------------------------------------------------------------------------------------


def pick(rows: Sequence[Row], scores: Scores) -> tuple[Array, Array, list[str]]:
    """Scores, labels and subjects of the claims that have a score."""
    chosen = [row for row in rows if row["id"] in scores]
    labels = np.array([row["label"] for row in chosen], dtype=bool)
    return np.array([scores[row["id"]] for row in chosen]), labels, [row["subject"] for row in chosen]


def measure(parts: Mapping[str, Sequence[Row]], scores: Scores) -> dict[str, float]:
    """What a detector's scores are worth: test claims, then the others by the same threshold."""
    validation, truth, _ = pick(parts["validation"], scores)
    threshold = search_threshold(validation, truth)
    band = search_band(validation, truth, SETTINGS["hybrid_min_bacc"], constraint="all")
    found: dict[str, float] = {}
    for name in ("test", "matched", "countries", "elements", "long"):
        values, labels, _ = pick(parts[name], scores)
        if not len(values):
            continue
        title = {"test": ""}.get(name, f"{name} ")
        found[f"{title}BAcc"] = float(balanced_accuracy(count_single(values, labels, threshold).sum(axis=0)))
        found[f"{title}AUC"] = auroc(values.tolist(), labels.tolist()) or 0.0
        if name == "test":
            low, high = (threshold, threshold) if band is None else (band.low, band.high)
            sums = count_claims(values, labels, low, high).sum(axis=0)
            found |= {"hybrid": float(balanced_accuracy(sums, "right")), "open": float(share_unknown(sums))}
    return found


def compare(
    bench: Bench, scores: Mapping[tuple[str, int], Scores], pairs: Sequence[tuple[str, str]], part: str
) -> Iterator[dict[str, Any]]:
    """Differences of two arms on a part's claims of all seeds together, with intervals over cities.

    Each seed has its own thresholds. A resample draws cities with their claims in every seed.
    """
    for arm, minus in pairs:
        seeds = [seed for name, seed in scores if name == arm and (minus, seed) in scores]
        if not seeds:
            continue
        counts: dict[str, list[Array]] = {arm: [], minus: []}
        influence, areas, cities = [], [], []
        for seed in seeds:
            parts, ranked = bench.parts(seed), []
            for name in (arm, minus):
                validation, truth, _ = pick(parts["validation"], scores[name, seed])
                values, labels, subjects = pick(parts[part], scores[name, seed])
                counts[name].append(count_single(values, labels, search_threshold(validation, truth)))
                ranked.append(RankedPairs.of(values, labels))
            cities += subjects
            areas.append(ranked[0].value - ranked[1].value)
            influence.append((ranked[0].influence - ranked[1].influence) / len(seeds))
        tables = [sum_clusters(np.vstack(counts[name]), cities) for name in (arm, minus)]
        drawn = np.split(resample_sums(np.hstack(tables), 0), 2, axis=1)
        change = balanced_accuracy(drawn[0]) - balanced_accuracy(drawn[1])
        values = [float(balanced_accuracy(table.sum(axis=0))) for table in tables]
        area = float(np.mean(areas))
        yield {
            "arm": arm,
            "minus": minus,
            "part": part,
            "seeds": len(seeds),
            "claims": len(cities),
            "cities": len(set(cities)),
            "BAcc": values[0] - values[1],
            "BAcc_interval": percentile_interval(change),
            "AUC": area,
            "AUC_interval": cluster_interval(area, np.concatenate(influence), cities),
        }


def choose_states(bench: Bench, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Every way to read token states, by the mean AUC on the validation claims of some seeds; the best first."""
    claims = {each.claim.id: each for seed in seeds for each in bench.data(seed).validation}
    found = []
    for kind in (TokenProbability, TokenEntropy):
        reader = _Memo(kind)
        for pool in SHIPPED:
            for tokens in ("all", "values"):
                if kind is TokenEntropy and pool == "geometric":
                    continue
                detector = reader(bench.backbone, kind.Settings.parse({"pool": pool, "tokens": tokens}))
                got = [each.p_factual for each in detector.score([each.claim for each in claims.values()])]
                scores = {name: _or_half(p) for name, p in zip(claims, got, strict=True)}
                areas = []
                for seed in seeds:
                    values, truth, _ = pick(bench.parts(seed)["validation"], scores)
                    areas.append(auroc(values.tolist(), truth.tolist()) or 0.0)
                quantity = "entropy" if kind is TokenEntropy else "probability"
                found.append({"quantity": quantity, "pool": pool, "tokens": tokens, "AUC": float(np.mean(areas))})
    return sorted(found, key=lambda each: -each["AUC"])


def _Memo(kind: type[InternalStates]) -> type[InternalStates]:
    """The method with one forward pass for all its ways to pool."""
    read: dict[Any, Any] = {}

    class Remembering(kind):  # type: ignore[valid-type, misc]
        def _read(self, rows: Any) -> Any:
            missing = {key: row for key, row in rows.items() if key not in read}
            read.update(super()._read(missing) if missing else {})
            return {key: read[key] for key in rows}

    return Remembering


def plot(path: Path, runs: Sequence[Done]) -> None:
    """Each arm's AUC, a point a seed: on claims as they come, and on matched ones."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    arms = list(dict.fromkeys(run.arm for run in runs))
    figure, axis = pyplot.subplots(figsize=(7.2, 0.36 * len(arms) + 1.2), layout="constrained")
    for shift, name, title, colour in (
        (-0.12, "AUC", "as they come", COLOURS[0]),
        (0.12, "matched AUC", "matched by country and size", COLOURS[1]),
    ):
        points = [(run.numbers[name], arms.index(run.arm) + shift) for run in runs]
        axis.scatter(*zip(*points, strict=True), s=22, color=colour, label=title, zorder=2)
    axis.axvline(0.5, color="#999999", linewidth=0.8, zorder=1)
    axis.set_yticks(range(len(arms)), arms)
    axis.invert_yaxis()
    axis.set_xlabel("AUC; a point is a seed")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


# ---- the command ----------------------------------------------------------------------------------------------------


def main() -> None:
    """The command."""
    torch.set_num_threads(1)
    experiment = Experiment("rate_ft_detectors", __doc__, "rate_ft.detectors", seeds=range(10, 15))
    experiment.parser.add_argument("--model", required=True, help="the checkpoint whose claims the atlas holds")
    experiment.parser.add_argument("--atlas", type=Path, required=True, help="directory of facts and builds")
    experiment.parser.add_argument("--finished", action="store_true", help="tabulate what is there; run nothing")
    experiment.parser.add_argument("--states", action="store_true", help="list the ways to read token states")
    options = experiment.start()
    bench = Bench(options.model, Atlas(options.atlas), experiment.folder)
    if options.states:
        print(json.dumps(choose_states(bench, range(3)), indent=1))
        return
    runs, scores = [], {}
    for seed in experiment.seeds:
        for arm in experiment.choose(ARMS):
            if options.finished and not bench.is_finished(arm, seed):
                continue
            if not experiment.is_try and seed not in experiment.seeds[: SETTINGS["seeds"].get(arm)]:
                continue
            started = time.monotonic()
            scores[arm, seed] = bench.score(arm, seed)
            runs.append(Done(arm, seed, time.monotonic() - started, [], measure(bench.parts(seed), scores[arm, seed])))
            experiment.say(runs[-1])
    if not options.finished:
        return
    experiment.finish(
        runs,
        compared=COMPARED,
        paired=[each for part in ("test", "matched") for each in compare(bench, scores, COMPARED, part)],
        atlas={
            "facts.csv": digest(bench.atlas.directory / "facts.csv"),
            **{f"data-{seed}/{PARTS_FILE}": digest(bench.place(seed) / PARTS_FILE) for seed in experiment.seeds},
            **{f"data-{seed}/answers.jsonl": digest(bench.place(seed) / "answers.jsonl") for seed in experiment.seeds},
        },
        experiment_settings=SETTINGS,
    )
    plot(experiment.figure_path, runs)  # last: a new figure would make the tree dirty


if __name__ == "__main__":
    main()
