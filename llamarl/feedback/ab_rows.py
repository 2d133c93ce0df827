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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.machine import usable_cores
from llamarl.feedback.ab_settings import FIELDS, AbTest
from llamarl.feedback.ingestion import EARLIEST, find_logs
from llamarl.feedback.queries import json_path, quote, text_literal
from llamarl.feedback.readers import BROKEN, LINE, TEXT, Chunk, import_pyarrow, read_chunks
from llamarl.feedback.store import Connection, connect
from llamarl.functional.experiments import CovariateMoments, Moments

FIRST_NAMES = 5
"""Users in two arms that a result names."""
_SEPARATOR = "\x1f"
"""Between a field, which may have any name, and the reason."""


@dataclass(frozen=True, slots=True)
class Day:
    """One day of one arm."""

    messages: float
    """Shown on it."""
    reactions: float
    until: Moments
    """Of all users up to its end."""


@dataclass(frozen=True, slots=True)
class ArmRows:
    """What the rows of one arm say."""

    moments: Moments
    patterns: NDArray[Any]
    """[P, 2], reactions and messages that some user has."""
    pattern_users: NDArray[Any]
    """[P], how many have them."""
    days: Mapping[date, Day]
    """Empty without times."""
    guardrails: Mapping[str, Moments]
    """Of each guardrail: totals, and rows that have a value."""
    covariate: CovariateMoments | None


@dataclass(frozen=True, slots=True)
class Rows:
    """What the files say."""

    rows: int
    arms: Mapping[str, ArmRows]
    """The control first, then the others by name."""
    crossed_users: int
    """Users who are in two arms, and so in none."""
    crossed_rows: int
    crossed_names: Sequence[str]
    """The first few of them."""
    users_without_covariate: int


