"""Forms of unit tests and their comparison; nothing runs here."""

import contextlib
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Prompt
from llamarl.judges.code import Call, CodeJudge, Program, Script, parse_tests
from llamarl.judges.code.compare import same_output, same_value
from llamarl.judges.code.inside.wire import MAX_DEPTH, Frames, decode, encode, pack, unpack
from llamarl.judges.code.unit_tests import find_tests


def refuse(*value: Any) -> Any:
    raise ValueError(value)


def sent(value: Any) -> Any:
    """What arrives at the other side."""
    return unpack(pack({"value": value}))["value"]


# golden


def test_programs() -> None:
    tests = {"inputs": ["1 2\n", ["3", "4"]], "outputs": ["3\n", ["7"]]}
    assert parse_tests(tests) == (Program("1 2\n", "3\n"), Program("3\n4\n", "7\n"))
    assert parse_tests(json.dumps(tests)) == parse_tests(tests)


def test_calls() -> None:
    tests = {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}
    assert parse_tests(tests) == (Call("add", (1, 2), {}, [3], "json"),)


@pytest.mark.parametrize(
    ("source", "call"),
    [
        ("assert f(1) == 2", Call("f", (1,), {}, 2, "equal")),
        ("assert 2 == f(1)", Call("f", (1,), {}, 2, "equal")),
        ("assert f([1], k={'a': -1}) == (1, None), 'message'", Call("f", ([1],), {"k": {"a": -1}}, (1, None), "equal")),
        ("assert f() is True", Call("f", (), {}, True, "is")),
        ("assert f(1)", Call("f", (1,), {}, True, "true")),
        ("assert not f(1)", Call("f", (1,), {}, False, "false")),
        ("assert f() == set()", Call("f", (), {}, set(), "equal")),
    ],
)
def test_simple_assertions_are_calls(source: str, call: Call) -> None:
    assert parse_tests([source]) == (call,)


@pytest.mark.parametrize(
    "source",
    [
        "assert f(x) == 2",
        "assert f(1) == g(2)",
        "assert f(1) != 2",
        "assert f(1) is 5",
        "assert f(1) < 2 < 3",
        "assert sorted(f(1)) == [1]",
        "assert a.f(1) == 2",
        "assert f(*[1]) == 2",
        "assert f(**{'a': 1}) == 2",
        "assert f(1 + 1) == 2",
        "x = f(1)",
        "import math",
    ],
)
def test_everything_else_is_a_script(source: str) -> None:
    assert parse_tests([source]) == (Script(source),)
    assert parse_tests(["assert f(1) == 2", source]) == (Script("assert f(1) == 2"), Script(source))


def test_where_the_tests_are() -> None:
    def prompt(answer: Any = None, **info: Any) -> Prompt:
        return Prompt("p", (), answer=answer, info=info)

    assert find_tests(prompt(unit_tests=["a"], input_output=["b"], answer="c")) == ["a"]
    assert find_tests(prompt(unit_tests=None, input_output=["b"])) == ["b"]
    assert find_tests(prompt(answer="c")) == "c"
    assert find_tests(prompt()) is None


@pytest.mark.parametrize(
    ("actual", "expected", "is_same"),
    [
        ("3\n", "3", True),
        ("3  \n\n", "3\n", True),
        ("1 2\n3", "1 2 \n3\n", True),
        ("1  2", "1 2", True),
        ("0.3333333", "0.33333334", True),
        ("0.334", "0.333", False),
        ("2", "2.0", True),
        ("2.0", "2", False),  # a whole number is wanted as such
        ("1000000", "1000001", False),
        ("1\n2", "1 2", False),
        ("\n3", "3", False),
        ("YES", "yes", False),
        ("nan", "1.0", False),
        ("", "", True),
        ("", "0", False),
        ("1e999.", "1.0", False),
    ],
)
def test_outputs(actual: str, expected: str, is_same: bool) -> None:
    assert same_output(actual, expected) is is_same


@pytest.mark.parametrize(
    ("actual", "expected", "comparison", "is_same"),
    [
        (3, 3, "equal", True),
        (3.0, 3, "equal", True),
        ((1, 2), [1, 2], "equal", False),
        ((1, 2), [1, 2], "json", True),
        ({1: (2,)}, {"1": [2]}, "json", True),
        (3, [3], "json", True),
        ([3], 3, "json", False),
        ([[3]], [3], "json", False),
        (True, True, "is", True),
        (1, True, "is", False),
        (None, None, "is", True),
        ([0], True, "true", True),
        ([], True, "true", False),
        ([], False, "false", True),
        (math.nan, math.nan, "equal", False),
    ],
)
def test_values(actual: Any, expected: Any, comparison: Any, is_same: bool) -> None:
    assert same_value(actual, expected, comparison) is is_same


# invariance

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.tuples(st.integers()), inner, max_size=3)
        | st.sets(st.integers(), max_size=3)
        | st.frozensets(st.text(), max_size=3)
    ),
    max_leaves=8,
)


