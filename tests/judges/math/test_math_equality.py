from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.judges.math import answers_equal, compare_answers
from llamarl.judges.math.clean import clean
from llamarl.judges.math.read import is_numeral, says_something

EMPTY = ["", " ", "$$", ".", "\\boxed{}", "**", ":", "\\,", "()", "---"]


def pairs(sign: str) -> list[tuple[str, str]]:
    """The pairs of `answers.txt` with this sign."""
    lines = (Path(__file__).with_name("answers.txt")).read_text(encoding="utf-8").splitlines()
    return [tuple(line.split(f" {sign} ")) for line in lines[1:] if f" {sign} " in line]  # type: ignore[misc]


EQUAL, UNEQUAL, UNDECIDED = pairs("=="), pairs("!="), pairs("??")


# golden


@pytest.mark.parametrize(("a", "b"), EQUAL)
def test_equal(a: str, b: str) -> None:
    assert compare_answers(a, b) is True


@pytest.mark.parametrize(("a", "b"), UNEQUAL)
def test_unequal(a: str, b: str) -> None:
    assert compare_answers(a, b) is False


@pytest.mark.parametrize(("a", "b"), UNDECIDED)
def test_undecided_counts_as_different(a: str, b: str) -> None:
    assert compare_answers(a, b) is None
    assert not answers_equal(a, b)


@pytest.mark.parametrize("nothing", EMPTY)
def test_nothing_equals_nothing(nothing: str) -> None:
    for other in (nothing, "", "0", "5"):
        assert compare_answers(nothing, other) is False


def test_the_table_is_large() -> None:
    assert len(EQUAL) + len(UNEQUAL) >= 120


@pytest.mark.parametrize(
    ("text", "is_worked_out"),
    [
        *(
            (text, True)
            for text in ("42", "-1/2", "\\frac{3}{4}", "1 1/2", "3\\frac12", "50%", "1,234", "x = 5", "2*10^{5}")
        ),
        *((text, True) for text in ("5 cm", "$18", "1.5e3", "\\frac{-1}{2}")),
        *((text, False) for text in ("6*7", "2^3", "40+2", "\\sqrt{16}", "(2)(3)", "\\pi", "x", "1, 2", "", "7 - 2")),
    ],
)
def test_numerals_are_worked_out(text: str, is_worked_out: bool) -> None:
    assert is_numeral(text) is is_worked_out


# invariance

_atoms = st.sampled_from(
    [a for pair in EQUAL + UNEQUAL + UNDECIDED for a in pair]
    + [
        "((((",
        "\\frac{",
        "^^",
        "\\sqrt[",
        "{,}",
        "\ud800",
        "１／２",
        "\\left",
        "1/0",
        "\\frac{1}{0}",
        "0^{-1}",
        "0^0",
        "(,)",
        "\\pm\\pm 1",
    ]
)
_answers = _atoms | st.text(max_size=20) | st.text("0123456789+-*/^(){}[],. \\%xfracsqtpi", max_size=30)


@given(_answers, _answers)
@settings(max_examples=400, deadline=None)
def test_symmetric(a: str, b: str) -> None:
    assert compare_answers(a, b) is compare_answers(b, a)


@given(_answers)
@settings(max_examples=400, deadline=None)
def test_reflexive_on_what_says_something(a: str) -> None:
    assert answers_equal(a, a) is says_something(clean(a))


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
@settings(max_examples=200, deadline=None)
def test_fractions_are_exact(a, b) -> None:
    written = f"\\frac{{{a.numerator}}}{{{a.denominator}}}"
    assert compare_answers(written, f"{b.numerator}/{b.denominator}") is (a == b)
    assert answers_equal(written, str(a))


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9), max_value=10**9))
@settings(max_examples=200, deadline=None)
def test_separators_change_nothing(value) -> None:
    assert answers_equal(f"{value:,}", str(value))
    assert compare_answers(f"{value:,}", str(value + 1)) is False


# rejects


@pytest.mark.parametrize(
    "text",
    [
        *(
            "10^{10^{10}}",
            "9**9**9",
            "10**10**10",
            "2^{99999999999}",
            "1e999",
            "\\pi^{4000}",
            "\\sqrt{99999999977777777}",
        ),
        *("9" * 900, "(" * 900, "(" * 400 + "1" + ")" * 400, "\\sqrt{" * 100 + "2" + "}" * 100, "1" + "+1" * 400),
        *("1/" * 300 + "1", "\\frac" * 150, "^" * 900, "1," * 400, "\\pm" * 200, "((1,2)," * 100, "{" * 900, "-" * 900),
        *("\\text{" * 100, "(1+\\sqrt{2}+\\sqrt{3}+\\sqrt{5})^{99}", "\ud800\udfff", "\0", "x=" * 400, "or " * 300),
        *("\\cup" * 200, "½" * 300, "²" * 900, "\\frac{1}{0}", "0^{-1}", "1 1/0", "\\sqrt[0]{2}", "\\sqrt{-1}"),
    ],
)
def test_no_expression_takes_long_or_raises(text: str) -> None:
    for other in ("1", "x", "(1, 2)", text + "1"):
        assert compare_answers(text, other) is not True or other == "1"


def test_megabytes_are_compared_as_text_only() -> None:
    assert answers_equal("1" * 1_000_000, "1" * 1_000_000)
    assert compare_answers("1" * 1_000_000, "1") is False
    assert compare_answers(" " * 1_000_000, " " * 1_000_000) is False
