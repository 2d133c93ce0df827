"""Rows of an A/B test -> the sums over users that its statistics need, whatever the size of the files.

Chunks of the files become sums by user, arm and day in DuckDB, which goes on on the disk where the memory ends; the
rest are queries over these sums. A row that cannot be counted ends the reading with its file, line, field and value: a
test from which rows are missing in silence says nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.machine import usable_cores
from llamarl.feedback.ab_settings import FIELDS, AbTest
from llamarl.feedback.ingestion import EARLIEST, find_logs
from llamarl.feedback.queries import quote, text_literal
from llamarl.feedback.queries.rows import json_path
from llamarl.feedback.readers import BROKEN, LINE, TEXT, Chunk, OnProgress, follow_progress, import_pyarrow, read_chunks
from llamarl.feedback.store import Connection, connect
from llamarl.functional.experiments import CovariateMoments, Moments

FIRST_NAMES = 5
"""Users in two arms that a result names."""


@dataclass(frozen=True, slots=True)
class Day:
    """One day of one arm."""

    messages: float
    """Shown on it."""
    reactions: float
    until: Moments
    """Moments of all users up to its end."""


@dataclass(frozen=True, slots=True)
class ArmRows:
    """The sums of one arm's rows."""

    moments: Moments
    patterns: NDArray[Any]
    """[P, 2], reactions and messages that some user has."""
    pattern_users: NDArray[Any]
    """[P], how many have them."""
    days: Mapping[date, Day]
    """Empty without times."""
    guardrails: Mapping[str, Moments]
    """Totals of each guardrail, and rows that have a value."""
    covariate: CovariateMoments | None


@dataclass(frozen=True, slots=True)
class Rows:
    """The contents of the files, summed up."""

    rows: int
    arms: Mapping[str, ArmRows]
    """The control first, then the others by name."""
    crossed_users: int
    """Users who are in two arms, and so in none."""
    crossed_rows: int
    crossed_names: Sequence[str]
    """The first few of them."""
    users_without_covariate: int


def read_rows(settings: AbTest, now: datetime | None = None, on_progress: OnProgress | None = None) -> Rows:
    """Reads all files of a test.

    Args:
        settings: which, and what is in them.
        now: no row is from more than a day after it; the clock's time by default.
        on_progress: called with the megabytes of the files that are read, and all.

    Raises:
        ConfigError: a setting names what is not there.
        DataError: a row cannot be counted, or arms lack what a comparison needs.
    """
    for field in settings.columns:
        if field not in FIELDS:
            raise ConfigError(f"columns: {field!r} is no field.{suggest(field, list(FIELDS))}")
    files = find_logs(settings.files)
    import_pyarrow()
    with _database(settings) as connection:
        staged = _Staging(connection, settings, (now or datetime.now(UTC)) + timedelta(days=1))
        follow = follow_progress(files, on_progress)
        for number, path in enumerate(files):
            for chunk in read_chunks(path):
                staged.add(path, chunk)
                follow(number, chunk.share)
        return _sum_up(connection, settings)


@contextmanager
def _database(settings: AbTest) -> Iterator[Connection]:
    threads = settings.threads or usable_cores()
    with (
        TemporaryDirectory() as spill,
        connect(
            threads=threads, memory=settings.memory, folder=Path(spill), time_zone=settings.time_zone
        ) as connection,
    ):
        yield connection


# ---- rows -> sums by user, arm and day

_Kind = Literal["name", "truth", "count", "time", "number"]


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the files that is read."""

    source: str
    """The column's name in the files."""
    kind: _Kind
    """The kind that its values must be of; only a number may be missing."""


_KINDS: Mapping[str, _Kind] = {
    "user": "name",
    "arm": "name",
    "reacted": "truth",
    "messages": "count",
    "reactions": "count",
    "ts": "time",
}
_NUMBER = (
    "CASE lower({text}) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0 ELSE TRY_CAST({text} AS DOUBLE) END"  # CSV has texts
)


