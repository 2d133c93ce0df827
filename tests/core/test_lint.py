"""The lint rule of this repository: judges and algorithms are read, not asked."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

LINT = Path(__file__).parents[2] / "scripts" / "lint.py"


def lint(*files: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(LINT), *map(str, files)], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    "code",
    [
        "hasattr(judge, 'load')",
        "getattr(task.algorithm, what, False)",
        "getattr(build_judge(config), 'anything')",
        "hasattr(self._judges[0], name)",
        "getattr(target, 'can_pass', True)",  # whatever it is called, only a judge has one
        "hasattr(each, 'held_out_metrics')",
        "@runtime_checkable\nclass CheckingJudge(Protocol):\n    pass",
    ],
)
def test_asking_a_judge_or_an_algorithm_what_it_is_is_found(tmp_path: Path, code: str) -> None:
    file = tmp_path / "asks.py"
    file.write_text(f"{code}\n")
    found = lint(file)
    assert found.returncode == 1 and found.stderr.startswith(f"{file}:"), found.stderr


@pytest.mark.parametrize(
    "code",
    [
        "judge.load()",
        "getattr(function, '__name__', None) or getattr(function, 'name', None)",
        "getattr(torch, dtype)",
        "isinstance(target, Judge)",
        "@runtime_checkable\nclass Sized(Protocol):\n    pass",
    ],
)
def test_other_questions_are_none_of_its_business(tmp_path: Path, code: str) -> None:
    file = tmp_path / "asks.py"
    file.write_text(f"{code}\n")
    assert lint(file).returncode == 0


def test_the_package_asks_nobody() -> None:
    found = lint()
    assert found.returncode == 0, found.stderr


def test_tests_of_one_name_are_found(tmp_path):
    for name in ("a/test_x.py", "b/test_x.py", "b/test_y.py", "a/conftest.py", "b/conftest.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (problem,) = runpy.run_path(str(LINT))["find_twins"](tmp_path)
    assert problem.startswith(f"{tmp_path / 'b/test_x.py'}: {tmp_path / 'a/test_x.py'} has this name too")
