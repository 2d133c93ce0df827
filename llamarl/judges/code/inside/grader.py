"""The process that holds the tests, where they are a script. The solution lives in another one, reached by messages.

A name that the tests use and do not define stands for the solution's thing of that name: calling it sends the
arguments over and brings plain data back. So the assertions, the expected values and this process's verdict are out of
the solution's reach. What is no plain data comes back as a `Remote`, and that is where a solution could still learn
what is wanted: an object in place of a number is asked for its difference from the right one. Therefore

    no operator of a `Remote` takes plain data; `==` with plain data is False, the others are a TypeError
    what plain data can do too (`len`, items, text, `startswith`, `count`) only an object that the tests made can do:
    the value of a call of a class. Which names are classes, the tests say: those in capitals
    of all others, attributes are read, methods that no plain data has are called, and iterators are gone through once

Values of the solution's are thus either plain data, compared here, or objects that the tests themselves treat as such.
"""

from __future__ import annotations  # and TYPE_CHECKING: every run would pay for importing `typing`

import ast
import builtins
import importlib
import os
import sys

from llamarl.judges.code.inside.solution import (
    BINARY,
    ITEMS,
    MAX_REQUEST_BYTES,
    UNARY,
    describe,
    exception,
    limit,
    silence,
    words,
)
from llamarl.judges.code.inside.wire import Frames, Kept, decode, descriptor_frames, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main(descriptor: int, solution_descriptor: int) -> None:
    """Runs the tests that come over `descriptor` and answers there."""
    descriptor = os.dup(descriptor)
    lines = descriptor_frames(descriptor, MAX_REQUEST_BYTES)
    start = lines.receive()
    silence()
    limit(start["limits"])
    solution = Solution(descriptor_frames(solution_descriptor, start["limits"]["output_bytes"]))
    solution.lines.send({key: start[key] for key in ("source", "limits", "nonce")})
    lines.send({"ready": solution.lines.receive()["ready"]})
    results = grade(solution, start["tests"], start["should_stop"])
    lines.send({"nonce": start["nonce"], "results": results})
    os._exit(0)


def grade(solution: Solution, tests: list[str], should_stop: bool) -> list[str]:
    """Runs the tests in order, in one namespace. Returns of each why it failed, or ""."""
    try:
        names = solution.load()
        namespace = {"__name__": "tests", **provide_names(solution, names, tests)}
    except BaseException as error:  # the solution may raise anything
        return [LOST if solution.is_lost else f"raised {words(error)}"]
    results: list[str] = []
    for number, test in enumerate(tests):
        try:
            exec(compile(test, f"test {number + 1}", "exec"), namespace)
            results.append("")
        except BaseException as error:  # a test fails by any exception
            results.append(f"raised {words(error)}")
        if solution.is_lost:  # also where the test caught it
            results[-1] = LOST
        if results[-1] and (should_stop or solution.is_lost):
            break
    return results


def provide_names(solution: Solution, names: list[str], tests: list[str]) -> dict[str, Any]:
    """Provides what the tests may use without defining it: the solution's names.

    Builtins are left out, so that the solution cannot redefine `all`; and of modules of the standard library that the
    tests use as such (`math.isclose`) they get the real one. Plain data stands for itself, as it was when the solution
    was loaded.
    """
    nodes = [node for test in tests for node in ast.walk(ast.parse(test))]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    modules = {
        node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    } & sys.stdlib_module_names
    found: dict[str, Any] = {}
    for name in names:
        if name in modules:
            found[name] = importlib.import_module(name)
        elif not hasattr(builtins, name):
            found[name] = Remote(State(solution, {"t": "name", "v": name}, name=name, is_known=is_class(name)))
    asked = [name for name, thing in found.items() if type(thing) is Remote and name in used - bound]
    return {**found, **{name: value for name, value in solution.values_of(asked).items() if type(value) is not Remote}}


def is_class(name: str) -> bool:
    """Says whether a name is a class's, by the way it is written; a single letter is none."""
    return name[:1].isupper() and len(name) > 1


LOST = "the solution's process ended or broke the protocol"


class LostError(BaseException):
    """The solution's process does not answer. No `except Exception` of a test may take it for what it expects."""


