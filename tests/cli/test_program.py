"""The program's exit status, while threads go on that cannot be interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMPUTING = """
import asyncio, sys, threading, torch
from llamarl.cli.program import run
from llamarl.core.errors import WeightSyncError
from llamarl.core.protocols import Executor
from llamarl.engine import InProcessEngine
from llamarl.judges.threads import run_in_thread

begun = threading.Event()

def compute():
    x = torch.randn(300, 300, requires_grad=True)
    while True:  # nearly always inside C++
        begun.set()
        (x @ x @ x @ x @ x).sum().backward()

class Trainer(Executor):
    def train(self):
        compute()

async def fail(where):
    if where == "judge":
        task = asyncio.create_task(run_in_thread(compute))
    else:
        engine = InProcessEngine(stop_timeout_seconds=0.1)
        trainer = await engine.spawn(Trainer, name="trainer")
        task = asyncio.create_task(trainer.call("train"))
    while not begun.is_set():
        await asyncio.sleep(0.01)
    if where == "trainer":
        await engine.close()
    raise WeightSyncError("proof failed")

def command():
    try:
        asyncio.run(fail(sys.argv[1]))
    except WeightSyncError as error:
        sys.stdout.write(f"error: {error}")  # still in the buffer at the end
        if sys.argv[2] == "raise":
            raise
        return int(sys.argv[2])

run(command, wait_seconds=0.1)
"""


def ended(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("where", ["trainer", "judge"])
@pytest.mark.parametrize(("outcome", "status"), [("1", 1), ("0", 0), ("130", 130), ("raise", 1)])
def test_a_thread_that_computes_does_not_change_the_exit_status(where: str, outcome: str, status: int) -> None:
    program = ended(COMPUTING, where, outcome)
    assert (program.returncode, program.stdout) == (status, "error: proof failed"), program.stderr
    assert ("cannot be interrupted: " + where in program.stderr) == (status != 130)  # who interrupts need not wait
    assert ("Traceback" in program.stderr) == (outcome == "raise")


WAITING = """
import threading
from llamarl.cli.program import run
from llamarl.core.threads import note_unfinished

may_end = threading.Event()

def work():
    may_end.wait()
    print("work is done", flush=True)

def command():
    thread = threading.Thread(target=work, daemon=True, name="worker")
    thread.start()
    note_unfinished(thread)
    threading.Timer(0.2, may_end.set).start()
    return 1

run(command, wait_seconds=300.0)
"""


def test_work_that_comes_to_its_end_is_waited_for_and_the_program_ends_in_order() -> None:
    program = ended(WAITING + "print('not reached')")
    assert (program.returncode, program.stdout) == (1, "work is done\n")
    assert "waiting up to 300 s for work that cannot be interrupted: worker" in program.stderr


def test_an_interrupt_ends_the_wait_for_threads() -> None:
    endless = WAITING.replace("threading.Timer(0.2, may_end.set).start()", "")
    with subprocess.Popen([sys.executable, "-c", endless], stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None and "worker" in program.stderr.readline()
        program.send_signal(signal.SIGINT)
        assert program.wait(timeout=300) == 130


@pytest.mark.parametrize(("code", "status"), [("3", 3), ("None", 0), ("'no such thing'", 1)])
def test_an_exit_keeps_its_status(code: str, status: int) -> None:
    program = ended(f"import sys\nfrom llamarl.cli.program import run\nrun(lambda: sys.exit({code}))")
    assert program.returncode == status and ("no such thing" in program.stderr) == (status == 1)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="terminals are opened the POSIX way")
@pytest.mark.parametrize(("words", "said"), [(["doctor"], "loading torch ...\r\n"), (["--help"], "")])
def test_a_terminal_is_told_at_once_what_it_waits_for(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    terminal, end = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "llamarl", *words], env=environment, stdout=subprocess.PIPE, stderr=end
    ) as program:
        os.close(end)
        assert program.stdout is not None and program.stdout.read()
    try:
        shown = os.read(terminal, 10_000).decode()
    except OSError:  # Linux, where nothing was written and nobody holds the other end
        shown = ""
    os.close(terminal)
    assert shown == said
