import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Reply, transport

from llamarl.core.errors import ConfigError, DataError, EndpointError
from llamarl.factuality.claims import Passage
from llamarl.factuality.evidence import CorpusEvidence, Evidence, SearchConfig, SearchEvidence
from llamarl.testing import run_virtual

RESULTS = {
    "organic": [{"title": "Lyon", "snippet": "A city in France.", "link": "http://a"}, {"snippet": "Old."}, 7, {}]
}


def search(evidence: Evidence, query: str, limit: int = 3) -> list[Passage]:
    return asyncio.run(evidence.search(query, limit))


# a local corpus


def test_the_passage_that_speaks_of_the_query_comes_first(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Lyon is a city in France.\n\nMunich lies in Germany, on the Isar.\n\n\n")
    rows = [{"id": "w1", "title": "Nice", "text": "A city by the sea."}, {"text": "Nothing else."}]
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows)))
    evidence = CorpusEvidence.read([str(tmp_path / "*.txt"), str(tmp_path / "b.jsonl")])
    assert search(evidence, "Is Munich in Germany?", 1)[0].id == "a.txt#2"
    assert search(evidence, "Nice sea")[0] == Passage("w1", "Nice. A city by the sea.", str(tmp_path / "b.jsonl"))
    assert search(evidence, "zebra") == [] == search(evidence, "")
    assert len(search(evidence, "city in Germany France Nothing", 50)) == 4
    other = CorpusEvidence([Passage("x", "Lyon is in France.", "s")])
    assert other.record() != evidence.record()


def test_long_paragraphs_are_cut_in_pieces(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("word " * 400)
    assert CorpusEvidence.read([str(tmp_path / "a.txt")]).record()["passages"] == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("nowhere.txt", None, "nowhere.txt: no such file"),
        ("a.txt", b"\xff\xfe\xfa", "a.txt: cannot be read as text"),
        ("a.txt", b"--- ...\n", "no passage has a word"),
        ("a.jsonl", b'{"text": "x y"}\n{"body": "y"}\n', "a.jsonl, line 2, field 'text': no text"),
        ("a.jsonl", b"{\n", "a.jsonl, line 1: no JSON"),
    ],
)
def test_a_bad_corpus_is_named(tmp_path: Path, name: str, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        CorpusEvidence.read([str(tmp_path / name)])
    assert words in str(error.value)


# a web-search service


def test_a_search_service_is_asked_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEARCH_KEY", "secret")
    with FakeServer(Reply(body=json.dumps(RESULTS).encode()), path="/search") as server:
        config = SearchConfig(url=server.base_url.replace("/v1", "/search"), key_env="SEARCH_KEY", extra={"gl": "us"})

        async def ask() -> list[Passage]:
            evidence = SearchEvidence(config)
            try:
                return await evidence.search("Lyon", 3)
            finally:
                await evidence.close()

        found = asyncio.run(ask())
    assert [each.text for each in found] == ["Lyon: A city in France.", "Old."]
    assert [each.id for each in found] == ["http://a", "Lyon#2"]
    assert server.requests == [{"q": "Lyon", "num": 3, "gl": "us"}]
    assert server.reader.headers[0]["x-api-key"] == "secret"


def serve(script: Any, **settings: Any) -> tuple[list[Passage], Any]:
    served = transport(script)
    evidence = SearchEvidence(SearchConfig(url="http://search/", max_retries=2, **settings), transport=served)
    return run_virtual(evidence.search("Lyon", 3)), served


def test_results_may_stand_anywhere() -> None:
    body = json.dumps({"web": {"items": [{"name": "Lyon", "text": "Old."}]}}).encode()
    found, _ = serve(Reply(body=body), results="web.items", title="name", text="text")
    assert found[0].text == "Lyon: Old."


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"organic": null}', b'{"organic": {"title": "x"}}', b"3"])
def test_no_results_are_an_answer(body: bytes) -> None:
    assert serve(Reply(body=body))[0] == []


def test_a_busy_service_is_asked_again() -> None:
    good = Reply(body=json.dumps(RESULTS).encode())
    found, served = serve([Reply(status=429), Reply(body=b"<html>"), good])
    assert len(found) == 2 and len(served.requests) == 3


@pytest.mark.parametrize("reply", [Reply(status=503), Reply(drops=True), Reply(body=b"oops")])
def test_a_service_that_is_down_is_named(reply: Reply) -> None:
    with pytest.raises(EndpointError, match=r"no usable answer from http://search/ after 3 tries"):
        serve(reply)


def test_a_refusal_is_not_tried_again() -> None:
    with pytest.raises(ConfigError, match="refused the search with status 401"):
        serve(Reply(status=401))


def test_mistakes_in_its_description() -> None:
    with pytest.raises(ConfigError, match=r"NO_SUCH_KEY.*not set"):
        SearchEvidence(SearchConfig(url="http://search/", key_env="NO_SUCH_KEY"))
    with pytest.raises(ConfigError, match="not an http address"):
        SearchConfig.parse({"url": "search"})
