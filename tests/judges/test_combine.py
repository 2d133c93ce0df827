import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.records import Verdict
from llamarl.judges import combine
from llamarl.judges.combine import mixture, satisfies

scored, abstained, failed = Verdict.scored, Verdict.abstained(), Verdict.failed("broken")
finite = st.floats(-100, 100)


def test_golden_weighted_mean() -> None:
    # (2 * 1.0 + 1 * 0.25) / (2 + 1) = 2.25 / 3 = 0.75
    assert combine({"a": scored(1.0), "b": scored(0.25)}, {"a": 2.0, "b": 1.0}) == 0.75


@given(finite, st.floats(0.01, 10))
def test_reduces_to_the_score_of_a_single_judge(score: float, weight: float) -> None:
    assert math.isclose(combine({"a": scored(score)}, {"a": weight}), score, rel_tol=1e-12, abs_tol=1e-12)


@given(finite, finite, st.floats(0.1, 10))
def test_an_abstaining_judge_leaves_the_reward_as_if_it_were_not_there(a: float, b: float, weight: float) -> None:
    verdicts, weights = {"a": scored(a), "b": scored(b)}, {"a": 1.0, "b": 0.5}
    assert combine({**verdicts, "c": abstained}, {**weights, "c": weight}) == combine(verdicts, weights)


@given(st.permutations(["a", "b", "c"]), st.floats(0.1, 10))
def test_invariant_to_order_and_to_the_scale_of_all_weights(order: list[str], scale: float) -> None:
    verdicts = {"a": scored(1.0), "b": scored(0.0), "c": scored(-2.0)}
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}  # (1 - 8) / 7 = -1
    assert math.isclose(combine(verdicts, {name: scale * weights[name] for name in order}), -1.0)


def test_a_failed_verdict_unscores_the_sample_only_where_it_has_weight() -> None:
    verdicts = {"a": scored(1.0), "b": failed}
    assert combine(verdicts, {"a": 1.0, "b": 0.01}) is None
    assert combine(verdicts, {"a": 1.0, "b": 0.0}) == 1.0


def test_without_any_score_there_is_no_reward() -> None:
    assert combine({"a": abstained, "b": abstained}, {"a": 1.0, "b": 1.0}) is None
    assert combine({"a": abstained, "b": scored(1.0)}, {"a": 1.0, "b": 0.0}) is None


# ---- constraints (cgpo D1, P7)

passes, violates = scored(1.0, passed=True), scored(0.0, passed=False)
kinds = st.sampled_from([passes, violates, abstained, failed])
ORDER = {True: 2, None: 1, False: 0}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([], True),  # cgpo P7: no judge, everything is satisfied
        ([passes, passes], True),
        ([passes, abstained], True),  # does not apply, so does not violate
        ([passes, violates], False),  # cgpo D1: AND
        ([violates, failed], False),  # whatever the broken judge would have said
        ([passes, failed], None),  # cgpo D1: a failure is not a violation, and not a pass
    ],
)
def test_golden_satisfaction(verdicts: list[Verdict], expected: bool | None) -> None:
    assert satisfies(verdicts) is expected


@given(st.lists(kinds, max_size=6), st.randoms())
def test_satisfaction_does_not_depend_on_the_order_of_judges(verdicts: list[Verdict], random: Random) -> None:
    shuffled = random.sample(verdicts, len(verdicts))
    assert satisfies(shuffled) is satisfies(verdicts)  # cgpo P7


@given(st.lists(kinds, max_size=6), kinds)
def test_one_judge_more_only_shrinks_the_satisfied_set(verdicts: list[Verdict], one_more: Verdict) -> None:
    assert ORDER[satisfies([*verdicts, one_more])] <= ORDER[satisfies(verdicts)]  # cgpo P7


def test_golden_mixture() -> None:
    weights = {"help": 1.0}
    verdicts = {"help": scored(0.75), "safe": passes, "true": violates, "broken": failed}
    assert mixture(verdicts, weights) == (0.75, True)
    assert mixture(verdicts, weights, ["safe"]) == (0.75, True)
    assert mixture(verdicts, weights, ["safe", "true"]) == (0.75, False), "the constraint's score counts nowhere"
    assert mixture(verdicts, weights, ["safe", "broken"]) == (None, None)
    assert mixture(verdicts, weights, ["safe", "broken", "true"]) == (0.75, False)
    assert mixture(verdicts, {"broken": 1.0}, ["safe"]) == (None, True)


def test_without_reward_judges_the_reward_is_satisfaction() -> None:
    verdicts = {"safe": passes, "true": violates, "odd": abstained, "broken": failed}
    assert mixture(verdicts, {}, ["safe", "odd"]) == (1.0, True)  # cgpo D8
    assert mixture(verdicts, {}, ["safe", "true"]) == (0.0, False)
    assert mixture(verdicts, {}, ["broken"]) == (None, None)


@given(finite, st.lists(kinds, max_size=4))
def test_mixture_reduces_to_combine_where_nothing_is_constrained(score: float, others: list[Verdict]) -> None:
    verdicts = {"a": scored(score), **{str(i): verdict for i, verdict in enumerate(others)}}
    assert mixture(verdicts, {"a": 2.0}) == (combine(verdicts, {"a": 2.0}), True)
