"""Texts and labelled claims scored by a scripted detector, as lists, on the terminal and as a page."""

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.style import Style
from scripted_detector import ScriptedDetector, judge_by_words
from scripted_models import FACTS, RELATIONS, ScriptedModel

from llamarl.core.errors import ConfigError, DataError, EndpointError
from llamarl.factuality import FactTable
from llamarl.factuality.asking import Helper
from llamarl.factuality.claims import Answer, Ask, Claim, Passage
from llamarl.factuality.decomposition import ModelDecomposer, SentenceDecomposer
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.evidence import Evidence
from llamarl.factuality.labels import FactLabeller, Labeller, ModelLabeller, PassageFinder
from llamarl.factuality.score_report import build_page, cut_text, list_lines, list_warnings, mark_text, summarize
from llamarl.factuality.scores import read_scores
from llamarl.factuality.scoring import ScoredClaim, score_claims, score_file
from llamarl.factuality.settings import Scoring
from llamarl.factuality.texts import Instruments, ScoredText, Text, build_instruments, read_texts, score_texts
from llamarl.report.console import SafeConsole
from llamarl.report.page import render_page
from tests.pages import PageReader

ANSWER = "Lyon is a city in Spain. It has many bridges.\n\n- Mars is a river there. The Moon shines on Lyon."


def score(
    *texts: str, detector: ScriptedDetector | None = None, labeller: Labeller | None = None, **options: Any
) -> list[ScoredText]:
    instruments = Instruments(options.pop("decomposer", SentenceDecomposer()), labeller)
    named = [Text(f"{number}.txt", text) for number, text in enumerate(texts)]
    return asyncio.run(score_texts(named, detector or ScriptedDetector(), instruments, **options))


def shown(text: ScoredText, threshold: float = 0.5) -> str:
    return mark_text(text, threshold).plain


# lists


def test_a_list_says_claim_place_probability_and_mass() -> None:
    (text,) = score(ANSWER, subject="Lyon")
    records = text.records()
    assert [list(each) for each in records] == [["claim", "span", "p_factual", "mass"]] * 2 + [
        ["claim", "span", "p_factual", "mass", "problem"],
        ["claim", "span", "p_factual", "mass"],
    ]
    assert records[0] == {"claim": "Lyon is a city in Spain.", "span": [0, 24], "p_factual": 0.125, "mass": 0.99}
    assert records[1]["claim"] == "Lyon has many bridges."
    assert [ANSWER[slice(*each["span"])] for each in records] == [
        "Lyon is a city in Spain.",
        "It has many bridges.",
        "Mars is a river there.",
        "The Moon shines on Lyon.",
    ]
    assert records[2] | {"claim": "", "span": []} == {
        "claim": "",
        "span": [],
        "p_factual": None,
        "mass": None,
        "problem": "the claim is too long",
    }


def test_all_texts_are_scored_in_one_batch() -> None:
    detector = ScriptedDetector()
    texts = score("Nice is in France.", "Lyon is in Spain. Munich is in Germany.", "", detector=detector)
    assert detector.batches == [["Nice is in France.", "Lyon is in Spain.", "Munich is in Germany."]]
    assert [len(text.claims) for text in texts] == [1, 2, 0]


@pytest.mark.parametrize("text", ["", " \n\t", "…", "Well.", "\u202e\u2066"])
def test_a_text_without_claims_has_an_empty_list_and_asks_no_detector(text: str) -> None:
    detector = ScriptedDetector()
    (scored,) = score(text, detector=detector)
    assert scored.records() == [] and detector.batches == []
    assert summarize(scored, 0.5).startswith("no claims") and "No claims" in render_page(build_page([scored], "d", 0.5))


def test_half_a_character_is_replaced_and_moves_no_place() -> None:
    (scored,) = score("Lyon \ud83d is in Spain. Nice is in France.")
    assert scored.found.text == "Lyon \ufffd is in Spain. Nice is in France."
    assert [each.claim.span for each in scored.claims] == [(0, 19), (20, 38)]


