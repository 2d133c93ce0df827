"""Ingest of a reaction log: rows per second and peak memory, beside pandas on the same files.

    python -m benchmarks.feedback_ingest                  # 1, 5 and 20 million rows: needs 12 GB of disk in the folder
    python -m benchmarks.feedback_ingest --quick          # 20, 40 and 100 thousand

Simulated users make a log of the small size, as JSON lines and as Parquet; the larger ones are Parquet, the small one
over and over with users, messages and conversations of other names. Each run is a process, so that its peak is
its own. Memory is flat if the peak of the large log is that of the small one. pandas reads the file, parses times,
drops repeated messages, sums up users and writes Parquet; it checks no row, hashes no id, redacts no text and looks for
no bots, all of which the ingest does. It is left out of the larger logs, which it would need to hold in memory.

`rows/s` is by the clock; `rows/processor s` by the time that the processor worked, which others on the machine hardly
change. `--threads` is what the ingest may use, all cores by default.
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
from llamarl.core.machine import usable_cores
from llamarl.feedback import Store

ROWS_PER_USER = 60
"""A user of the simulation sees so many replies in its 28 days, about."""
SIZE, QUICK_SIZE = 1_000_000, 20_000
COPIES, QUICK_COPIES = (5, 20), (2, 5)
"""How many times the small log the medium and the large one are."""
PROGRAM = [sys.executable, "-c", "from llamarl.cli.program import run; run()", "feedback"]
PANDAS = """
import sys
import pandas
rows = pandas.read_parquet(sys.argv[1]) if sys.argv[1].endswith("t") else pandas.read_json(sys.argv[1], lines=True)
rows["ts"] = pandas.to_datetime(rows["ts"], format="ISO8601")
rows = rows.drop_duplicates("message_id").drop_duplicates(["user", "prompt", "response"])
rows.groupby("user").agg(shown=("reaction", "size"), loves=("reaction", "count"))
rows.to_parquet(sys.argv[2])
"""


def main() -> None:
    benchmark = Benchmark("feedback_ingest", __doc__, repeats=3, quick_repeats=1)
    benchmark.parser.add_argument("--folder", type=Path, help="where logs and stores are written for the time being")
    benchmark.parser.add_argument("--threads", type=int, help="of the ingest")
    options = benchmark.start()
    size, copies = (QUICK_SIZE, QUICK_COPIES) if options.quick else (SIZE, COPIES)
    rows: list[dict[str, Any]] = []
    headlines: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        # in a process of its own: a child's peak is at least what its parent holds when it starts
        simulated = [*PROGRAM, "simulate", "--out", str(folder), "--users", str(size // ROWS_PER_USER), "--json"]
        count = json.loads(subprocess.run(simulated, check=True, capture_output=True).stdout)["rows"]
        subprocess.run([sys.executable, "-c", COPY, str(folder), *map(str, copies)], check=True)
        medium, large = (times * count for times in copies)
        benchmark.note(f"{count:,}, {medium:,} and {large:,} rows are written")
        sizes = {"logs.jsonl": count, "small.parquet": count, "medium.parquet": medium, "large.parquet": large}
        for log, total in sizes.items():
            for contender, command in contenders(folder / log, folder, total == count, options.threads).items():
                runs = [measure(command) for _ in range(options.repeats if total == count else 1)]
                assert contender == "pandas" or Store.open(folder / "store").record["rows"] == total
                row = {
                    "log": log,
                    "rows": total,
                    "contender": contender,
                    "rows/s": round(total / min(run["seconds"] for run in runs)),
                    "rows/processor s": round(total / min(run["processor_seconds"] for run in runs)),
                    "peak MB": round(max(run["peak_mb"] for run in runs)),
                }
                rows.append(row)
                headlines |= {f"{log} {contender} {key}": row[key] for key in list(row)[3:]}
                benchmark.note(json.dumps(row))
                shutil.rmtree(folder / "store", ignore_errors=True)
    headlines["peak of large / small"] = round(
        headlines["large.parquet llamarl peak MB"] / headlines["small.parquet llamarl peak MB"], 3
    )
    threads = options.threads or usable_cores()
    benchmark.finish(rows, headlines, [f"The ingest had {threads} thread{'s' * (threads > 1)}."])


COPY = """
import os
import sys
import duckdb
folder, medium, large = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
duckdb.sql("SET preserve_insertion_order = false")
duckdb.sql("SET memory_limit = '1GB'")
rows = f"read_json('{folder}/logs.jsonl', maximum_object_size = 1000000)"
duckdb.sql(f"COPY (FROM {rows}) TO '{folder}/small.parquet'")
for copy in range(large):
    changed = ", ".join(f"'{copy}-' || {name} AS {name}" for name in ('"user"', "message_id", "conversation_id"))
    target = f"{folder}/part-{copy}.parquet"
    duckdb.sql(f"COPY (SELECT * REPLACE ({changed}) FROM '{folder}/small.parquet') TO '{target}'")
for name, copies in (("medium", medium), ("large", large)):
    parts = [f"{folder}/part-{copy}.parquet" for copy in range(copies)]
    duckdb.sql(f"COPY (FROM read_parquet({parts})) TO '{folder}/{name}.parquet'")
for copy in range(large):
    os.remove(f"{folder}/part-{copy}.parquet")
"""


def contenders(log: Path, folder: Path, is_small: bool, threads: int | None) -> dict[str, list[str]]:
    """The commands that read a log, by name."""
    limit = ["--threads", str(threads)] if threads else []
    found = {"llamarl": [*PROGRAM, "ingest", str(log), "--out", str(folder / "store"), *limit]}
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