class _Staging:
    """The table `staged`, to which chunks are added."""

    def __init__(self, connection: Connection, settings: AbTest, latest: datetime) -> None:
        self._connection = connection
        self._settings = settings
        self._span = (EARLIEST, latest)
        self._columns: dict[str, _Column] = {}
        """Columns by field, then those of numbers; known from the first chunk."""
        covariates = (settings.covariate,) if settings.covariate else ()
        self._numbers = tuple(dict.fromkeys((*settings.guardrail_columns, *covariates)))
        guardrails = "".join(
            f", total_{place} DOUBLE, count_{place} BIGINT" for place in range(len(settings.guardrail_columns))
        )
        connection.execute(
            "CREATE TABLE staged (user VARCHAR, arm VARCHAR, day DATE, rows BIGINT, messages DOUBLE, reactions DOUBLE, "
            f"least DOUBLE, most DOUBLE{guardrails})"
        )

    def add(self, path: Path, chunk: Chunk) -> None:
        """Adds the rows of a chunk. Raises `DataError` for one that cannot be counted."""
        if chunk.table.num_rows == 0:
            return
        self._columns = self._columns or self._find_columns(path, chunk)
        self._connection.register("chunk", chunk.table)
        self._connection.execute(f"CREATE OR REPLACE TEMP TABLE parsed AS {self._select_values(path, chunk)}")
        self._connection.unregister("chunk")
        self._refuse_bad_rows(path)
        value = {field: f"value_{place}" for place, field in enumerate(self._columns)}
        messages, reactions = "count(*)", f"sum({value.get('reacted')})"
        if "messages" in self._columns:
            messages, reactions = f"sum({value['messages']})", f"sum({value['reactions']})"
        day = f"CAST(make_timestamptz({value['ts']}) AS DATE)" if "ts" in self._columns else "CAST(NULL AS DATE)"
        known = value[_number_key(self._settings.covariate)] if self._settings.covariate else "CAST(NULL AS DOUBLE)"
        guardrails = [value[_number_key(name)] for name in self._settings.guardrail_columns]
        sums = "".join(f", sum({each}), count({each})" for each in guardrails)
        self._connection.execute(
            f"INSERT INTO staged SELECT {value['user']}, {value['arm']}, {day}, count(*), {messages}, {reactions}, "
            f"min({known}), max({known}){sums} FROM parsed GROUP BY 1, 2, 3"
        )

    def _refuse_bad_rows(self, path: Path) -> None:
        texts = ", ".join(f"text_{place}" for place in range(len(self._columns)))
        bad = self._connection.execute(
            f"SELECT line, problem.place, problem.reason, [{texts}][problem.place + 1], count(*) OVER () FROM parsed "
            "WHERE problem IS NOT NULL ORDER BY line LIMIT 1"
        ).fetchone()
        if bad is not None:
            line, place, reason, text, count = bad
            column = "" if place is None else f"{list(self._columns.values())[place].source}: "
            shown = "" if text is None else f" {text!r:.80}"
            more = f" ({count:,} bad rows here)" if count > 1 else ""
            raise DataError(f"{path}, line {line}: {column}{reason}{shown}{more}; mend the file, nothing was written")

    def _find_columns(self, path: Path, chunk: Chunk) -> dict[str, _Column]:
        """The columns of messages, or of users with counts. Raises `DataError` for those that are not there."""
        source = {field: self._settings.columns.get(field, field) for field in FIELDS}
        has = {field: chunk.may_have(column) for field, column in source.items()}
        is_counted = not has["reacted"] and has["reactions"]
        fields = ["user", "arm", "messages", "reactions"] if is_counted else ["user", "arm", "reacted", "ts"]
        missing = [source[field] for field in fields if not has[field]]
        missing += [name for name in self._numbers if not chunk.may_have(name)]
        if missing:
            names = [] if chunk.is_json else [name for name in chunk.table.column_names if name not in (LINE, BROKEN)]
            seen = f" it has {', '.join(names)};" if names else ""
            raise DataError(
                f"{path}: no column {', '.join(map(repr, missing))};{seen} a row is a message (user, arm, reacted, ts) "
                "or a user (user, arm, messages, reactions); --columns FIELD=COLUMN says where a field stands"
            )
        if is_counted and has["ts"]:
            fields.append("ts")
        columns = {field: _Column(source[field], _KINDS[field]) for field in fields}
        return columns | {_number_key(name): _Column(name, "number") for name in self._numbers}

    def _select_values(self, path: Path, chunk: Chunk) -> str:
        """The query of a chunk: the texts of a row, their values, and the first problem."""
        columns = list(self._columns.values())
        raw = _select_json(columns) if chunk.is_json else _select_table(path, columns, chunk)
        values = {
            "name": "trim({text})",
            "time": "parse_time({text})",
            **dict.fromkeys(("truth", "count", "number"), _NUMBER),
        }
        select = "".join(
            f", {values[column.kind].format(text=f'text_{place}')} AS value_{place}"
            for place, column in enumerate(columns)
        )
        wrong = " ".join(
            f"WHEN {condition} THEN {{'place': {place}, 'reason': {text_literal(reason)}}}"
            for place, condition, reason in self._find_problems()
        )
        return f"""
            SELECT *, CASE WHEN broken IS NOT NULL THEN {{'place': NULL, 'reason': broken}} {wrong} END AS problem
            FROM (SELECT *{select} FROM ({raw}))"""

    def _find_problems(self) -> Iterator[tuple[int, str, str]]:
        """Place of the column, condition and reason of everything that a row may not be."""
        first, last = (int(each.timestamp() * 1e6) for each in self._span)
        span = f"impossible time, not between {' and '.join(f'{each:%Y-%m-%d}' for each in self._span)}:"
        for place, column in enumerate(self._columns.values()):
            text, value = f"text_{place}", f"value_{place}"  # of a text that is no number the value is NULL
            problems: Mapping[_Kind, Sequence[tuple[str, str]]] = {
                "name": [(f"NOT is_name_{place}", "neither text nor a number")],
                "truth": [(f"{value} IS NULL OR {value} NOT IN (0, 1)", "neither true nor false")],
                "count": [
                    (
                        f"NOT coalesce(isfinite({value}) AND {value} >= 0 AND {value} = floor({value}), false)",
                        "not a count",
                    )
                ],
                "time": [(f"{value} IS NULL", "no time"), (f"{value} NOT BETWEEN {first} AND {last}", span)],
                "number": [(f"{text} IS NOT NULL AND NOT coalesce(isfinite({value}), false)", "not a number")],
            }
            if column.kind != "number":
                yield place, f"coalesce(trim({text}), '') = ''", "missing"
            yield from ((place, condition, reason) for condition, reason in problems[column.kind])
        places = {field: place for place, field in enumerate(self._columns)}
        if "messages" in places:
            condition = f"value_{places['reactions']} > value_{places['messages']}"
            yield places["reactions"], condition, "more than messages:"


