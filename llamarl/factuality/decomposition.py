"""Answers taken apart into claims: each a self-contained statement with the part of the answer that says it.

SentenceDecomposer()         every sentence is a claim; a pronoun at its head becomes the prompt's subject
FactDecomposer(table)        one claim for each relation of the table that a sentence speaks of, in the table's words
ModelDecomposer(helper)      the helper model lists atomic claims with quotations, which are found in the answer
"""

import re
from collections.abc import Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any

from llamarl.factuality.asking import Helper, excerpt_of, read_list
from llamarl.factuality.claims import Answer, Claim, Span
from llamarl.factuality.facts import FactTable, split_words
from llamarl.factuality.stages import Stage

MIN_WORDS = 3
"""Shorter sentences, such as headings, claim nothing."""
MIN_OVERLAP = 0.5
"""Share of a claim's words that the best sentence must hold, where its quotation is not in the answer."""
MAX_CLAIMS = 200
"""More claims of one answer are not read: a model that repeats itself does not end by itself."""
ABBREVIATIONS = frozenset(
    {
        "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "mt", "gen", "col", "capt", "lt", "sgt", "rev", "gov",
        "inc", "ltd", "co", "corp", "vs", "etc", "e.g", "i.e", "u.s", "u.k", "a.m", "p.m",
    }
)  # fmt: skip
MAX_ABBREVIATION = 8
"""Characters before a full stop that are looked at for an abbreviation."""
PRONOUNS = frozenset(["it", "its", "he", "his", "she", "her", "they", "their"])
POSSESSIVES = frozenset(["its", "his", "their"])
# A run of stops is tried once, from its first: in a text of nothing but stops each further start would read it again.
_END = re.compile(r"(?<![.!?])[.!?]++[\"'”’)\]*_]*+(?=\s|$)|[。！？।॥؟۔။។]+[」』”’)]*|\n+")
_HEAD = re.compile(r"^\s*(?:[-*•#>]+|\d{1,3}[.)])\s+")
_NEXT = re.compile(r"\s*(\S?)")
# Thai and Lao write no stops: a space between two of their letters ends a clause. One beside a number or a foreign word
# does not, nor one behind a mark of repetition or abbreviation.
_CLAUSE_END = re.compile(
    r"(?<=[\u0e01-\u0e2e\u0e30-\u0e45\u0e47-\u0e4e\u0e81-\u0eae\u0eb0-\u0ec4\u0ec8-\u0ece])[ \u00a0]+"
    r"(?=[\u0e01-\u0e45\u0e81-\u0ec4])"
)
MIN_CLAUSE = 24
"""Characters below which a clause between two spaces is joined to its neighbour: a name or an item of a list."""


def split_sentences(text: str) -> Iterator[Span]:
    """Yields the sentences of a text of any script, without blanks, bullets and list numbers at their head.

    Of Thai and Lao, which write no stops, clauses between spaces.
    """
    start = 0
    for match in [*_END.finditer(text), None]:
        end = match.end() if match else len(text)
        if match and match[0][0] in ".\n":
            following = _NEXT.match(text, end)[1]  # type: ignore[index]  # it matches anywhere
            word = text[max(start, match.start() - MAX_ABBREVIATION) : match.start()]
            is_abbreviation = match[0] == "." and _is_abbreviation(word)
            if following.islower() or (following and is_abbreviation):
                continue
        piece = text[start:end]
        head = _HEAD.match(piece)
        first = start + (head.end() if head else len(piece) - len(piece.lstrip()))
        last = start + len(piece.rstrip())
        if any(each.isalnum() for each in text[first:last]):
            yield from _split_clauses(text, first, last)
        start = end


def _split_clauses(text: str, first: int, last: int) -> Iterator[Span]:
    """Yields the clauses of a sentence whose script ends them by spaces, none of them short; else the sentence."""
    for match in _CLAUSE_END.finditer(text, first, last):
        if min(match.start() - first, last - match.end()) >= MIN_CLAUSE:
            yield first, match.start()
            first = match.end()
    yield first, last


def _is_abbreviation(before: str) -> bool:
    word = re.split(r"[\s(\[\"'“‘]", before)[-1].lower()
    return word in ABBREVIATIONS or (len(word) == 1 and word.isalpha() and not before.endswith(" i"))


def name_subject(sentence: str, subject: str | None) -> str:
    """The sentence with a pronoun at its head replaced by the subject, so that it can stand alone."""
    match = re.match(r"(?P<pronoun>\w+)\b", sentence)
    if subject is None or match is None or (word := match["pronoun"].lower()) not in PRONOUNS:
        return sentence
    return f"{subject}{chr(39) + 's' if word in POSSESSIVES else ''}{sentence[match.end() :]}"


class Decomposer(Stage[Answer]):
    """The stage from answers to claims: `{"claims": [{"text", "span"}], "dropped": {reason: count}, "problem"}`."""

    name = "claims"

    def content(self, item: Answer) -> Any:
        """Prompt, subject and answer."""
        return [item.ask.text, item.ask.subject, item.text]


