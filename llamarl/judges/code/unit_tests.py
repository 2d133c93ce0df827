r"""A row's unit tests, read from any of their forms.

    {"inputs": ["1 2\n"], "outputs": ["3\n"]}                          programs: standard input and output (APPS)
    {"fn_name": "add", "inputs": [[1, 2]], "outputs": [[3]]}            calls (APPS); a method of class Solution, too
    ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]                  assertions; each text may be any Python script
    "assert add(1, 2) == 3"                                             one of them
    the same as JSON text

Assertions that compare a call of literals with a literal become calls. If one of a row is more than that, the row is
a script.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from llamarl.core.errors import DataError
from llamarl.core.records import Prompt

FIELDS = ("unit_tests", "input_output")
"""Fields of `Prompt.info` that may hold tests, in this order; then `Prompt.answer`."""

Comparison = Literal["json", "equal", "is", "true", "false"]


@dataclass(frozen=True, slots=True)
class Program:
    """A run of the solution as a program."""

    stdin: str
    stdout: str


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one of its functions."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    expected: Any
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Script:
    """A text of Python that raises unless the solution is right."""

    source: str


Test = Program | Call | Script


def find_tests(prompt: Prompt) -> Any:
    """Returns what the row holds as its tests; None where it holds none."""
    for field in FIELDS:
        if prompt.info.get(field) is not None:
            return prompt.info[field]
    return prompt.answer


def parse_tests(value: Any) -> tuple[Test, ...]:
    """The tests, at least one and all of one form.

    Raises:
        DataError: naming what is wrong and the forms there are.
    """
    if isinstance(value, str):
        value = _from_text(value)
    if isinstance(value, Mapping):
        tests: tuple[Test, ...] = _from_table(value)
    elif isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
        tests = _from_assertions(value)
    else:
        raise DataError(
            f"unit tests of type {type(value).__name__}; give a list of texts or a table of inputs, outputs"
        )
    if not tests:
        raise DataError("there are no unit tests; leave the field out where a row has none")
    return tests


def _from_text(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return [text]
    return value if isinstance(value, list | dict) else [text]


def _from_table(table: Mapping[str, Any]) -> tuple[Test, ...]:
    inputs, outputs, name = table.get("inputs"), table.get("outputs"), table.get("fn_name")
    if not isinstance(inputs, list | tuple) or not isinstance(outputs, list | tuple) or len(inputs) != len(outputs):
        raise DataError("unit tests need two lists of one length: inputs and outputs")
    if name is None:
        return tuple(Program(_lines(given), _lines(wanted)) for given, wanted in zip(inputs, outputs, strict=True))
    if not isinstance(name, str) or not all(isinstance(args, list | tuple) for args in inputs):
        raise DataError(f"unit tests with fn_name={name!r}: each of inputs must be the list of arguments of one call")
    return tuple(Call(name, tuple(args), {}, wanted, "json") for args, wanted in zip(inputs, outputs, strict=True))


def _lines(text: Any) -> str:
    """Standard input or output; some rows give a list of lines."""
    if isinstance(text, list | tuple):
        return "\n".join(map(str, text)) + "\n"
    return str(text)


def _from_assertions(sources: Sequence[str]) -> tuple[Test, ...]:
    calls: list[Call] = []
    is_simple = True
    for number, source in enumerate(sources, 1):
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise DataError(f"unit test {number} is not Python: {error}") from None
        for statement in tree.body:
            call = _simple(statement)
            is_simple = is_simple and call is not None
            if call is not None:
                calls.append(call)
    return tuple(calls) if is_simple else tuple(Script(source) for source in sources)


def _simple(statement: ast.stmt) -> Call | None:
    """The call that `assert f(literals) == literal` and its relatives make; None for anything else."""
    if not isinstance(statement, ast.Assert):
        return None
    match statement.test:
        case ast.Compare(left=ast.Call() as call, ops=[ast.Eq()], comparators=[expected]):
            return _literal_call(call, expected, "equal")
        case ast.Compare(left=expected, ops=[ast.Eq()], comparators=[ast.Call() as call]):
            return _literal_call(call, expected, "equal")
        case ast.Compare(left=ast.Call() as call, ops=[ast.Is()], comparators=[ast.Constant() as expected]):
            return _literal_call(call, expected, "is") if expected.value in (None, True, False) else None
        case ast.Call() as call:
            return _literal_call(call, ast.Constant(True), "true")
        case ast.UnaryOp(op=ast.Not(), operand=ast.Call() as call):
            return _literal_call(call, ast.Constant(False), "false")
    return None


def _literal_call(call: ast.Call, expected: ast.expr, comparison: Comparison) -> Call | None:
    if not isinstance(call.func, ast.Name) or any(keyword.arg is None for keyword in call.keywords):
        return None
    try:
        args = tuple(map(ast.literal_eval, call.args))
        kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        return Call(call.func.id, args, kwargs, ast.literal_eval(expected), comparison)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return None
