"""Finds code that asks a judge or an algorithm what it is, where it should read what they declare; and twins of tests.

    python scripts/lint.py [FILE ...]      default: package, experiments, benchmarks; exit status 1 if it finds any

`getattr` and `hasattr` ask in silence: a member that is misspelt, or lost on the way into a worker process, is taken
for one that is not there. What judges and algorithms have is declared in `llamarl/core/judge.py` and
`llamarl/core/algorithm.py`, so there is nothing to ask.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("llamarl", "experiments", "benchmarks")
DECLARED = {
    "llamarl/core/judge.py": ("Judge", "JudgeInfo"),
    "llamarl/core/algorithm.py": ("Algorithm", "Credit", "Needs"),
}
"""File -> the classes whose members nobody may ask for by name."""
COMMON = {"name", "values"}
"""Members whose names other objects have too."""
ASKING = {"getattr", "hasattr"}
SUBJECTS = ("judge", "algorithm")
"""An expression that has one of these in a name is taken for a judge or an algorithm."""


def find(source: str, members: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Yields line and problem of each place in a program that asks.

    Args:
        source: Python.
        members: names that judges and algorithms declare.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ASKING:
            subject, member = node.args[0], node.args[1]
            named = [name for name in _names_in(subject) if any(word in name.lower() for word in SUBJECTS)]
            if named or (isinstance(member, ast.Constant) and member.value in members):
                yield node.lineno, f"{ast.unparse(node)}: read the member, which is declared, or declare it"
        elif isinstance(node, ast.ClassDef):
            decorators = {name for each in node.decorator_list for name in _names_in(each)}
            if "runtime_checkable" in decorators and any(word in node.name.lower() for word in SUBJECTS):
                yield node.lineno, f"{node.name}: a protocol to ask at run time; make it a base class"


def declared_members(root: Path = ROOT) -> set[str]:
    """Reads the public members of the declared classes."""
    members: set[str] = set()
    for path, names in DECLARED.items():
        for node in ast.parse((root / path).read_text()).body:
            if isinstance(node, ast.ClassDef) and node.name in names:
                functions = (
                    each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
                )
                fields = (each.target for each in node.body if isinstance(each, ast.AnnAssign))
                members |= {*functions, *(each.id for each in fields if isinstance(each, ast.Name))}
    return {name for name in members if not name.startswith("_")} - COMMON


def _names_in(node: ast.AST) -> Iterator[str]:
    """Yields the identifiers of an expression: `judge` and `panel` of `panel.judge`."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr


def find_twins(folder: Path) -> Iterator[str]:
    """Yields problems of files below a folder of tests that share a name, by which pytest imports them."""
    first: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.py")):
        if path.name != "conftest.py" and (other := first.setdefault(path.name, path)) is not path:
            yield f"{path}: {other} has this name too, and a run of both fails; give one of them another"


def main(paths: list[str]) -> int:
    """Prints what there is to find; returns the exit status."""
    files = [Path(path) for path in paths] or [path for each in FOLDERS for path in sorted((ROOT / each).rglob("*.py"))]
    members = declared_members()
    found = [f"{path}:{line}: {problem}" for path in files for line, problem in find(path.read_text(), members)]
    found += [] if paths else find_twins(ROOT / "tests")
    print("\n".join(found), file=sys.stderr) if found else None
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
