import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(importlib.util.find_spec("monarch") is None, reason="needs the extra hosts")
@pytest.mark.skipif(importlib.util.find_spec("cryptography") is None, reason="needs the extra hosts")
def test_executors_live_on_hosts_and_survive_the_loss_of_one():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.getcwd()])}
    command = [sys.executable, str(HERE / "on_hosts.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment)
    assert done.stdout.rstrip().endswith("well"), done.stdout + done.stderr
