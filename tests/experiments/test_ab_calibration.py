import json
from pathlib import Path

import numpy as np
import pytest

from experiments.ab_calibration import HERE, POWER, World, calibration_table, draw_arm, find, moments_by_day, plan_users
from llamarl.functional.statistics import wilson_interval

RESULT = json.loads((HERE / "results" / "ab_calibration.json").read_text())
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "ab-test-a-policy.md"
CAUTIOUS = ("heavy tails", "same users daily")
"""Worlds in which few users have much of all messages; there intervals err a little less than they say."""
SMALL = World("small", 300, 6, 3.0, 0.03)


def count(world: World, tests: int, resamples: int) -> dict[str, int]:
    found = [find(world, [1, seed], resamples) for seed in range(tests)]
    return {name: sum(each[name] for each in found) for name in found[0]}


def test_a_few_tests_of_nothing_err_as_often_as_they_should() -> None:
    tests = 200
    found = count(SMALL, tests, resamples=99)
    for name in ("p", "bootstrap"):
        low, high = wilson_interval(found[name], tests, z=3.0)
        assert low < 0.05 < high, name
    assert found["always valid, any day"] <= 0.05 * tests
    assert found["p of messages"] > 0.09 * tests  # users with many messages
    assert found["p, any day"] > 0.09 * tests  # six looks


def test_a_few_tests_of_something_find_it_as_often_as_planned() -> None:
    world = World("small", 0, 6, 3.0, 0.05, late=False, looks=1, change=0.3)
    users, promised = plan_users(world)
    assert promised == pytest.approx(POWER, abs=0.01)
    sized = World("small", users, 6, 3.0, 0.05, late=False, looks=1, change=0.3)
    low, high = wilson_interval(count(sized, 200, resamples=0)["p"], 200, z=3.0)
    assert low < promised < high


def test_users_are_what_their_world_says() -> None:
    reactions, messages = draw_arm(SMALL, np.random.default_rng(0), 50_000)
    last = moments_by_day((reactions, messages))[-1]
    assert last.ratio == pytest.approx(0.03, rel=0.05)
    assert (np.diff(messages, axis=1) >= 0).all() and (reactions <= messages).all()


# the result file


@pytest.mark.parametrize("result", RESULT["results"], ids=lambda result: result["world"]["name"])
def test_the_committed_result_keeps_the_promise(result: dict) -> None:
    found = {name: each["share"] for name, each in result["found"].items()}
    if "promised_power" in result:
        assert found["p"] == pytest.approx(result["promised_power"], abs=0.02)
        return
    assert result["found"]["p"]["tests"] >= 1000
    for name in ("p", "bootstrap"):
        assert (0.035 if result["world"]["name"] in CAUTIOUS else 0.04) <= found[name] <= 0.06, name
    assert found["always valid, any day"] <= 0.05


def test_the_guide_shows_the_result() -> None:
    assert f"<!-- ab_calibration -->\n{calibration_table(RESULT)}\n<!-- end -->" in GUIDE.read_text()
