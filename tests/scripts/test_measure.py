"""`scripts/measure.py` counts what it says, on a package whose numbers can be counted by hand."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure.py"

FIRST = '''"""First module."""
from typing import TYPE_CHECKING

from pack import second

if TYPE_CHECKING:
    from pack import third  # for type checkers only


def judged(judge):
    """Of the judge."""
    return getattr(judge, "name", None)  # type: ignore


def check_closed(x):
    """Checks x."""
    y = x
    # why
    return y


def packed_rows(): ...
'''
SECOND = '''"""Second module."""


class Thing:
    """A thing."""

    size: int
    """Whether it is large."""

    def met_by(self, algorithm):
        """Per-token log-probs."""
        from pack import first

        return hasattr(algorithm, "x"), getattr(self, "size"), first
'''


def test_counts_by_hand(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    for name, text in {"__init__": "", "first": FIRST, "second": SECOND, "third": "from pack import first\n"}.items():
        (package / f"{name}.py").write_text(text)
    command = [sys.executable, str(SCRIPT), str(package), "--list"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = dict(line[2:-2].split(" | ") for line in output.splitlines() if " | " in line[2:])
    assert rows["files"] == "4"
    assert rows["lines"] == str(FIRST.count("\n") + SECOND.count("\n") + 1)
    # Bodies without docstrings: judged 1, check_closed 3, packed_rows 1, met_by 3.
    assert (rows["body, median"], rows["body, longest"]) == ("2", "3")
    assert rows["comments"] == f"{2 / (FIRST.count(chr(10)) + SECOND.count(chr(10)) + 1):.1%}"
    assert rows["functions named by a participle"] == "2" and "judged" in output and "met_by" in output
    assert rows["docstrings without a subject"] == "2" and "Of the judge." in output and "Whether it is" in output
    assert rows["getattr, hasattr on judges and algorithms"] == "2"
    assert rows["import circles"] == "1" and "pack.first <-> pack.second" in output


def test_folders_stand_side_by_side(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    (tmp_path / "new" / "a.py").write_text("x = 1\n")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "old"), str(tmp_path / "new")]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| files | 0 | 1 |" in output and "| lines | 0 | 1 |" in output
