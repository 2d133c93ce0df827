"""Scores of claims: of the claims in some texts, and of labelled claims in a file.

    score_text("Lyon is in Spain.", detector)
    score_file(detector, ["claims/validation.jsonl", "claims/test.jsonl"], "scores.jsonl")    # what `detect eval` reads

A claim that has no score keeps its `problem`. It is counted and never taken for 0.
"""

import glob
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.core.loops import run_async
from llamarl.data.jsonl import write_jsonl
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import RowError, excerpt
from llamarl.factuality.claims import Answer, Ask, Claim, Span
from llamarl.factuality.decomposition import Decomposer, SentenceDecomposer, read_claims
from llamarl.factuality.detectors.detector import Detector, Score
from llamarl.factuality.scores import LABELS, SPLITS, read_text
from llamarl.factuality.stages import count_reasons

MIN_MASS = 0.5
"""A score whose label words have less probability than this together is in doubt."""
BATCH_CLAIMS = 256
"""Claims of a file that are scored between two looks at the progress."""
_OPTIONAL = ("prompt", "prompt_text", "subject", "answer")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ScoredClaim:
    """A claim with a detector's view of it."""

    claim: Claim
    score: Score

    def is_doubtful(self, threshold: float) -> bool | None:
        """True if the claim is not above the threshold, and so called hallucinated; None without a score."""
        return None if self.score.p_factual is None else self.score.p_factual <= threshold

    @property
    def has_low_mass(self) -> bool:
        """True if the model mostly wanted to say something else than a label."""
        return self.score.mass is not None and self.score.mass < MIN_MASS

    def record(self) -> dict[str, Any]:
        """The claim as commands and services print it."""
        record = {
            "claim": self.claim.text,
            "span": list(self.claim.span),
            "p_factual": self.score.p_factual,
            "mass": self.score.mass,
        }
        return record if self.score.p_factual is not None else {**record, "problem": self.score.problem}


@dataclass(frozen=True, slots=True)
class TextClaims:
    """The claims of one text."""

    text: str
    claims: list[Claim]
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Parts of the text that are no claims, by reason."""
    problem: str = ""
    """The fault of the helper's list, if it was asked for one."""


async def list_claims(
    text: str, decomposer: Decomposer, *, prompt: str = "", subject: str | None = None, is_cut: bool = False
) -> TextClaims:
    """Takes a text apart.

    Args:
        text: any. Half a character, which no tokenizer takes, is replaced by U+FFFD, so places stay where they are.
        decomposer: how.
        prompt: what the text answers.
        subject: whom or what it is about; a sentence's first pronoun is replaced by it.
        is_cut: whether a token limit cut the text, so that a claim at its end is left out.

    Raises:
        EndpointError, ConfigError: the helper model did not answer, or refuses the request.
    """
    ask = Ask("text", _SURROGATE.sub("\ufffd", prompt), subject and _SURROGATE.sub("\ufffd", subject))
    answer = Answer(ask, _SURROGATE.sub("\ufffd", text), "length" if is_cut else "stop")
    result = await decomposer.process(answer)
    claims, dropped = read_claims(answer, result)
    return TextClaims(answer.text, claims, dropped, result["problem"])


def score_text(
    text: str,
    detector: Detector,
    *,
    prompt: str = "",
    subject: str | None = None,
    decomposer: Decomposer | None = None,
) -> list[ScoredClaim]:
    """The claims of a text with their scores.

    Args:
        text: an answer.
        detector: gives the scores.
        prompt: what the text answers.
        subject: whom or what it is about; a sentence's first pronoun is replaced by it.
        decomposer: takes the text apart; None: every sentence is a claim.
    """
    found = run_async(list_claims(text, decomposer or SentenceDecomposer(), prompt=prompt, subject=subject))
    return score_claims(detector, found.claims)


def score_claims(detector: Detector, claims: Sequence[Claim]) -> list[ScoredClaim]:
    """Scores claims in one call of the detector. A score that is no probability counts as none."""
    if not claims:
        return []
    scores = map(_check_score, detector.score(claims))
    return [ScoredClaim(claim, score) for claim, score in zip(claims, scores, strict=True)]


def _check_score(score: Score) -> Score:
    if score.p_factual is None:
        return score if score.problem else Score(None, score.mass, "the detector gave no score")
    if score.is_probability:
        return score
    return Score(None, None, f"the detector's score is {score.p_factual}, which is no probability")


def resolve_threshold(given: float | None, own: float | None) -> float:
    """The threshold that the user gives, else the detector's own, else 0.5."""
    return next((each for each in (given, own) if each is not None), 0.5)