def _number_key(name: str) -> str:
    """A key among the columns for one of numbers, which may be called like a field."""
    return f"number {name}"


def _select_json(columns: Sequence[_Column]) -> str:
    """JSON lines (`chunk`) -> line, what is broken, a text for each column, and whether a name is text or a number."""
    paths = [text_literal(json_path(column.source)) for column in columns]
    texts = ", ".join(f"v[{place + 1}] AS text_{place}" for place in range(len(columns)))
    names = "".join(
        f", broken IS NOT NULL OR coalesce(json_type(text, {path}), 'NULL') NOT IN ('OBJECT', 'ARRAY', 'BOOLEAN') "
        f"AS is_name_{place}"
        for place, (column, path) in enumerate(zip(columns, paths, strict=True))
        if column.kind == "name"
    )
    return f"""
        SELECT line, broken, {texts}{names}
        FROM (SELECT *, json_extract_string(text, [{", ".join(paths)}]) AS v
              FROM (SELECT line, broken, CASE WHEN broken IS NULL THEN text ELSE '{{}}' END AS text
                    FROM (SELECT {LINE} AS line, {TEXT} AS text,
                              CASE WHEN {BROKEN} IS NOT NULL THEN {BROKEN}
                                   WHEN NOT json_valid({TEXT}) THEN 'no JSON'
                                   WHEN json_type({TEXT}) <> 'OBJECT' THEN 'no JSON object' END AS broken
                          FROM chunk WHERE {BROKEN} IS NOT NULL OR regexp_matches({TEXT}, '\\S'))))"""


