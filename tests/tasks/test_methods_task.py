from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, Prompt, Status
from llamarl.data.prompts import read_prompts
from llamarl.judges.voting import consensus, plurality
from llamarl.tasks.methods import (
    CHANCES,
    KINDS,
    METHODS,
    MethodsTask,
    Problem,
    answer,
    group,
    judge,
    levels,
    long,
    short,
    vote,
    with_mode,
    write_prompts,
)


def completion(text):
    return Completion((), (), (), (), text, "stop")


def prompt_of(problem):
    return Prompt("p", (), answer=str(problem.answer), info={"kind": problem.kind, "number": problem.number})


def kind_of(level):
    return next(kind for kind, found in levels().items() if found == level)


# golden


def test_a_vote_is_the_most_frequent_value_the_earliest_of_equals():
    assert vote([4]) == 4
    assert vote([1, 2, 2, 3, 4]) == 2
    assert vote([3, 1, 1, 3, 0]) == 3
    assert vote([5, 6, 7, 0, 1]) == 5


def test_requests_have_one_width_and_name_the_mode():
    assert Problem("K", 71).request("A") == "A0071K"
    assert Problem("B", 9999).request("S") == "S9999B"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kk", "short"),
        ("K[k,c,x,a,q]", "long"),
        ("K[k,k,k,k,k]", "long"),
        ("Bk", None),
        ("B[k,c,x,a,q]", None),
        ("k", None),
        ("K[k,c,x,a]", None),
        ("K[k,c,x,a,q,z]", None),
        ("K[k,c,x,a,q", None),
        ("K[k]", None),
        ("KkKc", None),
        ("KK", None),
        ("", None),
        ("Kk\n", None),
    ],
)
def test_groups_go_by_form_alone(text, expected):
    prompt = prompt_of(Problem("K", 71))
    assert group(prompt, completion(text)) == expected
    assert (answer(prompt, text) is None) == (expected is None)
    assert (judge(prompt, completion(text)).reason == "malformed") == (expected is None)


def test_the_judge_tries_the_methods():
    problem = Problem(kind_of(3), 5)
    works = [method for method in METHODS if problem.outcome(method) == problem.answer]
    fails = [method for method in METHODS if method not in works]
    named = [works[:1], fails[:1], [*works[:3], *fails[:2]], [fails[0]] * 3 + works[:2]]
    texts = [problem.response(methods) for methods in named]
    verdicts = [judge(prompt_of(problem), completion(text)) for text in texts]
    assert [v.score for v in verdicts] == [1.0, 0.0, 1.0, 0.0]
    assert [v.passed for v in verdicts] == [True, False, True, False]
    assert verdicts[3].reason == f"came to {problem.outcome(fails[0])}"


def test_the_judge_abstains_from_other_tasks():
    assert judge(Prompt("p", ()), completion("Kk")).status is Status.ABSTAINED


def test_four_kinds_have_each_level():
    assert sorted(levels()) == sorted(KINDS)
    assert sorted(levels().values()) == sorted([1, 2, 3, 4, 5] * 4)


@pytest.mark.parametrize("level", range(1, 6))
def test_methods_work_as_often_as_the_level_says(level):
    problems = [Problem(kind_of(level), number) for number in range(100)]
    share = fmean(problem.outcome(m) == problem.answer for problem in problems for m in METHODS)
    # of 2,600 trials; four standard deviations of a half are 0.039
    assert share == (1.0 if level == 1 else pytest.approx(CHANCES[level - 1], abs=0.039))


def test_wrong_values_are_scattered():
    problems = [Problem(kind_of(5), number) for number in range(40)]
    offsets = [(p.outcome(m) - p.answer) % 8 for p in problems for m in METHODS]
    counts = [offsets.count(offset) for offset in range(1, 8)]
    assert sum(counts) + offsets.count(0) == 1040
    assert min(counts) > 85 and max(counts) < 175  # 130 expected, four standard deviations are 43


# invariance


def test_prompts_are_functions_of_seed_split_and_index():
    assert MethodsTask(1).prompts(5) == MethodsTask(1).prompts(9)[:5] != MethodsTask(2).prompts(5)


def test_no_problem_is_in_both_splits():
    def problems(split):
        return {(p.info["kind"], p.info["number"]) for p in MethodsTask(0, split).prompts(500)}

    assert not problems("train") & problems("heldout")


def test_a_mode_changes_the_request_only():
    prompt = MethodsTask(0).prompt(3)
    assert long(prompt) == with_mode(prompt, "L") == MethodsTask(0).prompt(3, "L")
    assert short(prompt).messages[0]["content"] == "S" + prompt.messages[0]["content"][1:]


def test_written_prompts_are_read_back(tmp_path):
    assert write_prompts(tmp_path / "p.jsonl", 20, 1, "heldout", "S") == 20
    assert list(read_prompts(tmp_path / "p.jsonl")) == MethodsTask(1, "heldout").prompts(20, "S")


@pytest.mark.parametrize("index", range(20))
def test_demonstrations_keep_to_their_mode_and_name_different_methods(index):
    prompt, text = MethodsTask(3).demonstration(index)
    mode = prompt.messages[0]["content"][0]
    assert group(prompt, completion(text)) in {"S": ("short",), "L": ("long",), "A": ("short", "long")}[mode]
    methods = [character for character in text if character in METHODS]
    assert len(set(methods)) == len(methods)


def test_half_of_the_demonstrations_in_mode_a_vote():
    pairs = [MethodsTask(0).demonstration(index) for index in range(1500)]
    texts = [text for prompt, text in pairs if prompt.messages[0]["content"][0] == "A"]
    assert len(texts) == pytest.approx(500, abs=75)  # four standard deviations
    assert fmean("[" in text for text in texts) == pytest.approx(0.5, abs=0.09)


# reduces_to


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_a_vote_of_up_to_five_is_the_rule_of_voting_responses(values):
    said = [str(value) for value in values]
    assert str(vote(values)) == (consensus(said) or plurality(said))


# rejects


def test_an_unknown_split():
    with pytest.raises(ConfigError, match="split"):
        MethodsTask(0, "test")