def score_file(
    detector: Detector,
    files: Sequence[str],
    out: str | Path,
    *,
    on_done: Callable[[int, int, int], object] = lambda done, total, failed: None,
) -> dict[str, Any]:
    """Scores labelled claims and writes rows of `{id, prompt, label, score, split, method, mass}`.

    Args:
        detector: gives the scores.
        files: JSONL, CSV, Parquet or globs with the columns `id`, `claim`, `label`, `split`, and if they are there
            `prompt`, `prompt_text`, `subject`, `answer`, `span`: what `detect build` writes.
        out: the file of scores, which `detect eval` reads. A claim without a score is not in it.
        on_done: told of claims done, all claims, and claims without a score.

    Returns:
        `claims`, `scored`, `unscored` (reason -> count), `low_mass` and the file.

    Raises:
        DataError: a row is no labelled claim, an id is given twice, no claim has a score, or `out` is a directory or
            one of the files; names file and line.
    """
    _check_out(Path(out), files)
    rows = _read_labelled(files)
    scored: list[ScoredClaim] = []
    on_done(0, len(rows), 0)
    for start in range(0, len(rows), BATCH_CLAIMS):
        scored += score_claims(detector, [row.claim for row in rows[start : start + BATCH_CLAIMS]])
        on_done(len(scored), len(rows), sum(each.score.p_factual is None for each in scored))
    lines = [row.line(each.score, detector.name) for row, each in zip(rows, scored, strict=True)]
    kept = [line for line in lines if line["score"] is not None]
    unscored = count_reasons([each.score.kind_of_problem for each in scored if each.score.p_factual is None])
    if not kept:
        raise DataError(f"none of {len(rows)} claims has a score: {unscored}; is the detector made for this model?")
    write_jsonl(out, kept)
    return {
        "claims": len(rows),
        "scored": len(kept),
        "unscored": unscored,
        "low_mass": sum(each.has_low_mass for each in scored),
        "file": str(out),
    }


def _check_out(out: Path, files: Sequence[str]) -> None:
    """Raises `DataError` before anything is scored where the scores could not be written, or would replace claims."""
    if out.is_dir():
        raise DataError(f"out={str(out)!r}: a directory; give the name of a file, such as {out / 'scores.jsonl'}")
    names = (name for file in files for name in (file, *glob.glob(file, recursive=True)))
    if out.exists() and any(Path(name).exists() and out.samefile(name) for name in names):
        raise DataError(f"out={str(out)!r}: holds the claims, which the scores would replace; give another name")


@dataclass(frozen=True, slots=True)
class _LabelledClaim:
    """A row of a file."""

    claim: Claim
    label: bool
    split: str
    prompt: str | None

    def line(self, score: Score, method: str) -> dict[str, Any]:
        """The row of the score file."""
        prompt = {} if self.prompt is None else {"prompt": self.prompt}
        mass = {} if score.mass is None else {"mass": score.mass}
        values = {"label": self.label, "score": score.p_factual, "split": self.split, "method": method}
        return {"id": self.claim.id, **prompt, **values, **mass}


def _read_labelled(files: Sequence[str]) -> list[_LabelledClaim]:
    rows: list[_LabelledClaim] = []
    places: dict[str, str] = {}
    for file in dict.fromkeys(files):
        for name, line, row in raw_rows(file):
            try:
                if isinstance(row, RowError):
                    raise row
                rows.append(_read_row(row))
                if (key := rows[-1].claim.id) in places:
                    problem = f"{key!r} is also the id of {places[key]}"
                    raise RowError("duplicate_id", "id", problem, "give each claim an id of its own")
                places[key] = f"{name}, line {line}"
            except RowError as error:
                raise DataError(str(error.at(name, line))) from None
    if not rows:
        raise DataError(f"{', '.join(files)}: no rows; give labelled claims, as detect build writes them")
    return rows


def _read_row(row: Mapping[str, Any]) -> _LabelledClaim:
    values = {name: read_text(row, name) for name in ("id", "claim", "split")}
    if values["split"] not in SPLITS:
        remedy = f"give the files of {' and '.join(SPLITS)} claims alone"
        raise RowError("unknown_split", "split", f"detectors are not judged on {values['split']!r}", remedy)
    label = row.get("label")
    label = LABELS.get(label.strip().lower()) if isinstance(label, str) else label
    if not isinstance(label, bool):
        problem = f"{excerpt(row.get('label'))} is neither true nor false"
        raise RowError("bad_label", "label", problem, "leave out claims whose truth nobody knows")
    known = {name: read_text(row, name) for name in _OPTIONAL if row.get(name) is not None}
    ask = Ask(known.get("prompt", values["id"]), known.get("prompt_text", ""), known.get("subject"))
    text = known.get("answer", values["claim"])
    span = _read_span(row, len(text)) if "answer" in known else (0, len(text))
    claim = Claim(values["id"], Answer(ask, text, "stop"), values["claim"], span)
    return _LabelledClaim(claim, label, values["split"], known.get("prompt"))


def _read_span(row: Mapping[str, Any], length: int) -> Span:
    match row.get("span"):
        case [int(start), int(end)] if 0 <= start < end <= length:
            return start, end
    problem = f"{excerpt(row.get('span'))} is no part of an answer of {length} characters"
    raise RowError("bad_span", "span", problem, "give [from, up to], or leave out the answer")
