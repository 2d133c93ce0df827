"""A table of facts (subject, relation, object), and what sentences say of it, by rules and without a model.

    table = FactTable.read(["facts.csv"], "relations.toml")
    table.read_claim("The city of Lyon is located in Spain.")      # [Reading(subject="Lyon", relation="country", ...)]

A sentence says something of a relation where it names a subject that has the relation, a cue of the relation ("located
in"), and one of the values that anything has in it. Rules are blunt, so they say nothing where they are not sure: a
sentence with a negation is not read at all. Rows with the relation `alias` give a subject or object another name.
"""

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from llamarl.core.config import Config, read_toml
from llamarl.core.errors import ConfigError, DataError, MissingDependencyError
from llamarl.factuality.claims import Passage

COLUMNS = ("subject", "relation", "object")
ALIAS = "alias"
NEGATIONS = frozenset(
    {
        "not", "never", "no", "neither", "nor", "none", "cannot", "without",
        "isn", "wasn", "aren", "weren", "doesn", "didn", "don", "hasn",
    }
)  # fmt: skip
"""Words that turn a sentence round; the last eight are what stands before the apostrophe of isn't and the like."""
REFERRING = frozenset({"it", "its", "he", "his", "she", "her", "they", "their", "the", "this", "with", "located"})
"""Words at the head of a sentence that may speak of whom the prompt named."""
SCALES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_WORD = re.compile(r"\d[\d,]*(?:\.\d+)?|\w+")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
Words = tuple[str, ...]


class RelationConfig(Config):
    """Patterns that find a relation in sentences, and its wording; `{subject}` and `{object}` are filled in."""

    cues: tuple[str, ...] = ()
    """Words that speak of the relation; by default its name."""
    statement: str = "The {relation} of {subject} is {object}."
    question: str = "What is the {relation} of {subject}?"
    tolerance: float = Field(default=0.0, ge=0.0)
    """The distance by which a number may be off and still be right, as a share of the true one."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of a text."""

    text: str
    """The text as it is compared: without case and accents."""
    start: int
    end: int
    is_capital: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """A sentence's statement on one relation of one subject."""

    subject: str
    relation: str
    value: str
    """The value that the sentence names, as the table spells it where it knows it."""
    expected: tuple[str, ...]
    """The values that the table has."""
    is_right: bool

    def record(self) -> dict[str, Any]:
        """The reading as plain values."""
        names = ("subject", "relation", "value", "is_right")
        return {**{name: getattr(self, name) for name in names}, "expected": list(self.expected)}


@dataclass(slots=True)
class Names:
    """Finds names in texts, the longest first."""

    by_first: dict[str, dict[Words, list[str]]] = field(default_factory=dict)

    def add(self, name: str, meaning: str) -> None:
        """Makes a name known; what has no word is not."""
        words = tuple(word.text for word in split_words(name))
        if words:
            meanings = self.by_first.setdefault(words[0], {}).setdefault(words, [])
            if meaning not in meanings:
                meanings.append(meaning)

    def find(self, words: Sequence[Word], is_cased: bool = True) -> "list[Mention]":
        """The names in a text, from left to right, without overlaps. A name in capitals stands for itself only."""
        found: list[Mention] = []
        place = 0
        while place < len(words):
            known = self.by_first.get(words[place].text, {})
            fits = [name for name in known if tuple(w.text for w in words[place : place + len(name)]) == name]
            longest = max(fits, key=len, default=())
            meanings = known.get(longest, [])
            if is_cased and not words[place].is_capital:
                meanings = [each for each in meanings if not each[:1].isupper()]
            if meanings:
                found.append(Mention(place, place + len(longest), tuple(meanings)))
            place += len(longest) if meanings else 1
        return found


@dataclass(frozen=True, slots=True)
class Mention:
    """A name in a text: the words from `first` up to `last`, and all that it may mean."""

    first: int
    last: int
    meanings: tuple[str, ...]


