import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reply_solver import solve

from llamarl.core.errors import ConfigError
from llamarl.data import read_prompts
from llamarl.judges.rules import RULES, Grader, build_rule
from llamarl.judges.rules.judge import InstructionJudge
from llamarl.tasks.instructions import LANGUAGES, are_compatible, draw_draft, draw_drafts, to_conversation, to_row
from llamarl.tasks.instructions.wordings import load_texts

pytest.importorskip("langdetect")
pytest.importorskip("lingua")
pytest.importorskip("emoji")

CAPITALS = "change_case:english_capital"
languages = st.sampled_from(LANGUAGES)
numbers = st.integers(0, 10**6)


@given(languages, numbers, numbers)
@settings(max_examples=100, deadline=None)
def test_a_draft_keeps_the_rules(language: str, seed: int, index: int) -> None:
    draft = draw_draft(language, seed=seed, index=index, turns=3)
    first, second, third = draft.instructions
    assert 1 <= len(first) <= 3 and (len(second), len(third)) == (len(first) + 1, len(first) + 2)
    assert third[: len(second)] == second and second[: len(first)] == first
    ids = [instruction["id"] for instruction in third]
    for position, id in enumerate(ids):
        assert all(are_compatible(id, other, language) for other in ids[:position])
    for instruction in third:
        for mode in ("official", "fixed"):
            build_rule(instruction["id"], instruction["kwargs"], mode)
    assert not any("{" in message or "}" in message for message in draft.messages)


@given(languages, numbers, numbers, st.integers(1, 2))
@settings(max_examples=30, deadline=None)
def test_fewer_turns_are_a_prefix(language: str, seed: int, index: int, turns: int) -> None:
    few, many = (draw_draft(language, seed=seed, index=index, turns=number) for number in (turns, 3))
    assert few.messages == many.messages[:turns] and few.instructions == many.instructions[:turns]
    few_prompts, many_prompts = ([turn["prompt"] for turn in to_conversation(draft)["turns"]] for draft in (few, many))
    assert few_prompts == many_prompts[:turns]


def test_a_draft_depends_on_its_language_seed_and_number_only() -> None:
    few = list(draw_drafts(["fr"], 3, seed=4, turns=2))
    many = list(draw_drafts(["en", "fr"], 7, seed=4, turns=2))
    assert few == many[7:10]
    others = list(draw_drafts(["fr"], 3, seed=5, turns=2))
    assert all(one.messages != other.messages for one, other in zip(few, others, strict=True))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_reply_can_follow_every_draft(language: str) -> None:
    """Conversations of three turns: what is asked for at last can be followed, in both modes."""
    fixed, official = (Grader(mode, sentence_splitter="rules") for mode in ("fixed", "official"))
    for draft in draw_drafts([language], 120, seed=1, turns=3):
        instructions = draft.instructions[-1]
        reply = solve(instructions, language)
        assert all(fixed.grade(reply, instructions).strict), (instructions, reply)
        if CAPITALS not in {instruction["id"] for instruction in instructions}:
            assert all(official.grade(reply, instructions).strict), (instructions, reply)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_instruction_is_drawn_and_worded(language: str) -> None:
    drafts = list(draw_drafts([language], 400, seed=2, turns=3))
    drawn = Counter(instruction["id"] for draft in drafts for instruction in draft.instructions[-1])
    assert set(drawn) == set(RULES)
    wordings = load_texts(language).wordings
    assert {name.partition(" ")[0] for name in wordings} == set(RULES)
    assert all(len(set(ways)) == len(ways) >= 2 for ways in wordings.values())


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_texts_of_a_language_fit_together(language: str) -> None:
    texts = load_texts(language)
    for topic in texts.topics:
        assert len(topic.keywords) == 7
        for keyword in topic.keywords:
            assert not [other for other in topic.keywords if other != keyword and keyword in other]
            assert keyword.lower() not in topic.topic.lower()
    assert language not in texts.languages and set(texts.languages) <= set(LANGUAGES) - {"zh"}
    assert all("{topic}" in task for task in texts.tasks)
    assert all("{instruction}" in lead for lead in texts.follow_ups + texts.additions)
    assert not any(comma in phrase for phrase in texts.end_phrases for comma in ",，、")


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_wordings_name_every_argument(language: str) -> None:
    """What a reader must know stands in the message: numbers, words, phrases."""
    for draft in draw_drafts([language], 60, seed=3, turns=3):
        said = " ".join(draft.messages)
        for instruction in draft.instructions[-1]:
            for name, value in instruction["kwargs"].items():
                if name == "language" or name.endswith("relation"):
                    continue
                for part in value if isinstance(value, list) else [value]:
                    assert str(part) in said, (instruction, said)


def test_the_question_is_answered_and_the_first_sentence_repeated() -> None:
    drafts = list(draw_drafts(LANGUAGES, 150, seed=6))
    by_id = {id: [d for d in drafts if id in [i["id"] for i in d.instructions[0]]] for id in RULES}
    for draft in by_id["detectable_format:constrained_response"]:
        assert draft.messages[0].startswith(draft.texts.questions)
    for draft in by_id["combination:repeat_prompt"]:
        requests = [i["kwargs"].get("prompt_to_repeat") for i in draft.instructions[0]]
        assert draft.messages[0].startswith(next(filter(None, requests)))
    assert by_id["detectable_format:constrained_response"] and by_id["combination:repeat_prompt"]


def test_rows_are_read_back_and_judged() -> None:
    rows = [json.loads(json.dumps(to_row(draft))) for draft in draw_drafts(LANGUAGES, 5, seed=0, turns=3)]
    prompts = read_prompts(rows, format="llamarl")
    judge = InstructionJudge()
    for prompt, row in zip(prompts, rows, strict=True):
        judge.check(prompt)
        assert prompt.id == row["id"] and prompt.task == "instructions"
        assert [message["role"] for message in prompt.messages] == ["user"]
        assert prompt.messages[0]["content"].count("\n\n") == 2
        assert prompt.info["instructions"] == row["info"]["instructions"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"language": "xx"}, "language='xx'"),
        ({"turns": 0}, "turns=0; give 1 to 3"),
        ({"turns": 4}, "turns=4; give 1 to 3"),
        ({"count": 0}, "count=0; give at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    values = {"language": "en", "turns": 1, "count": 1} | arguments
    with pytest.raises(ConfigError, match=message):
        list(draw_drafts([values["language"]], values["count"], seed=0, turns=values["turns"]))
