"""The records of a build: what was asked, what was answered, what it claims, and whether that holds.

Ask --answer--> Answer --decompose--> Claim --label--> Ruling --ask about--> Probe
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Finding = Literal["supported", "contradicted", "undetermined"]
Span = tuple[int, int]
"""Characters of an answer: from, and up to but not including."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A prompt that asks for a long answer."""

    id: str
    text: str
    subject: str | None = None
    """The subject that the prompt asks about, where its row says so."""
    canary: str | None = None
    """A mark by which the data's owner asks that nobody trains on them."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of the model under study."""

    ask: Ask
    text: str
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One self-contained statement of an answer."""

    id: str
    answer: Answer
    text: str
    span: Span
    """The part of the answer that says so."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of evidence."""

    id: str
    text: str
    source: str

    def record(self) -> dict[str, Any]:
        """The passage as plain values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Ruling:
    """A ruling on whether the evidence supports a claim."""

    finding: Finding
    rationale: str
    reason: str = ""
    """The reason why nothing was determined, as one word for counting."""
    evidence: tuple[Passage, ...] = ()
    facts: tuple[Mapping[str, Any], ...] = ()
    """The reading that a table of facts was asked for: subject, relation, the claim's value, the table's values."""

    def record(self) -> dict[str, Any]:
        """The ruling as plain values."""
        return {**asdict(self), "facts": [dict(fact) for fact in self.facts]}

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> "Ruling":
        """The ruling of `record`."""
        evidence = tuple(Passage(**each) for each in record["evidence"])
        return cls(record["finding"], record["rationale"], record["reason"], evidence, tuple(record["facts"]))


@dataclass(frozen=True, slots=True)
class Probe:
    """The auxiliary question about a claim's key information, with the true answer."""

    question: str
    answer: str
    explanation: str
