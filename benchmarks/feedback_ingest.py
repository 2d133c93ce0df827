"""Ingest of a reaction log: rows per second and peak memory, beside pandas on the same files.

    python -m benchmarks.feedback_ingest                  # 1, 5 and 20 million rows: needs 11 GB of disk
    python -m benchmarks.feedback_ingest --quick          # 20, 40 and 100 thousand

Simulated users make a log of the small size, as JSON lines and as Parquet; the larger ones are the small one over and
over with users, messages and conversations of other names. In one more log, one user has as many messages as all others
together. Each run is a process, so that its peak is its own. Memory is flat if the peak of the large log is that of the
small one. pandas reads the small files, parses times, drops repeated messages, sums up users and writes Parquet; it
checks no row, hashes no id, redacts no text and looks for no bots, all of which the ingest does.

`rows/s` is by the clock: on a busy machine it says what the ingest was left, and `cores` how much of the machine that
was. `rows/processor s` is by the time that the processor worked, which others on the machine change by a tenth or two,
as cores share caches. Load and cores are in the result. `--threads` is what the ingest may use, all cores by default.
With `--folder` the logs stay there, and the next run begins with them.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
FORMATS = ("jsonl", "parquet")
LOGS = (
    *("logs.jsonl", "small.parquet", "medium.jsonl", "medium.parquet"),
    *("one_user.parquet", "large.parquet", "large.jsonl"),
)
COUNTS = "rows.json"
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
    # Memory and processor time say something on a busy machine, too; what the clock says there is noted.
    benchmark = Benchmark("feedback_ingest", __doc__, repeats=3, quick_repeats=1, max_load=math.inf)
    benchmark.parser.add_argument("--folder", type=Path, help="where logs are written, and stay")
    benchmark.parser.add_argument("--threads", type=int, help="of the ingest")
    benchmark.parser.add_argument("--logs", nargs="+", choices=LOGS, default=LOGS, help="those to read")
    options = benchmark.start()
    size, (medium, large) = (QUICK_SIZE, QUICK_COPIES) if options.quick else (SIZE, COPIES)
    copies = {"logs.jsonl": 1, "small.parquet": 1, "one_user.parquet": 2}
    copies |= {f"{name}.{suffix}": n for name, n in (("medium", medium), ("large", large)) for suffix in FORMATS}
    rows: list[dict[str, Any]] = []
    headlines: dict[str, float] = {}
    with open_folder(options.folder) as folder:
        small = simulate(folder, size)
        write_log(folder / "small.parquet", 1)
        for log in (log for log in LOGS if log in options.logs):
            write_log(folder / log, copies[log])
            total = small * copies[log]
            benchmark.note(f"{log} has {total} rows and {(folder / log).stat().st_size / 1e9:.2f} GB")
            for contender, command in contenders(folder / log, folder, copies[log] == 1, options.threads).items():
                runs = [measure(command) for _ in range(options.repeats if total == small else 1)]
                assert contender == "pandas" or Store.open(folder / "store").record["rows"] == total
                best = min(runs, key=lambda run: run["processor_seconds"])
                row = {
                    "log": log,
                    "rows": total,
                    "contender": contender,
                    "rows/s": round(total / min(run["seconds"] for run in runs)),
                    "rows/processor s": round(total / best["processor_seconds"]),
                    "peak MB": round(max(run["peak_mb"] for run in runs)),
                    "cores": round(best["processor_seconds"] / best["seconds"], 2),
                }
                rows.append(row)
                headlines |= {f"{log} {contender} {key}": row[key] for key in list(row)[3:-1]}
                benchmark.note(json.dumps(row))
                shutil.rmtree(folder / "store", ignore_errors=True)
                (folder / "pandas.parquet").unlink(missing_ok=True)
            if options.folder is None and copies[log] > 1:
                (folder / log).unlink()  # so that the disk holds one large log at a time
    small_peak, large_peak = (headlines.get(f"{size}.parquet llamarl peak MB") for size in ("small", "large"))
    if small_peak and large_peak:
        headlines["peak of large / small"] = round(large_peak / small_peak, 3)
    threads = options.threads or usable_cores()
    load = " to ".join(f"{load:.1f}" for load in (benchmark.load[0], os.getloadavg()[0]))
    benchmark.finish(
        rows,
        headlines,
        [
            f"The ingest had {threads} thread{'s' * (threads > 1)}; the machine has {os.cpu_count()} cores.",
            f"The load average was {load}: where others worked here too, rows/s is what they left.",
        ],
    )


@contextmanager
def open_folder(folder: Path | None) -> Iterator[Path]:
    """A folder that stays, or one that goes."""
    if folder is None:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder


def simulate(folder: Path, size: int) -> int:
    """Writes the small log unless it is there; returns its rows."""
    if not (folder / COUNTS).exists():
        # in a process of its own: a child's peak is at least what its parent holds when it starts
        command = [*PROGRAM, "simulate", "--out", str(folder), "--users", str(size // ROWS_PER_USER), "--json"]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        (folder / "truth.jsonl").unlink()
        (folder / COUNTS).write_text(json.dumps(told["rows"]))
    count: int = json.loads((folder / COUNTS).read_text())
    return count


def write_log(log: Path, copies: int) -> None:
    """Writes a log of so many copies of the small one, unless it is there."""
    if not log.exists():
        subprocess.run([sys.executable, "-c", COPY, str(log.parent), log.name, str(copies)], check=True)


COPY = """
import sys
import duckdb
import pyarrow
import pyarrow.compute
import pyarrow.parquet
folder, name, copies = sys.argv[1], sys.argv[2], int(sys.argv[3])
small = f"{folder}/small.parquet"
fields = "user", "message_id", "conversation_id"

def copy_lines():
    for copy in range(copies):
        with open(f"{folder}/logs.jsonl", "rb") as log:
            while lines := log.readlines(1 << 24):
                text = b"".join(lines)
                for field in fields:
                    text = text.replace(b'"%s":"' % field.encode(), b'"%s":"%d-' % (field.encode(), copy))
                yield text

def copy_rows():
    for copy in range(copies):
        for batch in pyarrow.parquet.ParquetFile(small).iter_batches(100_000):
            for field in fields:
                values = pyarrow.compute.binary_join_element_wise(str(copy), batch[field], "-")
                if field == "user" and copy and name == "one_user.parquet":
                    values = pyarrow.array(["somebody"] * len(batch))
                batch = batch.set_column(batch.schema.get_field_index(field), field, values)
            yield batch

if name == "small.parquet":
    duckdb.sql("SET memory_limit = '1GB'")
    duckdb.sql(f"COPY (FROM read_json('{folder}/logs.jsonl', maximum_object_size = 1000000)) TO '{small}'")
elif name.endswith(".jsonl"):
    with open(f"{folder}/{name}", "wb") as file:
        file.writelines(copy_lines())
else:
    with pyarrow.parquet.ParquetWriter(f"{folder}/{name}", pyarrow.parquet.read_schema(small)) as writer:
        for batch in copy_rows():
            writer.write_batch(batch)
"""


def contenders(log: Path, folder: Path, has_pandas: bool, threads: int | None) -> dict[str, list[str]]:
    """The commands that read a log, by name."""
    limit = ["--threads", str(threads)] if threads else []
    found = {"llamarl": [*PROGRAM, "ingest", str(log), "--out", str(folder / "store"), *limit]}
    if has_pandas and find_spec("pandas"):
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
