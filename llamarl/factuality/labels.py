"""Rulings on claims: is it supported, contradicted, or undetermined, why, and by what evidence?

    FactLabeller(table)                   rules over a table of facts, no model
    ModelLabeller(helper, evidence)       the helper model reasons over passages, and says its verdict last
    PassageFinder(evidence)               passages alone, for a reader

A model that gives no verdict determines nothing. That is told apart from evidence that is silent (`reason`).
"""

from collections.abc import Mapping
from typing import Any

from llamarl.factuality.asking import Helper, excerpt_of, read_word
from llamarl.factuality.claims import Claim, Finding, Passage, Ruling
from llamarl.factuality.evidence import Evidence
from llamarl.factuality.facts import FactTable
from llamarl.factuality.stages import Stage

NO_VERDICT = "no_verdict"
"""The reason of a ruling whose model did not say one; it is a failure of the checker, not of the claim."""
UNJUDGED = "unjudged"
"""The reason of a ruling where nobody was asked to judge."""
FINDINGS: Mapping[str, Finding] = {
    "true": "supported",
    "supported": "supported",
    "false": "contradicted",
    "contradicted": "contradicted",
    "undetermined": "undetermined",
    "not enough evidence": "undetermined",
    "unknown": "undetermined",
}


class Relevance(Stage[Claim]):
    """Does the claim speak of what the prompt asked? `{"is_relevant": bool or null, "problem"}`."""

    name = "relevance"

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def record(self) -> Mapping[str, Any]:
        """The model and its prompt."""
        return {"kind": "model", "version": 1, **self._helper.record("relevance")}

    def content(self, item: Claim) -> Any:
        """Prompt and claim."""
        return [item.answer.ask.text, item.text]

    async def process(self, item: Claim) -> dict[str, Any]:
        """Asks; an answer that says neither yes nor no leaves the claim in and is counted."""
        reply = await self._helper.ask("relevance", prompt=item.answer.ask.text, claim=item.text)
        said = read_word(reply, {"yes": True, "no": False})
        return {"is_relevant": said, "problem": f"neither yes nor no: {excerpt_of(reply)!r}" if said is None else ""}


class Labeller(Stage[Claim]):
    """The stage from claims to `Ruling.record`s."""

    name = "labels"

    def content(self, item: Claim) -> Any:
        """Subject and claim."""
        return [item.answer.ask.subject, item.text]


class FactLabeller(Labeller):
    """Rules over a table of facts.

    A claim is contradicted if anything that it says of the table's relations is wrong, else supported if anything is
    right; it is undetermined if it says nothing that the table knows.
    """

    def __init__(self, table: FactTable) -> None:
        self._table = table

    def record(self) -> Mapping[str, Any]:
        """The table."""
        return {"kind": "facts", "version": 1, **self._table.record()}

    async def process(self, item: Claim) -> dict[str, Any]:
        """The ruling of the table."""
        asked = item.answer.ask.subject
        subject = self._table.name_subject(asked) if asked else None
        readings = self._table.read_claim(item.text, subject)
        if not readings:
            reason = self._table.explain_silence(item.text, subject)
            return Ruling("undetermined", "", reason).record()
        decisive = [each for each in readings if not each.is_right] or readings
        sentences, evidence = [], []
        for reading in decisive:
            stated = [self._table.state(reading.subject, reading.relation, value) for value in reading.expected]
            evidence.append(Passage(f"{reading.subject}/{reading.relation}", " ".join(stated), "table of facts"))
            sentences += [*stated, *([] if reading.is_right else [f"The claim says {reading.value} instead."])]
        finding: Finding = "supported" if all(each.is_right for each in readings) else "contradicted"
        facts = tuple(reading.record() for reading in decisive)
        return Ruling(finding, " ".join(sentences), "", tuple(evidence), facts).record()


class ModelLabeller(Labeller):
    """The helper model judges a claim by passages.

    Args:
        helper: the model.
        evidence: where passages come from.
        num_queries: searches that the model words itself, one after another, seeing what was found; 0: the claim is
            the one query.
        num_passages: of each search.
    """

    def __init__(self, helper: Helper, evidence: Evidence, *, num_queries: int = 0, num_passages: int = 3) -> None:
        self._helper, self._evidence = helper, evidence
        self._num_queries, self._num_passages = num_queries, num_passages

    def record(self) -> Mapping[str, Any]:
        """The model, its prompts, the evidence, and how it is searched."""
        settings = {"num_queries": self._num_queries, "num_passages": self._num_passages}
        models = self._helper.record("query", "label")
        return {"kind": "model", "version": 1, **settings, "evidence": dict(self._evidence.record()), **models}

    async def process(self, item: Claim) -> dict[str, Any]:
        """Searches, then asks for reasons and a verdict."""
        passages = await self._gather(item)
        reply = await self._helper.ask("label", claim=item.text, evidence=list_passages(passages))
        finding = read_word(reply, FINDINGS)
        if finding is None:
            return Ruling("undetermined", reply, NO_VERDICT, tuple(passages)).record()
        reason = "" if finding != "undetermined" else "not_enough_evidence" if passages else "no_evidence"
        return Ruling(finding, reply, reason, tuple(passages)).record()

    async def _gather(self, item: Claim) -> list[Passage]:
        found: dict[str, Passage] = {}
        for _ in range(max(1, self._num_queries)):
            query = item.text
            if self._num_queries:
                known = list_passages(list(found.values()))
                query = await self._helper.ask("query", claim=item.text, evidence=known) or item.text
                query = query.splitlines()[0].strip("\"'` ")
            for passage in await self._evidence.search(query, self._num_passages):
                found.setdefault(passage.id, passage)
        return list(found.values())


class PassageFinder(Labeller):
    """Finds passages for a reader to judge by; nothing is determined.

    Args:
        evidence: where passages come from; the claim is the query.
        num_passages: the most of them.
    """

    def __init__(self, evidence: Evidence, num_passages: int = 3) -> None:
        self._evidence, self._num_passages = evidence, num_passages

    def record(self) -> Mapping[str, Any]:
        """The evidence, and how much of it."""
        return {"kind": "passages", "version": 1, "num_passages": self._num_passages, **self._evidence.record()}

    async def process(self, item: Claim) -> dict[str, Any]:
        """The passages, without a ruling."""
        passages = await self._evidence.search(item.text, self._num_passages)
        return Ruling("undetermined", "", UNJUDGED, tuple(passages)).record()


def list_passages(passages: list[Passage]) -> str:
    """Passages as a model reads them."""
    return "\n".join(f"- {passage.text}" for passage in passages) or "(nothing was found)"
