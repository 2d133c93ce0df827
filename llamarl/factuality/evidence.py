"""Sources of evidence: one interface, three back ends.

TableEvidence(FactTable.read(["facts.csv"]))         what a table says of the subjects that a query names
CorpusEvidence.read(["pages/*.txt"])                 BM25 over the paragraphs of local files (extra `detect`)
SearchEvidence(SearchConfig.from_toml("search.toml"))    a web-search service, described by a file
"""

import asyncio
import glob
import hashlib
import json
import os
import random
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import httpx
from pydantic import Field, model_validator

from llamarl.core.config import Config
from llamarl.core.errors import ConfigError, DataError, EndpointError, MissingDependencyError
from llamarl.data.jsonl import read_jsonl
from llamarl.data.rows import RowError
from llamarl.factuality.claims import Passage
from llamarl.factuality.facts import FactTable

MAX_PARAGRAPH_WORDS = 150
MAX_BODY_BYTES = 4 << 20
MAX_PAUSE_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.5
RETRIED = frozenset({408, 409, 425, 429})


class Evidence(ABC):
    """A source of passages."""

    @abstractmethod
    def record(self) -> Mapping[str, Any]:
        """The settings and data on which passages depend."""

    @abstractmethod
    async def search(self, query: str, limit: int) -> list[Passage]:
        """The best passages for a query; none is an answer too.

        Raises:
            EndpointError: the source is down.
        """

    async def close(self) -> None:  # noqa: B027 - a source without connections has nothing to let go of
        """Lets go of connections. Idempotent."""


class TableEvidence(Evidence):
    """The facts of the subjects that a query names."""

    def __init__(self, table: FactTable) -> None:
        self._table = table

    def record(self) -> Mapping[str, Any]:
        """The table."""
        return {"kind": "facts", **self._table.record()}

    async def search(self, query: str, limit: int) -> list[Passage]:
        """Facts as sentences."""
        return self._table.search(query, limit)


