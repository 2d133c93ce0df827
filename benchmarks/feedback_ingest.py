"""Ingest of a reaction log: rows per second and peak memory at two sizes, beside pandas on the same file.

    python -m benchmarks.feedback_ingest                  # 1 and 20 million rows: needs 10 GB of disk in the folder
    python -m benchmarks.feedback_ingest --quick          # 20 and 100 thousand

Each run is a process of its own, so that its peak is its own. Memory is flat if the peak of the large log is that of
the small one. pandas reads the file, parses times, drops repeated messages, sums up users and writes Parquet; it checks
no row, hashes no id, redacts no text and looks for no bots, all of which the ingest does. Where pandas is not installed
it is left out; it is left out of the large log, too, which it would need to hold in memory.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark
from llamarl.feedback import Store

ROWS_PER_USER = 60
"""A user of the simulation sees so many replies in its 28 days, about."""
SIZES, QUICK_SIZES = (1_000_000, 20_000_000), (20_000, 100_000)
PROGRAM = [sys.executable, "-c", "from llamarl.cli.program import run; run()", "feedback"]
PANDAS = """
import sys
import pandas
rows = pandas.read_json(sys.argv[1], lines=True)
rows["ts"] = pandas.to_datetime(rows["ts"], format="ISO8601")
rows = rows.drop_duplicates("message_id").drop_duplicates(["user", "prompt", "response"])
rows.groupby("user").agg(shown=("reaction", "size"), loves=("reaction", "count"))
rows.to_parquet(sys.argv[2])
"""


def main() -> None:
    benchmark = Benchmark("feedback_ingest", __doc__, repeats=3, quick_repeats=1)
    benchmark.parser.add_argument("--folder", type=Path, help="where logs and stores are written for the time being")
    options = benchmark.start()
    rows: list[dict[str, Any]] = []
    headlines: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for place, size in enumerate(QUICK_SIZES if options.quick else SIZES):
            log = folder / f"{size}"
            # in a process of its own: a child's peak is at least what its parent holds when it starts
            simulated = [*PROGRAM, "simulate", "--out", str(log), "--users", str(size // ROWS_PER_USER), "--json"]
            count = json.loads(subprocess.run(simulated, check=True, capture_output=True).stdout)["rows"]
            benchmark.note(f"{count:,} rows are written")
            for contender, command in contenders(log / "logs.jsonl", folder, is_small=place == 0).items():
                runs = [measure(command) for _ in range(options.repeats)]
                assert contender == "pandas" or Store.open(folder / "store").record["rows"] == count
                seconds = min(run["seconds"] for run in runs)
                row = {
                    "rows": count,
                    "contender": contender,
                    "rows/s": round(count / seconds),
                    "processor seconds": round(min(run["processor_seconds"] for run in runs), 1),
                    "peak MB": round(max(run["peak_mb"] for run in runs)),
                }
                rows.append(row)
                headlines |= {
                    f"{size} {contender} rows/s": row["rows/s"],
                    f"{size} {contender} peak MB": row["peak MB"],
                }
                benchmark.note(json.dumps(row))
            shutil.rmtree(log)
    benchmark.finish(rows, headlines)


def contenders(log: Path, folder: Path, is_small: bool) -> dict[str, list[str]]:
    """The commands that read a log, by name."""
    found = {"llamarl": [*PROGRAM, "ingest", str(log), "--out", str(folder / "store")]}
    if is_small and find_spec("pandas"):
        found["pandas"] = [sys.executable, "-c", PANDAS, str(log), str(folder / "pandas.parquet")]
    return found


def measure(command: list[str]) -> dict[str, float]:
    """Seconds, processor seconds and peak memory of a process."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with status {process.returncode}; its messages are above")
    return {
        "seconds": time.monotonic() - begin,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / 1024,
    }


if __name__ == "__main__":
    main()
