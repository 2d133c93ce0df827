import json

import pytest
from scripted_chats import ScriptedChat

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Prompt
from llamarl.evals.budget import BudgetPlan, _tally, budget_results
from llamarl.evals.budget_samples import (
    Attempt,
    num_answers_in,
    read_problems,
    sample,
    stated_answer,
    whole_answer,
)
from llamarl.evals.groups import Bootstrap
from llamarl.models.endpoint import ChatReply
from llamarl.report.frontier_plot import plot_frontier

TRIAL = "[TRIAL] so \\boxed{%s} [/TRIAL]"


def problem(id, level=None, answer="7"):
    message = {"role": "user", "content": f"problem {id}"}
    return Prompt(id, (message,), answer, info={} if level is None else {"level": level})


def attempts(id, answers, *, num_answers=1, group="short", prompt_tokens=10, completion_tokens=5):
    """One per letter: r right, w wrong, v another wrong answer, - no answer, ? not judged."""
    return [
        Attempt(
            id,
            number,
            None if letter == "?" else letter == "r",
            None if letter in "-?" else letter,
            group,
            num_answers,
            prompt_tokens,
            completion_tokens,
            problem="no reply" if letter == "?" else None,
        )
        for number, letter in enumerate(answers)
    ]


PLAN = BudgetPlan(("base",), (1, 3), (1, 2), Bootstrap(0, 200))


def results(base, other=None, plan=PLAN, levels=(None, None), **spent):
    """Results of a base model, and of another one that votes three times each."""
    ids = [f"p{n}" for n in range(len(base))]
    by_model = {"base": {id: attempts(id, letters) for id, letters in zip(ids, base, strict=True)}}
    if other is not None:
        three = {"num_answers": 3, "group": "long", "completion_tokens": 15, **spent}
        by_model["other"] = {id: attempts(id, letters, **three) for id, letters in zip(ids, other, strict=True)}
    return budget_results([problem(id, level) for id, level in zip(ids, levels, strict=True)], by_model, plan)


def value(tree, *path):
    for name in path:
        tree = tree[name]
    return tree["value"]


# counting answers


@pytest.mark.parametrize(
    ("text", "count", "answer"),
    [
        ("it is \\boxed{7}", 1, "7"),
        ("no idea", 1, None),
        (" ".join(TRIAL % n for n in (7, 8)), 2, "8"),
        (" ".join(TRIAL % n for n in (7, 8, 7, 7)), 4, "7"),
        (" ".join(TRIAL % n for n in range(9)), 9, None),  # too many: malformed, but all nine were generated
        (" ".join(TRIAL % n for n in (7, 7, 7, 7)), 4, None),  # went on after three equal ones
        (TRIAL % 7 + " [TRIAL] cut", 2, None),
        (TRIAL % 7, 1, None),
        ("[/TRIAL] \\boxed{7}", 1, None),
        (" ".join(f"[TRIAL {n}] \\boxed{{7}} [/TRIAL {n}]" for n in range(8)), 8, None),  # no tag of ours
    ],
)
def test_answers_that_were_generated(text, count, answer):
    assert num_answers_in(text) == count
    assert stated_answer(text) == answer


@pytest.mark.parametrize(("text", "answer"), [("5", "5"), ("<think>41</think> 5 ", "5"), ("<think>41</think>", None)])
def test_the_whole_answer(text, answer):
    assert whole_answer(text) == answer


# curves


def test_curves_by_hand():
    found = results(["rrww", "rrrr"])
    curve = found["baselines"]["base"]["self_consistency"]
    # one vote: (1/2 + 1) / 2. Three of r r w w: two right in 2 of 4 triples -> 1/2, so the mean stays
    assert [value(curve, k, "accuracy") for k in "13"] == pytest.approx([0.75, 0.75])
    # one of two: 1 - 1/6 and 1
    assert value(found["baselines"]["base"]["best_of"], "2", "accuracy") == pytest.approx((5 / 6 + 1) / 2)
    budget = curve["3"]["budget"]  # a vote pays for one prompt
    spent = {axis: budget[axis]["value"] for axis in budget}
    assert spent == {
        "answers": 3,
        "completion_tokens": 15,
        "prompt_tokens": 10,
        "total_tokens": 25,
    }  # one prompt a vote
    assert value(found["models"]["base"], "accuracy") == value(curve, "1", "accuracy")


