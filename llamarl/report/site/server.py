"""The page over HTTP, for one run or a folder of runs, fresh while they go on. The standard library serves it.

    GET /                     the document                  GET /run/NAME/          that of one run of a folder
    GET /api/run              state, curves, settings       GET /api/runs           the runs of the folder
    GET /api/timeline         spans                         GET /api/curve?metric=  one metric of all of them
    GET /api/curves?first=&last=  the curves of some steps, with the extremes behind each point
    GET /api/rollouts/choices, find, group

No address is ever made into a path: a run is looked up among the runs that were found, everything else is one of these
words. On loopback, requests that name another host are refused, so that no web page can read a run through a name of
its own; elsewhere all addresses begin with a secret.
"""

import contextlib
import hmac
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from llamarl.core.errors import ConfigError, LlamaRLError
from llamarl.report.colours import colour_indices
from llamarl.report.files import encode
from llamarl.report.metrics import read_steps
from llamarl.report.names import describe
from llamarl.report.rundir import MESSAGES_FILE, METRICS_FILE, ROLLOUTS_FILE, read_run
from llamarl.report.site.curves import describe_axis, tabulate
from llamarl.report.site.document import read_spans
from llamarl.report.site.folder import RunRow, describe_row, find_runs, is_run
from llamarl.report.site.overview import describe_run
from llamarl.report.site.rollouts import Filter, RolloutIndex
from llamarl.report.site.shell import render_document
from llamarl.report.summary import SUMMARY_FILE

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
FIRST_INDEX_SECONDS = 0.5
"""Seconds that a first question about rollouts waits for the index; the rest is read beside the answers."""
MAX_HEADS = 200
OUTLINE_RECORDS = 500
"""About as many records of metrics stand in a page that has just been opened: a screen shows no more."""
YIELD_SECONDS = 1.0
"""Seconds between the outline that a server reads ahead and the whole run: a page that is opened in between is drawn
before two threads share one interpreter."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
Account = Callable[[Path], Mapping[str, Any] | None]
"""Reads the account of a run's prompts."""


class NotFoundError(LookupError):
    """An address that is none of ours."""


class ServedRun:
    """One run as the server shows it: read again when its files have changed. Safe to call from several threads.

    Args:
        path: of its directory.
        account: reads its ledger.
    """

    def __init__(self, path: Path, account: Account) -> None:
        self.path, self._account = path, account
        self._lock = threading.Lock()
        self._stamp, self._overview = "", b""
        self._outline_lock = threading.Lock()  # the outline never waits for the whole run
        self._outline: tuple[str, dict[str, Any]] = ("", {})
        self._index: RolloutIndex | None = None

    def answer(self, what: str, query: Mapping[str, str]) -> bytes | None:
        """JSON; None where nothing has changed since `known`."""
        if what == "run":
            return self._read_overview(query.get("known", ""))
        if what == "curves":
            first, last = int(query.get("first") or 0), int(query.get("last") or 0)
            return encode(tabulate(read_steps(self.path / METRICS_FILE, first, last)))
        if what == "timeline":
            return encode(read_spans(read_run(self.path, should_read_records=False)))
        if what == "rollouts/choices":
            return encode(self._grown_index().choices())
        if what == "rollouts/find":
            start = int(query["start"]) if query.get("start") else None
            count = max(1, min(MAX_HEADS, int(query.get("count") or 40)))
            return encode(self._grown_index().find(Filter.parse(query), start, count))
        if what == "rollouts/group":
            group = self._grown_index().read(int(query.get("id") or 0), bool(query.get("whole")))
            return encode(group)
        raise NotFoundError(what)

    def outline(self) -> dict[str, Any]:
        """What a page shows at first: of a long run an outline, with an empty `stamp`; of a short one all of it.

        Raises:
            LlamaRLError: a run that cannot be read.
        """
        with self._outline_lock:
            stamp = self._look()
            if stamp != self._outline[0]:
                run = read_run(self.path, should_read_records=False, max_metrics=OUTLINE_RECORDS)
                values = describe_run(run, self._account(self.path), has_extremes=False)
                self._outline = (stamp, {"stamp": stamp if run.every == 1 else "", **values})
            return self._outline[1]

    def close(self) -> None:
        """Closes the index. Idempotent."""
        with self._lock:
            if self._index is not None:
                self._index.close()
            self._index = None

    def _read_overview(self, known: str) -> bytes | None:
        with self._lock:
            stamp = self._look()
            if stamp == known:
                return None
            if stamp != self._stamp:
                run, account = read_run(self.path, should_read_records=False), self._account(self.path)
                self._overview = encode({"stamp": stamp, **describe_run(run, account, has_extremes=False)})
                self._stamp = stamp
            return self._overview

    def _look(self) -> str:
        """A mark of the files' state; of a run without a summary it changes every minute, since silence tells too."""
        marks: list[Any] = []
        for name in (METRICS_FILE, SUMMARY_FILE, MESSAGES_FILE):
            try:
                stat = (self.path / name).stat()
                marks.append((stat.st_mtime_ns, stat.st_size))
            except OSError:
                marks.append(None)
        if marks[1] is None:
            marks.append(int(time.time() / 60))
        return json.dumps(marks)

    def _grown_index(self) -> RolloutIndex:
        with self._lock:
            if self._index is None:
                self._index = RolloutIndex(self.path / ROLLOUTS_FILE)
            index = self._index
        if not index.grow(FIRST_INDEX_SECONDS):
            threading.Thread(target=index.grow, daemon=True, name="rollout-index").start()
        return index


