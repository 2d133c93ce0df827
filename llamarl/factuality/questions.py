"""One auxiliary question about each claim, with the true answer: what RATE-FT trains beside detection.

A factual claim's answer stands in the claim; a hallucinated claim's stands in the rationale and differs from what the
claim says. A question that breaks this is dropped with its reason, so that no falsehood is taught as an answer.

Reference: Qin et al., https://arxiv.org/abs/2505.12265, section 3.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llamarl.factuality.asking import Helper
from llamarl.factuality.claims import Claim, Probe, Ruling
from llamarl.factuality.facts import FactTable, split_words
from llamarl.factuality.stages import Stage


@dataclass(frozen=True, slots=True)
class Ruled:
    """A claim with a ruling that is not undetermined."""

    claim: Claim
    ruling: Ruling


class Questioner(Stage[Ruled]):
    """The stage from ruled claims to `{"question": Probe or null, "problem"}`."""

    name = "questions"

    def content(self, item: Ruled) -> Any:
        """Claim, finding, rationale and what the table was read for."""
        ruling = item.ruling
        return [item.claim.text, ruling.finding, ruling.rationale, [dict(fact) for fact in ruling.facts]]


class FactQuestioner(Questioner):
    """Asks for the first fact that decided, in the table's words."""

    def __init__(self, table: FactTable) -> None:
        self._table = table

    def record(self) -> Mapping[str, Any]:
        """The table."""
        return {"kind": "facts", "version": 1, **self._table.record()}

    async def process(self, item: Ruled) -> dict[str, Any]:
        """The table's question; none where the ruling came from elsewhere."""
        if not item.ruling.facts:
            return {"question": None, "problem": "no_fact"}
        fact = item.ruling.facts[0]
        is_right = item.ruling.finding == "supported"
        answer = str(fact["value"] if is_right else fact["expected"][0])
        question = self._table.ask(str(fact["subject"]), str(fact["relation"]))
        stated = self._table.state(str(fact["subject"]), str(fact["relation"]), answer)
        return _result(item, Probe(question, answer, stated))


class ModelQuestioner(Questioner):
    """The helper model words the question and extracts the answer."""

    def __init__(self, helper: Helper) -> None:
        self._helper = helper

    def record(self) -> Mapping[str, Any]:
        """The model and its prompts."""
        prompts = ("question", "answer_from_claim", "answer_from_rationale")
        return {"kind": "model", "version": 1, **self._helper.record(*prompts)}

    async def process(self, item: Ruled) -> dict[str, Any]:
        """Asks for a question, then for its answer."""
        question = _first_line(await self._helper.ask("question", claim=item.claim.text))
        if "?" not in question:
            return {"question": None, "problem": "no_question"}
        question = question[: question.rindex("?") + 1]
        if item.ruling.finding == "supported":
            reply = await self._helper.ask("answer_from_claim", question=question, claim=item.claim.text)
        else:
            texts = {"claim": item.claim.text, "rationale": item.ruling.rationale}
            reply = await self._helper.ask("answer_from_rationale", question=question, **texts)
        answer = _first_line(reply).strip("\"'` ").rstrip(".")
        return _result(item, Probe(question, answer, item.ruling.rationale))


def check_probe(item: Ruled, probe: Probe) -> str:
    """The reason why a question is no good, as one word; empty where it is."""
    if not split_words(probe.answer):
        return "no_answer"
    in_claim = contains(item.claim.text, probe.answer)
    if item.ruling.finding == "supported":
        return "" if in_claim else "answer_not_in_claim"
    if in_claim:
        return "answer_is_the_claim's"
    return "" if contains(item.ruling.rationale, probe.answer) else "answer_not_in_rationale"


def contains(text: str, part: str) -> bool:
    """True if the words of the part stand in the text, one after another, without regard to case and accents."""
    words, wanted = ([word.text.replace(",", "") for word in split_words(each)] for each in (text, part))
    return any(words[start : start + len(wanted)] == wanted for start in range(len(words) - len(wanted) + 1))


def _result(item: Ruled, probe: Probe) -> dict[str, Any]:
    problem = check_probe(item, probe)
    return {"question": None if problem else asdict(probe), "problem": problem}


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0].strip()
