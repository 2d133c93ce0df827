"""Writes the table of README.md from the result files.

python -m benchmarks.table           # rewrites the table
python -m benchmarks.table --check   # only says whether it is up to date
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS
from benchmarks.targets import TARGETS, Target, read_results

README = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- table: python -m benchmarks.table -->", "<!-- end of table -->"


def markdown(targets: Sequence[Target], results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per target, the newest result beside it."""
    lines = ["| what | target | measured | benchmark | date, commit |", "|---|---|---|---|---|"]
    for target in targets:
        value = target.measured(results)
        measured = "not measured" if value is None else f"{value:.3g}{'' if target.is_met(value) else ' (not met)'}"
        origin = "" if value is None else _origin(results[target.file])
        lines.append(f"| {target.what} | {target.goal} | {measured} | `{target.file}` | {origin} |")
    return "\n".join(lines)


def _origin(result: Mapping[str, Any]) -> str:
    git = (result.get("environment") or {}).get("git") or {}
    commit = str(git.get("commit", ""))[:7] + ("+" if git.get("is_dirty") else "")
    return ", ".join(filter(None, [str(result.get("date", ""))[:10], commit]))


def refreshed(text: str, table: str) -> str:
    """`text` with what stands between the marks replaced by `table`."""
    pattern = re.escape(BEGIN) + ".*?" + re.escape(END)
    return re.sub(pattern, lambda match: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description="Refreshes README.md's table.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the table is out of date")
    is_check = parser.parse_args().check
    old = README.read_text()
    new = refreshed(old, markdown(TARGETS, read_results(RESULTS)))
    if is_check:
        sys.exit(0 if new == old else f"{README}: out of date; run: python -m benchmarks.table")
    README.write_text(new)
    print(f"{README}: {'unchanged' if new == old else 'refreshed'}")


if __name__ == "__main__":
    main()
