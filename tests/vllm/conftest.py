"""The real vLLM. `make test-vllm` builds its environment outside the repository and names it in LLAMARL_VLLM."""

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "generation"))  # Shelf, publish, ... of the tests on the fake


@pytest.fixture(scope="session")
def environment() -> str:
    """The folder of the environment."""
    folder = os.environ.get("LLAMARL_VLLM")
    if not folder:
        pytest.skip("LLAMARL_VLLM names no environment with vLLM; make test-vllm builds one")
    return folder
