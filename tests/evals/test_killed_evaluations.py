import hashlib
import json
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from child_evaluation import TALKS, evaluate
from fake_server import FakeServer, Reply
from scripted_chats import build_talker

from llamarl.evals.replies import read_responses

CHILD = Path(__file__).with_name("child_evaluation.py")


def stop(kind, place, out, with_signal, after, wait=lambda: None):
    """Starts an evaluation and ends it when `after` turns are finished; returns what it wrote to stderr.

    `wait` returns when nothing that the evaluation has begun is still on its way.
    """
    command = [sys.executable, str(CHILD), kind, str(place), str(out), str(after)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            for line in child.stdout:
                if int(line) == after:
                    wait()
                    child.send_signal(with_signal)
                    break
            _, errors = child.communicate()
        finally:
            child.kill()
    assert child.returncode == -with_signal, errors
    return errors


def tear(out):
    """What a kill in the middle of a write would leave."""
    with (out / "responses.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"key": "c11", "turn": 1, "response": "ha')


def texts(replies):
    return [(reply.key, reply.turn, reply.response) for reply in replies]


class HashingServer:
    """Answers by a hash of the whole request; after `limit` answers nothing more comes until `limit` is raised."""

    def __init__(self, limit):
        self.limit, self._count, self._arrived = limit, 0, threading.Condition()

    def wait_for(self, count):
        """Until so many requests have arrived: one that arrives later would count as the next evaluation's."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._count >= count)

    def __call__(self, body):
        with self._arrived:
            self._count += 1
            self._arrived.notify_all()
            if self._count > self.limit:
                return Reply(hangs=True)
        return Reply(hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16])


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_an_evaluation_of_a_server_goes_on_where_it_was_stopped(tmp_path, with_signal):
    script = HashingServer(limit=17)
    with FakeServer(script) as server:
        in_flight = 4  # of the child
        wait = partial(script.wait_for, 17 + in_flight)
        errors = stop("endpoint", server.base_url, tmp_path / "stopped", with_signal, after=17, wait=wait)
        assert ("KeyboardInterrupt" in errors) == (with_signal == signal.SIGINT)
        tear(tmp_path / "stopped")
        assert len(read_responses(tmp_path / "stopped" / "responses.jsonl")) == 17
        script.limit = 10**6
        num_before = len(server.requests)
        resumed = evaluate("endpoint", server.base_url, tmp_path / "stopped", max_in_flight=7)
        assert len(server.requests) - num_before == 3 * len(TALKS) - 17
        assert texts(resumed) == texts(evaluate("endpoint", server.base_url, tmp_path / "whole"))


def test_an_evaluation_of_a_checkpoint_goes_on_where_it_was_killed(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = build_talker(tmp_path / "model")
    stop("native", model, tmp_path / "killed", signal.SIGKILL, after=5)
    tear(tmp_path / "killed")
    before = read_responses(tmp_path / "killed" / "responses.jsonl")
    assert len(before) == 5
    resumed = evaluate("native", model, tmp_path / "killed")
    assert texts(resumed) == texts(evaluate("native", model, tmp_path / "whole"))
    assert all(before[reply.key, reply.turn] == reply for reply in resumed if (reply.key, reply.turn) in before)
    torch.set_num_threads(threads)
