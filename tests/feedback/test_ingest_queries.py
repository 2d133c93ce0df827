"""The quick ways of the queries of an ingest say what the slow ones say."""

import csv
import json
from itertools import chain, combinations, product

import pyarrow
import pyarrow.parquet
import pytest
from feedback_logs import ingest_files, message, query, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.feedback.engines import DuckEngine
from llamarl.feedback.queries import suspects as queries
from llamarl.feedback.queries.rows import FIELDS, NUMBERS, Columns, select_raw_json
from llamarl.feedback.readers import BROKEN, LINE, TEXT, _Blocks
from llamarl.feedback.store import connect
from llamarl.feedback.suspects import _divide_users

# golden


def test_texts_that_differ_in_digits_have_fingerprints_of_their_own(connection):
    """DuckDB's hash() alone gives some of these texts one number."""
    places = [4, 5, 6, 7, 11, 12, 13, 14, 15, 22, 23, 30, 31, 38, 39]
    texts = ["The number after this is 0 and then comes no other"]
    for (first, second), digits in product(combinations(places, 2), product("0123456789", repeat=2)):
        letters = list("0" * 48)
        letters[first], letters[second] = digits
        texts.append("".join(letters))
    connection.register("texts", pyarrow.table({"x": sorted(set(texts))}))
    ((all_texts, fingerprints, hashes),) = connection.execute(
        "SELECT count(*), count(DISTINCT fingerprint(x)), count(DISTINCT hash(x)) FROM texts"
    ).fetchall()
    assert fingerprints == all_texts > hashes


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_row_and_no_order(tmp_path, threads):
    rows = [message(index, reaction="❤️" if index % 7 == 0 else None) for index in range(120)]
    rows += [message(3), "broken", {"message_id": "m1", "reaction": "❤️", "ts": "2025-03-01T11:00:00Z"}]
    files = [write_lines(tmp_path / f"{number}.jsonl", rows[number::5]) for number in range(5)]

    def read(store):
        paths = sorted((store.data / "messages").glob("*.parquet"))
        return [query(f"FROM '{path}'") for path in [*paths, store.dropped, store.suspicious]]

    one, many = (ingest_files(tmp_path / f"{count}", files, threads=count) for count in (1, threads))
    assert read(many) == read(one)


def test_memory_of_a_file_is_lent_again_when_nobody_uses_it_any_more():
    blocks = _Blocks(8)
    first = blocks.take()
    first[:] = 1
    where, part = first.ctypes.data, pyarrow.py_buffer(first[:4][1:])
    del first
    other = blocks.take()
    other[:] = 2
    assert part.to_pybytes() == b"\1\1\1"  # still used by Arrow
    del part
    assert blocks.take().ctypes.data == where


# invariance


@pytest.fixture(scope="module")
def connection(tmp_path_factory):
    with connect(threads=1, memory="256MB", folder=tmp_path_factory.mktemp("spill")) as opened:
        yield opened


TEXTS = st.text(st.sampled_from('aZ5-:[{tfn"\\ \té\N{GRINNING FACE}'), max_size=8)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), TEXTS),
    lambda values: st.one_of(st.lists(values, max_size=3), st.dictionaries(TEXTS, values, max_size=2)),
    max_leaves=4,
)
OBJECTS = st.dictionaries(st.sampled_from([*FIELDS, "another"]), VALUES, max_size=6)
FORMS = st.tuples(st.booleans(), st.sampled_from([(",", ":"), (", ", ": ")]), st.sampled_from(["", " ", "  "]))
BROKEN_LINES = st.sampled_from(["[1, 2]", "null", "5", '"text"', '{"user":', "{]", "nothing", ' ["a"]'])
LINES = st.one_of(
    st.builds(lambda row, form: form[2] + json.dumps(row, ensure_ascii=form[0], separators=form[1]), OBJECTS, FORMS),
    BROKEN_LINES,
)