def read_claims(answer: Answer, result: Mapping[str, Any]) -> tuple[list[Claim], dict[str, int]]:
    """The claims of a decomposer's result, and the number of those that are left out, by reason.

    A claim at the very end of an answer that the token limit cut is left out: the end of its sentence is not there.
    """
    claims, dropped = [], dict(result["dropped"])
    for number, claim in enumerate(result["claims"]):
        start, end = claim["span"]
        if answer.finish_reason == "length" and end >= len(answer.text.rstrip()):
            dropped["cut_off"] = dropped.get("cut_off", 0) + 1
        else:
            claims.append(Claim(f"{answer.ask.id}/{number}", answer, claim["text"], (start, end)))
    return claims, dropped


class SentenceDecomposer(Decomposer):
    """Every sentence of at least `MIN_WORDS` words is a claim; scripts without blanks between words count letters."""

    def record(self) -> Mapping[str, Any]:
        """The rule's version."""
        return {"kind": "sentences", "version": 2}

    async def process(self, item: Answer) -> dict[str, Any]:
        """The sentences of an answer."""
        claims, dropped = [], 0
        for start, end in split_sentences(item.text):
            text = item.text[start:end]
            if len(text) < 4 * MIN_WORDS and len(split_words(text)) < MIN_WORDS:
                dropped += 1
                continue
            claims.append({"text": name_subject(text, item.ask.subject), "span": [start, end]})
        return _result(claims, {"too_short": dropped})


class FactDecomposer(Decomposer):
    """Claims that a table of facts can check: one claim for each relation that a sentence speaks of."""

    def __init__(self, table: FactTable) -> None:
        self._table = table

    def record(self) -> Mapping[str, Any]:
        """The table."""
        return {"kind": "facts", "version": 1, **self._table.record()}

    async def process(self, item: Answer) -> dict[str, Any]:
        """The claims of an answer; sentences that say nothing of a known relation are counted."""
        subject = self._table.name_subject(item.ask.subject) if item.ask.subject else None
        claims: list[dict[str, Any]] = []
        dropped = {"no_known_relation": 0, "repeated": 0, "not_restated": 0}
        for start, end in split_sentences(item.text):
            readings = self._table.read_claim(item.text[start:end], subject)
            dropped["no_known_relation"] += not readings
            for reading in readings:
                text = self._table.state(reading.subject, reading.relation, reading.value)
                if any(claim["text"] == text for claim in claims):
                    dropped["repeated"] += 1
                elif reading not in self._table.read_claim(text, reading.subject):
                    dropped["not_restated"] += 1  # the table would read its own sentence otherwise
                else:
                    claims.append({"text": text, "span": [start, end]})
        return _result(claims, dropped)


class ModelDecomposer(Decomposer):
    """The helper model lists the claims; what cannot be found in the answer is dropped and counted."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def record(self) -> Mapping[str, Any]:
        """The model and its prompt."""
        return {"kind": "model", "version": 1, **self._helper.record("decompose")}

    async def process(self, item: Answer) -> dict[str, Any]:
        """The claims of an answer."""
        if not item.text.strip():
            return _result([], {})
        reply = await self._helper.ask("decompose", prompt=item.ask.text, answer=item.text)
        listed = read_list(reply)
        if listed is None:
            return _result([], {}, f"no list of claims: {excerpt_of(reply)!r}")
        claims: list[dict[str, Any]] = []
        dropped = {"no_text": 0, "not_in_answer": 0, "repeated": 0, "too_many": max(0, len(listed) - MAX_CLAIMS)}
        for entry in listed[:MAX_CLAIMS]:
            text, quote = entry.get("claim"), entry.get("quote")
            if not isinstance(text, str) or not text.strip():
                dropped["no_text"] += 1
            elif any(claim["text"] == text.strip() for claim in claims):
                dropped["repeated"] += 1
            elif (span := find_span(item.text, text, quote if isinstance(quote, str) else "")) is None:
                dropped["not_in_answer"] += 1
            else:
                claims.append({"text": text.strip(), "span": list(span)})
        return _result(claims, dropped)


def find_span(answer: str, claim: str, quote: str) -> Span | None:
    """The place where an answer says a claim: the quotation, or the sentence that shares most of the claim's words."""
    words = quote.split()
    if words and (match := re.search(r"\s+".join(map(re.escape, words)), answer)):
        return match.span()
    wanted = {word.text for word in split_words(claim)}
    best: tuple[float, float, Span] | None = None
    for span in split_sentences(answer):
        sentence = answer[span[0] : span[1]]
        share = len(wanted & {word.text for word in split_words(sentence)}) / max(1, len(wanted))
        likeness = SequenceMatcher(None, claim, sentence, autojunk=False).quick_ratio()
        if best is None or (share, likeness) > best[:2]:
            best = (share, likeness, span)
    return best[2] if best and best[0] >= MIN_OVERLAP else None


def _result(claims: list[dict[str, Any]], dropped: Mapping[str, int], problem: str = "") -> dict[str, Any]:
    return {"claims": claims, "dropped": {name: count for name, count in dropped.items() if count}, "problem": problem}