HALVES = ("1/2", "0.5", "\\frac{1}{2}", "\\dfrac12", " 0.50 ")


def test_equal_answers_in_different_spellings_are_one_answer_of_a_vote():
    answers = ["7", *HALVES[:3], "7", None]
    voted = [Attempt("p0", n, answer != "7", answer) for n, answer in enumerate(answers)]
    assert _tally(voted) == ((3,), (2,))
    assert _tally(voted, should_merge_spellings=False) == ((1, 1, 1), (2,))
    spelled = [Attempt("p0", n, n % 2 == 0, HALVES[n % 5] if n % 2 == 0 else "7", "short") for n in range(19)]
    plain = [Attempt("p0", n, n % 2 == 0, "1/2" if n % 2 == 0 else "7", "short") for n in range(19)]
    curves = [
        budget_results([problem("p0")], {"base": {"p0": each}}, BudgetPlan(("base",), (1, 3, 9), (1,)))["baselines"]
        for each in (spelled, plain)
    ]
    assert curves[0] == curves[1]
    assert value(curves[0]["base"]["self_consistency"], "9", "accuracy") > 10 / 19


def test_gain_at_equal_budget():
    # 2 of 3 samples right: three votes are 1 - C(..): of the one triple rrw right -> 1; one vote 2/3
    found = results(["rrw", "rrw"], ["rrr", "rrr"])
    gain = found["baselines"]["base"]["gain"]["other"]
    assert {axis: gain[axis]["where"] for axis in gain} == dict.fromkeys(gain, "inside")
    assert gain["answers"]["opponent"] == pytest.approx(1.0)
    assert value(gain, "answers") == pytest.approx(0.0)
    # half way between one vote (2/3 at 15 tokens, prompt included) and three (1 at 25): 20 tokens buy 5/6
    cheaper = results(["rrw", "rrw"], ["rrr", "rrr"], completion_tokens=10)["baselines"]["base"]["gain"]["other"]
    assert value(cheaper, "total_tokens") == pytest.approx(1 - 5 / 6)


@pytest.mark.parametrize(
    ("completion_tokens", "where", "expected"),
    [(3, "below", 1 - 2 / 3), (5, "inside", 1 - 2 / 3), (16, "above", None), (None, "unknown", None)],
)
def test_budgets_off_the_curve(completion_tokens, where, expected):
    found = results(["rrw", "rrw"], ["rrr", "rrr"], completion_tokens=completion_tokens)
    gain = found["baselines"]["base"]["gain"]["other"]["completion_tokens"]
    assert gain["where"] == where
    assert gain["value"] == (None if expected is None else pytest.approx(expected))


def test_area_by_hand():
    # votes: 2/3 at 1 answer, 1 at 3; mean 5/6. models: 2/3 at 1, all right at 2: (5/6 + 1) / 2
    found = results(["rrw", "rrw"], ["rrr", "rrr"], num_answers=2)["baselines"]["base"]["area"]["answers"]
    assert (found["low"], found["high"]) == (1, 3)
    assert value(found, "self_consistency") == pytest.approx(5 / 6)
    assert value(found, "models") == pytest.approx(11 / 12)
    assert value(found, "difference") == pytest.approx(1 / 12)
    assert found["frontier"] == [(1.0, pytest.approx(2 / 3)), (2.0, 1.0)]


def test_differences_are_paired():
    # both models are right on the same problems: accuracies vary from resample to resample, the gain does not
    found = results(["rrr", "www", "rrr", "www"], ["r", "w", "r", "w"], levels=(None,) * 4)
    rate, gain = found["models"]["base"]["accuracy"], found["baselines"]["base"]["gain"]["other"]["answers"]
    assert rate["low"] < 0.5 < rate["high"]
    assert (gain["low"], gain["high"]) == pytest.approx((0, 0))


