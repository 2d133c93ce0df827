import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_models import FACTS, RELATIONS, ScriptedModel

from llamarl.factuality import FactTable
from llamarl.factuality.asking import Helper, read_list, read_word
from llamarl.factuality.claims import Answer, Ask
from llamarl.factuality.decomposition import (
    Decomposer,
    FactDecomposer,
    ModelDecomposer,
    SentenceDecomposer,
    find_span,
    split_sentences,
)


def decompose(decomposer: Decomposer, text: str, subject: str | None = None) -> dict[str, Any]:
    return asyncio.run(decomposer.process(Answer(Ask("p", "Tell me.", subject), text, "stop")))


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in split_sentences(text)]


def test_sentences_of_many_scripts() -> None:
    assert sentences("Dr. Smith came at 3.5 p.m. on Monday. He left! Why?") == [
        "Dr. Smith came at 3.5 p.m. on Monday.",
        "He left!",
        "Why?",
    ]
    assert sentences("# Lyon\n\n- It is old.\n2) It is big.\n") == ["Lyon", "It is old.", "It is big."]
    assert sentences("里昂位于法国。它很大。") == ["里昂位于法国。", "它很大。"]
    assert sentences("ल्यों फ़्रांस में है। यह बड़ा है।") == ["ल्यों फ़्रांस में है।", "यह बड़ा है।"]
    assert sentences('She said "No." Then J. K. Rowling left.') == ['She said "No."', "Then J. K. Rowling left."]
    assert sentences("") == sentences(" \n… --- ") == []


def test_scripts_without_stops_are_split_at_spaces() -> None:
    lyon = "ลียงเป็นเมืองใหญ่ในประเทศฝรั่งเศส"
    river = "แม่น้ำสองสายไหลผ่านเมืองนี้"
    assert sentences(f"{lyon} {river}") == [lyon, river]
    people = "เมืองนี้มีประชากรราว 520,000 คนตามสำมะโนล่าสุด"  # a space stands about every number
    assert sentences(f"{people} {river}") == [people, river]
    assert sentences("ในลียงมีตลาด โรงเรียน และวัด") == ["ในลียงมีตลาด โรงเรียน และวัด"]  # a list of short things
    assert sentences(f"กรุงเทพฯ {river}") == [f"กรุงเทพฯ {river}"]
    lao = "ວຽງຈັນເປັນນະຄອນຫຼວງຂອງປະເທດລາວ"
    assert sentences(f"{lao} {lao}\n{lao}") == [lao, lao, lao]
    assert sentences("ភ្នំពេញជារាជធានី។ វាធំ។") == ["ភ្នំពេញជារាជធានី។", "វាធំ។"]
    assert sentences("ရန်ကုန်သည် မြို့ကြီး။ လှသည်။") == ["ရန်ကုန်သည် မြို့ကြီး။", "လှသည်။"]


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab A.!?。\n-1)' กา"), max_size=60))
def test_sentences_lie_in_order_and_lose_no_letter(text: str) -> None:
    spans = list(split_sentences(text))
    assert all(0 <= start < end <= len(text) for start, end in spans)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert sum(text[a:b].count(c) for a, b in spans for c in "abA") == sum(map(text.count, "abA"))


def test_a_pronoun_at_the_head_becomes_the_subject() -> None:
    found = decompose(SentenceDecomposer(), "It is a big city. Its mayor is old. Itself a wonder. Yes.", "Lyon")
    assert [claim["text"] for claim in found["claims"]] == [
        "Lyon is a big city.",
        "Lyon's mayor is old.",
        "Itself a wonder.",
    ]
    assert found["claims"][1]["span"] == [18, 35] and found["dropped"] == {"too_short": 1}
    assert decompose(SentenceDecomposer(), "It is a big city.")["claims"][0]["text"] == "It is a big city."
    assert decompose(SentenceDecomposer(), "") == {"claims": [], "dropped": {}, "problem": ""}
    assert len(decompose(SentenceDecomposer(), "里昂是法国的一座非常美丽的古老城市。")["claims"]) == 1


