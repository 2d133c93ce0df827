import json
import subprocess
import sys
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from valid_arguments import VALID

from llamarl.core.errors import ConfigError, DataError
from llamarl.judges.rules import Grader, grade, loose_versions
from llamarl.judges.rules.folding import as_read

pytest.importorskip("langdetect")
pytest.importorskip("lingua")
pytest.importorskip("emoji")

NO_COMMA: dict[str, Any] = {"id": "punctuation:no_comma"}
TITLE: dict[str, Any] = {"id": "detectable_format:title", "kwargs": {}}


def words(relation: str, number: int) -> dict[str, Any]:
    return {"id": "length_constraints:number_words", "kwargs": {"relation": relation, "num_words": number}}


@pytest.fixture(scope="module", params=["official", "fixed"])
def grader(request: pytest.FixtureRequest) -> Grader:
    return Grader(request.param, sentence_splitter="rules")


def test_the_eight_versions_of_a_reply() -> None:
    assert loose_versions("*a*\nb\n*c*") == [
        "*a*\nb\n*c*",
        "a\nb\nc",
        "b\n*c*",
        "b\nc",
        "*a*\nb",
        "a\nb",
        "b",
    ]  # 8th = 7th
    assert loose_versions("one line") == ["one line"]
    assert loose_versions(" \n ") == []


def test_loose_forgives_a_first_line_and_stars(grader: Grader) -> None:
    result = grader.grade('Here you are, sir:\n*"Yes"*', [NO_COMMA, {"id": "startend:quotation"}, TITLE])
    assert result.strict == (False, False, False)
    assert result.loose == (True, True, False)
    assert not result.passes_strict


def test_loose_is_one_version_per_instruction(grader: Grader) -> None:
    instructions = [NO_COMMA, {"id": "startend:end_checker", "kwargs": {"end_phrase": "a, b"}}]
    assert grader.grade("fine\nhere\na, b", instructions).loose == (True, True)  # no single version passes both


def test_an_id_may_occur_twice(grader: Grader) -> None:
    result = grader.grade("one two three", [words("at least", 3), words("less than", 3), words("at least", 3)])
    assert result.strict == (True, False, True)


def test_an_empty_or_missing_reply_follows_nothing(grader: Grader) -> None:
    for reply in ("", None):
        result = grader.grade(reply, [NO_COMMA, words("less than", 5)])
        assert result.strict == result.loose == (False, False)


def test_ungradable_slots_are_named_and_leave_the_fixed_denominator() -> None:
    instructions = [NO_COMMA, {"id": "keywords:frequency", "kwargs": {"keyword": "", "frequency": 1}}, TITLE]
    official = Grader("official", sentence_splitter="rules").grade("<<t>>", instructions)
    fixed = grade("<<t>>", instructions)
    assert (official.strict, official.passes_strict) == ((True, False, True), False)
    assert (fixed.strict, fixed.passes_strict) == ((True, None, True), True)
    assert list(official.ungradable) == list(fixed.ungradable) == [1]
    assert fixed.ungradable[1].startswith("keywords:frequency: keyword=''")


def test_wrong_instructions_can_be_refused(grader: Grader) -> None:
    with pytest.raises(ConfigError, match="number_words: num_words=-3"):
        grader.checklist([words("at least", -3)], is_strict=True)
    with pytest.raises(DataError, match=r"instructions\[1\]: 'punctuation:no_comma'"):
        grader.checklist([NO_COMMA, "punctuation:no_comma"])  # type: ignore[list-item]


def test_modes_and_splitters_are_checked() -> None:
    with pytest.raises(ConfigError, match="mode='strict'; choose 'official', 'google' or 'fixed'"):
        Grader("strict")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sentence_splitter='spacy'; choose 'punkt' or 'rules'"):
        Grader("fixed", sentence_splitter="spacy")  # type: ignore[arg-type]


def test_the_record_names_what_verdicts_depend_on(grader: Grader) -> None:
    record = grader.record()
    assert record["mode"] == grader.mode and record["sentence_splitter"] == "rules" and record["langdetect"]
    assert (record["language_detector"], record["language_seed"]) == (
        ("langdetect", "0") if grader.mode == "official" else ("lingua", "")
    )


REPLIES = ["OK done", "नमस्ते hello", "晴天", "ciao a tutti", "A B, c.", "Так точно", "hola\nmundo *x*", "I AM HERE"]
QUESTIONS = [
    {"id": "language:response_language", "kwargs": {"language": "en"}},
    {"id": "change_case:english_capital"},
    words("at least", 2),
    {"id": "length_constraints:number_sentences", "kwargs": {"relation": "less than", "num_sentences": 2}},
]
PROGRAM = """
import json, sys
from llamarl.judges.rules import Grader
replies, questions = json.loads(sys.stdin.read())
grader = Grader(sys.argv[1], sentence_splitter="rules")
print(json.dumps({reply: [grader.grade(reply, questions).strict for _ in range(2)] for reply in reversed(replies)}))
"""


def test_verdicts_are_the_same_in_another_process_and_order(grader: Grader) -> None:
    here = {reply: [list(grader.grade(reply, QUESTIONS).strict)] * 2 for reply in REPLIES}
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, grader.mode],
        input=json.dumps([REPLIES, QUESTIONS]),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(process.stdout) == here


def test_verdicts_are_the_same_on_threads(grader: Grader) -> None:
    expected = [grader.grade(reply, QUESTIONS) for reply in REPLIES]
    results: list[list[Any]] = []

    def work() -> None:
        results.append([grader.grade(reply, QUESTIONS) for reply in REPLIES])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


VALUES = st.one_of(
    st.none(),
    st.integers(-2, 9),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["less than", "at least", "en", "fr", "a", "(a+)+", "P.S.", "[", "\\"]),
    st.lists(st.text(max_size=6), max_size=3),
)


@st.composite
def instructions(draw: st.DrawFn) -> dict[str, Any]:
    """Any instruction, some of its arguments replaced by anything."""
    id = draw(st.sampled_from(sorted(VALID)))
    replaced = {name: draw(VALUES) for name in VALID[id] if draw(st.integers(0, 2)) == 0}
    return {"id": id, "kwargs": {**VALID[id], **replaced}}


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=60),  # lone surrogates included
    st.lists(
        st.sampled_from(["*", "**", "-", "\n", "\n\n", "[", "]", "<<", ">>", '"', ", ", "a", "B. ", "字", "ि", "ا"])
    ).map("".join),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(instruction=instructions(), reply=TEXTS)
def test_nothing_crashes_and_loose_follows_strict(grader: Grader, instruction: dict[str, Any], reply: str) -> None:
    result = grader.grade(reply, [instruction])
    (strict,), (loose,) = result.strict, result.loose
    assert (strict is None) == (loose is None) == (grader.mode == "fixed" and 0 in result.ungradable)
    if reply.strip() and strict:
        assert loose
    if reply.strip() and "\n" not in as_read(reply) and "*" not in reply:  # fixed mode reads more line breaks
        assert loose is strict
