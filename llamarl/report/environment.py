"""The machine and the versions that a run ran on. Environment variables come from an allow-list: no secret slips in."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import llamarl
from llamarl.core.machine import usable_cores

ENVIRONMENT_FILE = "environment.json"

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "torchmonarch", "ray", "vllm")
"""Packages whose version can change a run's numbers or speed."""

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "HF_HUB_OFFLINE",
    "KMP_AFFINITY",
    "LOCAL_RANK",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "RANK",
    "TOKENIZERS_PARALLELISM",
    "WORLD_SIZE",
)
"""Every environment variable a record may hold."""


def environment_record(directory: str | Path = ".") -> dict[str, Any]:
    """Versions, machine, threads and git commit, as plain values for `environment.json`.

    Torch is asked only where the program has imported it already.

    Args:
        directory: whose git commit to record.
    """
    return {
        "llamarl": llamarl.__version__,
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "cpu_count_usable": usable_cores(),
        "memory_bytes": _memory_bytes(),
        **_torch_facts(),
        "git": _git(Path(directory)),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a platform without these names
        return None


def _torch_facts() -> dict[str, Any]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {"torch_threads": None, "gpus": []}
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"torch_threads": torch.get_num_threads(), "gpus": gpus}


def _git(directory: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None outside a checkout or without git."""
    command = ["git", "-C", str(directory), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    commit, _, dirty = result.stdout.strip().partition("-")
    return {"commit": commit, "is_dirty": dirty == "dirty"}