def expected_problem(line):
    """What a row's checker says of a line: its first field whose value is of no type that the field can have."""
    try:
        row = json.loads(line)
    except ValueError:
        return ":invalid_json"
    if not isinstance(row, dict):
        return ":not_an_object"
    allowed = dict.fromkeys(FIELDS, (str, int, float))
    allowed |= dict.fromkeys(("prompt", "messages"), (str, int, float, list))
    allowed |= {"response": (str,), "reaction": (str, int, float, list, bool)}
    allowed |= dict.fromkeys(NUMBERS, (str, int, float, bool))
    for field in FIELDS:
        value = row.get(field)
        is_wrong = not isinstance(value, allowed[field]) or (isinstance(value, bool) and bool not in allowed[field])
        if value is not None and is_wrong:
            return f"{field}:wrong_type"
    return None


@settings(max_examples=150, deadline=None)
@given(lines=st.lists(LINES, min_size=1, max_size=20))
def test_a_line_is_judged_as_by_a_checker_of_single_rows(connection, lines):
    table = {LINE: range(1, len(lines) + 1), BROKEN: pyarrow.nulls(len(lines), pyarrow.string()), TEXT: lines}
    connection.register("chunk", pyarrow.table(table))
    found = connection.execute(f"SELECT problem FROM ({select_raw_json(Columns({}))}) ORDER BY line").fetchall()
    assert [problem for (problem,) in found] == [expected_problem(line) for line in lines]


@settings(max_examples=60, deadline=None)
@given(
    replies=st.lists(st.text(st.sampled_from("abAé1 .,-\n中🥰💖"), max_size=14), min_size=1, max_size=12),
    terms=st.lists(st.sampled_from(["a", "ab", "b", "1", "é", "中", "🥰", "a b", "ab a", "a 中", "b 🥰"]), unique=True),
)
def test_a_term_is_in_a_reply_if_it_is_among_its_words(connection, replies, terms):
    engine = DuckEngine(connection)
    for name in ("messages", "candidates"):
        connection.execute(f"DROP TABLE IF EXISTS {name}")
    users = ["u"] * len(replies)
    engine.load(
        "messages", {"user_hash": users, "response": replies}, dict.fromkeys(("user_hash", "response"), "string")
    )
    engine.load(
        "candidates", {"user_hash": ["u"] * len(terms), "term": terms}, dict.fromkeys(("user_hash", "term"), "string")
    )
    words = [" ".join(found) for (found,) in engine.fetch(f"SELECT {queries.WORDS} FROM messages")]
    held = {term: sum(f" {term} " in f" {text} " for text in words) for term in terms}
    assert {term: count for _, term, count in engine.fetch(queries.SELECT_HOLDING)} == {
        term: count for term, count in held.items() if count
    }


@pytest.mark.parametrize("total", [0, 1, 5, 64, 10_000])
def test_each_user_is_in_one_group(connection, total):
    groups = _divide_users(total, at_once=3)
    hashes = [first + second + "A" * 10 for first, second in product(queries.HASH_CHARACTERS, "+Az")]
    connection.register("hashes", pyarrow.table({"user_hash": hashes}))
    found = [row for users in groups for row in connection.execute(f"FROM hashes WHERE {users}").fetchall()]
    assert sorted(found) == [(user,) for user in sorted(hashes)]
    assert len(groups) == min(64, 1 + total // 3)


# reduces to


REACTIONS = [None, "❤️", "👍🏽", "🦄", '["🦄", "love"]', "", [], ["👎"], True, {"a": 1}]
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "user": st.sampled_from([None, " padded ", 7, {"id": 3}, ""]),
        "ts": st.sampled_from([None, "never", 0, 1740823200, "2025-03-01 10:00:00+05:30", True]),
        "prompt": st.sampled_from(
            [None, "jane@example.com?", [{"role": "user", "content": "p"}], [{"role": "cat"}], 5]
        ),
        "response": st.sampled_from([None, "  ", 5, "my password is hunter22", ["a"], "call +44 20 7946 0958"]),
        "reaction": st.sampled_from(REACTIONS),
        "reaction_ts": st.sampled_from(["soon", "2025-02-28T10:00:00Z", "2025-03-01T11:00:00Z"]),
        "edited_ts": st.sampled_from(["2025-03-02T10:00:00Z", "x"]),
        "outcome": st.sampled_from([1, "NaN", "good", True, {}]),
        "messages": st.sampled_from([None, [], [{"role": "assistant", "content": "hi", "reaction": "🎉"}], "none"]),
    },
)


