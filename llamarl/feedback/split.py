"""The messages of a store, divided in time and by users: some to train P[Love] on, later ones to measure it on.

        time ->          cut
    users A   ----train---|   later     |        nothing of a user or a conversation is on both sides, and every
    users B   -- earlier -|---held out--|        message to measure on is younger than all to train on

With a share s of messages to measure on, B are a share sqrt(s) of the users who are there after the cut, and the cut
leaves a share sqrt(s) of the messages behind it: no other choice leaves as many messages to train on.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llamarl.core.errors import DataError
from llamarl.core.machine import usable_cores
from llamarl.feedback.queries import text_literal
from llamarl.feedback.store import Connection, Store, connect

FETCH_ROWS = 1024
"""Rows held as Python objects at a time."""


@dataclass(frozen=True, slots=True)
class SplitSettings:
    """Settings by which a store is divided."""

    held_out: float
    """Share of the messages to measure on, in (0, 0.5)."""
    positive_share: float
    """Share of loved messages among those to train on where there are more than `max_examples`."""
    reacting_users_only: bool
    """Train on users who reacted to something before the cut."""
    max_examples: int
    """Most messages to train on."""
    max_held_out: int
    """Most messages to measure on."""
    seed: int
    """Decides which users are held out and which messages stay."""


CREATE_DRAW = "CREATE MACRO draw(x) AS CAST(md5_number_lower('{seed}:' || x) AS DOUBLE) / 18446744073709551616.0"
"""A number in [0, 1) of a text, the same on every machine."""

SELECT_SPAN = """
    SELECT count(*), coalesce(sum(CASE WHEN loved THEN 1 ELSE 0 END), 0), min(ts), max(ts),
        quantile_disc(ts, {share}) FROM stored"""

CREATE_HELD_USERS = """
    CREATE TABLE held_users AS
    SELECT DISTINCT user_hash FROM stored WHERE ts >= '{cut}' AND draw('user:' || user_hash) < {share}"""

CREATE_HELD_CONVERSATIONS = """
    CREATE TABLE held_conversations AS
    SELECT DISTINCT conversation_hash FROM stored SEMI JOIN held_users USING (user_hash)
    WHERE ts >= '{cut}' AND conversation_hash IS NOT NULL"""

CREATE_SIDES = """
    CREATE VIEW sides AS
    SELECT stored.*, CASE
        WHEN ts >= '{cut}' AND held_users.user_hash IS NOT NULL THEN 'held_out'
        WHEN ts >= '{cut}' THEN 'later_of_trained_user'
        WHEN held_users.user_hash IS NOT NULL THEN 'earlier_of_held_out_user'
        WHEN held_conversations.conversation_hash IS NOT NULL THEN 'conversation_held_out'
        ELSE 'train' END AS side
    FROM stored LEFT JOIN held_users ON stored.user_hash = held_users.user_hash
    LEFT JOIN held_conversations ON stored.conversation_hash = held_conversations.conversation_hash"""

COUNT_SIDES = "SELECT side, count(*), sum(CASE WHEN loved THEN 1 ELSE 0 END) FROM sides GROUP BY side"

CREATE_REACTING = """
    CREATE TABLE reacting AS
    SELECT DISTINCT user_hash FROM sides WHERE side = 'train' AND reaction IS NOT NULL"""

COUNT_TRAIN = """
    SELECT coalesce(sum(CASE WHEN loved THEN 1 ELSE 0 END), 0), count(*)
    FROM sides {filter} WHERE side = 'train'"""

COLUMNS = ("user", "prompt", "completion", "label", "surface", "language", "model_version")
SELECT_ROWS = """
    SELECT user_hash, context, response, loved, surface, language, model_version
    FROM sides {filter} WHERE side = '{side}' {which}
    ORDER BY draw(message_hash), message_hash {limit}"""
"""Messages in a random order that never changes, so that the first of them are a random draw."""
ONLY_REACTING = "SEMI JOIN reacting USING (user_hash)"


@dataclass(frozen=True)
class Split:
    """A divided store, while its database is open."""

    cut: datetime
    """Messages to train on are older; those to measure on are not."""
    base_rate: float
    """Share of loved messages before the cut, of all users that may be trained on."""
    dropped: Mapping[str, int]
    """Messages on neither side, by reason."""
    notes: tuple[str, ...]
    """Sentences that a user should know."""
    _connection: Connection
    _queries: Mapping[str, tuple[str, ...]]

    def rows(self, side: str) -> Iterator[dict[str, Any]]:
        """Rows of a side, `train` or `held_out`, as `training.objectives.love` reads them."""
        for query in self._queries[side]:
            cursor = self._connection.execute(query)
            while batch := cursor.fetchmany(FETCH_ROWS):
                for values in batch:
                    row = dict(zip(COLUMNS, values, strict=True))
                    yield {**row, "prompt": json.loads(row["prompt"])}


@contextmanager
def split_store(store: Store, settings: SplitSettings, memory: str = "1GB") -> Iterator[Split]:
    """Divides a store, larger than memory.

    Raises:
        DataError: nobody loved anything, the log covers one day, or nothing is left to train or to measure on.
    """
    with (
        TemporaryDirectory() as spill,
        connect(threads=usable_cores(), memory=memory, folder=Path(spill)) as connection,
    ):
        connection.execute(f"CREATE VIEW stored AS SELECT * FROM read_parquet({text_literal(store.messages)})")
        connection.execute(CREATE_DRAW.format(seed=settings.seed))
        yield _divide(connection, store, settings)


def _divide(connection: Connection, store: Store, settings: SplitSettings) -> Split:
    share = settings.held_out**0.5
    ((messages, loves, first, last, cut),) = connection.execute(SELECT_SPAN.format(share=1.0 - share)).fetchall()
    _check_span(store, messages, loves, first, last)
    for statement in (CREATE_HELD_USERS, CREATE_HELD_CONVERSATIONS, CREATE_SIDES, CREATE_REACTING):
        connection.execute(statement.format(cut=cut, share=share))
    sides = {side: (count, int(loved)) for side, count, loved in connection.execute(COUNT_SIDES).fetchall()}
    for side, problem in (("train", "to train on"), ("held_out", "to measure on")):
        if side not in sides:
            raise DataError(
                f"{store.path}: no message {problem} with the cut at {cut:%Y-%m-%d %H:%M} (held_out="
                f"{settings.held_out}): too few users or too short a time; ingest more, or change held_out"
            )
    train, train_loves = sides["train"]
    dropped = {side: count for side, (count, _) in sorted(sides.items()) if side not in ("train", "held_out")}
    notes = [
        f"trained on messages before {cut:%Y-%m-%d %H:%M}, measured on later ones of other users; "
        f"{sum(dropped.values()):,} of {messages:,} messages lie between and are left out"
    ]
    only = ONLY_REACTING if settings.reacting_users_only else ""
    ((kept_loves, kept),) = connection.execute(COUNT_TRAIN.format(filter=only)).fetchall()
    if kept < train:
        dropped["user_never_reacted"] = train - kept
        notes.append(f"{train - kept:,} messages of users who never reacted are left out of training")
    picks = _pick_train(int(kept_loves), kept, settings)
    if picks is not None:
        notes.append(
            f"{sum(picks):,} of {kept:,} messages are trained on, a seeded draw: {picks[0]:,} loved and {picks[1]:,} "
            f"others (max_examples={settings.max_examples:,})"
        )
        dropped["beyond_max_examples"] = kept - sum(picks)
    held_out = sides["held_out"][0]
    if held_out > settings.max_held_out:
        notes.append(f"{settings.max_held_out:,} of {held_out:,} later messages are measured on, a seeded draw")
        dropped["beyond_max_held_out"] = held_out - settings.max_held_out
    return Split(
        cut=cut,
        base_rate=train_loves / train,
        dropped=dropped,
        notes=tuple(notes),
        _connection=connection,
        _queries={
            "train": _train_queries(only, picks),
            "held_out": (_select("held_out", "", "", settings.max_held_out),),
        },
    )


def _check_span(store: Store, messages: int, loves: float, first: datetime, last: datetime) -> None:
    if not loves:
        raise DataError(
            f"{store.path}: none of {messages:,} messages has a love reaction, so there is nothing to learn; see that "
            "the log's reaction column is read (llamarl feedback ingest --columns reaction=COLUMN), and its spelling "
            "(--reactions SPELLING=love)"
        )
    if first.date() == last.date():
        raise DataError(
            f"{store.path}: all {messages:,} messages are of one day, {first:%Y-%m-%d}, and P[Love] is measured on "
            "later days than it is trained on; ingest the logs of several days"
        )


def _pick_train(loves: int, messages: int, settings: SplitSettings) -> tuple[int, int] | None:
    """The numbers of loved and other messages to train on; None: all."""
    if messages <= settings.max_examples:
        return None
    loved = min(loves, round(settings.positive_share * settings.max_examples))
    others = min(messages - loves, settings.max_examples - loved)
    return loved, others


def _train_queries(only: str, picks: tuple[int, int] | None) -> tuple[str, ...]:
    if picks is None:
        return (_select("train", only, "", None),)
    return _select("train", only, "AND loved", picks[0]), _select("train", only, "AND NOT loved", picks[1])


def _select(side: str, only: str, which: str, most: int | None) -> str:
    limit = "" if most is None else f"LIMIT {most}"
    return SELECT_ROWS.format(side=side, filter=only, which=which, limit=limit)