class Solution:
    """The solution's process, as asked by this one."""

    def __init__(self, lines: Frames) -> None:
        self.lines = lines
        self.is_lost = False
        self._kept = Kept()
        self._failure: AssertionError | None = None

    def ask(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """Returns the result of an operation over there. Raises what it raised, as the exception of that name here."""
        request = {
            "ask": what,
            "args": [self._encode(arg) for arg in args],
            "kwargs": {key: self._encode(value) for key, value in kwargs.items()},
            "keep": True,
            "back": any(type(arg) in (list, dict, set) for arg in args),
        }
        answer = self._exchange(request)
        if answer["value"] is None:  # only what works in place may change its arguments
            for arg, new in zip(args, answer["args"], strict=False):
                replace(arg, new)
        return answer["value"]

    def load(self) -> list[str]:
        """Runs the solution's source and returns the names it defines. Raises what it raised.

        No name begins with two underscores: `__builtins__` of the solution's would be what the tests call `abs`.
        """
        names = self._exchange({"ask": "load"})["value"]
        return [name for name in names if type(name) is str and name[:2] != "__"] if type(names) is list else []

    def values_of(self, names: list[str]) -> dict[str, Any]:
        """Asks for the values of these names."""
        values = self.ask("names", *names) if names else {}
        return {name: values[name] for name in names if name in values} if type(values) is dict else {}

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request; serves calls of the tests' own functions until its answer comes, and decodes that."""
        try:
            self.lines.send(request)
            while "ask" in (answer := self.lines.receive()):
                self.lines.send(self._call_back(answer))
            raised = exception(answer["error"], self._find) if "error" in answer else None
            value = None if raised else decode(answer["value"], self._find)
            args = [decode(arg, self._find) for arg in answer.get("args", [])]
        except Exception as error:  # whatever is wrong with an answer
            self.is_lost = True
            raise LostError(str(error)) from None
        if self._failure is not None:  # the solution must not catch it
            failure, self._failure = self._failure, None
            raise failure
        if isinstance(raised, (StopIteration, StopAsyncIteration)) and request["ask"] != "next":
            raised = RuntimeError(words(raised))  # else it would end a loop of the tests, and what they check there
        if raised is not None:
            raise raised
        return {"value": value, "args": args}

    def _call_back(self, request: dict[str, Any]) -> dict[str, Any]:
        """Calls a function that the tests passed to the solution. That is all the solution can ask."""
        try:
            function = self._kept.objects[request["on"]]
            return {"value": self._encode(function(*(decode(arg, self._find) for arg in request["args"])))}
        except AssertionError as error:  # of the tests; its text may tell what is wanted
            self._failure = error
            return {"error": describe(AssertionError())}
        except Exception as error:
            return {"error": describe(error)}

    def _encode(self, value: Any) -> Any:
        return encode(value, self._keep)

    def _keep(self, value: Any) -> Any:
        if type(value) is Remote:
            return state(value).place
        name = getattr(value, "__name__", "")
        if getattr(builtins, name, None) is value:
            return {"t": "builtin", "v": name}
        if callable(value):
            return self._kept.add(value)
        raise TypeError(f"a {type(value).__name__} cannot be passed to the solution; pass plain data or functions")

    def _find(self, tag: str, content: Any) -> Any:
        if tag not in ("theirs", "iterator") or type(content) is not int:
            raise ValueError(f"a value that is neither plain nor an object: {tag}")
        return Remote(State(self, {"t": "yours", "v": content}, is_iterator=tag == "iterator"))


class State:
    """Knowledge of one object in the solution's process."""

    def __init__(
        self,
        solution: Solution,
        place: dict[str, Any],
        *,
        name: str = "",
        is_known: bool = False,
        is_iterator: bool = False,
    ) -> None:
        """Begins with what is known at first sight.

        Args:
            solution: asks it.
            place: what stands for it on the wire.
            name: of the solution's module, or "".
            is_known: whether the tests know it as an object: a class they name, or what they made of one.
            is_iterator: whether it has `__next__`.
        """
        self.solution, self.place, self.name = solution, place, name
        self.is_known, self.is_iterator, self.is_spent = is_known, is_iterator, False
        self.truth: bool | None = None
        self.method: str | None = None
        """Name of a method whose object the tests do not know; "" for a function of a module."""

    def ask(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """Asks for an operation on the object."""
        return self.solution.ask(what, Remote(self), *args, **kwargs)

    def ask_known(self, what: str, *args: Any) -> Any:
        """Asks for an operation that plain data has too. Raises TypeError where the tests do not know the object."""
        if not self.is_known:
            raise TypeError(f"{what} of an object that the tests did not make")
        return self.ask(what, *args)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the object."""
        has_data = any(type(arg) is not Remote for arg in (*args, *kwargs.values()))
        if has_data and self.method is not None and (not self.method or is_of_plain_data(self.method)):
            method = self.method or "a function"
            raise TypeError(f"{method} of an object that the tests did not make takes no plain data")
        value = self.ask("call", *args, **kwargs)
        if type(value) is Remote and is_class(self.name):
            state(value).is_known = True
        return value

    def read(self, name: str) -> Any:
        """Reads an attribute of the object."""
        if name.startswith("__") and name.endswith("__") and name not in READABLE:
            raise AttributeError(f"{name} of an object of the solution")
        value = self.ask("getattr", name)
        if type(value) is Remote and not self.is_known:
            state(value).method = "" if self.name else name  # a solution's `np` is not the one that tests mean
        return value

    def iterate(self) -> Any:
        """Makes an iterator over the object's items."""
        if self.is_known:
            return self.ask("iter")
        if self.is_spent:  # what has other items each time could pass for a list that has all of them
            raise TypeError("an object that the tests did not make is gone through once")
        if self.is_iterator:
            return Remote(self)
        self.is_spent = True
        return self.ask("iter")

    def advance(self) -> Any:
        """Takes the next item of the object, an iterator."""
        if self.is_spent and self.is_iterator and not self.is_known:
            raise StopIteration
        try:
            return self.ask("next")
        except StopIteration:
            self.is_spent = True
            raise

    def is_true(self) -> bool:
        """Says whether the object is true; one that the tests do not know is asked once, so that it cannot change."""
        if self.is_known or self.truth is None:
            self.truth = bool(self.ask("bool"))
        return self.truth


class Remote:
    """An object in the solution's process (what it can do: the module's docstring)."""

    __slots__ = ("_remote",)

    def __init__(self, state: State) -> None:
        object.__setattr__(self, "_remote", state)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the object in the solution's process."""
        return state(self).call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return state(self).read(name)

    def __setattr__(self, name: str, value: Any) -> None:
        state(self).ask("setattr", name, value)

    def __len__(self) -> int:
        return int(state(self).ask_known("len"))

    def __bool__(self) -> bool:
        return state(self).is_true()

    def __iter__(self) -> Any:
        return state(self).iterate()

    def __next__(self) -> Any:
        return state(self).advance()

    def __str__(self) -> str:
        return str(state(self).ask("str")) if state(self).is_known else UNKNOWN

    def __repr__(self) -> str:
        return str(state(self).ask("repr")) if state(self).is_known else UNKNOWN

    def __hash__(self) -> int:
        return int(state(self).ask("hash")) if state(self).is_known else id(state(self))

    def __eq__(self, other: object) -> bool:
        return type(other) is Remote and state(self).ask("__eq__", other) is True

    def __lt__(self, other: object) -> Any:
        return state(self).ask("__lt__", other) if type(other) is Remote else NotImplemented

    def __le__(self, other: object) -> Any:
        return state(self).ask("__le__", other) if type(other) is Remote else NotImplemented

    def __enter__(self) -> Any:
        return state(self).ask("enter")

    def __exit__(self, *_: object) -> None:
        """Leaves the context. It is not told what was raised, and does not stop it: that may be an assertion's."""
        state(self).ask("exit")

    def __instancecheck__(self, instance: object) -> bool:
        return type(instance) is Remote and state(instance).ask("isinstance", self) is True

    def __subclasscheck__(self, kind: object) -> bool:
        return type(kind) is Remote and state(kind).ask("issubclass", self) is True


READABLE = ("__name__", "__qualname__", "__doc__", "__wrapped__")
UNKNOWN = "<an object of the solution>"


def state(remote: Remote) -> State:
    """Returns the state of a `Remote`, none of whose attributes is its own."""
    found: State = object.__getattribute__(remote, "_remote")
    return found


def _between_objects(name: str) -> Any:
    return lambda self, other: state(self).ask(name, other) if type(other) is Remote else NotImplemented


def _ask_known(name: str) -> Any:
    return lambda self, *args: state(self).ask_known(name, *args)


for _name in BINARY:
    setattr(Remote, _name, _between_objects(_name))
for _name in (*UNARY, *ITEMS):
    setattr(Remote, _name, _ask_known(_name))


def is_of_plain_data(name: str) -> bool:
    """Says whether some type of plain data, or of arrays, has a method of this name."""
    import collections
    import datetime
    import decimal
    import fractions

    kinds = [int, complex, float, str, bytearray, bytes, list, tuple, dict, set, range, decimal.Decimal]
    kinds += [fractions.Fraction, datetime.datetime, datetime.timedelta, datetime.timezone]
    kinds += [collections.deque, collections.Counter, collections.OrderedDict]
    return name in ARRAYS or any(hasattr(kind, name) for kind in kinds)


ARRAYS = frozenset(("all", "allclose", "any", "array_equal", "equal", "equals", "isclose", "item", "sum", "tolist"))


def replace(container: Any, new: Any) -> None:
    """Gives a list, dictionary or set the content that a call in place left in its copy."""
    if type(container) is not type(new):
        return
    if type(container) is list:
        container[:] = new
    elif type(container) in (dict, set):
        container.clear()
        container.update(new)
