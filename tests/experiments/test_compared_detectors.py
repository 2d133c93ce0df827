"""The sets that detectors are compared on, and what is made of their scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.rate_ft.data import Atlas, kind_of
from experiments.rate_ft.detectors import CONTROLS, Bench, compare, measure
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality.labelled import read_data

COUNTS = {"train": 80, "validation": 40, "test": 80, "matched": 40, "countries": 6, "elements": 6, "long": 6}
SEEDS = (10, 11)


def row(prompt: str, subject: str, value: str, label: bool) -> dict[str, Any]:
    relation = prompt if prompt != "cities" else "country"
    fact = {"subject": subject, "relation": relation, "value": value, "is_right": label, "expected": [value]}
    name = f"{prompt}/{subject}"
    claim = f"The {relation} of {subject} is {value}."
    return {"id": f"{name}/0", "prompt": name, "subject": subject, "claim": claim, "label": label, "facts": [fact]}


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """France is mostly right and Spain mostly wrong; large cities are right more often."""
    place = tmp_path_factory.mktemp("atlas")
    rng = np.random.default_rng(0)
    cities, facts = [], ["subject,relation,object"]
    for number in range(400):
        size, value = rng.uniform(10, 15), str(rng.choice(["France", "Spain"]))
        chance = 1 / (1 + np.exp(-(size - 12.5) - (1.5 if value == "France" else -1.5)))
        cities.append(row("country", f"c{number}", value, bool(rng.random() < chance)))
        facts.append(f"c{number},population,{int(np.exp(size))}")
    others = [row("capital", f"k{n}", "Paris", n % 2 == 0) for n in range(10)]
    others += [row("symbol", f"e{n}", "Fe", n % 2 == 0) for n in range(10)]
    long = [row("cities", f"c{n}", "France", n % 2 == 0) for n in range(40)]
    for build, rows in (("brief-cities", cities), ("brief-others", others), ("long", long)):
        for part in ("train", "validation", "test", "surplus"):
            write_jsonl(place / build / f"{part}.jsonl", rows if part == "train" else [])
        answers = [{"id": each["prompt"], "key": "k", "result": {"text": each["claim"]}} for each in rows]
        write_jsonl(place / build / "answers.jsonl", answers)
    (place / "facts.csv").write_text("\n".join(facts))
    return Atlas(place)


def test_no_city_stands_in_two_parts_and_matched_claims_are_pairs(atlas: Atlas) -> None:
    parts = atlas.split(10, COUNTS)
    assert {name: len(rows) for name, rows in parts.items() if name != "long"} == {
        name: count for name, count in COUNTS.items() if name != "long"
    }
    subjects = [{each["subject"] for each in parts[name]} for name in ("train", "validation", "test", "matched")]
    assert len(set.union(*subjects)) == sum(map(len, subjects))
    assert not subjects[0] & {each["subject"] for each in parts["long"]}
    for name in ("train", "validation", "test"):
        assert sum(each["label"] for each in parts[name]) == COUNTS[name] / 2
    for true, false in zip(parts["matched"][::2], parts["matched"][1::2], strict=True):
        assert (true["label"], false["label"]) == (True, False)
        assert true["facts"][0]["value"] == false["facts"][0]["value"]
    assert parts == atlas.split(10, COUNTS) != atlas.split(11, COUNTS)


def test_parts_are_written_as_a_build(atlas: Atlas, tmp_path: Path) -> None:
    atlas.write(atlas.split(10, COUNTS), tmp_path)
    data = read_data(tmp_path)
    assert (len(data.train), len(data.validation)) == (80, 40)
    assert {kind_of({"prompt": each.prompt}) for each in data.test} == {"cities", "countries", "elements", "long"}
    assert all(each.claim.answer.text for each in data.train) and all(len(each.paraphrases) == 4 for each in data.train)


def test_value_and_size_tell_nothing_of_matched_claims(atlas: Atlas, tmp_path: Path) -> None:
    bench = Bench("no model", atlas, tmp_path, {"claims": COUNTS})
    scores = {(arm, seed): bench.score(arm, seed) for arm in CONTROLS for seed in SEEDS}
    found = {key: measure(bench.parts(key[1]), each) for key, each in scores.items()}
    for seed in SEEDS:
        assert found["value", seed]["AUC"] > 0.65 and found["value", seed]["matched AUC"] == 0.5
        assert bench.is_finished("value", seed) and not bench.is_finished("ft", seed)
    (difference,) = compare(bench, scores, [("value", "size")], "test")
    assert (difference["seeds"], difference["claims"]) == (2, 160)
    each = [found["value", seed]["AUC"] - found["size", seed]["AUC"] for seed in SEEDS]
    assert difference["AUC"] == pytest.approx(np.mean(each))
    low, high = difference["AUC_interval"]
    assert low < difference["AUC"] < high
    json.dumps(difference)