@pytest.mark.parametrize("p", [math.nan, math.inf, -0.1, 1.5, None])
def test_what_is_no_probability_is_no_score(p: float | None) -> None:
    detector = ScriptedDetector(lambda claim: Score(p, 0.9))
    (scored,) = score("Lyon is in Spain.", detector=detector)
    assert scored.claims[0].score.p_factual is None and scored.claims[0].score.problem
    assert scored.claims[0].is_doubtful(0.5) is None


def test_a_score_at_the_threshold_is_doubtful() -> None:
    (scored,) = score("Lyon is in Spain.")
    assert [scored.claims[0].is_doubtful(t) for t in (0.124, 0.125)] == [False, True]


# files


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def test_texts_are_read_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"\xef\xbb\xbfLyon\r\nis old.\r\n")
    write(tmp_path / "b[1].txt", "Z\u00fcrich \ufffd".encode() + b"\xff\xfe!")
    texts = read_texts([str(tmp_path / "*.txt"), str(tmp_path / "a.txt"), str(tmp_path / "b[1].txt")])
    assert [(Path(each.name).name, each.text, each.num_broken) for each in texts] == [
        ("a.txt", "Lyon\r\nis old.\r\n", 0),
        ("b[1].txt", "Z\u00fcrich \ufffd\ufffd\ufffd!", 2),
    ]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing-\*\.txt: no such file"):
        read_texts([str(tmp_path / "nothing-*.txt")])
    with pytest.raises(DataError, match="zero bytes"):
        read_texts([write(tmp_path / "x.txt", "Lyon is in Spain.".encode("utf-16"))])
    with pytest.raises(DataError, match="cannot be read"):
        read_texts([str(tmp_path)])


# the terminal


def test_doubtful_claims_stand_in_brackets_in_their_place() -> None:
    (text,) = score(ANSWER)
    assert shown(text) == (
        "[Lyon is a city in Spain. 0.12] It has many bridges.\n\n"
        "- [Mars is a river there. no score] The Moon shines on Lyon."
    )
    assert shown(text, 0.1) == (
        "Lyon is a city in Spain. It has many bridges.\n\n- [Mars is a river there. no score] The Moon shines on Lyon."
    )
    styles = {str(span.style) for span in mark_text(text, 0.5).spans if span.style}
    assert styles == {"bold red", "yellow"} and all(map(Style.parse, styles))
    assert summarize(text, 0.5) == "1 of 4 claims doubtful, 1 without a score"
    assert [line.split(":")[0] for line in list_warnings(text)] == [
        "1 of 4 scores are in doubt",
        "no score for 1 of 4 claims",
    ]


def test_restated_claims_in_doubt_are_listed() -> None:
    (text,) = score("It is in Spain. It has bridges over rivers.", subject="Lyon")
    assert list(list_lines(text, 0.5)) == ["    0.12  Lyon is in Spain."]


def test_hostile_text_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = score("Lyon \x1b[2J is in [red]Spain[/red] \u202eagain\u202c :smile: <script>alert(1)</script>.")
    SafeConsole().print(mark_text(text, 0.5), soft_wrap=True)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\u202e" not in out
    assert "[Lyon \N{SYMBOL FOR ESCAPE}[2J is in [red]Spain[/red]" in out and ":smile: <script>" in out


# the page


def test_a_page_colours_claims_in_place_with_their_probability() -> None:
    (text,) = score(ANSWER)
    page = PageReader(render_page(build_page([text], "scripted", 0.5, "Tell me about Lyon.")))
    marks = {mark["text"]: mark for mark in page.parts("marked")[0]["pieces"]}
    lyon = marks["Lyon is a city in Spain."]
    assert (lyon["tone"], lyon["note"], lyon["title"]) == ("bad", "0.12", "0.12: Lyon is a city in Spain.")
    assert lyon["strength"] == pytest.approx(0.75)  # 0.125 lies three quarters of the way from 0.5 to 0
    assert marks["The Moon shines on Lyon."]["note"] == "0.88 low mass"
    assert {mark["tone"] for mark in marks.values()} == {None, "bad", "unsure", "good"}
    assert {"1 of 4 claims doubtful", "0.25 (low)", "Asked: Tell me about Lyon."} <= set(page.texts)


