import json
import math

import pytest
from feedback_logs import ingest_rows, message

from llamarl.core.errors import DataError
from llamarl.feedback import Description, describe
from llamarl.feedback.describe import clustered_rate, fisher_interval
from llamarl.functional.statistics import wilson_interval

HOUR = 3600
DAY = 24 * HOUR
START = 1740787200
"""Midnight of 1 March 2025, UTC."""


def described(folder, rows, **settings):
    store = ingest_rows(folder, rows, **settings)
    return describe(Description(store=store.path, threads=1))


# golden


def test_rates_by_segment(tmp_path):
    rows = [
        message(index, surface="web" if index < 6 else "ios", reaction="❤️" if index in (0, 1, 6) else None)
        for index in range(10)
    ]
    result = described(tmp_path, rows)
    assert (result["messages"], result["loves"], result["base_rate"]) == (10, 3, 0.3)
    assert [(row["segment"], row["messages"], row["loves"], row["rate"]) for row in result["by"]["surface"]] == [
        ("ios", 4, 1, 0.25),
        ("web", 6, 2, pytest.approx(1 / 3)),
    ]
    assert [row["segment"] for row in result["by"]["language"]] == [None]
    assert [row["segment"] for row in result["by"]["day"]] == ["2025-03-01"]
    json.dumps(result, allow_nan=False)


def test_clustered_rate_by_hand():
    """Two users: 2 of 4, 0 of 4. p = 1/4; sum (l - p n)^2 = 1 + 1; variance = 2/1 * 2/64 = 1/16; plain 3/128."""
    rate, interval, effect = clustered_rate([2, 8, 2, 4, 8, 32])
    assert rate == 0.25
    assert effect == pytest.approx((1 / 16) / (3 / 128))
    assert interval == pytest.approx(wilson_interval(2 / effect, 8 / effect))


def test_signals_of_a_log_where_love_means_something(tmp_path):
    """Users who love come back and have the outcome; the others don't."""
    rows = []
    for who in range(8):
        happy = who % 2 == 0
        for index in range(2):
            rows.append(
                message(
                    10 * who + index,
                    user=f"somebody-{who}",
                    conversation_id=f"c{who}",
                    ts=START + index * (DAY if happy else HOUR),
                    reaction="❤️" if happy and index == 0 else None,
                    next_sentiment=0.5 if happy or index else -0.5,
                    outcome=int(happy),
                    stars=5 if happy else -1,
                )
            )
    result = described(tmp_path, rows, keep=["stars"])
    signals = {signal["name"]: signal for signal in result["signals"]}
    assert list(signals) == ["love", "sentiment", "continued", "returned", "stars"]
    love = signals["love"]
    assert (love["messages"], love["positive"], love["users"], love["share"]) == (16, 4, 4, 0.25)
    assert love["correlation"] == pytest.approx(1.0)
    assert love["ambiguity"] == 0.0
    assert signals["continued"]["positive"] == 8
    assert signals["continued"]["correlation"] is None  # it never varies
    assert signals["returned"]["messages"] == 12  # the last day has no next one
    assert signals["returned"]["correlation"] == pytest.approx(1.0)
    assert signals["continued"]["ambiguity"] == 0.5
    assert signals["stars"]["positive"] == 8


def test_without_an_outcome_nothing_is_correlated(tmp_path):
    signal = described(tmp_path, [message(index, reaction="❤️") for index in range(3)])["signals"][0]
    assert signal["correlation"] is None and signal["ambiguity"] is None


def test_fisher_by_hand():
    half = 1.959963984540054 / math.sqrt(100 - 3)
    assert fisher_interval(0.0, 100) == pytest.approx((-math.tanh(half), math.tanh(half)))


# reduces to


def test_users_of_one_message_give_wilson():
    """30 users with a love, 70 without: the design effect is U / (U - 1)."""
    _, interval, effect = clustered_rate([30, 100, 100, 30, 30, 100])
    assert effect == pytest.approx(100 / 99)
    assert interval == pytest.approx(wilson_interval(30, 100), abs=1e-3)


def test_where_nobody_loves_the_effect_of_the_whole_log_holds():
    assert clustered_rate([0, 100, 10, 0, 0, 1000], 4.0)[1] == wilson_interval(0, 25)


# rejects


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(DataError, match="no store of messages"):
        describe(Description(store=tmp_path))


def test_fewer_than_four_pairs_say_nothing():
    assert fisher_interval(0.9, 3) == (-1.0, 1.0)
