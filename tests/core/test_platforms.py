"""What other systems lack is imported where it is used, so the package imports everywhere."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import llamarl
from llamarl.core.machine import return_freed_memory, try_lock, usable_cores

LACKING = """
import importlib, os, signal, socket, sys

for name in ("resource", "fcntl", "termios", "tty", "pty", "pwd", "grp", "syslog"):
    sys.modules[name] = None
lacking = {
    os: ("fork", "sched_getaffinity", "killpg", "setsid", "getuid", "sysconf"),
    signal: ("SIGKILL", "SIGSTOP", "SIGHUP", "SIGALRM", "setitimer", "ITIMER_REAL"),
    socket: ("AF_UNIX", "AF_NETLINK"),
}
for module, names in lacking.items():
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
"""
NO_TORCH = """
del os.register_at_fork  # which torch takes for granted, going by the system's name
sys.modules["torch"] = None
"""
IMPORTS = """
for name in sys.argv[1:]:
    importlib.import_module(name)
"""
PACKAGE = Path(llamarl.__file__).parent
MODULES = [
    ".".join(("llamarl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in sorted(PACKAGE.rglob("*.py"))
]
ELSEWHERE = ("llamarl.judges.code.inside", "llamarl.engine.monarch", "llamarl.engine.ray", "llamarl.evals.inspect_task")
ELSEWHERE += ("llamarl.generation.vllm.plugin.llamarl_vllm",)
"""What runs in the sandbox alone, in the environment of vLLM, or needs an extra."""
TORCH_FREE = ("llamarl.core", "llamarl.data", "llamarl.report", "llamarl.cli", "llamarl.judges.rules")
TORCH_FREE += ("llamarl.judges.math", "llamarl.judges.code", "llamarl.judges.llm", "llamarl.judges.process")
TORCH_FREE += (
    "llamarl.judges.adapters",
    "llamarl.judges.threads",
    "llamarl.judges.config",
    "llamarl.models.endpoint",
)
TORCH_FREE += ("llamarl.evals.replies", "llamarl.evals.runner", "llamarl.generation.chats", "llamarl.evals.tables")


USES = """
import asyncio, json
from pathlib import Path
from llamarl.cli.main import COMMANDS, load_command

from llamarl.models.endpoint import ChatEndpoint, EndpointConfig
from llamarl.report.environment import environment_record
from llamarl.report.summary import peak_memory_bytes
from llamarl.judges.resolve import load_judge

for name in COMMANDS:
    load_command(name).parser
environment_record()
peak_memory_bytes()
ChatEndpoint(EndpointConfig(base_url="http://127.0.0.1:1/v1", model="m"))
for name in ("format", "math", "instructions"):
    load_judge(name)
"""


def run(code: str, folder: Path, *arguments: str) -> None:
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr[-3000:]


def test_everything_imports_without_posix(tmp_path: Path) -> None:
    names = [name for name in MODULES if not name.startswith(ELSEWHERE)]
    assert len(names) > 200
    run(LACKING + IMPORTS, tmp_path, *names)


def test_what_needs_no_torch_imports_and_works_without_posix_and_torch(tmp_path: Path) -> None:
    names = [name for name in MODULES if name.startswith(TORCH_FREE) and not name.startswith(ELSEWHERE)]
    assert len(names) > 100
    run(LACKING + NO_TORCH + IMPORTS + USES, tmp_path, *names)


def test_a_lock_is_held_once_and_let_go_with_the_file(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "a+") as first, open(tmp_path / "lock", "a+") as second:
        assert try_lock(first) and not try_lock(second)
        first.close()
        assert try_lock(second)


def test_cores_are_counted_where_no_affinity_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cores() >= 1
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone is asked")
def test_freed_memory_goes_back_to_the_system() -> None:
    def resident_pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    blocks = [b"x" * 100_000 for _ in range(1000)]  # below the size from which each has pages of its own
    full = resident_pages()
    blocks[:-1] = []  # the last one keeps the heap from shrinking
    return_freed_memory()
    assert (full - resident_pages()) * resource.getpagesize() > 50_000_000
