"""Numbers of groups, and how those of tasks are named."""

import math

from llamarl.controller.metrics import RolloutStats, evaluation_metrics, flatten
from llamarl.core.records import Completion, Group, Prompt, Sample, Trajectory

PROMPT = Prompt("p", ())


def group(*samples: tuple[float | None, tuple[int, ...]]) -> Group:
    """Samples given as (reward, the version of each token)."""
    return Group(
        PROMPT,
        tuple(
            Sample(Completion(trajectory, ""), {}, reward)
            for reward, v in samples
            for trajectory in [
                Trajectory.sampled((1,), (2,) * len(v), (-1.0,) * len(v), v, "stop" if reward else "length")
            ]
        ),
    )


# golden


def test_a_batch_in_numbers() -> None:
    stats = RolloutStats.measure([group((1.0, (3, 3)), (0.0, (2, 3, 3, 3))), group((1.0, (3,)), (None, (3,)))], 4)
    assert stats.reward == 2 / 3 and stats.num_scored == 3 and math.isclose(stats.reward_deviation, 2**0.5 / 3)
    assert stats.frac_zero_deviation == 0.5  # the second group has one reward only
    assert (stats.response_length, stats.max_response_length, stats.num_tokens) == (2.0, 4, 8)
    assert (stats.staleness, stats.max_staleness, stats.mixed_version_frac) == (9 / 8, 2, 0.25)
    assert stats.truncated_frac == 0.5


def test_a_lone_task_needs_no_prefix_and_several_have_one_each() -> None:
    run = {"train/loss": 1.0}
    assert flatten(run, {"a": {"algorithm/kept": 2.0}}) == {"train/loss": 1.0, "algorithm/kept": 2.0}
    several = flatten(run, {"a": {"algorithm/kept": 2.0}, "b": {}})
    assert several == {"train/loss": 1.0, "task/a/algorithm/kept": 2.0}


# rejects


def test_the_run_has_the_last_word_on_a_name_and_nothing_is_said_of_no_groups() -> None:
    assert flatten({"train/loss": 0.5}, {"a": {"train/loss": 1.0}}) == {"train/loss": 0.5}
    assert evaluation_metrics([]) == {}
