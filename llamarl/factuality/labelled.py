"""Labelled claims as `detect build` writes them, to learn from and to be judged by.

    data = read_data("claims")            # train.jsonl, validation.jsonl, test.jsonl
    data.train[0].claim.text, data.train[0].label, data.train[0].rationale

Every row is used or refused with its file and line. No prompt stands in two splits: claims of one answer share facts.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.data.jsonl import parse_line
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import RowError, check_text, excerpt
from llamarl.factuality.claims import Answer, Ask, Claim, Probe, Span
from llamarl.factuality.splits import SPLITS


@dataclass(frozen=True, slots=True)
class LabelledClaim:
    """A claim whose truth is known."""

    claim: Claim
    label: bool
    """True for a factual claim."""
    split: str
    rationale: str = ""
    """The reason why it is true or false."""
    question: Probe | None = None
    """The auxiliary question about it."""
    paraphrases: tuple[str, ...] = ()
    """The claim in other words."""

    @property
    def prompt(self) -> str:
        """The id of the prompt whose answer makes the claim."""
        return self.claim.answer.ask.id


@dataclass(frozen=True, slots=True)
class Data:
    """The claims of a build."""

    train: Sequence[LabelledClaim]
    validation: Sequence[LabelledClaim]
    test: Sequence[LabelledClaim]
    place: Path
    """The directory that they are from."""
    digest: str
    """A hash of the three files."""
    canaries: int = 0
    """Training claims of prompts whose owner asks that nobody trains on them."""


def read_data(directory: str | Path) -> Data:
    """The claims of a directory that `detect build` wrote; a split without a file is empty.

    Raises:
        DataError: no such directory, a row that is no labelled claim, an id given twice, a prompt in two splits, or no
            validation claims of one of the labels; names file, line and field.
    """
    place = Path(directory)
    files = {split: place / f"{split}.jsonl" for split in SPLITS}
    if not files["validation"].is_file():
        what = "no validation.jsonl in it" if place.is_dir() else "no such directory"
        raise DataError(f"{directory}: {what}; give the --out of a 'llamarl detect build' that has ended")
    claims: dict[str, list[LabelledClaim]] = {split: [] for split in SPLITS}
    seen: dict[str, str] = {}
    home: dict[str, str] = {}
    digest, canaries, answers = hashlib.blake2b(digest_size=8), 0, _read_answers(place)
    for split, path in files.items():
        if not path.is_file():
            continue
        digest.update(path.read_bytes())
        for name, line, row in raw_rows(path):
            try:
                found = _read_row(row, split, answers)
                _refuse_repeated(found, f"{name}, line {line}", seen, home)
            except RowError as error:
                raise DataError(str(error.at(name, line))) from None
            claims[split].append(found)
            canaries += split == "train" and isinstance(row, Mapping) and bool(row.get("canary"))
    labels = {each.label for each in claims["validation"]}
    if labels != {True, False}:
        raise DataError(
            f"{files['validation']}: {len(claims['validation'])} claims, and not of both labels; a threshold is chosen "
            "by factual and hallucinated validation claims: build with more prompts, or another --split"
        )
    return Data(claims["train"], claims["validation"], claims["test"], place, digest.hexdigest(), canaries)


def _refuse_repeated(found: LabelledClaim, place: str, seen: dict[str, str], home: dict[str, str]) -> None:
    """Raises `RowError` for an id that is there already, and for a prompt that is in another split."""
    name = found.claim.id
    if name in seen:
        raise RowError("duplicate_id", "id", f"{name!r} is also the id of {seen[name]}", "give each claim its own id")
    seen[name] = place
    if home.setdefault(found.prompt, found.split) != found.split:
        problem = f"{found.prompt!r} is in {home[found.prompt]} and in {found.split}"
        raise RowError("leak", "prompt", problem, "split by prompt: claims of one answer share facts")


def _read_row(row: Any, split: str, answers: Mapping[str, str]) -> LabelledClaim:
    if isinstance(row, RowError):
        raise row
    for field, value in row.items():
        check_text(value, field)
    name, text = _text(row, "id"), _text(row, "claim")
    label = row.get("label")
    if not isinstance(label, bool):
        problem = f"{excerpt(label)} is neither true nor false"
        raise RowError("bad_label", "label", problem, "leave out claims whose truth nobody knows")
    if row.get("split", split) != split:
        raise RowError("bad_split", "split", f"{excerpt(row['split'])} in {split}.jsonl", "put it into its own file")
    prompt = name if row.get("prompt") is None else _text(row, "prompt")
    known = {each: _text(row, each) for each in ("prompt_text", "subject", "answer") if row.get(each)}
    ask = Ask(prompt, known.get("prompt_text", ""), known.get("subject"))
    answer = known.get("answer", answers.get(prompt, ""))
    claim = Claim(name, Answer(ask, answer, "stop"), text, _read_span(row, answer))
    return LabelledClaim(
        claim, label, split, str(row.get("rationale") or ""), _read_question(row), _read_paraphrases(row)
    )


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        problem = "missing" if value is None else f"{excerpt(value)} is no text"
        raise RowError("bad_" + name, name, problem, f"give every row its {name}")
    return value


def _read_span(row: Mapping[str, Any], answer: str) -> Span:
    """The claim's place in its answer; (0, 0) where the row has none. Without the answer there is no upper end."""
    match row.get("span"):
        case None:
            return 0, 0
        case [int(start), int(end)] if 0 <= start <= end and (not answer or end <= len(answer)):
            return start, end
    where = f"an answer of {len(answer)} characters" if answer else "an answer"
    remedy = "give [from, up to], counted in characters, or null"
    raise RowError("bad_span", "span", f"{excerpt(row['span'])} is no part of {where}", remedy)


def _read_question(row: Mapping[str, Any]) -> Probe | None:
    value = row.get("question")
    if value is None:
        return None
    names = ("question", "answer", "explanation")
    if not isinstance(value, Mapping) or not all(isinstance(value.get(name), str) for name in names):
        problem = f"{excerpt(value)} has not the texts {', '.join(names)}"
        raise RowError("bad_question", "question", problem, "write null where there is no question")
    return Probe(*(value[name] for name in names))


def _read_paraphrases(row: Mapping[str, Any]) -> tuple[str, ...]:
    value = row.get("paraphrases") or []
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise RowError("bad_paraphrases", "paraphrases", f"{excerpt(value)} is no list of texts", "write [text, ...]")
    return tuple(value)


def _read_answers(place: Path) -> dict[str, str]:
    """The answers by prompt, where the build's own file of them lies there; of several, the last."""
    path = place / "answers.jsonl"
    answers: dict[str, str] = {}
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []  # a killed build leaves half a line
    for number, line in enumerate(lines, start=1):
        match parse_line(line):
            case {"id": str(name), "result": {"text": str(text)}}:
                answers[name] = text
            case found:
                raise DataError(
                    f"{path}, line {number}: {excerpt(str(found))} is no answer of a build, {{id, result: {{text}}}}; "
                    "copy the file again, or take it away: claims without their answers can be trained on, too"
                )
    return answers
