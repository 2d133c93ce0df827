"""The process that holds the tests, where they are a script. The solution lives in another one, reached by messages.

A name that the tests use and do not define stands for the solution's function of that name: calling it sends the
arguments over and brings plain data back. So the assertions, the expected values and this process's verdict are out of
the solution's reach. An object of the solution's own class comes back as a `Remote`. It never equals plain data,
whatever its `__eq__` says, and no comparison with plain data is ever asked of it.
"""

from __future__ import annotations  # and TYPE_CHECKING: every run would pay for importing `typing`

import ast
import builtins
import importlib
import os
import sys

from llamarl.judges.code.inside.solution import BINARY, MAX_REQUEST_BYTES, UNARY, describe, limit, silence
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
    """Per test why it failed, or "". They share their names, in order."""
    try:
        names = solution.load()
    except BaseException as error:  # the solution may raise anything
        return [LOST if solution.is_lost else f"raised {': '.join(describe(error))}"]
    namespace = {"__name__": "tests", **provided(solution, names, tests)}
    results: list[str] = []
    for number, test in enumerate(tests):
        try:
            exec(compile(test, f"test {number + 1}", "exec"), namespace)
            results.append("")
        except BaseException as error:  # a test fails by any exception
            results.append(f"raised {': '.join(describe(error))}".rstrip(": "))
        if solution.is_lost:  # also where the test caught it
            results[-1] = LOST
        if results[-1] and (should_stop or solution.is_lost):
            break
    return results


def provided(solution: Solution, names: list[str], tests: list[str]) -> dict[str, Any]:
    """What the tests may use without defining it.

    The solution's names, save builtins, so that it cannot redefine `all`; and save modules of the standard library
    that the tests use as such (`math.isclose`): they get the real one.
    """
    modules = {
        node.value.id
        for test in tests
        for node in ast.walk(ast.parse(test))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    } & sys.stdlib_module_names
    return {
        name: importlib.import_module(name) if name in modules else Remote(solution, {"t": "name", "v": name})
        for name in names
        if not hasattr(builtins, name)
    }


LOST = "the solution's process ended or broke the protocol"


class LostError(BaseException):
    """The solution's process does not answer. No `except Exception` of a test may take it for what it expects."""


class Solution:
    """The solution's process, as asked by this one."""

    def __init__(self, lines: Frames) -> None:
        self.lines = lines
        self.is_lost = False
        self._kept = Kept()

    def ask(self, what: str, *args: Any, **kwargs: Any) -> Any:
        """The result of an operation over there. Raises what it raised, as the builtin exception of that name."""
        containers = [arg for arg in args if type(arg) in (list, dict, set)]
        request = {
            "ask": what,
            "args": [self._encode(arg) for arg in args],
            "kwargs": {key: self._encode(value) for key, value in kwargs.items()},
            "keep": True,
            "back": bool(containers),
        }
        answer = self._exchange(request)
        if answer["value"] is None:  # only what works in place may change its arguments
            for arg, new in zip(args, answer["args"], strict=False):
                replace(arg, new)
        return answer["value"]

    def load(self) -> list[str]:
        """Runs the solution's source; the names it defines. Raises what it raised."""
        names = self._exchange({"ask": "load"})["value"]
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def _exchange(self, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request; serves calls of the tests' own functions until its answer comes, and decodes that."""
        try:
            self.lines.send(request)
            while "ask" in (answer := self.lines.receive()):
                self.lines.send(self._called(answer))
            if "error" not in answer:
                args = [decode(arg, self._find) for arg in answer.get("args", [])]
                return {"value": decode(answer["value"], self._find), "args": args}
            kind, text = map(str, answer["error"])
        except Exception as error:  # whatever is wrong with an answer
            self.is_lost = True
            raise LostError(str(error)) from None
        raise exception(kind, text)

    def _called(self, request: dict[str, Any]) -> dict[str, Any]:
        """Calls a function that the tests passed to the solution. That is all the solution can ask."""
        try:
            function = self._kept.objects[request["on"]]
            return {"value": self._encode(function(*(decode(arg, self._find) for arg in request["args"])))}
        except Exception as error:
            return {"error": describe(error)}

    def _encode(self, value: Any) -> Any:
        return encode(value, self._keep)

    def _keep(self, value: Any) -> Any:
        if type(value) is Remote:
            return object.__getattribute__(value, "_place")
        name = getattr(value, "__name__", "")
        if getattr(builtins, name, None) is value:
            return {"t": "builtin", "v": name}
        if callable(value):
            return self._kept.add(value)
        raise TypeError(f"a {type(value).__name__} cannot be passed to the solution; pass plain data or functions")

    def _find(self, tag: str, content: Any) -> Any:
        return Remote(self, {"t": "yours", "v": content})


class Remote:
    """An object in the solution's process."""

    __slots__ = ("_place", "_solution")

    def __init__(self, solution: Solution, place: dict[str, Any]) -> None:
        object.__setattr__(self, "_solution", solution)
        object.__setattr__(self, "_place", place)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it over there."""
        return _ask(self, "call", *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return _ask(self, "getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self, "setattr", name, value)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask(self, "__setitem__", key, value)

    def __len__(self) -> int:
        return int(_ask(self, "len"))

    def __bool__(self) -> bool:
        return bool(_ask(self, "bool"))

    def __iter__(self) -> Any:
        return _ask(self, "iter")

    def __next__(self) -> Any:
        return _ask(self, "next")

    def __str__(self) -> str:
        return str(_ask(self, "str"))

    def __repr__(self) -> str:
        return str(_ask(self, "repr"))

    def __eq__(self, other: object) -> bool:
        return type(other) is Remote and _ask(self, "__eq__", other) is True

    def __hash__(self) -> int:
        return id(self)

    def __lt__(self, other: object) -> Any:
        return _ask(self, "__lt__", other) if type(other) is Remote else NotImplemented

    def __le__(self, other: object) -> Any:
        return _ask(self, "__le__", other) if type(other) is Remote else NotImplemented

    def __instancecheck__(self, instance: object) -> bool:
        return type(instance) is Remote and _ask(instance, "isinstance", self) is True


def _ask(remote: Remote, what: str, *args: Any, **kwargs: Any) -> Any:
    return object.__getattribute__(remote, "_solution").ask(what, remote, *args, **kwargs)


def _operator(name: str) -> Any:
    return lambda self, *args: _ask(self, name, *args)


for _name in (*UNARY, *BINARY):
    setattr(Remote, _name, _operator(_name))


def exception(name: str, text: str) -> Exception:
    """The builtin exception called `name`; something else of the solution's is a RuntimeError."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # some take more arguments
            return RuntimeError(f"{name}: {text}")
    return RuntimeError(f"{name}: {text}")


def replace(container: Any, new: Any) -> None:
    """Gives a list, dictionary or set the content that a call in place left in its copy."""
    if type(container) is not type(new):
        return
    if type(container) is list:
        container[:] = new
    elif type(container) in (dict, set):
        container.clear()
        container.update(new)
