"""What models, judges, servers and files say is shown, and steers no terminal."""

import io
import json
import logging
import warnings
from pathlib import Path

import pytest
from rich.progress import TextColumn
from rich.table import Table

from llamarl.cli.common import quieten_terminal, say
from llamarl.cli.main import main
from llamarl.report.console import SafeConsole
from llamarl.report.plots import drawing
from llamarl.report.text import figure_text

EVIL = "\x1b[2J\x1b]0;owned\x07ok\r\x9b31m\u202e\x08 [/bold] :smile: [red]x"
"""Clears the screen, renames the window, goes back to the line's start, turns the reading direction; and markup."""
STEERING = set("\x1b\x07\r\x08\x9b\u202e")


def test_say_shows_and_steers_nothing() -> None:
    out = io.StringIO()
    say(EVIL, out)
    assert not STEERING & set(out.getvalue())
    assert "␛[2J" in out.getvalue() and "[/bold] :smile: [red]x" in out.getvalue()


def test_say_replaces_what_the_stream_cannot_encode() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    say("\x1bé", out)
    out.flush()
    assert raw.getvalue() == b"??\n"


def test_every_renderable_of_a_console_is_safe() -> None:
    out = io.StringIO()
    console = SafeConsole(file=out, force_terminal=False, width=200)
    table = Table(EVIL, title=EVIL)
    table.add_row(EVIL)
    for renderable in (EVIL, table):
        console.print(renderable)
    assert not STEERING & set(out.getvalue())
    assert out.getvalue().count("[/bold] :smile: [r") == 4  # title, header, cell and the text by itself


def test_a_console_keeps_its_own_styling() -> None:
    out = io.StringIO()
    SafeConsole(file=out, force_terminal=True, color_system="standard", width=40).print("a\x1b[31mb", style="bold")
    assert out.getvalue() == "\x1b[1ma␛[31mb\x1b[0m\n"
    assert TextColumn("[red]{task.description}").markup  # columns that we write keep theirs


def test_the_error_line_of_a_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evil.py").write_text(f"raise RuntimeError({EVIL!r})\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    status = main(
        ["judge", "run", "--data", str(rows), "--judge", f"{tmp_path / 'evil.py'}:reward", "--out", str(tmp_path / "o")]
    )
    text = capsys.readouterr().err
    assert status == 2 and text.startswith("error: ") and "␛[2J" in text
    assert not STEERING & set(text)


def test_the_reasons_of_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "evil.py").write_text(f"def reward(prompt, completion):\n    raise RuntimeError({EVIL!r})\n")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    main(
        [
            "judge",
            "run",
            "--data",
            str(rows),
            "--judge",
            f"{tmp_path / 'evil.py'}:reward",
            "--out",
            str(tmp_path / "o"),
            "--quiet",
        ]
    )
    text = capsys.readouterr().out
    assert "␛[2J" in text and not STEERING & set(text)


def test_log_records_and_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(logging, "lastResort", handler)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    quieten_terminal()
    handler.handle(logging.makeLogRecord({"msg": "%s", "args": (EVIL,)}))
    text = handler.stream.getvalue() + warnings.formatwarning(EVIL, UserWarning, "f.py", 3)
    assert text.count("␛[2J") == 2 and not STEERING & set(text)


def test_names_in_figures_are_text(tmp_path: Path) -> None:
    name = "a\x1b[2J $x_{ \u202e"
    with drawing(tmp_path / "f.png", 3, 3) as figure:
        axes = figure.subplots()
        axes.set_title(name)
        axes.plot([0, 1], label=name)
        axes.legend()
    assert (tmp_path / "f.png").is_file()  # as mathematics, "$x_{" alone is an error
    assert (
        axes.get_title(loc="left") == axes.get_legend().get_texts()[0].get_text() == figure_text(name) == "a�[2J $x_{ �"
    )
