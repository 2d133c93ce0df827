import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.factuality.detectors.stated_probability import read_probability


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.8", 0.8),
        ("0.8.", 0.8),
        (".8", 0.8),
        ("0,8", 0.8),
        ("1", 1.0),
        ("0", 0.0),
        ("0%", 0.0),
        ("100", 1.0),
        ("85", 0.85),
        ("85%", 0.85),
        ("85 %", 0.85),
        ("８５％", 0.85),
        ("٨٥٪", 0.85),
        ("8e-1", 0.8),
        ("0.8/1", 0.8),
        ("8/10", 0.8),
        ("8 out of 10", 0.8),
        ("**0.75**", 0.75),
        ("[0.75]", 0.75),
        ("Probability: 0.35", 0.35),
        ("Probability = 35 percent.", 0.35),
        ("**Probability:** 0.35", 0.35),
        ("答案：0.35", 0.35),
        ("ninety percent", 0.9),
        ("Ninety-five percent.", 0.95),
        ("one hundred per cent", 1.0),
        ("half", 0.5),
        ("one", 1.0),
        ("<think>It was 0.1 or 0.2.</think>\n0.7", 0.7),
        ("0.9\n\nLyon is in France, and 95 % of its people speak French.", 0.9),
        ("Lyon is a city of 1 river.\n\nProbability: 0.3", 0.3),
        ("The probability is 1.", 1.0),
        ("The claim is 90% likely to be true.", 0.9),
        ("I would say 0.6, since Lyon has 522,250 people and is 173 m high.", 0.6),
        ("0.8 (80%)", 0.8),
    ],
)
def test_what_models_write(text, expected):
    assert read_probability(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "True",
        "I cannot say.",
        "very likely",
        "150%",
        "-0.3",
        "1.5",
        "5",
        "nan",
        "inf",
        "3/0",
        "0.2 to 0.9",
        "0.2-0.9",
        "0.2\n0.9",
        "There is a 10% chance that the claim is false.",
        "It isn't 90% sure.",
        "In 1998 it had 3 rivers.",
        "On 3/4/1998 it was founded.",
        "Give a number between 0 and 1.",
        "v0.8b",
        "10%, or rather 90%",
    ],
)
def test_what_states_no_probability_is_none(text):
    assert read_probability(text) is None


@given(st.text())
def test_any_text_gives_a_probability_or_none(text):
    value = read_probability(text)
    assert value is None or 0.0 <= value <= 1.0


@given(
    st.floats(0.0, 1.0).map(lambda value: round(value, 4)), st.sampled_from(["{}", "Probability: {}", "{}.", "**{}**"])
)
def test_plain_numbers_are_read_exactly(value, form):
    assert read_probability(form.format(f"{value:.4f}")) == value


@given(st.integers(0, 100))
def test_percentages_are_read_exactly(percent):
    assert read_probability(f"{percent} %") == read_probability(f"The chance is {percent}%") == percent / 100