def test_what_a_table_can_check_becomes_claims(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(FACTS)
    (tmp_path / "r.toml").write_text(RELATIONS)
    decomposer = FactDecomposer(FactTable.read([str(tmp_path / "f.csv")], tmp_path / "r.toml"))
    text = "LYON is a fine city in Spain with a population of 520,000. It is loved. It is located in Spain."
    found = decompose(decomposer, text, "Lyon")
    assert [(claim["text"], claim["span"]) for claim in found["claims"]] == [
        ("The city of Lyon is located in Spain.", [0, 58]),
        ("The city of Lyon has a population of 520000.", [0, 58]),
    ]
    assert found["dropped"] == {"no_known_relation": 1, "repeated": 1}


ANSWER = "Lyon is a city in France.  It was founded by the Romans\nin 43 BC."


def ask_model(reply: str) -> dict[str, Any]:
    return decompose(ModelDecomposer(Helper(ScriptedModel(lambda text: reply))), ANSWER)


def test_a_model_lists_claims_with_quotations() -> None:
    entries = [
        {"claim": "Lyon is in France.", "quote": "a city in France"},
        {"claim": "The Romans founded Lyon.", "quote": "It was founded by the Romans in 43 BC"},
        {"claim": "The Romans founded Lyon.", "quote": "again"},
        {"claim": "Lyon was founded in 43 BC.", "quote": "not a quotation"},
        {"claim": "The Eiffel Tower is tall.", "quote": "nowhere"},
        {"quote": "no claim"},
    ]
    found = ask_model(f"Sure!\n```json\n{json.dumps(entries)}\n```")
    assert [ANSWER[slice(*claim["span"])] for claim in found["claims"]] == [
        "a city in France",
        "It was founded by the Romans\nin 43 BC",
        "It was founded by the Romans\nin 43 BC.",  # the sentence that has most of the claim's words
    ]
    assert found["dropped"] == {"no_text": 1, "not_in_answer": 1, "repeated": 1}


def test_bullets_and_plain_lists_are_lists_too() -> None:
    for reply in ("- Lyon is a city in France.\n* Romans founded it.", '["Lyon is a city in France."]'):
        assert ask_model(reply)["claims"][0]["text"] == "Lyon is a city in France."


@pytest.mark.parametrize("reply", ["", "I cannot do that.", "[1, 2", "[]", "{}", "[[[[", "null"])
def test_nonsense_is_named_and_makes_up_nothing(reply: str) -> None:
    found = ask_model(reply)
    assert found["claims"] == []
    assert found["problem"].startswith("no list of claims") or reply == "[]"


def test_an_empty_answer_asks_nobody() -> None:
    model = ScriptedModel(lambda text: "[]")
    assert decompose(ModelDecomposer(Helper(model)), " \n")["claims"] == [] and not model.asked


def test_a_list_without_end_is_cut() -> None:
    found = ask_model(json.dumps([f"Lyon is a city in France, number {n}." for n in range(250)]))
    assert len(found["claims"]) == 200 and found["dropped"] == {"too_many": 50}


def test_reading_replies() -> None:
    assert read_list("[1, 2]") is read_list("no list") is None or read_list("[1, 2]") == []
    words = {"true": 1, "false": 0}
    assert read_word("It could be false, but no: [True]", words) == 1
    assert read_word("[True] ... on reflection it is **False**.", words) == 0
    assert read_word("That is untrue.", words) is None
    assert read_word("", words) is None


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_spans_are_inside_the_answer(answer: str, claim: str, quote: str) -> None:
    span = find_span(answer, claim, quote)
    assert span is None or 0 <= span[0] < span[1] <= len(answer)


@pytest.mark.parametrize("text", ["." * 300_000 + "x", "a. " * 100_000, "?!" * 150_000 + "x", ".'" * 150_000 + "x"])
def test_texts_that_repeat_themselves_take_no_longer_than_others(text: str) -> None:
    assert len(sentences(text)) == 1  # where each stop looked back at all before it, these took minutes
