from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from love_logs import love_store

from llamarl.core.errors import DataError
from llamarl.feedback.split import SplitSettings, split_store
from llamarl.feedback.store import Store, publish
from llamarl.training.objectives.love import SEGMENTS

PLAIN = SplitSettings(
    held_out=0.2, positive_share=0.1, reacting_users_only=False, max_examples=10**6, max_held_out=10**6, seed=0
)
START = datetime(2025, 3, 1, tzinfo=UTC)


@contextmanager
def small_store(messages):
    """A store of (user, conversation, hour, loved) rows, without an ingest."""
    with TemporaryDirectory() as folder:
        data = Path(folder) / "data-1" / "messages"
        data.mkdir(parents=True)
        shown = [(START + timedelta(hours=hour)).replace(tzinfo=None) for _, _, hour, _ in messages]
        table = pa.table(
            {
                "message_hash": [f"m{number}" for number in range(len(messages))],
                "user_hash": [user for user, *_ in messages],
                "conversation_hash": pa.array([None if m[1] is None else f"c{m[1]}" for m in messages], pa.string()),
                "ts": pa.array(shown, pa.timestamp("us")),
                "context": ["[]"] * len(messages),
                "response": [f"r{number}" for number in range(len(messages))],
                "reaction": pa.array(["love" if m[3] else None for m in messages], pa.string()),
                "loved": [m[3] for m in messages],
                **{name: pa.nulls(len(messages), pa.string()) for name in SEGMENTS},
            }
        )
        pq.write_table(table, data / "0.parquet")
        yield publish(Path(folder), data.parent, {})


def sides_of(store, config=PLAIN):
    """Message numbers of both sides, and the split."""
    with split_store(store, config) as split:
        sides = {side: [int(row["completion"][1:]) for row in split.rows(side)] for side in ("train", "held_out")}
        return sides["train"], sides["held_out"], split


MESSAGES = st.lists(
    st.tuples(st.sampled_from("abcdefghij"), st.sampled_from([None, *range(8)]), st.integers(0, 24 * 6), st.booleans()),
    min_size=20,
    max_size=60,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MESSAGES, st.floats(0.1, 0.45), st.integers(0, 5), st.booleans())
def test_nothing_of_a_user_or_a_conversation_is_on_both_sides_and_time_divides_them(messages, share, seed, only):
    config = replace(PLAIN, held_out=share, seed=seed, reacting_users_only=only)
    with small_store(messages) as store:
        try:
            train, held_out, split = sides_of(store, config)
        except DataError:
            return
        for part in (0, 1):
            both = {messages[n][part] for n in train} & {messages[n][part] for n in held_out}
            assert both <= {None}
        if train:  # the filter may leave nobody
            assert max(messages[n][2] for n in train) < min(messages[n][2] for n in held_out)
        assert len(train) + len(held_out) + sum(split.dropped.values()) == len(messages)
        assert sorted(set(train)) == sorted(train) and sorted(set(held_out)) == sorted(held_out)
        if only:
            reacting = {messages[n][0] for n in train if messages[n][3]}
            assert {messages[n][0] for n in train} == reacting
        assert sides_of(store, config)[:2] == (train, held_out)


def test_sizes_are_those_asked_for(tmp_path):
    train, held_out, split = sides_of_texts(love_store(tmp_path, users=200))
    total = 200 * 20
    assert len(held_out) / total == pytest.approx(0.2, abs=0.03)
    assert len(train) / total == pytest.approx((1 - 0.2**0.5) ** 2, abs=0.05)
    assert set(split.dropped) == {"earlier_of_held_out_user", "later_of_trained_user"}


def sides_of_texts(store, config=PLAIN):
    with split_store(store, config) as split:
        return list(split.rows("train")), list(split.rows("held_out")), split


def test_draws_keep_loved_messages_to_train_on_and_treat_all_alike_to_measure_on(tmp_path):
    store = love_store(tmp_path, users=200)
    train, held_out, whole = sides_of_texts(store)
    config = replace(PLAIN, max_examples=300, max_held_out=200)
    few, fewer, split = sides_of_texts(store, config)
    assert (len(few), len(fewer)) == (300, 200)
    assert sum(row["label"] for row in few) == 30  # a tenth, although fewer are loved
    assert [row["completion"] for row in fewer] == [row["completion"] for row in held_out[:200]]
    assert split.base_rate == whole.base_rate == pytest.approx(sum(row["label"] for row in train) / len(train))
    assert split.dropped["beyond_max_examples"] == len(train) - 300
    assert any("300 of" in note and "seeded draw: 30 loved and 270 others" in note for note in split.notes)


def test_the_base_rate_is_of_all_users_also_where_only_those_who_react_are_trained_on(tmp_path):
    store = love_store(tmp_path)
    everyone, _, plain = sides_of_texts(store)
    some, _, split = sides_of_texts(store, replace(PLAIN, reacting_users_only=True))
    assert split.base_rate == plain.base_rate and len(some) < len(everyone)
    assert split.dropped["user_never_reacted"] == len(everyone) - len(some)
    assert sum(row["label"] for row in some) == sum(row["label"] for row in everyone)


def test_rows_are_what_the_objective_reads(tmp_path):
    train, _, _ = sides_of_texts(love_store(tmp_path))
    (message,) = train[0]["prompt"]
    assert message["role"] == "user" and message["content"].startswith("ask ")
    assert train[0]["surface"] in ("web", "ios") and train[0]["language"] is None and len(train[0]["user"]) == 12


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([("a", 0, 5, False)] * 10, "none of 10 messages has a love reaction"),
        ([("a", 0, 5, True), ("b", 1, 9, False)], "all 2 messages are of one day, 2025-03-01"),
        ([("a", 0, 5, True)] + [("b", 0, 50, False)] * 20, "no message to"),
    ],
)
def test_what_cannot_be_divided_is_named(messages, words):
    with small_store(messages) as store, pytest.raises(DataError, match=words):
        sides_of(store)


def test_no_store_is_named(tmp_path):
    with pytest.raises(DataError, match="no store of messages"):
        Store.open(tmp_path)