@given(plain)
@settings(max_examples=150, deadline=None)
def test_plain_data_comes_over_the_wire_as_it_is(value: Any) -> None:
    got = decode(sent(encode(value, refuse)), refuse)
    assert got == value and type(got) is type(value)


HOUR = timezone(timedelta(hours=-1))


@pytest.mark.parametrize(
    "value",
    [
        *(10**20_000, -(2**100_000), math.inf, -0.0, 1 + 2j, Fraction(1, 3), Decimal("-1.50"), Decimal("1e999")),
        *(bytearray(b"x"), range(3, 9, 2), deque([1, (2,)]), Counter("aab"), OrderedDict(b=1, a=2)),
        *({1: 2}.keys(), {1: [2]}.items(), date(2024, 2, 29), time(1, 2, 3, fold=1), timedelta(-1, 5, 7)),
        *(datetime(2024, 2, 29, 1, 2, 3, 4), datetime(2024, 1, 1, tzinfo=UTC), datetime(1, 1, 1, tzinfo=HOUR)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_odd_values_come_over(value: Any) -> None:
    got = decode(sent(encode(value, refuse)), refuse)
    assert got == value and type(got) is type(value)


def test_the_values_of_a_dictionary_and_what_is_not_equal_to_itself_come_over() -> None:
    assert list(decode(sent(encode({1: 2, 3: 2}.values(), refuse)), refuse)) == [2, 2]
    assert math.isnan(decode(sent(encode(math.nan, refuse)), refuse))
    assert decode(sent(encode("\ud800", refuse)), refuse) == "\ud800"
    assert decode(sent(encode(Decimal("sNaN"), refuse)), refuse).is_snan()
    assert decode(sent(encode(defaultdict(list, a=[1]), refuse)), refuse) == {"a": [1]}


# rejects


def test_what_only_looks_like_plain_data_does_not_pass() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    for value in (Liar(3), [Liar(3)], object(), len, iter([])):
        with pytest.raises(ValueError):
            encode(value, refuse)
    with pytest.raises(ValueError):
        decode({"t": "theirs", "v": 0}, refuse)


MODULUS = (1 << 61) - 1
"""Integers that leave the same rest share a hash."""
COLLIDING = [1 + k * MODULUS for k in range(40)]


@pytest.mark.parametrize(
    ("tag", "content"),
    [
        *(("Fraction", c) for c in (["1e9999999999"], [1, 0], [1, -2], ["1", 2], [1.5, 2], [1], 7, [1, True])),
        ("Fraction", [3 ** (1 << 17), 2 ** (1 << 16)]),
        *(
            ("Decimal", c)
            for c in ("1e999999999", "1E-10001", "9" * 10_001, "x", 7, None, [0, [1], 2], "1e1_0_0_0_0_0")
        ),
        *(("bytearray", c) for c in (2_000_000_000, [1], "x", None)),
        *(("complex", c) for c in (["1", 2.0], [1.0], [1, 2], 7, [1.0, 2.0, 3.0])),
        *(("range", c) for c in ([0, 1, 0], [0, 1], [0.0, 1, 1], "abc")),
        *(("date", c) for c in ([2024, 13, 1], [0, 1, 1], [10**30, 1, 1], ["2024", 1, 1], 3)),
        *(("time", c) for c in ([1, 2, 3, 4, [10**30, 0, 0], 0], [25, 0, 0, 0, None, 0], [1, 2, 3, 4, "UTC", 0], [])),
        *(("datetime", c) for c in ([2024, 1, 1], [2024, 1, 1, 1, 2, 3, 4, [9, 0, 0], 0], "now", [])),
        *(("timedelta", c) for c in ([10**12, 0, 0], [1, 2], [1.5, 0, 0])),
        *(("tuple", c) for c in ("abc", b"abc", 3, None)),
        *(("set", c) for c in (COLLIDING, [1, 1], [1, True], [[1]], "ab", [math.inf, [], 1])),
        *(("frozenset", c) for c in (COLLIDING, [{"t": "tuple", "v": [[]]}])),
        *(("dict", c) for c in ([[k, 0] for k in COLLIDING], [[1, 2], [1, 3]], [[1]], [1], [[[], 1]], {"a": 1})),
        *(("Counter", c) for c in ([["a"]], [[k, 1] for k in COLLIDING])),
        *(("items", c) for c in ([1], [{"t": "tuple", "v": [1]}])),
        *(("keys", c) for c in (COLLIDING, [[]])),
        *((tag, 0) for tag in ("theirs", "yours", "builtin", "name", "eval", "", "__class__")),
        *((tag, 0) for tag in (None, 1, b"set", ["set"], {})),
    ],
    ids=lambda part: part if isinstance(part, str) and part.isalpha() else "",
)
def test_forged_values_are_refused_at_once(tag: Any, content: Any) -> None:
    """Each would take for ever, or memory without end, or raise something else where it is compared."""
    for forged in (
        {"t": tag, "v": content},
        [[{"t": tag, "v": content}]],
        {"t": "tuple", "v": [{"t": tag, "v": content}]},
    ):
        with pytest.raises(ValueError):
            decode(forged, refuse)


@pytest.mark.parametrize("forged", [{}, {"t": "tuple"}, {"v": 1}, {"t": "tuple", "v": [], "x": 1}, {"a": 1}])
def test_tables_that_are_no_tagged_values_are_refused(forged: Any) -> None:
    with pytest.raises(ValueError):
        decode(forged, refuse)


def test_what_lies_too_deep_is_refused_on_both_sides() -> None:
    deep: list[Any] = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    with pytest.raises(ValueError, match=f"more than {MAX_DEPTH} deep"):
        encode(deep, refuse)
    with pytest.raises(ValueError, match=f"more than {MAX_DEPTH} deep"):
        unpack(pack({"value": deep}))
    nested = deep
    for _ in range(20):
        nested = nested[0]
    assert decode(sent(encode(nested, refuse)), refuse) == nested
    table: dict[str, Any] = {}
    for _ in range(75):
        table = {"a": table}
    assert decode(sent(encode(table, refuse)), refuse) == table


class Raises:
    def __eq__(self, other: object) -> bool:
        raise ArithmeticError

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("actual", "expected", "comparison"),
    [
        (Decimal("sNaN"), 1, "equal"),
        ([Decimal("sNaN")], [1], "equal"),
        (Decimal("sNaN"), 1, "json"),
        ({10**5000: 1}, {"1": 1}, "json"),  # as a text it has too many digits
        (Raises(), 1, "equal"),
    ],
    ids=["Decimal", "list", "json", "digits", "raises"],
)
def test_what_cannot_be_compared_is_wrong(actual: Any, expected: Any, comparison: Any) -> None:
    assert same_value(actual, expected, comparison) is False


@pytest.mark.parametrize(
    "data",
    [
        *(b"m2:s1:ani1;s1:ani1;", b"m2:s1:ans1:an", b"m1:i1;n", b"m1:s1:ai1_0;", b"m1:s1:ai 1;", b"m1:s1:ai+1;"),
        *(b"m1:s1:ai" + b"f" * 70_000 + b";", b"m1:s1:ad" + b"1" * 40 + b";", b"m1:s1:aM0:"),
        *(b"", b"n", b"l1:n", b"m1:s1:an?", b"m1:s1:ai;", b"m1:s1:aix;", b"m1:s1:as99:x", b"m999999999:n", b"m1:l0:n"),
        *(b"m1:s1:a" + b"l1:" * 100_000, b"m-1:", b"m0:n", b"m1:s1:as1:\xff", b"q" * 50, b"m1:s1:ad1..2;", b"m1:s:n"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        unpack(data)


@pytest.mark.parametrize("data", [b"5", b"x:", b"-1:", b"+5:", b" 5:", b"1_0:", b"9999:", b"1" * 30, b"1:n", b"3:m0:"])
def test_frames_are_bounded(data: bytes) -> None:
    stream = bytearray(data)

    def read(size: int) -> bytes:
        piece = bytes(stream[:2])
        del stream[:2]
        return piece

    frames = Frames(read, len, max_bytes=100)
    if data == b"3:m0:":
        assert frames.receive() == {}
    else:
        with pytest.raises((ValueError, EOFError)):
            frames.receive()


@given(st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(unpack(data), dict)


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ([], "there are no unit tests"),
        ({"inputs": [], "outputs": []}, "there are no unit tests"),
        ({"inputs": ["1"]}, "two lists of one length: inputs and outputs"),
        ({"inputs": ["1"], "outputs": []}, "two lists of one length"),
        ({"inputs": "1", "outputs": "2"}, "two lists of one length"),
        ({"fn_name": "f", "inputs": [1], "outputs": [1]}, "each of inputs must be the list of arguments"),
        ({"fn_name": 3, "inputs": [[1]], "outputs": [1]}, "fn_name=3"),
        (["assert f( == 1"], "unit test 1 is not Python"),
        ("assert f( == 1", "unit test 1 is not Python"),
        ([1], "unit tests of type list"),
        (5, "unit tests of type int"),
    ],
)
def test_rejects_what_are_no_tests(tests: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_tests(tests)


def test_rejects_wrong_settings() -> None:
    with pytest.raises(ConfigError, match="score='some'"):
        CodeJudge(score="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"test_seconds=5\.0, total_seconds=1\.0"):
        CodeJudge(total_seconds=1.0)
    with pytest.raises(ConfigError, match="num_slots=1000"):
        CodeJudge(num_slots=1000)
    with pytest.raises(ConfigError, match=r"no limits.memory. Did you mean 'memory_bytes'"):
        CodeJudge(limits={"memory": 1})
    with pytest.raises(ConfigError, match=r"limits.files=0; give a positive whole number"):
        CodeJudge(limits={"files": 0})