def test_hostile_text_is_text_on_a_page() -> None:
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[2J\u202e is in Spain.'
    (text,) = score(evil)
    html = render_page(build_page([text], evil, 0.5, evil))
    assert "<script>alert" not in html and "<img" not in html and "\x1b" not in html
    assert f"Asked: {evil}" in PageReader(html).texts


def test_several_texts_share_a_page() -> None:
    page = PageReader(render_page(build_page(score("Lyon is in Spain.", "Nice is in France."), "scripted", 0.5)))
    assert "Claims of 2 texts" in page.texts
    assert [part["title"] for part in page.parts("section")] == ["0.txt", "1.txt"]


def claim_at(start: int, end: int, p: float, text: str) -> ScoredClaim:
    answer = Answer(Ask("text", ""), text, "stop")
    return ScoredClaim(Claim(f"{start}-{end}-{p}", answer, text[start:end], (start, end)), Score(p, 1.0))


@settings(max_examples=100, deadline=None)
@given(st.text("ab ", max_size=12), st.data())
def test_pieces_are_the_text_and_cover_each_claim(text: str, data: st.DataObject) -> None:
    places = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).filter(lambda pair: pair[0] < pair[1])
    spans = data.draw(st.lists(places, max_size=5)) if text else []
    claims = [claim_at(start, end, number / 8, text) for number, (start, end) in enumerate(spans)]
    pieces = list(cut_text(text, claims))
    assert "".join(piece.text for piece in pieces) == text
    for each in claims:
        start, end = each.claim.span
        assert "".join(piece.text for piece in pieces if each in piece.claims) == text[start:end]
        assert sum(each in piece.ending for piece in pieces) == 1


def test_the_worst_of_overlapping_claims_gives_the_colour() -> None:
    text = "Lyon, in Spain, has bridges."
    claims = [claim_at(0, 28, 0.9, text), claim_at(6, 14, 0.1, text)]
    pieces = [(piece.text, len(piece.claims), len(piece.ending)) for piece in cut_text(text, claims)]
    assert pieces == [("Lyon, ", 1, 0), ("in Spain", 2, 1), (", has bridges.", 1, 1)]
    scored = score(text)[0]
    scored = ScoredText(scored.source, scored.found, claims)
    assert shown(scored) == "Lyon, [in Spain 0.10], has bridges."
    (marked,) = PageReader(render_page(build_page([scored], "d", 0.5))).parts("marked")
    assert [mark["tone"] for mark in marked["pieces"]] == ["good", "bad", "good"]


# evidence


def table(directory: Path) -> FactTable:
    (directory / "facts.csv").write_text(FACTS)
    (directory / "relations.toml").write_text(RELATIONS)
    return FactTable.read([str(directory / "facts.csv")], directory / "relations.toml")


class ListedPassages(Evidence):
    def __init__(self, *texts: str, is_down: bool = False) -> None:
        self._texts, self._is_down = texts, is_down

    def record(self) -> dict[str, Any]:
        return {"kind": "listed"}

    async def search(self, query: str, limit: int) -> list[Passage]:
        if self._is_down and "Spain" in query:
            raise EndpointError("the search is down")
        return [Passage(text, text, "a book") for text in self._texts][:limit]


def test_a_table_of_facts_rules_on_each_claim(tmp_path: Path) -> None:
    (text,) = score("Lyon is a city in Spain. Nice is old and lovely.", labeller=FactLabeller(table(tmp_path)))
    assert [ruling.finding for ruling in text.rulings if ruling] == ["contradicted", "undetermined"]
    lines = list(list_lines(text, 0.5))
    assert lines[:3] == [
        "    0.12  Lyon is a city in Spain.",
        "          contradicted",
        "          - The city of Lyon is located in France. (table of facts)",
    ]
    texts = PageReader(render_page(build_page([text], "scripted", 0.5))).texts
    assert {"contradicted", "The city of Lyon is located in France. (table of facts)"} <= set(texts)
    assert text.records()[0]["ruling"]["evidence"][0]["text"] == "The city of Lyon is located in France."


