"""What a user waits for before anything happens, and the memory of the demo.

    python -m benchmarks.startup [--steps 60]

Wall time of fresh interpreters: `pass` (Python itself), `import llamarl`, and the command line's help, which must not
import torch. Then `llamarl demo` for some steps: the peak memory that its `summary.json` states for all its processes.
"""

import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Benchmark, spread, take_turns

MAIN = "from llamarl.cli.main import main; main({arguments!r})"
PROGRAMS = {
    "python -c pass": "pass",
    "import llamarl": "import llamarl",
    "llamarl --help": MAIN.format(arguments=["--help"]),
    "llamarl train --help": MAIN.format(arguments=["train", "--help"]),
}
IS_TORCH_FREE = """
import sys
try:
    exec({program!r})
except SystemExit:
    pass
sys.exit("torch" in sys.modules)
"""


def seconds(program: str) -> float:
    """Wall time of one fresh interpreter."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - started


def imports_torch(program: str) -> bool:
    """Whether torch is among the modules at the program's end."""
    command = [sys.executable, "-c", IS_TORCH_FREE.format(program=program)]
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0


def demo_gigabytes(steps: int) -> float:
    """Peak memory of `llamarl demo`."""
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        command = [sys.executable, "-m", "llamarl", "demo", "--quiet", "--steps", str(steps)]
        subprocess.run([*command, "--run-dir", str(run)], stdout=subprocess.DEVNULL, check=True, timeout=900)
        return float(json.loads((run / "summary.json").read_text())["peak_memory_bytes"]) / 1e9


def main() -> None:
    benchmark = Benchmark("startup", __doc__, repeats=15, quick_repeats=3)
    benchmark.parser.add_argument("--steps", type=int, help="of the demo (default: 60)")
    options = benchmark.start()
    timed = take_turns({name: partial(seconds, code) for name, code in PROGRAMS.items()}, options.repeats)
    benchmark.note("the demo")
    gigabytes = demo_gigabytes(options.steps or (5 if options.quick else 60))
    rows: list[dict[str, Any]] = [
        {"program": name, "seconds": spread(values), "imports torch": imports_torch(PROGRAMS[name])}
        for name, values in timed.items()
    ]
    headlines = {f"{row['program']} s": row["seconds"]["median"] for row in rows}
    headlines["programs that import torch"] = sum(row["imports torch"] for row in rows)
    headlines["demo peak GB"] = round(gigabytes, 3)
    benchmark.finish(rows, headlines)


if __name__ == "__main__":
    main()
