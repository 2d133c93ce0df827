"""The conversations that the package ships, and replies whose verdicts a person stated."""

import json
from collections import Counter
from importlib import resources
from typing import Any

import pytest

from llamarl.evals.conversations import Conversation, read_conversations
from llamarl.judges.rules import RULES, Grader, Mode, build_rule
from llamarl.tasks.instructions import LANGUAGES

pytest.importorskip("langdetect")
pytest.importorskip("lingua")
pytest.importorskip("emoji")

REPLIES: list[dict[str, Any]] = [
    json.loads(line)
    for line in (resources.files("llamarl.evals") / "assets" / "replies.jsonl").read_text(encoding="utf-8").splitlines()
]
CONVERSATIONS: dict[str, Conversation] = {one.key: one for one in read_conversations("builtin")}


def instructions_of(reply: dict[str, Any]) -> tuple[Any, ...]:
    return CONVERSATIONS[reply["key"]].turns[reply["turn"] - 1].instructions


@pytest.mark.parametrize("mode", ["fixed", "official"])
def test_every_verdict_is_the_stated_one(mode: Mode) -> None:
    grader = Grader(mode, sentence_splitter="rules")
    for reply in REPLIES:
        stated = reply["expected"]
        if mode == "official":
            stated = reply.get("expected_official", stated)
        grade = grader.checklist(instructions_of(reply), is_strict=True).grade(reply["response"])
        assert list(grade.strict) == stated, (mode, reply)


def test_passing_replies_pass_and_failing_ones_fail() -> None:
    for reply in REPLIES:
        assert all(reply["expected"]) == (reply["kind"] == "pass"), reply
        assert reply.get("expected_official") != reply["expected"], "state it only where it differs"


def test_every_turn_has_one_reply_of_each_kind() -> None:
    places = {(key, turn) for key, one in CONVERSATIONS.items() for turn in range(1, len(one.turns) + 1)}
    for kind in ("pass", "fail"):
        assert Counter((r["key"], r["turn"]) for r in REPLIES if r["kind"] == kind) == Counter(places)


@pytest.mark.parametrize("id", RULES)
def test_every_instruction_is_followed_and_broken(id: str) -> None:
    verdicts = {
        verdict
        for reply in REPLIES
        for instruction, verdict in zip(instructions_of(reply), reply["expected"], strict=True)
        if instruction["id"] == id
    }
    assert verdicts == {True, False}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_its_share(language: str) -> None:
    own = [one for one in CONVERSATIONS.values() if one.language == language]
    assert len(own) >= 6 and all(2 <= len(one.turns) <= 3 for one in own)
    ids = {instruction["id"] for one in own for instruction in one.turns[-1].instructions}
    assert len(ids) >= 20
    assert len({turn.prompt for one in own for turn in one.turns}) == sum(len(one.turns) for one in own)


def test_each_turn_adds_to_the_one_before() -> None:
    for one in CONVERSATIONS.values():
        for earlier, later in zip(one.turns, one.turns[1:], strict=False):
            assert later.instructions[: len(earlier.instructions)] == earlier.instructions
            assert len(later.instructions) == len(earlier.instructions) + 1
        for instruction in one.turns[-1].instructions:
            for mode in ("fixed", "official"):
                build_rule(instruction["id"], instruction["kwargs"], mode)


def test_the_requests_name_their_arguments() -> None:
    """A reader of the prompts alone can tell what is asked for."""
    for one in CONVERSATIONS.values():
        said = " ".join(turn.prompt for turn in one.turns)
        for instruction in one.turns[-1].instructions:
            for name, value in instruction["kwargs"].items():
                if isinstance(value, list | str) and name != "language" and not name.endswith("relation"):
                    assert all(part in said for part in (value if isinstance(value, list) else [value])), said