def test_passages_without_a_helper_are_for_the_reader_to_judge() -> None:
    (text,) = score("Lyon is in Spain.", labeller=PassageFinder(ListedPassages("Lyon is French.", "b", "c"), 2))
    assert list(list_lines(text, 0.5))[1:] == [
        "          passages, not judged",
        "          - Lyon is French. (a book)",
        "          - b (a book)",
    ]


def test_a_helper_judges_passages() -> None:
    helper = Helper(ScriptedModel(lambda asked: "It is in France. [False]"))
    (text,) = score("Lyon is in Spain.", labeller=ModelLabeller(helper, ListedPassages("Lyon is French.")))
    assert "          contradicted" in list(list_lines(text, 0.5))


def test_a_source_that_is_down_costs_no_score() -> None:
    finder = PassageFinder(ListedPassages("x", is_down=True))
    (text,) = score("Lyon is in Spain. Nice is in France.", labeller=finder)
    assert [each.score.p_factual for each in text.claims] == [0.125, 0.875]
    assert [ruling is None for ruling in text.rulings] == [True, False]
    assert "no evidence for 1 of 2 claims: the search is down" in list(list_warnings(text))
    assert "source down" in render_page(build_page([text], "scripted", 0.5))
    with pytest.raises(EndpointError, match="none of 1 claims could be looked up"):
        score("Lyon is in Spain.", labeller=finder)