def _select_table(path: Path, columns: Sequence[_Column], chunk: Chunk) -> str:
    """A table's rows (`chunk`) -> the same. Raises `DataError` for columns of lists, objects or, of names, truths."""
    from pyarrow import types

    for column in columns:
        if column.source not in chunk.table.column_names:
            raise DataError(f"{path}: no column {column.source!r}; all files of a test have the same columns")
        of = chunk.table.schema.field(column.source).type
        is_name = column.kind == "name"
        if types.is_nested(of) or (is_name and (types.is_boolean(of) or types.is_temporal(of))):
            wanted = "text" if is_name else "numbers"
            raise DataError(f"{path}: {column.source}: values of type {of}; give a column of {wanted}")
    texts = "".join(
        f", nullif(CAST({quote(column.source)} AS VARCHAR), '') AS text_{place}" for place, column in enumerate(columns)
    )
    names = "".join(f", true AS is_name_{place}" for place, column in enumerate(columns) if column.kind == "name")
    return f"SELECT {LINE} AS line, {BROKEN} AS broken{texts}{names} FROM chunk"


# ---- sums by user, arm and day -> sums over users


def _sum_up(connection: Connection, settings: AbTest) -> Rows:
    names = [name for (name,) in connection.execute("SELECT DISTINCT arm FROM staged ORDER BY arm").fetchall()]
    chosen = _choose_arms(names, settings)
    (total,) = connection.execute("SELECT coalesce(sum(rows), 0) FROM staged").fetchone()
    connection.execute("CREATE TABLE crossed AS SELECT user FROM staged GROUP BY user HAVING count(DISTINCT arm) > 1")
    crossed = connection.execute(
        "SELECT count(DISTINCT user), coalesce(sum(rows), 0) FROM staged SEMI JOIN crossed USING (user)"
    ).fetchone()
    examples = connection.execute(f"SELECT user FROM crossed ORDER BY user LIMIT {FIRST_NAMES}").fetchall()
    sums = "".join(
        f", sum(total_{place}) AS total_{place}, sum(count_{place}) AS count_{place}"
        for place in range(len(settings.guardrail_columns))
    )
    arms = ", ".join(map(text_literal, chosen))
    select = f"""SELECT user, arm, {{day}} sum(messages) AS messages, sum(reactions) AS reactions, min(least) AS least,
        max(most) AS most{sums} FROM {{table}} {{where}} GROUP BY ALL"""
    where = f"WHERE arm IN ({arms}) AND user NOT IN (FROM crossed)"
    connection.execute("CREATE TABLE user_days AS " + select.format(day="day,", table="staged", where=where))
    connection.execute("DROP TABLE staged")
    connection.execute("CREATE TABLE users AS " + select.format(day="", table="user_days", where=""))
    moments = _moments(connection, "reactions", "messages")
    _check_arms(chosen, moments)
    guardrails = {
        name: _moments(connection, f"total_{place}", f"count_{place}", f"WHERE count_{place} > 0")
        for place, name in enumerate(settings.guardrail_columns)
    }
    for name, found in guardrails.items():
        if lacking := [arm for arm in chosen if arm not in found or found[arm].users < 2]:
            raise DataError(f"{name}: fewer than two users of arm {lacking[0]!r} have a value; leave the guardrail out")
    without, covariates = _covariates(connection, settings.covariate, moments)
    patterns, days = _patterns(connection), _days(connection)
    return Rows(
        rows=int(total),
        arms={
            arm: ArmRows(
                moments=moments[arm],
                patterns=patterns[arm][:, :2],
                pattern_users=patterns[arm][:, 2].astype(np.int64),
                days=days.get(arm, {}),
                guardrails={name: found[arm] for name, found in guardrails.items()},
                covariate=covariates.get(arm),
            )
            for arm in chosen
        },
        crossed_users=int(crossed[0]),
        crossed_rows=int(crossed[1]),
        crossed_names=[name for (name,) in examples],
        users_without_covariate=without,
    )


def _choose_arms(names: Sequence[str], settings: AbTest) -> list[str]:
    """The control and the arms to compare with it. Raises `ConfigError` for names that no row has."""
    if not names:
        raise DataError("the files hold no row; give files with one row a message or one a user")
    for option, wanted in (("control", (settings.control,)), ("arms", settings.arms), ("shares", settings.shares)):
        for name in wanted:
            if name not in names:
                raise ConfigError(f"{option}: no row is of arm {name!r}.{suggest(name, list(names))}")
    others = [name for name in names if name != settings.control and (not settings.arms or name in settings.arms)]
    if not others:
        raise DataError(f"all rows are of arm {settings.control!r}; a comparison needs another one")
    if settings.shares and set(settings.shares) != {settings.control, *others}:
        lacking = next(iter({settings.control, *others} ^ set(settings.shares)))
        raise ConfigError(f"shares: arm {lacking!r}; give the share of every arm that is compared, and of no other")
    return [settings.control, *others]


