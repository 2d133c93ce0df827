"""Checks on the dataset itself, wherever its user has it: LLAMARL_MULTI_IF_CSV names the file."""

import csv
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from llamarl.judges.rules import Grader

FILE = os.environ.get("LLAMARL_MULTI_IF_CSV", "")
pytestmark = pytest.mark.skipif(not Path(FILE).is_file(), reason="LLAMARL_MULTI_IF_CSV names no file")


def turns(row: dict[str, str]) -> list[list[dict[str, Any]]]:
    """The instructions of each turn that the row has."""
    lists = []
    for turn in (1, 2, 3):
        if row[f"turn_{turn}_prompt"] not in ("", "None"):
            ids = json.loads(row[f"turn_{turn}_instruction_id_list"])
            kwargs = [json.loads(text) for text in json.loads(row[f"turn_{turn}_kwargs"])]
            lists.append([{"id": id, "kwargs": values} for id, values in zip(ids, kwargs, strict=True)])
    return lists


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    csv.field_size_limit(1 << 30)
    with open(FILE, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_lists_grow_by_one_instruction_a_turn(rows: list[dict[str, str]]) -> None:
    for row in rows:
        lists = turns(row)
        for earlier, later in itertools.pairwise(lists):
            assert later[: len(earlier)] == earlier
            if row["language"] == "English":
                assert len(later) == len(earlier) + 1


@pytest.mark.parametrize("mode", ["official", "fixed"])
def test_nearly_every_slot_builds_and_the_prompt_itself_can_be_graded(rows: list[dict[str, str]], mode: Any) -> None:
    pytest.importorskip("langdetect")
    pytest.importorskip("lingua")
    pytest.importorskip("emoji")
    grader = Grader(mode, sentence_splitter="rules")
    num_slots = num_ungradable = 0
    for row in rows[:300]:
        lists = turns(row)
        prompts = [json.loads(row[f"turn_{turn + 1}_prompt"])["content"] for turn in range(len(lists))]
        for prompt, instructions in zip(prompts, lists, strict=True):
            grade = grader.grade(prompt, instructions)
            num_slots += len(grade.strict)
            num_ungradable += len(grade.ungradable)
            assert all(loose or not strict for strict, loose in zip(grade.strict, grade.loose, strict=True))
    assert num_ungradable <= 0.01 * num_slots
