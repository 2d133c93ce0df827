import pytest

from benchmarks.chat_server import ChatServer
from benchmarks.endpoint_throughput import bare, conversations, evaluation


def test_neither_client_beats_the_server() -> None:
    """8 places of 0.02 s give 400 replies a second at most, and 8 places more at the very start."""
    with ChatServer(parallelism=8, latency_seconds=0.02) as server:
        assert server.capacity == pytest.approx(400.0)
        for pace in (evaluation(server.base_url, 16, conversations(32)), bare(server.port, 16, 96)):
            assert 0.0 < pace.replies_per_second < 1.5 * server.capacity
            assert pace.cpu_milliseconds > 0.0
