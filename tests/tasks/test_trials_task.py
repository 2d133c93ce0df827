import asyncio
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError
from llamarl.core.judge import Judge
from llamarl.core.records import Prompt, Status, text_completion
from llamarl.data.prompts import read_prompts
from llamarl.judges.resolve import load_judge
from llamarl.judges.voting import consensus, plurality
from llamarl.tasks.trials import (
    CHANCES,
    KINDS,
    MAX_TOKENS,
    Problem,
    TrialsTask,
    answer,
    group,
    judge,
    levels,
    long,
    num_trials,
    short,
    vote,
    with_mode,
    write_prompts,
)


def completion(text):
    return text_completion(text)


def prompt_of(problem):
    return Prompt("p", (), answer=str(problem.answer), info={"kind": problem.kind, "number": problem.number})


def kind_of(level):
    return next(kind for kind, found in levels().items() if found == level)


def verdicts_of(prompt, texts):
    return asyncio.run(judge.judge(prompt, [completion(text) for text in texts]))


# golden


def test_a_vote_is_the_most_frequent_value_the_earliest_of_equals():
    assert vote([4]) == 4
    assert vote([1, 2, 2, 3, 4]) == 2
    assert vote([3, 1, 1, 3, 0]) == 3
    assert vote([5, 6, 7, 0, 1]) == 5


def test_requests_and_responses():
    problem = Problem("K", 71)
    assert problem.request("A") == "A0071K"
    assert problem.response(False) == "K."
    assert problem.response(True) == "K:....."
    assert len(problem.response(True)) + 1 == MAX_TOKENS  # and the end token


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("K.", "short"),
        ("K:.....", "long"),
        ("B.", None),
        ("B:.....", None),
        ("K", None),
        ("K..", None),
        ("K:.", None),
        ("K:....", None),
        ("K:......", None),
        ("K.....", None),
        (".", None),
        ("", None),
        ("K.\n", None),
    ],
)
def test_groups_go_by_form_alone(text, expected):
    prompt = prompt_of(Problem("K", 71))
    assert group(prompt, completion(text)) == expected
    assert num_trials(prompt, text) == {"short": 1, "long": 5, None: None}[expected]
    assert (verdicts_of(prompt, [text])[0].reason == "malformed") == (expected is None)


def test_the_judge_tries_with_the_luck_of_each_place():
    problem = Problem(kind_of(3), 5)
    texts = [problem.response(is_long) for is_long in [False] * 30 + [True] * 30]
    verdicts = verdicts_of(prompt_of(problem), texts)
    values = [vote(problem.outcomes(place, 5 if place >= 30 else 1)) for place in range(60)]
    assert [v.passed for v in verdicts] == [value == problem.answer for value in values]
    assert {v.passed for v in verdicts[:30]} == {v.passed for v in verdicts[30:]} == {True, False}
    wrong = next(place for place, verdict in enumerate(verdicts) if not verdict.passed)
    assert verdicts[wrong].score == 0.0 and verdicts[wrong].reason == f"came to {values[wrong]}"


def test_the_judge_abstains_from_other_tasks():
    (verdict,) = asyncio.run(judge.judge(Prompt("p", ()), [completion("K.")]))
    assert verdict.status is Status.ABSTAINED


def test_recipes_find_the_judge_by_name():
    assert load_judge("trials") is judge
    assert isinstance(judge, Judge)


def test_four_kinds_have_each_level():
    assert sorted(levels()) == sorted(KINDS)
    assert sorted(levels().values()) == sorted([1, 2, 3, 4, 5] * 4)


@pytest.mark.parametrize(("level", "of_votes"), [(1, 1.0), (2, 0.968), (3, 0.823), (4, 0.611), (5, 0.125)])
def test_trials_and_votes_are_right_as_often_as_said(level, of_votes):
    problems = [Problem(kind_of(level), number) for number in range(2000)]
    trials = fmean(problem.outcomes(0, 1) == [problem.answer] for problem in problems)
    votes = fmean(vote(problem.outcomes(1, 5)) == problem.answer for problem in problems)
    # of 2,000: four standard deviations of a half are 0.045
    assert trials == (1.0 if level == 1 else pytest.approx(CHANCES[level - 1], abs=0.045))
    assert votes == (1.0 if level == 1 else pytest.approx(of_votes, abs=0.045))


def test_wrong_values_are_scattered():
    problems = [Problem(kind_of(5), number) for number in range(1040)]
    offsets = [(p.outcomes(0, 1)[0] - p.answer) % 8 for p in problems]
    counts = [offsets.count(offset) for offset in range(8)]
    assert min(counts) > 85 and max(counts) < 175  # 130 expected, four standard deviations are 43


# invariance


def test_equal_calls_give_equal_verdicts():
    prompt, texts = prompt_of(Problem(kind_of(4), 9)), [f"{kind_of(4)}."] * 20
    assert verdicts_of(prompt, texts) == verdicts_of(prompt, texts) == verdicts_of(prompt, [*texts, "?"])[:20]


def test_prompts_are_functions_of_seed_split_and_index():
    assert TrialsTask(1).prompts(5) == TrialsTask(1).prompts(9)[:5] != TrialsTask(2).prompts(5)


def test_no_problem_is_in_both_splits():
    def problems(split):
        return {(p.info["kind"], p.info["number"]) for p in TrialsTask(0, split).prompts(500)}

    assert not problems("train") & problems("heldout")


def test_a_mode_changes_the_request_only():
    prompt = TrialsTask(0).prompt(3)
    assert long(prompt) == with_mode(prompt, "L") == TrialsTask(0).prompt(3, "L")
    assert short(prompt).messages[0]["content"] == "S" + prompt.messages[0]["content"][1:]


def test_written_prompts_are_read_back(tmp_path):
    assert write_prompts(tmp_path / "p.jsonl", 20, 1, "heldout", "S") == 20
    assert list(read_prompts(tmp_path / "p.jsonl")) == TrialsTask(1, "heldout").prompts(20, "S")


@pytest.mark.parametrize("index", range(20))
def test_demonstrations_keep_to_their_mode(index):
    prompt, text = TrialsTask(3).demonstration(index)
    mode = prompt.messages[0]["content"][0]
    assert group(prompt, completion(text)) in {"S": ("short",), "L": ("long",), "A": ("short", "long")}[mode]


def test_half_of_the_demonstrations_in_mode_a_vote():
    pairs = [TrialsTask(0).demonstration(index) for index in range(1500)]
    texts = [text for prompt, text in pairs if prompt.messages[0]["content"][0] == "A"]
    assert len(texts) == pytest.approx(500, abs=75)  # four standard deviations
    assert fmean(":" in text for text in texts) == pytest.approx(0.5, abs=0.09)


# reduces_to


@settings(deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_a_vote_of_up_to_five_is_the_rule_of_voting_responses(values):
    said = [str(value) for value in values]
    assert str(vote(values)) == (consensus(said) or plurality(said))


# rejects


def test_an_unknown_split():
    with pytest.raises(ConfigError, match="split"):
        TrialsTask(0, "test")


def test_a_malformed_completion_has_no_answer():
    assert answer(prompt_of(Problem("K", 1)), "K", 0) is None
