import json

import pytest
from sandbox import need_sandbox

from benchmarks.chat_server import ChatServer, reply_to
from benchmarks.judge_faults import outcome, row_of
from benchmarks.llm_judge import WAYS, groups, judged
from benchmarks.sandbox import LITTERER, PROGRAM, TESTS, bare, left_behind
from benchmarks.sandbox import judged as sandboxed
from llamarl.judges.code import CodeJudge
from llamarl.judges.code.sandbox import find_python


def test_the_server_answers_as_it_is_asked() -> None:
    def choice(request: bytes) -> dict:
        return json.loads(reply_to(request).partition(b"\r\n\r\n")[2])["choices"][0]

    assert len(choice(b"{}")["message"]["content"]) == 1500
    assert len(choice(b'{"top_logprobs": 20}')["logprobs"]["content"][0]["top_logprobs"]) == 20
    assert json.loads(choice(b'{"response_format": {}}')["message"]["content"])["score"] == 8


@pytest.mark.parametrize("way", WAYS)
def test_every_completion_is_judged_and_no_faster_than_the_server(way: str) -> None:
    """4 places of 0.02 s give 200 judgements a second at most, and 4 places more at the very start."""
    with ChatServer(parallelism=4, latency_seconds=0.02) as server:
        pace = judged(way, server.base_url, 4, groups(24))
    assert 0.0 < pace.replies_per_second < 1.5 * server.capacity and pace.cpu_milliseconds > 0.0


@pytest.mark.parametrize("way", WAYS)
def test_faults_are_counted_and_cost_nobody_else_a_verdict(way: str) -> None:
    found = outcome(way, seed=1, num_samples=256)
    assert 40 < found.injected < 120  # 0.3 * 256 = 77, standard deviation 7
    assert (found.unscored, found.lost, found.invented) == (found.injected, 0, 0)
    row = row_of(way, [found, found], 256)
    assert row["samples"] == 512 and row["mean shift, points"] == pytest.approx(found.shift, abs=1e-3)


def test_a_sandboxed_run_is_timed_and_leaves_nothing() -> None:
    need_sandbox()
    judge = CodeJudge(num_slots=2)
    assert bare(find_python(None, False).path) > 0.0
    assert all(sandboxed(judge, PROGRAM, form) > 0.0 for form in TESTS)
    left = left_behind(lambda: sandboxed(judge, LITTERER, "program", 4))
    judge.close()
    assert [left[kind] for kind in ("files", "open files", "threads", "mounts")] == [0, 0, 0, 0]