def _check_arms(chosen: Sequence[str], moments: Mapping[str, Moments]) -> None:
    for arm in chosen:
        if arm not in moments:
            raise DataError(f"arm {arm!r}: each of its users is in another arm too; assign each user to one arm")
        if moments[arm].users < 2:
            raise DataError(f"arm {arm!r} has one user; an interval over users needs two, better hundreds")
        if moments[arm].total == 0:
            raise DataError(
                f"arm {arm!r}: no reaction to {moments[arm].size:,.0f} messages of {moments[arm].users:,.0f} users, "
                "so that no relative change is known; wait for some, or name the other arms with --arms"
            )


def _moments(connection: Connection, total: str, count: str, where: str = "") -> dict[str, Moments]:
    rows = connection.execute(
        f"SELECT arm, sum(l), sum(n), count(*), sum(l * l), sum(l * n), sum(n * n) "
        f"FROM (SELECT arm, CAST({total} AS DOUBLE) AS l, CAST({count} AS DOUBLE) AS n FROM users {where}) GROUP BY arm"
    ).fetchall()
    return {arm: Moments(*map(float, sums)) for arm, *sums in rows}


def _patterns(connection: Connection) -> dict[str, NDArray[Any]]:
    """[P, 3] of each arm: reactions, messages, and how many users have them."""
    rows = connection.execute(
        "SELECT arm, reactions, messages, CAST(count(*) AS DOUBLE) FROM users GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    return {arm: np.array([row[1:] for row in group]) for arm, group in groupby(rows, key=lambda row: row[0])}


def _days(connection: Connection) -> dict[str, dict[date, Day]]:
    """The increments of an arm's moments by day: a user's squares grow from those of yesterday's sums."""
    rows = connection.execute("""
        WITH sums AS (
            SELECT arm, day, messages, reactions, sum(messages) OVER past AS n, sum(reactions) OVER past AS l,
                row_number() OVER past = 1 AS is_new
            FROM user_days WHERE day IS NOT NULL
            WINDOW past AS (PARTITION BY user ORDER BY day ROWS UNBOUNDED PRECEDING)),
        pairs AS (SELECT *, n - messages AS n_before, l - reactions AS l_before FROM sums)
        SELECT arm, day, sum(reactions), sum(messages), CAST(count(*) FILTER (is_new) AS DOUBLE),
            sum(l * l - l_before * l_before), sum(l * n - l_before * n_before), sum(n * n - n_before * n_before)
        FROM pairs GROUP BY arm, day ORDER BY arm, day""").fetchall()
    days: dict[str, dict[date, Day]] = {}
    for arm, group in groupby(rows, key=lambda row: row[0]):
        steps = list(group)
        totals = np.array([step[2:] for step in steps], dtype=float).cumsum(axis=0)
        days[arm] = {
            step[1]: Day(messages=step[3], reactions=step[2], until=Moments(*sums))
            for step, sums in zip(steps, totals.tolist(), strict=True)
        }
    return days


def _covariates(
    connection: Connection, name: str | None, moments: Mapping[str, Moments]
) -> tuple[int, dict[str, CovariateMoments]]:
    """The number of users without a covariate, and the moments with it; they count with the mean of all."""
    if name is None:
        return 0, {}
    found = connection.execute(
        "SELECT count(*) FILTER (least <> most), count(*) FILTER (least IS NULL), count(*), min(user) "
        "FILTER (least <> most) FROM users"
    ).fetchone()
    varying, without, users, example = found
    if varying:
        raise DataError(
            f"{name}: differs between rows of {varying:,} users, such as {example!r}; a covariate is one number of a "
            "user, from before the test"
        )
    if without == users:
        raise DataError(f"{name}: no row has a value; leave --covariate out")
    rows = connection.execute("""
        SELECT arm, sum(x), sum(x * x), sum(reactions * x), sum(messages * x)
        FROM (SELECT *, coalesce(least - (SELECT avg(least) FROM users), 0.0) AS x FROM users) GROUP BY arm""")
    return without, {arm: CovariateMoments(moments[arm], *sums) for arm, *sums in rows.fetchall()}