class Site:
    """The content that is served: one run, or the runs of a folder.

    Args:
        path: of a run, or of a folder with runs in it.
        account: reads the account of a run's prompts.

    Raises:
        DataError: no such folder.
    """

    def __init__(self, path: str | Path, account: Account = lambda path: None) -> None:
        self.path, self._account = Path(path), account
        self._is_run = is_run(self.path)
        self._runs: dict[str, ServedRun] = {}
        self._rows: dict[str, tuple[str, RunRow]] = {}
        self._lock = threading.Lock()
        if self._is_run:
            self._runs[""] = ServedRun(self.path, account)
        else:
            find_runs(self.path)

    def answer(self, parts: list[str], query: Mapping[str, str]) -> tuple[str, bytes | None]:
        """Content type and body for the words of an address.

        Raises:
            NotFoundError: an address that is none of ours.
            LlamaRLError: a run that cannot be read.
        """
        if parts[:1] == ["run"] and len(parts) >= 2 and not self._is_run:
            return self._answer_run(self._find(parts[1]), parts[1], parts[2:], query)
        if self._is_run:
            return self._answer_run(self._runs[""], "", parts, query)
        if parts in ([], [""]):
            values = {"mode": "folder", "api": "api/", "name": self.path.resolve().name}
            return "text/html", render_document(self.path.resolve().name, values, may_ask_server=True).encode()
        if parts == ["api", "runs"]:
            return "application/json", encode(self._describe_runs())
        if parts == ["api", "curve"]:
            return "application/json", encode(self._read_curves(query))
        raise NotFoundError("/".join(parts))

    def read_ahead(self) -> None:
        """Reads a single run before somebody asks, so that its page does not wait for a long file."""
        if self._is_run:
            with contextlib.suppress(LlamaRLError, OSError):  # whoever asks is told
                if self._runs[""].outline()["every"] > 1:
                    time.sleep(YIELD_SECONDS)
                    self._runs[""].answer("run", {})

    def close(self) -> None:
        """Closes the indices. Idempotent."""
        for run in self._runs.values():
            run.close()

    def _answer_run(
        self, run: ServedRun, name: str, parts: list[str], query: Mapping[str, str]
    ) -> tuple[str, bytes | None]:
        if parts in ([], [""]):
            values: dict[str, Any] = {"mode": "run", "api": "api/", "home": "../../" if name else None}
            with contextlib.suppress(LlamaRLError, OSError):  # the script asks, and shows what is wrong
                values["run"] = run.outline()
            title = name or self.path.resolve().name
            return "text/html", render_document(title, values, may_ask_server=True).encode()
        if parts[0] == "api":
            return "application/json", run.answer("/".join(parts[1:]), query)
        raise NotFoundError("/".join(parts))

    def _find(self, name: str) -> ServedRun:
        with self._lock:
            if name not in self._runs:
                found = find_runs(self.path)
                if name not in found:
                    raise NotFoundError(name)
                self._runs[name] = ServedRun(found[name], self._account)
            return self._runs[name]

    def _describe_runs(self) -> dict[str, Any]:
        rows = [self._row(name, path) for name, path in find_runs(self.path).items()]
        families = {family: index for index, family in enumerate(dict.fromkeys(row.family for row in rows))}
        colours = colour_indices(row.name for row in rows)
        keys = sorted({metric for row in rows for metric in row.metrics})
        return {
            "name": self.path.resolve().name,
            "runs": [
                {**asdict(row), "family": families[row.family], "colour": colours[row.name], "metrics": None}
                for row in rows
            ],
            "metrics": [{"key": key, "title": describe(key).title, **describe_axis(key)} for key in keys],
        }

    def _row(self, name: str, path: Path) -> RunRow:
        """A row of the run, read again only where its files have changed."""
        stamp = ServedRun(path, self._account)._look()
        kept = self._rows.get(name)
        if kept is None or kept[0] != stamp:
            kept = self._rows[name] = (stamp, describe_row(name, path))
        return kept[1]

    def _read_curves(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Steps and values of one metric in the runs asked for, by the run's name."""
        metric, wanted = query.get("metric", ""), set(json.loads(query.get("runs") or "[]"))
        curves = {}
        for name, path in find_runs(self.path).items():
            if name in wanted:
                records = read_run(path, should_read_records=False).metrics
                own = [{"step": each["step"], metric: each[metric]} for each in records if metric in each]
                table = tabulate(own)
                curves[name] = {"steps": table["steps"], "values": table["values"].get(metric, []), "bin": table["bin"]}
        return curves


class SiteServer:
    """Serves a site from threads of its own.

    Args:
        site: what to serve.
        host: address to listen on; beyond loopback every address begins with a secret.
        port: 0 takes a free one.

    Raises:
        ConfigError: the address cannot be had.
    """

    def __init__(self, site: Site, host: str = "127.0.0.1", port: int = 0) -> None:
        self._site = site
        self._secret = "" if host in LOOPBACK else secrets.token_urlsafe(16)
        try:
            self._server = _server_class(host)((host, port), _handler_class(self))
        except OSError as error:
            raise ConfigError(
                f"--host {host} --port {port}: cannot listen there ({error.strerror}); give another --port, or none "
                "for a free one"
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}/" + (f"{self._secret}/" if self._secret else "")
        """The address, with its secret where it has one."""

    def start(self) -> None:
        """Answers from now on, in a thread."""
        threading.Thread(target=self._server.serve_forever, daemon=True, name="run-page").start()

    def serve(self) -> None:
        """Answers until the caller is interrupted."""
        threading.Thread(target=self._site.read_ahead, daemon=True, name="read-ahead").start()
        self._server.serve_forever()

    def close(self) -> None:
        """Ends the service."""
        self._server.server_close()
        self._site.close()

    def stop(self) -> None:
        """Ends what `start` began."""
        self._server.shutdown()
        self.close()

    def answer(self, target: str, host: str) -> tuple[int, str, bytes]:
        """Status, content type and body of a GET request.

        Args:
            target: of the request line.
            host: of the header.
        """
        url = urlsplit(target)
        parts = [unquote(part) for part in url.path.removeprefix("/").split("/")]
        if self._secret:
            if not hmac.compare_digest(parts.pop(0).encode(), self._secret.encode()):
                return 404, "text/plain", b"not found; use the whole address that llamarl view printed"
        elif urlsplit(f"//{host}").hostname not in LOOPBACK:
            return 403, "text/plain", b"this address serves this machine only"
        try:
            kind, body = self._site.answer(parts, dict(parse_qsl(url.query)))
        except NotFoundError:
            return 404, "text/plain", b"not found"
        except (LlamaRLError, OSError) as error:
            return 500, "text/plain", str(error).encode(errors="replace")
        except (ValueError, TypeError) as error:  # a number in the question that is none
            return 400, "text/plain", f"cannot read the question: {error}".encode(errors="replace")
        return (204, kind, b"") if body is None else (200, kind, body)


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return Server


def _handler_class(server: SiteServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "llamarl", ""
        timeout = 30

        def do_GET(self) -> None:
            status, kind, body = server.answer(self.path, self.headers.get("Host", ""))
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            with contextlib.suppress(ConnectionError):  # a page that was closed or loaded anew waits no longer
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing: whoever looks at a run reads its page."""

    return Handler
