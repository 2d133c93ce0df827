import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError
from llamarl.core.records import Verdict
from llamarl.judges import combine
from llamarl.judges.combine import check_weights

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


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": -1.0}, "weight of judge 'a': got -1.0"),
        ({"a": math.nan}, "weight of judge 'a': got nan"),
        ({"a": 0.0}, "at least one judge needs a positive weight"),
        ({}, "at least one judge"),
    ],
)
def test_rejects_weights(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_weights(weights)
