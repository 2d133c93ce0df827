import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError
from llamarl.evals.thinking import thinking_rule

CASES = [
    # rule, text, answer, thinking
    ("none", " <think>a</think> b\n", "<think>a</think> b", None),
    ("think", "plain\n", "plain", None),
    ("think", "", "", None),
    ("think", "<think>\na\n</think>\n\nb", "b", "a"),
    ("think", "<think></think>b", "b", ""),
    ("think", "before <think>a</think> after", "before  after", "a"),
    ("think", "<think>a</think>b<think>c</think>d", "bd", "a\nc"),
    ("think", "<think>cut at the limit", "", "cut at the limit"),
    ("think", "<think>", "", ""),
    ("think", "b <think>cut", "b", "cut"),
    ("think", "the template opened it</think>b", "b", "the template opened it"),
    ("think", "a</think>b<think>c", "b", "a\nc"),
    ("think", "<think>a <think> b</think> c", "c", "a <think> b"),
    ("think", "<think>a</think>", "", "a"),
    ("think", "<THINK>a</THINK>", "<THINK>a</THINK>", None),
    ("[THINK],[/THINK]", "[THINK]a[/THINK] <think>", "<think>", "a"),
    (",</think>", "cut at the limit", "", "cut at the limit"),
    (",</think>", "a</think>b", "b", "a"),
    (",</think>", "a</think>b</think>c", "b</think>c", "a"),
]


@pytest.mark.parametrize(("rule", "text", "answer", "thinking"), CASES)
def test_golden(rule, text, answer, thinking):
    assert thinking_rule(rule).split(text) == (answer, thinking)


@pytest.mark.parametrize("name", ["none", "think", "[THINK],[/THINK]", ",</think>"])
def test_a_rule_prints_as_it_is_written(name):
    assert str(thinking_rule(name)) == name


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " ", "\n", "b<"]), max_size=12).map("".join))
@settings(max_examples=200, deadline=None)
def test_nothing_is_invented_and_no_open_block_reaches_the_answer(text):
    answer, thinking = thinking_rule("think").split(text)
    marks = ("<think>", "</think>")
    assert (thinking is not None) == any(mark in text for mark in marks)
    kept = f"{answer} {thinking or ''}"
    for mark in marks:
        text, kept = text.replace(mark, " "), kept.replace(mark, " ")
    assert sorted("".join(kept.split())) == sorted("".join(text.split()))
    assert "<think>" not in answer


@pytest.mark.parametrize("name", ["", "thnik", ",", "<a>,", "<a>,<a>"])
def test_rejects(name):
    with pytest.raises(ConfigError, match="choose none, think, or two different marks"):
        thinking_rule(name)
