import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from llamarl.core.errors import ConfigError, DataError
from llamarl.report.files import encode
from llamarl.report.site.folder import describe_row, find_runs
from llamarl.report.site.server import Site, SiteServer
from tests.pages import PageReader

LOCAL = "127.0.0.1:1"


@pytest.fixture
def served(example_run: Callable[..., Path]) -> Iterator[SiteServer]:
    server = SiteServer(Site(example_run(steps=30), lambda path: {"counts": {"issued": 7}, "reasons": {}}))
    yield server
    server.close()


def ask(server: SiteServer, target: str) -> dict:
    status, kind, body = server.answer(target, LOCAL)
    assert (status, kind) == (200, "application/json"), body
    return json.loads(body)


def test_a_run_is_answered_and_answered_anew_when_it_changed(served: SiteServer) -> None:
    run = ask(served, "/api/run")
    assert (run["step"], run["state"], run["ledger"]["counts"]) == (30, "finished", {"issued": 7})
    known = f"/api/run?known={run['stamp']}"
    assert served.answer(known, LOCAL)[0] == 204
    with (served._site.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31, "rollout/reward/mean": 0.5}\n')
    assert ask(served, known)["step"] == 31
    assert ask(served, "/api/timeline")["total"] == 210
    some = ask(served, "/api/curves?first=11&last=13")
    assert (some["steps"], some["bin"]) == ([11, 12, 13], 1) and "rollout/reward/mean" in some["values"]
    assert ask(served, "/api/curves?first=99&last=100")["steps"] == []
    assert ask(served, "/api/rollouts/choices")["steps"] == [1, 10, 20, 30]
    found = ask(served, "/api/rollouts/find?text=CAT&count=2")
    assert [head["step"] for head in found["heads"]] == [30, 20]
    assert ask(served, f"/api/rollouts/group?id={found['heads'][0]['id']}")["prompt_id"] == "p30"


def test_a_long_run_opens_with_an_outline_that_says_so_and_a_short_one_whole(tmp_path: Path) -> None:
    lines = []
    for step in range(1, 3001):
        lines.append(encode({"step": step, "rollout/reward/mean": step / 3000}))
        if step % 1000 == 7:
            lines.append(encode({"step": step, "eval/reward/mean": 0.5, "eval/reward/count": 9}))
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    server = SiteServer(Site(tmp_path))
    outline = read_values(server)["run"]
    whole = ask(server, f"/api/run?known={outline['stamp']}")
    assert (outline["every"], whole["every"], len(whole["table"]["steps"])) == (6, 1, 1500)
    assert 500 <= len(outline["table"]["steps"]) < 600
    assert {key: outline[key] for key in ("step", "learning", "tasks")} == {
        key: whole[key] for key in ("step", "learning", "tasks")
    }
    held_out = outline["table"]["values"]["eval/reward/mean"]
    assert [value for value in held_out if value is not None] == [0.5, 0.5, 0.5]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines[:200]) + b"\n")
    short = read_values(server)["run"]
    assert short["every"] == 1 and server.answer(f"/api/run?known={quote(short['stamp'])}", LOCAL)[0] == 204
    (tmp_path / "metrics.jsonl").write_bytes(b"no record\n" * 2)
    assert "run" not in read_values(server)  # the script asks, and shows what is wrong
    assert server.answer("/api/run", LOCAL)[0] == 500
    server.close()


def read_values(server: SiteServer) -> dict[str, Any]:
    status, kind, body = server.answer("/", LOCAL)
    assert (status, kind) == (200, "text/html")
    return PageReader(body.decode()).values


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/api/rollouts/find?start=x", 400),
        ("/api/rollouts/find?reward_from=x", 400),
        ("/api/curves?first=x", 400),
        ("/api/none", 404),
        ("/recipe.json", 404),
        ("/../demo/recipe.json", 404),
        ("/run/demo/", 404),
        ("/%2e%2e/recipe.json", 404),
        ("/api/rollouts/group?id=999", 200),
    ],
)
def test_what_is_no_question_of_ours_gets_no_file(served: SiteServer, target: str, status: int) -> None:
    assert served.answer(target, LOCAL)[0] == status


def test_another_hosts_name_is_refused_on_loopback(served: SiteServer) -> None:
    assert served.answer("/", "localhost:80")[0] == served.answer("/", "[::1]:80")[0] == 200
    assert served.answer("/", "evil.example")[0] == served.answer("/", "")[0] == 403


def test_beyond_loopback_the_address_holds_a_secret(example_run: Callable[..., Path]) -> None:
    server = SiteServer(Site(example_run(steps=3)), "0.0.0.0")
    secret = urlsplit(server.url).path.strip("/")
    assert len(secret) >= 20
    assert server.answer("/", "x")[0] == server.answer("/api/run", "x")[0] == server.answer("/wrong/", "x")[0] == 404
    assert server.answer(f"/{secret}/", "x")[0] == server.answer(f"/{secret}/api/run", "x")[0] == 200
    server.close()


def test_over_a_socket_with_headers_that_keep_others_out(served: SiteServer) -> None:
    served.start()
    connection = http.client.HTTPConnection(urlsplit(served.url).netloc, timeout=20)
    connection.request("GET", "/")
    answer = connection.getresponse()
    assert answer.status == 200 and b"connect-src 'self'" in answer.read()
    for name, value in (
        ("X-Frame-Options", "DENY"),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
    ):
        assert answer.headers[name] == value
    connection.close()
    served._server.shutdown()


def test_a_port_in_use_is_an_error_that_says_so(served: SiteServer) -> None:
    with pytest.raises(ConfigError, match="--port"):
        SiteServer(Site(served._site.path), "127.0.0.1", served._server.server_address[1])


def test_runs_of_a_folder(example_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = example_run(steps=30)
    folder = tmp_path / "runs"
    (folder / "deep" / "er").mkdir(parents=True)
    run_dir.rename(folder / "deep" / "er" / "demo")
    (folder / "broken").mkdir()
    (folder / "broken" / "metrics.jsonl").write_text("{}\n{}\n")
    (folder / "link").symlink_to(tmp_path)
    (folder / "no run").mkdir()
    assert list(find_runs(folder)) == ["broken", "deep/er/demo"]
    row = describe_row("deep/er/demo", folder / "deep/er/demo")
    assert (row.state, row.step, row.total_steps, row.algorithm, row.seed) == ("finished", 30, 30, "aipo", 0)
    assert row.reward is not None and "settings" not in row.as_dict()
    assert "line 1" in describe_row("broken", folder / "broken").problem
    server = SiteServer(Site(folder))
    runs = ask(server, "/api/runs")["runs"]
    assert [each["name"] for each in runs] == ["broken", "deep/er/demo"]
    query = "/api/curve?metric=train/entropy&runs=" + json.dumps(["deep/er/demo", "../x"]).replace(" ", "")
    assert list(ask(server, query)) == ["deep/er/demo"]
    assert server.answer("/run/deep%2Fer%2Fdemo/", LOCAL)[0] == 200
    assert ask(server, "/run/deep%2Fer%2Fdemo/api/run")["step"] == 30
    assert server.answer("/run/..%2F..%2Fetc/", LOCAL)[0] == server.answer("/run/link/api/run", LOCAL)[0] == 404
    assert server.answer("/run/broken/api/run", LOCAL)[0] == 500
    server.close()
    with pytest.raises(DataError, match="no such folder"):
        find_runs(tmp_path / "none")