class CorpusEvidence(Evidence):
    """BM25 over passages.

    Args:
        passages: at least one.

    Raises:
        MissingDependencyError: bm25s is not installed.
        DataError: no passage has a word.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        try:
            import bm25s
        except ImportError:
            raise MissingDependencyError.for_extra("bm25s", "detect") from None
        self._passages = list(passages)
        digest = hashlib.blake2b(digest_size=16)
        for passage in self._passages:
            digest.update(json.dumps(passage.record(), sort_keys=True).encode())
        self._digest = digest.hexdigest()
        self._bm25s = bm25s
        self._retriever = bm25s.BM25()
        tokens = self._tokenize([passage.text for passage in self._passages])
        if not tokens.vocab:
            raise DataError("corpus: no passage has a word; give files of text")
        self._retriever.index(tokens, show_progress=False)

    @classmethod
    def read(cls, files: Sequence[str]) -> Self:
        """The paragraphs of text files, and the rows {text, id?, title?} of JSON-lines files.

        Raises:
            DataError: no such file, or one that cannot be read; names file and line.
        """
        paths = [path for pattern in files for path in (sorted(glob.glob(pattern, recursive=True)) or [pattern])]
        return cls([passage for path in paths for passage in _read_passages(Path(path))])

    def record(self) -> Mapping[str, Any]:
        """A hash of all passages."""
        return {"kind": "corpus", "passages": len(self._passages), "digest": self._digest}

    async def search(self, query: str, limit: int) -> list[Passage]:
        """The passages of the highest scores; those that share no word with the query are none."""
        tokens = self._tokenize([query])
        places, scores = self._retriever.retrieve(
            tokens, k=min(limit, len(self._passages)), show_progress=False, n_threads=1
        )
        return [self._passages[place] for place, score in zip(places[0], scores[0], strict=True) if score > 0]

    def _tokenize(self, texts: list[str]) -> Any:
        return self._bm25s.tokenize(texts, stopwords=None, show_progress=False)


def _read_passages(path: Path) -> Iterator[Passage]:
    try:
        if path.suffix in (".jsonl", ".ndjson"):
            for line, row in read_jsonl(path, 1 << 28):
                yield _row_passage(path, line, row)
            return
        for number, text in enumerate(_split_paragraphs(path.read_text(encoding="utf-8")), start=1):
            yield Passage(f"{path.name}#{number}", text, str(path))
    except FileNotFoundError:
        raise DataError(f"corpus: {path}: no such file; give files or globs such as 'pages/*.txt'") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"corpus: {path}: cannot be read as text: {error}") from None


def _row_passage(path: Path, line: int, row: dict[str, Any] | RowError) -> Passage:
    if isinstance(row, dict) and isinstance(text := row.get("text"), str) and text.strip():
        title = row.get("title")
        whole = f"{title}. {text}" if isinstance(title, str) else text
        return Passage(str(row.get("id", f"{path.name}#{line}")), whole, str(path))
    problem = (
        row if isinstance(row, RowError) else RowError("no_text", "text", "no text", "rows are {text, id?, title?}")
    )
    raise DataError(f"corpus: {problem.at(str(path), line)}")


def _split_paragraphs(text: str) -> Iterator[str]:
    """Yields paragraphs, which blank lines part; long ones in pieces."""
    for paragraph in text.split("\n\n"):
        words = paragraph.split()
        for start in range(0, len(words), MAX_PARAGRAPH_WORDS):
            yield " ".join(words[start : start + MAX_PARAGRAPH_WORDS])


class SearchConfig(Config):
    """A web-search service: how it is asked, and where results stand in its JSON answer."""

    url: str
    method: Literal["GET", "POST"] = "POST"
    query_field: str = "q"
    """Name of the query, in the address (GET) or the JSON body (POST)."""
    limit_field: str | None = "num"
    """Name of the number of results."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request."""
    key_env: str | None = None
    """Environment variable that holds the key; never the key itself."""
    key_header: str = "X-API-KEY"
    key_prefix: str = ""
    """Text before the key in its header, such as `Bearer `."""
    results: str = "organic"
    """Dotted path of the list of results."""
    title: str = "title"
    text: str = "snippet"
    link: str = "link"
    max_concurrency: int = Field(default=4, ge=1)
    timeout_seconds: float = Field(default=20.0, gt=0.0)
    max_retries: int = Field(default=5, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("url: not an http address; give one such as https://google.serper.dev/search")
        return self


class SearchEvidence(Evidence):
    """Passages from a web-search service.

    A busy, failing or silent service is asked again after a growing pause. Redirects are not followed, so a key never
    travels to another host.

    Args:
        config: of the service.
        transport: instead of the network, for tests.
        sleep: waits that many seconds.

    Raises:
        ConfigError: the key's environment variable is not set.
    """

    def __init__(
        self,
        config: SearchConfig,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.config, self._sleep = config, sleep
        self._key = os.environ.get(config.key_env, "").strip() if config.key_env else ""
        if config.key_env and not self._key:
            raise ConfigError(f"key_env={config.key_env!r}: the variable is not set; export the key under this name")
        headers = {config.key_header: config.key_prefix + self._key} if self._key else {}
        self._client = httpx.AsyncClient(
            headers=headers, transport=transport, timeout=config.timeout_seconds, follow_redirects=False
        )
        self._slots = asyncio.Semaphore(config.max_concurrency)

    def record(self) -> Mapping[str, Any]:
        """The service and how its answers are read; what the web holds changes all the same."""
        names = ("url", "extra", "results", "title", "text")
        return {"kind": "search", **{name: getattr(self.config, name) for name in names}}

    async def search(self, query: str, limit: int) -> list[Passage]:
        """The service's first results."""
        answer = await self._ask(query, limit)
        results: Any = answer
        for name in self.config.results.split("."):
            results = results.get(name) if isinstance(results, Mapping) else None
        passages = []
        for number, result in enumerate(results if isinstance(results, list) else [], start=1):
            if isinstance(result, Mapping):
                parts = [str(result[name]) for name in (self.config.title, self.config.text) if result.get(name)]
                link = str(result.get(self.config.link) or f"{query}#{number}")
                passages += [Passage(link, ": ".join(parts), link)] if parts else []
        return passages[:limit]

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _ask(self, query: str, limit: int) -> Any:
        """The service's answer; tried again where that may help."""
        problem, attempt = "", 0
        while True:
            response = None
            try:
                async with self._slots:
                    response = await self._client.request(
                        self.config.method, self.config.url, **self._fields(query, limit)
                    )
                if response.status_code == 200 and len(response.content) <= MAX_BODY_BYTES:
                    return json.loads(response.content)
                problem = f"status {response.status_code}" if response.status_code != 200 else "too long an answer"
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            except (ValueError, RecursionError):
                problem = "the answer is no JSON"
            if response is not None and 300 <= response.status_code < 500 and response.status_code not in RETRIED:
                raise ConfigError(
                    f"{self.config.url} refused the search with status {response.status_code}; check url, method, "
                    f"the fields, and the key in the variable {self.config.key_env!r}"
                )
            if attempt == self.config.max_retries:
                raise EndpointError(f"no usable answer from {self.config.url} after {attempt + 1} tries: {problem}")
            await self._sleep(min(FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.5, 1.5), MAX_PAUSE_SECONDS))
            attempt += 1

    def _fields(self, query: str, limit: int) -> dict[str, Any]:
        fields = {**self.config.extra, self.config.query_field: query}
        if self.config.limit_field:
            fields[self.config.limit_field] = limit
        return {"json": fields} if self.config.method == "POST" else {"params": fields}


def open_evidence(corpus: Sequence[str], search: Path | None) -> Evidence | None:
    """The source of passages that settings name: files or a web search; None where they name neither.

    Raises:
        ConfigError, DataError, MissingDependencyError: what it lacks.
    """
    if corpus:
        return CorpusEvidence.read(corpus)
    return SearchEvidence(SearchConfig.from_toml(search)) if search else None
