"""Scored texts as people read them: the doubtful claims marked in place, on the terminal and on a page of HTML."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llamarl.factuality.claims import Ruling
from llamarl.factuality.labels import NO_VERDICT, UNJUDGED
from llamarl.factuality.scoring import ScoredClaim
from llamarl.factuality.stages import count_reasons
from llamarl.factuality.texts import ScoredText
from llamarl.report.figures import Tone
from llamarl.report.page import Mark, MarkedText, Notes, Page, Part, Section, Table, Verdict

if TYPE_CHECKING:
    from rich.text import Text as RichText

COLUMNS = ("claim", "P factual", "mass")
EVIDENCE_COLUMNS = (*COLUMNS, "ruling", "evidence")
STYLES: Mapping[Tone, str] = {"bad": "bold red", "unsure": "yellow", "good": ""}
"""The colour of each tone on a terminal, the worst first."""
DROPPED = {"too_short": "too short", "no_known_relation": "without a relation that the table knows"}
"""Words for reasons."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters of a text that the same claims cover."""

    text: str
    claims: tuple[ScoredClaim, ...] = ()
    ending: tuple[ScoredClaim, ...] = ()
    """The claims that end with this piece."""


def cut_text(text: str, claims: Sequence[ScoredClaim]) -> Iterator[Piece]:
    """Yields the pieces of a text, in order and without gaps; claims may overlap."""
    waiting = sorted(claims, key=lambda each: each.claim.span[0], reverse=True)
    places = sorted({0, len(text), *(place for each in claims for place in each.claim.span)})
    active: list[ScoredClaim] = []
    for start, end in itertools.pairwise(places):
        active = [each for each in active if each.claim.span[1] > start]
        while waiting and waiting[-1].claim.span[0] <= start:
            active.append(waiting.pop())
        yield Piece(text[start:end], tuple(active), tuple(each for each in active if each.claim.span[1] == end))


def tone_of(claim: ScoredClaim, threshold: float) -> Tone:
    """Bad below the threshold, good above, unsure without a score."""
    is_doubtful = claim.is_doubtful(threshold)
    return "unsure" if is_doubtful is None else "bad" if is_doubtful else "good"


def format_score(claim: ScoredClaim) -> str:
    """The probability in short; a mark behind one in doubt."""
    p = claim.score.p_factual
    return "no score" if p is None else f"{p:.2f}{' low mass' if claim.has_low_mass else ''}"


def count_claims(claims: Sequence[ScoredClaim], threshold: float) -> dict[Tone, int]:
    """The number of claims of each tone."""
    tones = [tone_of(each, threshold) for each in claims]
    return {tone: tones.count(tone) for tone in STYLES}


def summarize(text: ScoredText, threshold: float) -> str:
    """The finding on a text, in one sentence."""
    if not text.claims:
        return "no claims"
    counts, total = count_claims(text.claims, threshold), len(text.claims)
    noun = "claim" if total == 1 else "claims"
    without = f", {counts['unsure']} without a score" if counts["unsure"] else ""
    return f"{counts['bad']} of {total} {noun} doubtful{without}"


def list_warnings(text: ScoredText) -> Iterator[str]:
    """Yields what a reader should know."""
    if text.found.dropped:
        parts = [f"{count} {DROPPED.get(name, name)}" for name, count in text.found.dropped.items()]
        yield f"parts of the text that are no claims: {', '.join(parts)}"
    if text.source.num_broken:
        yield f"{text.source.num_broken} places in the file are no UTF-8 and are shown as \N{REPLACEMENT CHARACTER}"
    if text.found.problem:
        yield f"the helper gave {text.found.problem}"
    low = sum(each.has_low_mass for each in text.claims)
    if low:
        yield (
            f"{low} of {len(text.claims)} scores are in doubt: True and False together had less than half of the "
            "probability (low mass)"
        )
    for problem, count in count_reasons([each.score.problem for each in text.claims if each.score.problem]).items():
        yield f"no score for {count} of {len(text.claims)} claims: {problem}"
    for problem, count in count_reasons(text.problems).items():
        yield f"no evidence for {count} of {len(text.claims)} claims: {problem}"


# ---- terminal -------------------------------------------------------------------------------------------------------


def mark_text(text: ScoredText, threshold: float) -> "RichText":
    """The text for a terminal: doubtful claims and those without a score in colour and in brackets, with the score."""
    from rich.text import Text

    marked, is_open = Text(), set[str]()
    for piece in cut_text(text.found.text, text.claims):
        shown = [each for each in piece.claims if tone_of(each, threshold) != "good"]
        style = STYLES[_worst(shown, threshold)] if shown else ""
        opening = sum(each.claim.id not in is_open for each in shown)
        is_open |= {each.claim.id for each in shown}
        closing = "".join(f" {format_score(each)}]" for each in piece.ending if each in shown)
        marked.append("[" * opening + piece.text + closing, style)
    return marked


