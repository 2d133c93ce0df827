import re
import time

import pytest
from valid_arguments import VALID

from llamarl.core.errors import ConfigError, JudgeError
from llamarl.judges.rules import Grader, build_rule
from llamarl.judges.rules.patterns import Pattern, compile_pattern

pytest.importorskip("langdetect")
pytest.importorskip("lingua")
pytest.importorskip("emoji")

NUM_CHARACTERS = 100_000


@pytest.mark.parametrize(
    ("keyword", "text", "hits"),
    [
        ("what?", "What? wha", 2),
        ("C++", "CCC C", 2),
        ("e.g.", "edge case", 1),
        ("a|b", "ab", 2),
        ("x{2,3}", "xxxxx", 2),
    ],
)
def test_harmless_operators_work_as_in_re(keyword: str, text: str, hits: int) -> None:
    pattern = Pattern(keyword)
    assert pattern.count(text) == hits
    assert pattern.is_in(text)


@pytest.mark.parametrize("keyword", ["(a+)+$", "(a|aa)+$", "(.*a){20}", "(a?){40}a{40}", "((a|b)*c)*d", "(?=(a+)+$)b"])
def test_a_search_that_could_explode_is_refused_at_once(keyword: str) -> None:
    with pytest.raises(JudgeError, match=r"could take .* steps .*mode 'fixed' takes keywords literally"):
        Pattern(keyword).is_in("a" * 50)  # searched, it would take years


def test_the_bound_grows_with_the_text() -> None:
    # one unbounded repeat that something follows: a step for each character that repeats, from each start
    assert not Pattern("a*b").is_in("a" * 1_000)
    assert Pattern("a*b").is_in("b" * 100_000)
    with pytest.raises(JudgeError, match="on 10001 characters"):
        Pattern("a*b").is_in("a" * 10_001)
    with pytest.raises(JudgeError, match="on 10001 characters"):  # two repeats: n^3
        Pattern("a*.*b").is_in("b" * 10_001)
    assert Pattern("plain words").count("plain words " * 100_000) == 100_000  # no operator, no bound


PROSE = "The C compiler CCC reads the code, and cc links what it wrote. " * 350
"""Some 22,000 characters."""


@pytest.mark.parametrize(
    ("keyword", "hits"), [("C++", 1750), ("code.+wrote", 1), ("l[a-z]*s", 350), ("x+y", 0), ("wrote[.]+ ", 350)]
)
def test_one_repeat_is_searched_in_a_long_reply(keyword: str, hits: int) -> None:
    assert Pattern(keyword).count(PROSE) == len(list(re.finditer(keyword, PROSE, re.IGNORECASE))) == hits
    assert Pattern("C++").count("C" * 100_000) == 1  # nothing stands behind the repeat


def test_such_a_keyword_is_graded_in_a_long_reply() -> None:
    instructions = [
        {"id": "keywords:existence", "kwargs": {"keywords": ["C++"]}},
        {"id": "keywords:forbidden_words", "kwargs": {"forbidden_words": ["C++", "D++"]}},
        {"id": "keywords:frequency", "kwargs": {"keyword": "C++", "frequency": 1700, "relation": "at least"}},
    ]
    for mode in ("official", "google"):
        grade = Grader(mode, sentence_splitter="rules").grade(PROSE, instructions)  # type: ignore[arg-type]
        assert (grade.strict, grade.ungradable) == ((True, False, True), {})


def test_an_invalid_expression_names_the_argument() -> None:
    with pytest.raises(ConfigError, match=r"some:id: keyword='\(' is no valid regular expression .*literally"):
        compile_pattern("some:id", "keyword", "(")


def test_a_refused_search_is_ungradable_and_harms_no_other_slot() -> None:
    instructions = [{"id": "keywords:existence", "kwargs": {"keywords": ["(a+)+$"]}}, {"id": "punctuation:no_comma"}]
    official = Grader("official", sentence_splitter="rules").grade("a" * 40, instructions)
    assert official.strict == (False, True)
    assert official.ungradable[0].startswith("keywords:existence: the keyword '(a+)+$'")
    assert Grader("fixed").grade("so (a+)+$ it is", instructions).strict == (True, True)


LONG = [
    "\n",
    " ",
    "*",
    "-\n",
    "[",
    "<<",
    "a",
    "a ",
    "字",
    "ि",
    '"',
    ".",
    "p.",
    "[\n",
    "* \n",
    "a.b@",
    "\ud800",
    "***",
    "👍",
    "1",
]


@pytest.mark.parametrize("mode", ["official", "fixed"])
def test_long_runs_of_anything_take_time_in_proportion(mode: str) -> None:
    grader = Grader(mode, sentence_splitter="rules")  # type: ignore[arg-type]
    rules = [{"id": id, "kwargs": kwargs} for id, kwargs in VALID.items()]
    checklist = grader.checklist(rules, is_strict=True)
    checklist.grade("models are loaded")
    started = time.process_time()
    for unit in LONG:
        result = checklist.grade(unit * (NUM_CHARACTERS // len(unit)))
        assert len(result.strict) == 25
    assert time.process_time() - started < 30.0


def test_build_rule_needs_no_optional_package_for_keywords() -> None:
    assert build_rule("keywords:existence", {"keywords": ["a"]}).id == "keywords:existence"
