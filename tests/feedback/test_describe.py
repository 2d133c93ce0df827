import json

import pytest
from feedback_logs import ingest_rows, message

from llamarl.core.errors import DataError
from llamarl.feedback import Description, describe
from tests.pages import read_page

HOUR = 3600
DAY = 24 * HOUR
START = 1740787200
"""Midnight of 1 March 2025, UTC."""


def described(folder, rows, **settings):
    store = ingest_rows(folder, rows, **settings)
    return describe(Description(store=store.path, threads=1))


# golden


def test_rates_by_segment(tmp_path):
    rows = [
        message(index, surface="web" if index < 6 else "ios", reaction="❤️" if index in (0, 1, 6) else None)
        for index in range(10)
    ]
    result = described(tmp_path, rows)
    assert (result["messages"], result["loves"], result["base_rate"]) == (10, 3, 0.3)
    assert [(row["segment"], row["messages"], row["loves"], row["rate"]) for row in result["by"]["surface"]] == [
        ("ios", 4, 1, 0.25),
        ("web", 6, 2, pytest.approx(1 / 3)),
    ]
    assert [row["segment"] for row in result["by"]["language"]] == [None]
    assert [row["segment"] for row in result["by"]["day"]] == ["2025-03-01"]
    json.dumps(result, allow_nan=False)


def test_signals_of_a_log_where_love_means_something(tmp_path):
    """Users who love come back and have the outcome; the others don't."""
    rows = []
    for who in range(8):
        happy = who % 2 == 0
        for index in range(2):
            rows.append(
                message(
                    10 * who + index,
                    user=f"somebody-{who}",
                    conversation_id=f"c{who}",
                    ts=START + index * (DAY if happy else HOUR),
                    reaction="❤️" if happy and index == 0 else None,
                    next_sentiment=0.5 if happy or index else -0.5,
                    outcome=int(happy),
                    stars=5 if happy else -1,
                )
            )
    result = described(tmp_path, rows, keep=["stars"])
    signals = {signal["name"]: signal for signal in result["signals"]}
    assert list(signals) == ["love", "sentiment", "continued", "returned", "stars"]
    love = signals["love"]
    assert (love["messages"], love["positive"], love["users"], love["share"]) == (16, 4, 4, 0.25)
    assert love["correlation"] == pytest.approx(1.0)
    assert love["ambiguity"] == 0.0
    assert signals["continued"]["positive"] == 8
    assert signals["continued"]["correlation"] is None  # it never varies
    assert signals["returned"]["messages"] == 12  # the last day has no next one
    assert signals["returned"]["correlation"] == pytest.approx(1.0)
    assert signals["continued"]["ambiguity"] == 0.5
    assert signals["stars"]["positive"] == 8


def test_without_an_outcome_nothing_is_correlated(tmp_path):
    signal = described(tmp_path, [message(index, reaction="❤️") for index in range(3)])["signals"][0]
    assert signal["correlation"] is None and signal["ambiguity"] is None


def test_out_holds_numbers_figure_and_page(tmp_path):
    rows = [
        message(
            index,
            ts=START + (index % 3) * DAY,
            surface=f"<b>{index % 20}</b>",
            reaction="❤️" if index % 5 == 0 else None,
            **{'sta"rs': index, "next_sentiment": 1},
        )
        for index in range(60)
    ]
    store = ingest_rows(tmp_path, rows, keep=['sta"rs'])
    result = describe(Description(store=store.path, threads=1, out=tmp_path / "out"))
    assert json.loads((tmp_path / "out" / "description.json").read_text())["messages"] == result["messages"] == 60
    assert (tmp_path / "out" / "description.png").read_bytes().startswith(b"\x89PNG")
    assert "<b>" not in (tmp_path / "out" / "report.html").read_text()
    page = read_page(tmp_path / "out" / "report.html")
    surface, *signals = page.parts("rows")
    assert surface["title"] == "Love rate by surface (8 more)" and len(surface["rows"]) == 12
    assert len(page.parts("lines")) == 1 and len(signals) == 3 and 'sta"rs' in page.texts


def test_a_store_of_one_message_is_drawn(tmp_path):
    store = ingest_rows(tmp_path, [message()])
    describe(Description(store=store.path, threads=1, out=tmp_path / "out"))
    assert "0.00%" in " ".join(read_page(tmp_path / "out" / "report.html").texts)


# rejects


def test_a_folder_that_is_no_store(tmp_path):
    with pytest.raises(DataError, match="no store of messages"):
        describe(Description(store=tmp_path))