def read_rows(settings: AbTest, now: datetime | None = None) -> Rows:
    """Reads all files of a test.

    Args:
        settings: which, and what is in them.
        now: no row is from more than a day after it; the clock's time by default.

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
        for path in files:
            for chunk in read_chunks(path):
                staged.add(path, chunk)
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


class _Staging:
    """The table `staged`, to which chunks are added."""

    def __init__(self, connection: Connection, settings: AbTest, latest: datetime) -> None:
        self._connection = connection
        self._settings = settings
        self._latest = latest
        self._fields: tuple[str, ...] | None = None
        """Fields that every row must have; known from the first chunk."""
        covariates = (settings.covariate,) if settings.covariate else ()
        self._numbers = tuple(dict.fromkeys((*settings.measured, *covariates)))
        guardrails = "".join(f", total_{place} DOUBLE, count_{place} BIGINT" for place in range(len(settings.measured)))
        connection.execute(
            "CREATE TABLE staged (user VARCHAR, arm VARCHAR, day DATE, rows BIGINT, messages DOUBLE, reactions DOUBLE, "
            f"least DOUBLE, most DOUBLE{guardrails})"
        )

    def add(self, path: Path, chunk: Chunk) -> None:
        """Adds the rows of a chunk. Raises `DataError` for one that cannot be counted."""
        if chunk.table.num_rows == 0:
            return
        if self._fields is None:
            self._fields = self._find_fields(path, chunk)
        self._connection.register("chunk", chunk.table)
        self._connection.execute(f"CREATE OR REPLACE TEMP TABLE parsed AS {self._select_parsed(path, chunk)}")
        self._connection.unregister("chunk")
        bad = self._connection.execute(
            "SELECT line, problem, value, count(*) OVER () FROM parsed WHERE problem IS NOT NULL ORDER BY line LIMIT 1"
        ).fetchone()
        if bad is not None:
            line, problem, value, count = bad
            field, _, reason = problem.partition(_SEPARATOR)
            shown = f" {value!r:.80}" if value is not None else ""
            column = f"{self._settings.columns.get(field, field)}: " if field else ""
            more = f" ({count:,} such rows from there on)" if count > 1 else ""
            raise DataError(f"{path}, line {line}: {column}{reason}{shown}{more}; mend the file, nothing was written")
        sums = "".join(f", sum({quote(name)}), count({quote(name)})" for name in self._settings.measured)
        covariate = quote(self._settings.covariate) if self._settings.covariate else "CAST(NULL AS DOUBLE)"
        self._connection.execute(
            f"INSERT INTO staged SELECT user, arm, day, count(*), sum(messages), sum(reactions), min({covariate}), "
            f"max({covariate}){sums} FROM parsed GROUP BY user, arm, day"
        )

    def _column(self, field: str) -> str:
        return self._settings.columns.get(field, field)

    def _find_fields(self, path: Path, chunk: Chunk) -> tuple[str, ...]:
        """Messages, or users with counts? Raises `DataError` for columns that are not there."""
        is_counted = not chunk.may_have(self._column("reacted")) and chunk.may_have(self._column("reactions"))
        fields: tuple[str, ...] = ("user", "arm", "reacted", "ts")
        if is_counted:
            fields = ("user", "arm", "messages", "reactions")
        names = [self._column(field) for field in fields] + list(self._numbers)
        missing = [name for name in names if not chunk.may_have(name)]
        if missing:
            has = "" if chunk.is_json else f" it has {', '.join(_columns_of(chunk))};"
            raise DataError(
                f"{path}: no column {', '.join(map(repr, missing))};{has} a row is a message (user, arm, reacted, ts) "
                "or a user (user, arm, messages, reactions); --columns FIELD=COLUMN says where a field stands"
            )
        if is_counted and chunk.may_have(self._column("ts")):
            fields += ("ts",)
        return fields

    def _select_parsed(self, path: Path, chunk: Chunk) -> str:
        """The query of a chunk: a row's values, or what is wrong with it."""
        assert self._fields is not None
        names = {field: self._column(field) for field in self._fields} | {name: name for name in self._numbers}
        raw = _select_json(names) if chunk.is_json else _select_table(path, names, chunk)
        values = {
            field: f"CASE lower({quote(field)}) WHEN 'true' THEN 1 WHEN 'false' THEN 0 "
            f"ELSE TRY_CAST({quote(field)} AS DOUBLE) END"
            for field in names
            if field not in ("user", "arm", "ts")
        }
        select = "".join(f", {value} AS {quote(f'{field}=')}" for field, value in values.items())
        has_time = "ts" in self._fields
        time = "parse_time(ts)" if has_time else "CAST(NULL AS BIGINT)"
        wrong = " ".join(
            f"WHEN {condition} THEN {text_literal(f'{field}{_SEPARATOR}{reason}')}"
            for field, condition, reason in self._find_problems(list(values), has_time)
        )
        shown = " ".join(
            f"WHEN starts_with(problem, {text_literal(f'{field}{_SEPARATOR}')}) THEN {quote(field)}" for field in names
        )
        messages = "messages" if "messages" in self._fields else None
        counts = (
            '"messages=" AS messages, "reactions=" AS reactions'
            if messages
            else 'CAST(1 AS DOUBLE) AS messages, "reacted=" AS reactions'
        )
        numbers = "".join(f", {quote(f'{name}=')} AS {quote(name)}" for name in self._numbers)
        return f"""
            SELECT line, problem, CASE {shown} END AS value, "user", arm,
                CAST(make_timestamptz(micros) AS DATE) AS day, {counts}{numbers}
            FROM (SELECT *, CASE WHEN problem_read IS NOT NULL THEN {text_literal(_SEPARATOR)} || problem_read
                         {wrong} END AS problem
                  FROM (SELECT *, {time} AS micros{select} FROM ({raw})))"""

    def _find_problems(self, numbers: Sequence[str], has_time: bool) -> Iterator[tuple[str, str, str]]:
        """Field, condition and reason of everything that a row may not be."""
        for field in ("user", "arm"):
            yield field, f"coalesce(trim({quote(field)}), '') = ''", "missing"
            yield field, f"{quote(f'{field}?')} NOT IN ('text', 'number')", "neither text nor a number"
        required = set(self._fields or ()) - {"user", "arm", "ts"}
        for field in numbers:
            value = quote(f"{field}=")
            if field in required:
                yield field, f"{quote(field)} IS NULL", "missing"
            unlike = f"{quote(field)} IS NOT NULL AND ({value} IS NULL OR NOT isfinite({value}))"
            yield field, unlike, "neither true nor false" if field == "reacted" else "not a number"
        if "reacted" in required:
            yield "reacted", '"reacted=" NOT IN (0, 1)', "neither true nor false"
        if "messages" in required:
            for field in ("messages", "reactions"):
                value = quote(f"{field}=")
                yield field, f"{value} < 0 OR {value} <> floor({value})", "not a count"
            yield "reactions", '"reactions=" > "messages="', "more than messages:"
        if has_time:
            first, last = (int(each.timestamp() * 1e6) for each in (EARLIEST, self._latest))
            yield "ts", "ts IS NULL", "missing"
            yield "ts", "micros IS NULL", "no time"
            span = f"impossible time, not between {EARLIEST:%Y-%m-%d} and {self._latest:%Y-%m-%d}:"
            yield "ts", f"micros NOT BETWEEN {first} AND {last}", span