TEXT_CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "user": st.sampled_from([None, " padded ", "7"]),
        "ts": st.sampled_from([None, "never", "0", "1740823200", "2025-03-01 10:00:00+05:30"]),
        "prompt": st.sampled_from(
            [None, 'jane@example.com, "or", I?', '[{"role": "user", "content": "p"}]', '[{"role": "cat"}]', "5", "\t["]
        ),
        "response": st.sampled_from([None, "  ", "\u3000", "my password is hunter22", "é, call +44 20 7946 0958"]),
        "reaction": st.sampled_from([text for text in REACTIONS if text is None or (text and isinstance(text, str))]),
        "reaction_ts": st.sampled_from(["soon", "2025-02-28T10:00:00Z", "2025-03-01T11:00:00Z"]),
        "edited_ts": st.sampled_from(["2025-03-02T10:00:00Z", "x"]),
        "outcome": st.sampled_from(["1", "NaN", "good", "true"]),
        "messages": st.sampled_from(
            [None, "[]", '[{"role": "assistant", "content": "hi", "reaction": "🎉"}]', '[{"role": "cat"}]', "none"]
        ),
    },
)


def write_log(path, rows):
    """A log of any format; a row that is text is a line as it stands."""
    if path.suffix == ".jsonl":
        return write_lines(path, rows)
    columns = list(dict.fromkeys(chain(message(), *rows)))
    values = {name: [row.get(name) for row in rows] for name in columns}
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(values, pyarrow.schema(dict.fromkeys(columns, "string"))), path)
    else:
        with open(path, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *zip(*values.values(), strict=True)])
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_row_is_judged_alike_whatever_stands_beside_it(tmp_path_factory, suffix, data):
    """A log whose lines are all JSON, with known reactions, takes a quicker way than one with any other line."""
    kinds = st.one_of(CHANGES, BROKEN_LINES) if suffix == "jsonl" else TEXT_CHANGES
    changes = data.draw(st.lists(kinds, min_size=1, max_size=12))
    folder = tmp_path_factory.mktemp("log")
    rows = [message(place, **change) if isinstance(change, dict) else change for place, change in enumerate(changes)]
    pairs = [[message(100 + place, reaction="❤️"), row] for place, row in enumerate(rows)]
    files = [write_log(folder / f"{place}.{suffix}", pair) for place, pair in enumerate(pairs)]
    alone = ingest_files(folder / "alone", files, keep_suspicious=True)
    together = ingest_files(
        folder / "together", [write_log(folder / f"all.{suffix}", list(chain(*pairs)))], keep_suspicious=True
    )

    def read(store, columns):
        dropped = f"SELECT {columns}, turn, field, reason FROM '{store.dropped}' ORDER BY ALL"
        return query(f"FROM '{store.messages}' ORDER BY ALL"), query(dropped)

    assert read(together, "line") == read(alone, "2 * file + line AS line")
    assert together.record["dropped"] == alone.record["dropped"]


@settings(max_examples=12, deadline=None)
@given(changes=st.lists(TEXT_CHANGES, min_size=1, max_size=12))
def test_a_row_is_judged_alike_in_all_formats(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("log")
    rows = [message(50, reaction="❤️"), *(message(place, **change) for place, change in enumerate(changes))]
    found = []
    for suffix in ("jsonl", "csv", "parquet"):
        log = write_log(folder / f"log.{suffix}", rows)
        store = ingest_files(folder / suffix, [log], keep_suspicious=True)
        dropped = f"SELECT line - {int(suffix == 'csv')}, turn, field, reason FROM '{store.dropped}' ORDER BY ALL"
        found.append((query(f"FROM '{store.messages}' ORDER BY ALL"), query(dropped), store.record["dropped"]))
    assert found[0] == found[1] == found[2]