class FactTable:
    """Facts, held in memory.

    Args:
        facts: (subject, relation, object).
        relations: name -> how it is worded.
    """

    def __init__(
        self, facts: Iterable[tuple[str, str, str]], relations: Mapping[str, RelationConfig] | None = None
    ) -> None:
        self.relations = dict(relations or {})
        self._facts: dict[str, dict[str, list[str]]] = {}
        self._aliases: dict[str, list[str]] = {}
        digest = hashlib.blake2b(digest_size=16)
        for subject, relation, value in facts:
            digest.update("\x1f".join((subject, relation, value, "")).encode())
            if relation == ALIAS:
                self._aliases.setdefault(subject, []).append(value)
            else:
                values = self._facts.setdefault(subject, {}).setdefault(relation, [])
                if value not in values:
                    values.append(value)
        if not self._facts:
            raise DataError("the table of facts is empty; give rows of subject, relation, object")
        self.digest = digest.hexdigest()
        known = {relation for facts in self._facts.values() for relation in facts}
        for name in self.relations.keys() - known:
            raise ConfigError(f"relations: the table has no relation {name!r} (it has {', '.join(sorted(known))})")
        for name in known:
            self.relations.setdefault(name, RelationConfig())

    @classmethod
    def read(cls, files: Sequence[str], relations: str | Path | None = None) -> "FactTable":
        """The facts of files, and how their relations are worded.

        Args:
            files: CSV, TSV, Parquet or JSON lines with the columns subject, relation, object; globs; or `.sql` files
                with a query of DuckDB that gives them, its paths being relative to where the program runs.
            relations: a TOML file with a table for each relation (`RelationConfig`).

        Raises:
            DataError: a file cannot be read, lacks a column, or has an empty cell; names file, row and column.
            ConfigError: a wrong setting of a relation.
        """
        facts = [fact for file in files for fact in _read_facts(file)]
        values = read_toml(relations) if relations else {}
        worded = {name: RelationConfig.parse(each, source=f"{relations}: {name}") for name, each in values.items()}
        return cls(facts, worded)

    def record(self) -> dict[str, Any]:
        """All that readings depend on."""
        worded = {name: self.relations[name].model_dump(mode="json") for name in sorted(self.relations)}
        return {"facts": self.digest, "relations": worded}

    def name_subject(self, text: str) -> str | None:
        """The subject that a text names as a whole; None where the table has none of this name."""
        words = split_words(text)
        mentions = self._subjects.find(words, is_cased=False)
        whole = [each for each in mentions if each.first == 0 and each.last == len(words)]
        return whole[0].meanings[0] if whole else None

    def state(self, subject: str, relation: str, value: str) -> str:
        """A fact as a sentence."""
        fields = {"subject": subject, "relation": relation.replace("_", " "), "object": value}
        return fill(self.relations[relation].statement, fields)

    def ask(self, subject: str, relation: str) -> str:
        """A question about a fact."""
        return fill(self.relations[relation].question, {"subject": subject, "relation": relation.replace("_", " ")})

    def read_claim(self, text: str, subject: str | None = None) -> list[Reading]:
        """A text's statements on the relations of its subject.

        Args:
            text: a sentence.
            subject: whom it speaks of where it begins with `It`, `The city` and the like; of all whom it names, the one
                to look at first.
        """
        words = split_words(text)
        if any(word.text in NEGATIONS for word in words):
            return []
        mentions = [(name, each.first, each.last) for each in self._subjects.find(words) for name in each.meanings]
        mentions.sort(key=lambda mention: mention[0] != subject)
        if (
            subject is not None
            and words
            and words[0].text in REFERRING
            and subject not in {each[0] for each in mentions}
        ):
            mentions.append((subject, 0, 0))
        spans = {(first, last) for _, first, last in mentions}
        for name, first, last in mentions:
            found = [self._read_relation(words, name, relation, (first, last), spans) for relation in self._facts[name]]
            if readings := [each for each in found if each is not None]:
                return readings
        return []

    def explain_silence(self, text: str, subject: str | None = None) -> str:
        """The reason why `read_claim` finds nothing, as one word."""
        words = split_words(text)
        if any(word.text in NEGATIONS for word in words):
            return "negated"
        return "no_known_relation" if subject or self._subjects.find(words) else "no_known_subject"

    def search(self, query: str, limit: int) -> list[Passage]:
        """The facts of the subjects that a query names, those whose cue it has first."""
        words = split_words(query)
        found: list[tuple[bool, Passage]] = []
        for mention in self._subjects.find(words):
            for subject in mention.meanings:
                for relation, values in self._facts[subject].items():
                    text = " ".join(self.state(subject, relation, value) for value in values)
                    passage = Passage(f"{subject}/{relation}", text, "table of facts")
                    found.append((not self._cues[relation].find(words, is_cased=False), passage))
        return [passage for _, passage in sorted(found, key=lambda each: each[0])][:limit]

    def _read_relation(
        self, words: Sequence[Word], subject: str, relation: str, taken: tuple[int, int], spans: set[tuple[int, int]]
    ) -> Reading | None:
        """The value that stands nearest behind a cue, or else nearest before it."""
        expected = tuple(self._facts[subject][relation])
        values = [
            each
            for each in self._find_values(words, relation)
            if (each[1] <= taken[0] or each[0] >= taken[1])
            and not any(
                first <= each[0] and each[1] <= last and last - first > each[1] - each[0] for first, last in spans
            )
        ]  # the Mexico of Mexico City is no value
        cues = self._cues[relation].find(words, is_cased=False)
        for cue in cues:
            behind = [value for value in values if value[0] >= cue.last]
            if behind:
                return self._build_reading(subject, relation, behind[0][2], expected)
        for cue in cues:
            before = [value for value in values if value[1] <= cue.first]
            if before:
                return self._build_reading(subject, relation, before[-1][2], expected)
        return None

    def _build_reading(self, subject: str, relation: str, value: tuple[str, ...], expected: tuple[str, ...]) -> Reading:
        if relation in self._numeric:
            number, tolerance = float(value[0]), self.relations[relation].tolerance
            is_right = any(abs(number - float(each)) <= tolerance * abs(float(each)) + 1e-9 for each in expected)
            return Reading(subject, relation, value[0], expected, is_right)
        right = [each for each in value if each in expected]  # a name that several things have is given the benefit
        return Reading(subject, relation, (right or list(value))[0], expected, bool(right))

    def _find_values(self, words: Sequence[Word], relation: str) -> list[tuple[int, int, tuple[str, ...]]]:
        """The values of a relation that a text names: first word, end, what it may mean."""
        if relation in self._numeric:
            return _find_numbers(words)
        found = self._values[relation].find(words)
        return [(each.first, each.last, each.meanings) for each in found if not _goes_on(words, each.last)]

    @cached_property
    def _subjects(self) -> Names:
        names = Names()
        for subject in self._facts:
            for name in (subject, *self._aliases.get(subject, ())):
                names.add(name, subject)
        return names

    @cached_property
    def _objects(self) -> dict[str, set[str]]:
        objects: dict[str, set[str]] = {}
        for facts in self._facts.values():
            for relation, values in facts.items():
                objects.setdefault(relation, set()).update(values)
        return objects

    @cached_property
    def _numeric(self) -> frozenset[str]:
        """Relations whose objects are all numbers."""
        return frozenset(name for name, values in self._objects.items() if all(map(_is_number, values)))

    @cached_property
    def _values(self) -> dict[str, Names]:
        names = {relation: Names() for relation in self._objects}
        for relation, values in self._objects.items():
            for value in sorted(values):
                for name in (value, *self._aliases.get(value, ())):
                    names[relation].add(name, value)
        return names

    @cached_property
    def _cues(self) -> dict[str, Names]:
        cues = {relation: Names() for relation in self.relations}
        for relation, config in self.relations.items():
            for cue in config.cues or (relation.replace("_", " "),):
                cues[relation].add(cue, cue)
        return cues


