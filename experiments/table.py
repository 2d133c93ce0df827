"""Writes the tables of experiments into the pages that show them, from the result files.

python -m experiments.table            # rewrites what has changed
python -m experiments.table --check    # changes nothing; exit status 1 if a page is out of date
"""

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GUIDES = HERE.parent / "docs" / "guides"
PAGES = (HERE / "README.md", GUIDES / "reward-hacking.md", GUIDES / "reason-under-a-budget.md")
BLOCK = re.compile(r"(<!-- experiment: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(result: Mapping[str, Any]) -> str:
    """One row per arm: each number's mean over seeds with its 95 % interval, and how many seeds where that differs."""
    arms = result["arms"]
    names = list(max(arms.values(), key=len))
    seeds = {arm: max(number["seeds"] for number in numbers.values()) for arm, numbers in arms.items()}
    is_uneven = len(set(seeds.values())) > 1
    titles = [*(["seeds"] if is_uneven else []), *names]
    lines = [f"| arm | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    for arm, numbers in arms.items():
        cells = [cell(numbers[name]) if name in numbers else "" for name in names]
        lines.append(f"| {arm} | {' | '.join([*([str(seeds[arm])] if is_uneven else []), *cells])} |")
    git = result["environment"].get("git") or {}
    commit = str(git.get("commit", "unknown"))[:7] + ("+" if git.get("is_dirty") else "")
    count = f"{min(seeds.values())}{f' to {max(seeds.values())}' if is_uneven else ''} seeds"
    lines += ["", f"{count}, mean and 95 % interval (Student's t); {result['date'][:10]}, commit {commit}."]
    return "\n".join(lines) + "\n"


def cell(number: Mapping[str, float | None]) -> str:
    """A mean with its interval, where several seeds give one."""
    width = number["half_width"]
    return f"{number['mean']:.3f}" + ("" if width is None else f" ± {width:.3f}")


def written(page: str) -> str:
    """A page with its tables made anew."""

    def block(match: re.Match[str]) -> str:
        path = HERE / "results" / f"{match[2]}.json"
        if not path.exists():
            return f"{match[1]}Not run yet.\n{match[3]}"
        result = json.loads(path.read_text())
        return f"{match[1]}{table(result)}{match[3]}"

    return BLOCK.sub(block, page)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    is_check, status = parser.parse_args().check, 0
    for path in PAGES:
        old = path.read_text()
        if (new := written(old)) != old:
            status = 1
            print(f"{'out of date' if is_check else 'wrote'}: {path.relative_to(HERE.parent)}")
            if not is_check:
                path.write_text(new)
    return status if is_check else 0


if __name__ == "__main__":
    sys.exit(main())