def test_allocation_by_level_and_group():
    found = results(["rrw", "rrw"], ["rr", "rw"], levels=("Level 10", "Level 2"))["models"]["other"]
    assert list(found["levels"]) == ["Level 2", "Level 10"]
    assert found["levels"]["Level 2"] == {
        "problems": 1,
        "shares": {"long": 1.0},
        "accuracy": 0.5,
        "answers": 3,
        "completion_tokens": 15,
        "prompt_tokens": 10,
        "total_tokens": 25,
    }
    assert found["groups"]["long"]["accuracy"] == 0.75


# failures


def test_a_problem_without_enough_samples_is_in_no_number():
    found = results(["rrrr", "rw??"], ["r", "w"])
    assert found["problems"] == {"all": 2, "used": 1}
    assert value(found["models"]["other"], "accuracy") == 1.0
    assert found["models"]["base"]["samples"]["left_out"] == {"no reply": 2}
    assert found["models"]["base"]["accuracy"]["low"] is None  # one problem has no interval


def test_a_failed_sample_does_not_count_as_wrong():
    assert value(results(["rrr?", "rrr?"])["models"]["base"], "accuracy") == 1.0


def test_equal_answers_with_unequal_verdicts_are_two_answers():
    found = [Attempt("p0", n, is_right, "5", "short") for n, is_right in enumerate((True, False, False))]
    tree = budget_results([problem("p0")], {"base": {"p0": found}}, PLAN)
    assert value(tree["baselines"]["base"]["self_consistency"], "3", "accuracy") == 0.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: BudgetPlan(()), ConfigError, "baselines: none"),
        (lambda: BudgetPlan(("base",), votes=(0,)), ConfigError, "votes"),
        (lambda: results(["rrr"], plan=BudgetPlan(("bse",)), levels=(None,)), ConfigError, "'bse' is no model"),
        (lambda: results(["r??", "???"]), DataError, "none of the 2 problems .* no reply"),
        (lambda: read_problems("builtin", limit=0), ConfigError, "limit=0"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# data and samples


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1 + 1", "answer": "2"},
        {"problem": "1 + 1", "answer": "2", "solution": "so \\boxed{3}", "level": 4},
        {"question": "1 + 1", "solution": "so \\boxed{2}"},
    ],
)
def test_rows(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = read_problems(str(path))
    assert found.messages[0]["content"] == "1 + 1"
    assert "2" in found.answer
    assert found.info.get("level") == row.get("level")


def test_builtin_problems_have_levels():
    assert {prompt.info["level"] for prompt in read_problems("builtin", limit=60)} == set(range(1, 9))


def test_samples_have_seeds_of_their_own_and_go_on(tmp_path):
    problems = [problem("a"), problem("a#0")]
    answer = lambda messages, seed: ChatReply(f"{messages[-1]['content']} {seed}", "stop", 3, 2)  # noqa: E731

    def ask(count, out, chat):
        return sample(problems, chat, tmp_path / out, count, system="Be brief.", seed=1)

    first, whole = ScriptedChat(answer, lambda messages: 0.0), ScriptedChat(answer, lambda messages: 0.0)
    few = ask(2, "resumed", first)
    more = ScriptedChat(answer, lambda messages: 0.0)
    resumed = ask(4, "resumed", more)
    assert len(more.asked) == 4  # two further ones of each problem
    texts = {id: [reply.response for reply in replies] for id, replies in resumed.items()}
    assert texts == {id: [r.response for r in replies] for id, replies in ask(4, "whole", whole).items()}
    assert all(texts[id][:2] == [r.response for r in few[id]] for id in few)
    assert len({text for each in texts.values() for text in each}) == 8
    messages, _ = first.asked[0]
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[1]["content"] == "problem a"


def test_figure(tmp_path):
    tree = results(["rrw", "rrw"], ["rrr", "rrr"], levels=(1, 2))
    without_tokens = results(["rrw", "rrw"], ["rrr", "rrr"], completion_tokens=None)
    for number, each in enumerate((tree, json.loads(json.dumps(without_tokens)))):
        assert plot_frontier(each, tmp_path / f"{number}.png").stat().st_size > 10_000