def test_a_helper_that_lists_nonsense_leaves_no_claims_and_says_so() -> None:
    (text,) = score(ANSWER, decomposer=ModelDecomposer(Helper(ScriptedModel(lambda asked: "I like cheese"))))
    assert text.claims == [] and "the helper gave no list of claims: 'I like cheese'" in list(list_warnings(text))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "one of them"),
        ({"text": ["a"], "claims_file": ["b"], "out": "c"}, "one of them"),
        ({"claims_file": ["b"]}, "needs --out"),
        ({"claims_file": ["b"], "out": "c", "facts": ["f"]}, "evidence is for --text"),
        ({"text": ["a"], "facts": ["f"], "corpus": ["g"]}, "one source"),
        ({"text": ["a"], "claims": "facts"}, "needs a table"),
        ({"text": ["a"], "claims": "model"}, "give --helper"),
        ({"text": ["a"], "corpus": ["g"], "num_queries": 2}, "give --helper"),
        ({"text": ["a"], "threshold": 1.5}, "threshold: must be at most 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scoring.parse({"detector": "d", **values})


def test_settings_choose_the_instruments(tmp_path: Path) -> None:
    table(tmp_path)
    (tmp_path / "page.txt").write_text("Lyon is a city in France.")
    common = {"detector": "d", "text": ["a"]}
    facts = {"facts": [str(tmp_path / "facts.csv")], "relations": str(tmp_path / "relations.toml")}
    kinds = []
    for values in (
        {},
        {**facts, "claims": "facts"},
        {"corpus": [str(tmp_path / "page.txt")]},
        {"corpus": [str(tmp_path / "page.txt")], "helper": "m", "helper_endpoint": "http://127.0.0.1:1/v1"},
    ):
        built = build_instruments(Scoring.parse({**common, **values}))
        kinds.append((type(built.decomposer).__name__, type(built.labeller).__name__))
        asyncio.run(built.close())
    assert kinds == [
        ("SentenceDecomposer", "NoneType"),
        ("FactDecomposer", "FactLabeller"),
        ("SentenceDecomposer", "PassageFinder"),
        ("SentenceDecomposer", "ModelLabeller"),
    ]


# labelled claims


def write_claims(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labelled(number: int, claim: str, label: Any, split: str = "test", **more: Any) -> dict[str, Any]:
    return {"id": f"p{number}/0", "prompt": f"p{number}", "claim": claim, "label": label, "split": split, **more}


CLAIMS = [
    labelled(0, "Lyon is in Spain.", False, "validation"),
    labelled(1, "Nice is in France.", True, "validation"),
    labelled(2, "Madrid is in Spain.", True, prompt_text="Tell me about Madrid."),
    labelled(3, "Lima is in Spain.", False),
    labelled(4, "Mars is in Spain.", False),
]


def test_labelled_claims_become_what_detect_eval_reads(tmp_path: Path) -> None:
    seen, out = [], tmp_path / "scores.jsonl"
    files = [write_claims(tmp_path / "a.jsonl", *CLAIMS[:2]), write_claims(tmp_path / "b.jsonl", *CLAIMS[2:])]
    summary = score_file(ScriptedDetector(), files, out, on_done=lambda *each: seen.append(each))
    assert summary == {
        "claims": 5,
        "scored": 4,
        "unscored": {"the claim is too long": 1},
        "low_mass": 0,
        "file": str(out),
    }
    assert seen == [(0, 5, 0), (5, 5, 1)]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {
        "id": "p0/0",
        "prompt": "p0",
        "label": False,
        "score": 0.125,
        "split": "validation",
        "method": "scripted",
        "mass": 0.99,
    }
    assert [row["id"] for row in rows] == ["p0/0", "p1/0", "p2/0", "p3/0"]  # Mars has no score, and is no 0
    (method,) = read_scores([str(out)])
    assert method.name == "scripted" and list(method.test.scores) == [0.125, 0.125] and method.has_prompts


def test_a_detector_sees_prompt_answer_and_place(tmp_path: Path) -> None:
    seen: list[Claim] = []

    def look(claim: Claim) -> Score:
        seen.append(claim)
        return Score(0.5)

    row = labelled(1, "Nice is old.", True, prompt_text="Nice?", subject="Nice", answer="Hm. It is old.", span=[4, 14])
    score_file(ScriptedDetector(look), [write_claims(tmp_path / "a.jsonl", row)], tmp_path / "out.jsonl")
    assert seen[0].answer == Answer(Ask("p1", "Nice?", "Nice"), "Hm. It is old.", "stop") and seen[0].span == (4, 14)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "no rows"),
        ([{**CLAIMS[0], "claim": None}], r"line 1.*claim.*missing"),
        ([CLAIMS[0], {**CLAIMS[1], "label": None}], r"line 2.*label.*neither true nor false"),
        ([{**CLAIMS[0], "split": "train"}], "split.*'train'"),
        ([CLAIMS[0], CLAIMS[0]], "line 2.*p0/0.*line 1"),
        ([{**CLAIMS[0], "answer": "short", "span": [3, 9]}], "span"),
        ([{**CLAIMS[0], "claim": "Lyon \ud83d"}], "surrogate"),
        ([CLAIMS[4]], "none of 1 claims has a score.*too long"),
    ],
)
def test_what_is_no_labelled_claim_is_refused_and_nothing_is_written(
    rows: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "scores.jsonl"
    out.write_text("before")
    with pytest.raises(DataError, match=message):
        score_file(ScriptedDetector(), [write_claims(tmp_path / "a.jsonl", *rows)], out)
    assert out.read_text() == "before"


def test_scores_keep_the_order_of_claims() -> None:
    claims = [claim_at(0, 4, 0.0, text).claim for text in ("Spain", "Nice.")]
    assert [each.score for each in score_claims(ScriptedDetector(), claims)] == list(map(judge_by_words, claims))


def test_scores_replace_no_claims_and_no_directory(tmp_path: Path) -> None:
    path = write_claims(tmp_path / "claims.jsonl", labelled(1, "Lyon is in Spain.", False))
    before = Path(path).read_bytes()
    for files in ([path], [str(tmp_path / "*.jsonl")]):
        detector = ScriptedDetector()
        with pytest.raises(DataError, match="holds the claims"):
            score_file(detector, files, path)
        with pytest.raises(DataError, match="a directory; give the name of a file"):
            score_file(detector, files, tmp_path)
        assert detector.batches == [] and Path(path).read_bytes() == before
