"""The sets that detectors of the atlas are compared on: pairs of city claims by seed, and other claims to go on to.

    atlas/facts.csv, relations.toml        of `experiments.rate_ft.atlas facts`
    atlas/brief-cities, brief-others, long builds of `llamarl detect build`

A pair is a true and a false claim that name the same country, of cities of about the same size. Pairs are made once and
split by seed, so that in every part of every seed the named value tells nothing, and the size hardly anything.
"""

import csv
import hashlib
import random
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.rate_ft.atlas import SIZE_RELATION, SPLITS, match_claims
from llamarl.core.seeds import derive_seed
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality.splits import SPLITS as PARTS
from llamarl.report.files import read_jsonl

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
            for name in (*SPLITS, "surplus"):
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
        cities = [
            {**row, "split": "all"}
            for row in self.rows
            if kind_of(row) == "cities" and row["facts"][0]["relation"] == "country"
        ]
        matched = match_claims(cities, self.sizes)
        return list(zip(matched[::2], matched[1::2], strict=True))

    def others(self, taken: set[str]) -> list[Row]:
        """Claims of other kinds, none about a subject that is taken."""
        return [row for row in self.rows if kind_of(row) != "cities" and row["subject"] not in taken]

    def split(self, seed: int, counts: Sequence[int]) -> dict[str, list[Row]]:
        """The claims of a seed's train, validation and test part.

        Args:
            seed: of the draw.
            counts: pairs of each part.
        """
        pairs = sorted(self.pairs, key=lambda pair: pair[0]["id"])
        random.Random(derive_seed("pairs", seed)).shuffle(pairs)
        if sum(counts) > len(pairs):
            raise SystemExit(f"{self.directory}: {len(pairs)} pairs, {sum(counts)} wanted; build more claims")
        parts: dict[str, list[Row]] = {}
        for part, count in zip(PARTS, counts, strict=True):
            parts[part] = [_prepare(row, part) for pair in pairs[:count] for row in pair]
            pairs = pairs[count:]
        return parts

    def write(self, seed: int, counts: Sequence[int], out: Path) -> None:
        """Writes a seed's parts as `detect build` would, the claims of other kinds among those to test on."""
        parts = self.split(seed, counts)
        taken = {row["subject"] for part in ("train", "validation") for row in parts[part]}
        parts["test"] += [_prepare(row, "test") for row in self.others(taken)]
        out.mkdir(parents=True, exist_ok=True)
        for part, rows in parts.items():
            write_jsonl(out / f"{part}.jsonl", rows)
        answers = {row["id"]: row for build in BUILDS for row in read_jsonl(self.directory / build / "answers.jsonl")}
        write_jsonl(out / "answers.jsonl", answers.values())

    def digests(self) -> dict[str, str]:
        """Hashes of the answers that all of this was made from."""
        paths = [self.directory / "facts.csv", *(self.directory / build / "answers.jsonl" for build in BUILDS)]
        return {
            str(path.relative_to(self.directory)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in paths
        }


def kind_of(row: Row) -> str:
    """What a claim is for."""
    return KINDS[row["prompt"].partition("/")[0]]


def _prepare(row: Row, part: str) -> dict[str, Any]:
    fact = row["facts"][0]
    texts = [text.format(subject=fact["subject"], value=fact["value"]) for text in PARAPHRASES]
    return {**row, "split": part, "paraphrases": texts if kind_of(row) == "cities" else []}