def split_words(text: str) -> list[Word]:
    """The words and numbers of a text, with their places in it."""
    return [Word(_fold(match[0]), match.start(), match.end(), match[0][:1].isupper()) for match in _WORD.finditer(text)]


def fill(text: str, fields: Mapping[str, str]) -> str:
    """Replaces `{name}`s in one pass, so that names inside of values stay text."""
    return re.sub(r"\{(\w+)\}", lambda match: fields.get(match[1], match[0]), text)


def _fold(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(each for each in decomposed if not unicodedata.combining(each))


def _goes_on(words: Sequence[Word], place: int) -> bool:
    """True if a name that ends before a word is part of a longer one, as the China of the South China Sea."""
    return place < len(words) and words[place].is_capital and words[place].start - words[place - 1].end == 1


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _find_numbers(words: Sequence[Word]) -> list[tuple[int, int, Words]]:
    """The numbers in a text, `1.5 million` among them."""
    found: list[tuple[int, int, Words]] = []
    for place, word in enumerate(words):
        if _NUMBER.fullmatch(word.text):
            scale = SCALES.get(words[place + 1].text) if place + 1 < len(words) else None
            value = float(word.text.replace(",", "")) * (scale or 1.0)
            found.append((place, place + 1 + (scale is not None), (f"{value:.15g}",)))
    return found


def _read_facts(file: str) -> Iterable[tuple[str, str, str]]:
    """Yields the rows of a file or query."""
    try:
        import duckdb
    except ImportError:
        raise MissingDependencyError("duckdb is not installed; run: pip install duckdb") from None
    with duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False}) as base:
        try:
            result = base.execute(_query_of(file))
        except (duckdb.Error, OSError) as error:
            raise DataError(f"{file}: no readable table of facts: {error}") from None
        columns = [column[0].lower() for column in result.description]
        for name in COLUMNS:
            if name not in columns:
                raise DataError(f"{file}: no column {name!r} (columns: {', '.join(columns)})")
        places = [columns.index(name) for name in COLUMNS]
        for number, row in enumerate(result.fetchall(), start=1):
            values = ["" if row[place] is None else str(row[place]).strip() for place in places]
            for name, value in zip(COLUMNS, values, strict=True):
                if not value:
                    raise DataError(f"{file}, row {number}, field {name!r}: empty; fill it or drop the row")
            yield (values[0], values[1], values[2])


def _query_of(file: str) -> str:
    path = Path(file)
    if path.suffix == ".sql":
        return path.read_text(encoding="utf-8")
    literal = "'" + file.replace("'", "''") + "'"
    if path.suffix in (".csv", ".tsv"):
        return f"SELECT * FROM read_csv({literal}, all_varchar = true, header = true)"
    if path.suffix in (".parquet", ".pq"):
        return f"SELECT * FROM read_parquet({literal})"
    if path.suffix in (".jsonl", ".ndjson"):
        return f"SELECT * FROM read_json({literal}, format = 'newline_delimited')"
    raise ConfigError(f"facts: {file}: tables end in .csv, .tsv, .parquet or .jsonl, queries in .sql")


def digest_of(value: Any) -> str:
    """A short hash of plain JSON values."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()