def _columns_of(chunk: Chunk) -> list[str]:
    return [name for name in chunk.table.column_names if name not in (LINE, BROKEN)]


def _select_json(names: Mapping[str, str]) -> str:
    """JSON lines (`chunk`) -> line, a column of text for each field, and what kind of value names a user and an arm."""
    paths = [text_literal(json_path(column)) for column in names.values()]
    values = ", ".join(f"v[{place}] AS {quote(field)}" for place, field in enumerate(names, 1))
    kinds = ", ".join(
        f"CASE WHEN problem_read IS NOT NULL THEN 'number' WHEN json_type(text, {path}) = 'VARCHAR' THEN 'text' "
        f"WHEN json_type(text, {path}) IN ('OBJECT', 'ARRAY', 'BOOLEAN') THEN 'no' ELSE 'number' END "
        f"AS {quote(f'{field}?')}"
        for field, path in zip(names, paths, strict=True)
        if field in ("user", "arm")
    )
    return f"""
        SELECT line, problem_read, {values}, {kinds}
        FROM (SELECT *, CASE WHEN problem_read IS NULL THEN json_extract_string(text, [{", ".join(paths)}]) END AS v
              FROM (SELECT {LINE} AS line, {TEXT} AS text,
                        CASE WHEN {BROKEN} IS NOT NULL THEN {BROKEN}
                             WHEN NOT json_valid({TEXT}) THEN 'no JSON'
                             WHEN json_type({TEXT}) <> 'OBJECT' THEN 'no JSON object' END AS problem_read
                    FROM chunk WHERE {BROKEN} IS NOT NULL OR regexp_matches({TEXT}, '\\S')))"""


def _select_table(path: Path, names: Mapping[str, str], chunk: Chunk) -> str:
    """A table's rows (`chunk`) -> the same. Raises `DataError` for columns of lists, objects or, of names, truths."""
    from pyarrow import types

    kinds = []
    for field, column in names.items():
        if column not in chunk.table.column_names:
            raise DataError(f"{path}: no column {column!r}; all files of a test have the same columns")
        of = chunk.table.schema.field(column).type
        is_name = field in ("user", "arm")
        if types.is_nested(of) or (is_name and (types.is_boolean(of) or types.is_temporal(of))):
            raise DataError(f"{path}: {column}: values of type {of}; give one with {'text' if is_name else 'numbers'}")
        if is_name:
            kinds.append(f"'text' AS {quote(f'{field}?')}")
    values = ", ".join(
        f"nullif(CAST({quote(column)} AS VARCHAR), '') AS {quote(field)}" for field, column in names.items()
    )
    return f"SELECT {LINE} AS line, {BROKEN} AS problem_read, {values}, {', '.join(kinds)} FROM chunk"


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
        for place in range(len(settings.measured))
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
        for place, name in enumerate(settings.measured)
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
    """What each day adds to the moments of an arm: a user's squares grow from those of yesterday's sums."""
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
    """How many users have none, and the moments with it; a user without one counts with the mean of all."""
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
