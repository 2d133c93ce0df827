"""The sets that detectors of the atlas are compared on, by seed.

    atlas/facts.csv, relations.toml             of `experiments.rate_ft.atlas facts`
    atlas/brief-cities, brief-others, long      builds of `llamarl detect build`

    train, validation, test      city claims as they come, as many true as false
    matched                      pairs of a true and a false claim that name the same country, of cities of about the
                                 same size: there the named value tells nothing, and the size hardly anything
    countries, elements, long    other claims, the same for every seed; those of long answers are of all relations

No city stands in two parts of a seed.
"""

import csv
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.rate_ft.atlas import SIZE_RELATION, match_claims
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality.splits import SPLITS as PARTS
from llamarl.report.files import read_jsonl, write_json

BUILDS = ("brief-cities", "brief-others", "long")
KINDS = {
    "country": "cities",
    **dict.fromkeys(("capital", "currency", "continent"), "countries"),
    **dict.fromkeys(("symbol", "atomic_number", "discovery_year"), "elements"),
    **dict.fromkeys(("cities", "countries", "elements"), "long"),
}
"""What a claim is for, by the head of its prompt's id."""
PARAPHRASES = (
    "{subject} is a city in {value}.",
    "{subject} lies in {value}.",
    "You find the city of {subject} in {value}.",
    "The country of the city of {subject} is {value}.",
)
PARTS_FILE = "parts.json"
"""Which claims are in which part: the files of a seed know training, validation and the rest."""
Row = Mapping[str, Any]


class Atlas:
    """Claims of three builds.

    Args:
        directory: with facts and builds.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @cached_property
    def rows(self) -> list[Row]:
        """Every decided claim, once."""
        found: dict[str, Row] = {}
        for build in BUILDS:
            for name in (*PARTS, "surplus"):
                for row in read_jsonl(self.directory / build / f"{name}.jsonl"):
                    found.setdefault(row["id"], row)
        return list(found.values())

    @cached_property
    def sizes(self) -> dict[str, float]:
        """Population by city."""
        with open(self.directory / "facts.csv", newline="", encoding="utf-8") as file:
            facts = list(csv.DictReader(file))
        return {each["subject"]: float(each["object"]) for each in facts if each["relation"] == SIZE_RELATION}

    @cached_property
    def pairs(self) -> list[tuple[Row, Row]]:
        """True and false city claims of one value and about one size."""
        matched = match_claims([{**row, "split": "all"} for row in self.cities], self.sizes)
        return list(zip(matched[::2], matched[1::2], strict=True))

    @cached_property
    def cities(self) -> list[Row]:
        """Claims about the country of the city that was asked about."""
        return [
            row
            for row in self.rows
            if kind_of(row) == "cities"
            and (row["facts"][0]["relation"], row["facts"][0]["subject"]) == ("country", row["subject"])
        ]

    def others(self, kind: str, most: int) -> list[Row]:
        """At most so many claims of another kind, the same for every seed."""
        rows = [row for row in self.rows if kind_of(row) == kind]
        return sorted(rows, key=lambda row: derive_seed("other claims", row["id"]))[:most]

    def split(self, seed: int, counts: Mapping[str, int]) -> dict[str, list[Row]]:
        """The claims of each part of a seed.

        Args:
            seed: of the draw.
            counts: claims of each part; even numbers.
        """
        rng = random.Random(derive_seed("parts", seed))
        pairs = sorted(self.pairs, key=lambda pair: pair[0]["id"])
        parts = {"matched": [row for pair in rng.sample(pairs, counts["matched"] // 2) for row in pair]}
        taken = {row["subject"] for row in parts["matched"]}
        rest = sorted((row for row in self.cities if row["subject"] not in taken), key=lambda row: row["id"])
        rng.shuffle(rest)
        for part in PARTS:
            for label in (True, False):
                chosen = [row for row in rest if row["label"] is label][: counts[part] // 2]
                if len(chosen) < counts[part] // 2:
                    raise SystemExit(f"{self.directory}: too few claims for {counts}; build more")
                parts.setdefault(part, []).extend(chosen)
            used = {row["subject"] for row in parts[part]}
            rest = [row for row in rest if row["subject"] not in used]
        learned = {row["subject"] for part in ("train", "validation") for row in parts[part]}
        for kind in ("countries", "elements", "long"):
            parts[kind] = [row for row in self.others(kind, counts[kind]) if row["subject"] not in learned]
        return parts

    def write(self, parts: Mapping[str, Sequence[Row]], out: Path) -> None:
        """Writes parts as `detect build` would; all but two of them are test claims. `PARTS_FILE` comes last."""
        out.mkdir(parents=True, exist_ok=True)
        found: dict[str, list[Row]] = {}
        for name, rows in parts.items():
            part = name if name in PARTS else "test"
            found.setdefault(part, []).extend(_prepare(row, part) for row in rows)
        for part, rows in found.items():
            write_jsonl(out / f"{part}.jsonl", rows)
        answers = {row["id"]: row for build in BUILDS for row in read_jsonl(self.directory / build / "answers.jsonl")}
        write_jsonl(out / "answers.jsonl", answers.values())
        write_json(out / PARTS_FILE, {name: [row["id"] for row in rows] for name, rows in parts.items()})


def read_parts(place: Path) -> dict[str, list[Row]]:
    """The parts that `Atlas.write` wrote there."""
    rows = {row["id"]: row for part in PARTS for row in read_jsonl(place / f"{part}.jsonl")}
    named: dict[str, list[str]] = json.loads((place / PARTS_FILE).read_text())
    return {part: [rows[name] for name in names] for part, names in named.items()}


def digest(path: Path) -> str:
    """A hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def kind_of(row: Row) -> str:
    """What a claim is for."""
    return KINDS[row["prompt"].partition("/")[0]]


def _prepare(row: Row, part: str) -> dict[str, Any]:
    fact = row["facts"][0]
    texts = [text.format(subject=fact["subject"], value=fact["value"]) for text in PARAPHRASES]
    return {**row, "split": part, "paraphrases": texts if kind_of(row) == "cities" else []}
