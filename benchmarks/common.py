"""What all benchmarks share: turns, spreads, the machine's facts, the result file, the table.

Numbers of this folder are comparable only within one interleaved run: contenders take turns in every round, in
rotating order, and a ratio is the median of the rounds' own ratios.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from llamarl.report.environment import environment_record
from llamarl.report.files import write_json

T = TypeVar("T")

RESULTS = Path(__file__).parent / "results"
MAX_LOAD = (os.cpu_count() or 1) + 0.5
"""A load average above this means that others work here too: then nothing is published."""


def take_turns(
    contenders: Mapping[str, Callable[[], T]],
    repeats: int,
    warm_up: int = 1,
    on_round: Callable[[int], None] = lambda index: None,
) -> dict[str, list[T]]:
    """Calls every contender once a round, each round beginning with another one.

    Args:
        contenders: what to call, by name.
        repeats: rounds whose results are kept.
        warm_up: rounds before them whose results are not.
        on_round: told the number of each kept round that is over, from 1.

    Returns:
        The kept results of each contender, round by round.
    """
    names = list(contenders)
    results: dict[str, list[T]] = {name: [] for name in names}
    for index in range(warm_up + repeats):
        turn = index % len(names)
        for name in names[turn:] + names[:turn]:
            result = contenders[name]()
            if index >= warm_up:
                results[name].append(result)
        if index >= warm_up:
            on_round(index - warm_up + 1)
    return results


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
    """Median, minimum, maximum and number of repeats."""
    median, low, high = (round(x, digits) for x in (statistics.median(values), min(values), max(values)))
    return {"median": median, "min": low, "max": high, "repeats": len(values)}


def paired_ratio(numerators: Sequence[float], denominators: Sequence[float], digits: int = 3) -> dict[str, float]:
    """The spread of the ratios within each round: noise that hit both sides of a round cancels."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)], digits)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of equal keys as aligned text. A spread shows as `median [min, max]`."""
    if not rows:
        return ""
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and "median" in value:
        return f"{value['median']:.4g} [{value['min']:.4g}, {value['max']:.4g}]"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Benchmark:
    """One run of one benchmark: its options, and its way to paper and file.

    Args:
        name: of `results/NAME.json`.
        description: for `--help`.
        repeats: rounds, unless `--repeats` says otherwise.
        quick_repeats: rounds with `--quick`, which tries the code and publishes nothing.
        max_load: a load average above this before the start publishes nothing either.
    """

    def __init__(
        self,
        name: str,
        description: str | None,
        repeats: int = 10,
        quick_repeats: int = 2,
        max_load: float = MAX_LOAD,
    ) -> None:
        self.name, self._repeats, self._quick_repeats, self._max_load = name, repeats, quick_repeats, max_load
        self.parser = argparse.ArgumentParser(
            prog=f"python -m benchmarks.{name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.parser.add_argument("--repeats", type=int, help=f"rounds (default {repeats})")
        self.parser.add_argument("--quick", action="store_true", help="a short try; writes no result")
        self.parser.add_argument("--output", type=Path, default=RESULTS / f"{name}.json", help="the result file")

    def start(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parses the command line (of this process by default) and notes time and load; `repeats` is always set."""
        self._arguments = sys.argv[1:] if arguments is None else arguments
        options = self.parser.parse_args(arguments)
        if options.repeats is None:
            options.repeats = self._quick_repeats if options.quick else self._repeats
        self.options, self._started, self.load = options, time.monotonic(), os.getloadavg()
        return options

    def note(self, text: str) -> None:
        """Progress, for whoever watches."""
        print(f"{time.monotonic() - self._started:6.0f} s  {text}", file=sys.stderr, flush=True)

    def finish(
        self, rows: Sequence[Mapping[str, Any]], headlines: Mapping[str, float], notes: Sequence[str] = ()
    ) -> bool:
        """Prints the table and writes the result file, unless this was a quick try or the machine was busy.

        Args:
            rows: the table, one mapping a line.
            headlines: what `targets.py` holds against its bounds.
            notes: what a reader must know to judge the numbers.

        Returns:
            Whether the file was written.
        """
        print("\n".join([table(rows), "", *(f"{key}: {value:g}" for key, value in headlines.items()), *notes]))
        if self.options.quick:
            print("a quick try: no result written")
            return False
        if self.load[0] > self._max_load:
            print(f"the load average was {self.load[0]:.1f} before the start: others work here; no result written")
            return False
        self.options.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.options.output, self._record(rows, headlines, notes))
        print(f"wrote {self.options.output}; now refresh the table: python -m benchmarks.table")
        return True

    def _record(self, rows: Any, headlines: Any, notes: Any) -> dict[str, Any]:
        return {
            "benchmark": self.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            # a folder of this machine says nothing to a reader: its name does
            "command": " ".join(
                [self.parser.prog, *(Path(a).name if a.startswith("/") else a for a in self._arguments)]
            ),
            "seconds": round(time.monotonic() - self._started, 1),
            "load": {"before": self.load, "after": os.getloadavg()},
            "environment": environment_record(Path(__file__).parent),
            "headlines": dict(headlines),
            "rows": list(rows),
            "notes": list(notes),
        }


class Contender:
    """A process that works only when it has its turn; the others sleep meanwhile.

    Args:
        module: run with `python -m`; it serves a `Turns`.
        arguments: of its command line.
        threads: OpenMP and torch threads it gets.
    """

    def __init__(self, module: str, arguments: Sequence[str] = (), threads: int | None = None) -> None:
        self.module = module
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        if threads is not None:
            environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[1],
        )

    def turn(self) -> dict[str, float]:
        """One unit of its work; returns what it reports of it. Raises `RuntimeError` if it ends instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self.module} ended with status {self._process.wait()}; its messages are above")
        report: dict[str, float] = json.loads(line)
        return report

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()


class Turns:
    """The other end of a `Contender`. Whatever else the process prints goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def wait(self) -> None:
        """Sleeps until the next turn; leaves the process when there will be none."""
        if not sys.stdin.readline():
            sys.exit()

    def report(self, **numbers: float) -> None:
        """Ends the turn."""
        print(json.dumps(numbers), file=self._out, flush=True)
