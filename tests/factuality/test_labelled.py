"""Labelled claims as they are read: what is no claim is named, and nothing is guessed."""

import json
from pathlib import Path
from typing import Any

import pytest

from llamarl.core.errors import DataError
from llamarl.factuality.labelled import read_data

ROW = {"id": "a", "prompt": "p", "claim": "Lyon is big.", "label": True, "span": [0, 12]}


def write_data(place: Path, **changes: Any) -> Path:
    """Validation claims of both labels, and one test claim with some fields changed."""
    rows = [{**ROW, "id": f"v{number}", "prompt": f"q{number}", "label": number % 2 == 0} for number in range(4)]
    (place / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "test.jsonl").write_text(json.dumps({**ROW, **changes}) + "\n")
    return place


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"claim": "a\ud800"}, "claim"),
        ({"rationale": "a\ud800"}, "rationale"),
        ({"id": "a\ud800"}, "id"),
        ({"subject": ["Lyon"]}, "subject"),
        ({"prompt_text": 5}, "prompt_text"),
        ({"answer": ["Lyon is big."]}, "answer"),
        ({"span": ["a", "b"]}, "span"),
        ({"span": [0.5, 2.5]}, "span"),
        ({"span": [-5, 2]}, "span"),
        ({"span": [4, 2]}, "span"),
        ({"span": [1]}, "span"),
        ({"span": [0, 13], "answer": "Lyon is big."}, "span"),
    ],
)
def test_fields_that_are_not_what_they_should_be_are_named(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    with pytest.raises(DataError, match=rf"test.jsonl, line 1, field '{field}'"):
        read_data(write_data(tmp_path, **changes))


@pytest.mark.parametrize("line", [b"{nope}", b"[1]", b'{"id": "p"}', b'{"id": "p", "result": null}', b"\xff\xfe"])
def test_answers_that_are_none_are_named(tmp_path: Path, line: bytes) -> None:
    write_data(tmp_path)
    (tmp_path / "answers.jsonl").write_bytes(line + b"\n")
    with pytest.raises(DataError, match=r"answers.jsonl, line 1: .* is no answer of a build"):
        read_data(tmp_path)


def test_answers_stand_beside_and_half_a_line_is_none(tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "answers.jsonl").write_text('{"id": "p", "result": {"text": "Lyon is big. So."}}\n{"id": "p", "resu')
    assert read_data(tmp_path).test[0].claim.answer.text == "Lyon is big. So."
