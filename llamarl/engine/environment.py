"""The environment of executors that are processes: what computing and caches need, and no secret that nobody named."""

import os
import sys
from collections.abc import Collection

PASSED = frozenset(
    {
        *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP"),
        *("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "NO_PROXY", "no_proxy"),
        *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "TRANSFORMERS_OFFLINE", "TOKENIZERS_PARALLELISM"),
    }
)
"""Names of variables that children get."""
PASSED_PREFIXES = (
    *("LC_", "XDG_", "PYTHON", "TORCH", "PYTORCH_", "CUDA_", "CUBLAS_", "NVIDIA_", "NCCL_", "GLOO_", "OMP_", "MKL_"),
    *("KMP_", "GOMP_", "OPENBLAS_", "HYPERACTOR_", "MONARCH_"),
)
"""Beginnings of such names."""


def passed_environment(named: Collection[str] = ()) -> dict[str, str]:
    """The variables of this process that executors get: `PASSED`, `PASSED_PREFIXES`, and those that are `named`.

    `PYTHONPATH` has this process's `sys.path`, so that executors find what this process finds.
    """
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name in PASSED or name in named or name.startswith(PASSED_PREFIXES)
    }
    return {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