def _worst(claims: Sequence[ScoredClaim], threshold: float) -> Tone:
    tones = {tone_of(each, threshold) for each in claims}
    return next(tone for tone in STYLES if tone in tones)


def list_lines(text: ScoredText, threshold: float) -> Iterator[str]:
    """Yields lines on the claims that the text alone does not show: restated ones in doubt, and those with evidence."""
    rulings = text.rulings or [None] * len(text.claims)
    for each, ruling in zip(text.claims, rulings, strict=True):
        start, end = each.claim.span
        is_restated = each.claim.text != text.found.text[start:end] and tone_of(each, threshold) != "good"
        if ruling is None and not is_restated:
            continue
        yield f"{format_score(each):>8}  {each.claim.text}"
        if ruling is not None:
            yield f"          {format_ruling(ruling)}"
            yield from (f"          - {passage.text} ({passage.source})" for passage in ruling.evidence)


def format_ruling(ruling: Ruling) -> str:
    """The finding in words."""
    if ruling.reason == UNJUDGED:
        return "passages, not judged" if ruling.evidence else "no passages found"
    if ruling.reason == NO_VERDICT:
        return "the helper gave no verdict"
    reason = ruling.reason.replace("_", " ")
    return f"undetermined: {reason}" if ruling.finding == "undetermined" and reason else ruling.finding


# ---- page -----------------------------------------------------------------------------------------------------------


def build_page(texts: Sequence[ScoredText], detector: str, threshold: float, prompt: str = "") -> Page:
    """The page of some texts."""
    claims = [each for text in texts for each in text.claims]
    counts = count_claims(claims, threshold)
    tone: Tone = "unsure" if not claims or counts["unsure"] == len(claims) else "bad" if counts["bad"] else "good"
    gist = f"{counts['bad']} of {len(claims)} claims doubtful" if claims else "No claims"
    parts: list[Part | Section] = [Verdict(tone, gist, _explain(threshold)), *([f"Asked: {prompt}"] if prompt else [])]
    if len(texts) == 1:
        parts += _describe_text(texts[0], threshold)
    else:
        for text in texts:
            summary = f"{summarize(text, threshold)}."
            parts.append(Section(text.source.name, [summary, *_describe_text(text, threshold)]))
    return Page(
        f"Claims of {Path(texts[0].source.name).name}" if len(texts) == 1 else f"Claims of {len(texts)} texts",
        parts,
        f"Detector {detector}, threshold {threshold:.3f}",
    )


def _explain(threshold: float) -> str:
    return (
        f"A claim is doubtful if its probability to be factual is {threshold:.2f} or less. The number behind each "
        "claim is that probability, by the detector alone, which looks nothing up."
    )


def _describe_text(text: ScoredText, threshold: float) -> Iterator[Part]:
    yield MarkedText([_mark(piece, threshold) for piece in cut_text(text.found.text, text.claims)])
    if warnings := list(list_warnings(text)):
        yield Notes(warnings)
    if text.claims:
        columns = EVIDENCE_COLUMNS if text.rulings else COLUMNS
        yield Table(columns, list(_rows(text)), is_prose=True)


def _mark(piece: Piece, threshold: float) -> Mark:
    note = " ".join(map(format_score, piece.ending))
    if not piece.claims:
        return Mark(piece.text, note=note)
    tone = _worst(piece.claims, threshold)
    strength = max(_strength(each, threshold) for each in piece.claims if tone_of(each, threshold) == tone)
    titles = [f"{format_score(each)}: {each.claim.text}" for each in piece.claims]
    return Mark(piece.text, tone, strength, note, "\n".join(titles))


def _strength(claim: ScoredClaim, threshold: float) -> float:
    """The distance of the score from the threshold, as a share of the way there is on its side."""
    p = claim.score.p_factual
    if p is None:
        return 1.0
    room = threshold if p <= threshold else 1.0 - threshold
    return abs(p - threshold) / room if room else 1.0


def _rows(text: ScoredText) -> Iterator[list[str]]:
    rulings = text.rulings or [None] * len(text.claims)
    for each, ruling in zip(text.claims, rulings, strict=True):
        p, mass = each.score.p_factual, each.score.mass
        row = [
            each.claim.text,
            "no score" if p is None else f"{p:.3f}",
            "–" if mass is None else f"{mass:.2f}{' (low)' if each.has_low_mass else ''}",
        ]
        if text.rulings:
            passages = "\n".join(f"{passage.text} ({passage.source})" for passage in ruling.evidence) if ruling else ""
            row += [format_ruling(ruling) if ruling else "source down", passages or "–"]
        yield row
