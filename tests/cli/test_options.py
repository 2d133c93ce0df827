"""Options that are made from settings: their help, their values, and what is said of wrong ones."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from llamarl.cli.main import COMMANDS, load_command, main
from llamarl.cli.options import Command, LiveOutput, Output, Overrides, Positional
from llamarl.core.config import Config, Metavar, Words
from llamarl.core.errors import ConfigError


class Adapter(Config):
    """A part of its own."""

    rank: int = Field(default=8, ge=1)
    """Width of the adapter."""


class Sampling(Config):
    """How it samples."""

    temperature: float = Field(default=1.0, ge=0.0, le=2.0)
    """Randomness, 100 % at 1."""


class Settings(Sampling):
    """All kinds of settings."""

    place: Positional[str]
    """Where."""
    more: Positional[str | None] = None
    """Where else."""
    count: Annotated[int | None, Metavar("K")] = None
    """How many."""
    kind: Literal["red", "blue"] = "red"
    """Which of them."""
    sizes: tuple[int, ...] = (1, 2)
    """How large."""
    stop: tuple[str, ...] = ()
    """A text."""
    languages: Words = ()
    """Some codes."""
    caps: dict[str, float] = Field(default_factory=dict)
    """A bound (optional)."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Anything."""
    is_dry: bool = False
    """Do nothing."""
    adapter: Adapter = Adapter()
    """What is added."""


def show(settings: Settings, output: LiveOutput) -> None:
    """Show settings.

    Examples:
        llamarl show HERE
    """


def command(function: Any = show) -> Command:
    return Command("show", function)


def parse(*words: str) -> Settings:
    found = command().parse(["here", *words])["settings"]
    assert isinstance(found, Settings)
    return found


def test_values_take_the_types_of_their_settings() -> None:
    found = parse("there", "--count", "3", "--kind", "blue", "--temperature", "0.5", "--is-dry")
    assert (found.place, found.more, found.count, found.kind) == ("here", "there", 3, "blue")
    assert (found.temperature, found.is_dry) == (0.5, True)


def test_lists_tables_and_json() -> None:
    words = ("--sizes", "1,4", "--sizes", "8", "--stop", "a,b", "--stop", "c", "--languages", "en, fr")
    found = parse(*words, "--caps", "x=0.5", "--caps", "y=1", "--extra", '{"k": [1]}')
    assert found.sizes == (1, 4, 8)
    assert found.stop == ("a,b", "c") and found.languages == ("en", "fr")
    assert found.caps == {"x": 0.5, "y": 1.0} and found.extra == {"k": [1]}


def test_a_section_has_dotted_names() -> None:
    assert parse("--adapter.rank", "2").adapter.rank == 2


def test_only_what_is_given_counts_as_set() -> None:
    assert parse("--sizes", "1").model_fields_set == {"place", "sizes"}


def test_a_text_that_looks_like_a_number_stays_a_text() -> None:
    assert parse("1e3", "--stop", "7").more == "1e3"


def test_the_output_is_what_was_asked_for() -> None:
    assert command().parse(["here", "--json", "--quiet"])["output"] == LiveOutput(json=True, quiet=True)


def test_only_a_command_that_takes_them_is_given_overrides() -> None:
    def train(output: Output, overrides: Overrides) -> None:
        """Train."""

    assert command(train).parse(["--a.b", "1", "--json"])["overrides"] == ("--a.b", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "x"], "--count: must be a whole number; got 'x'"),
        (["--temperature", "3"], "--temperature: must be at most 2.0; got 3"),
        (["--temperature", "nan"], "--temperature: must be a finite number; got nan"),
        (["--kind", "blu"], "--kind: 'blu' is unknown. Did you mean 'blue'?"),
        (["--sizes", "1,x"], "--sizes: must be a whole number; got 'x'"),
        (["--caps", "x"], "--caps x: write NAME=VALUE"),
        (["--caps", "x=1", "--caps", "x=2"], "--caps x=2: x=1 is given already"),
        (["--caps", "x=much"], "--caps.x: must be a number; got 'much'"),
        (["--extra", "{"], "--extra '{': no JSON"),
        (["--extra", "[1]"], "--extra: must be a table of settings"),
        (["--adapter.rank", "0"], "--adapter.rank: must be at least 1; got 0"),
        (["--is-dri"], "--is-dri: unknown option. Did you mean '--is-dry'?"),
        (["--cou", "3"], "--cou: unknown option."),
        (["--count"], "argument --count: expected one argument"),
        (["a", "b"], "'b': more arguments than this command takes"),
    ],
)
def test_what_is_wrong_names_the_option_and_the_value(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert str(caught.value).startswith(message)


def test_what_must_be_given_is_named() -> None:
    with pytest.raises(ConfigError, match="required: PLACE\n`llamarl show --help`"):
        command().parse([])


def test_the_help_says_meaning_range_choices_default_and_examples(capsys: pytest.CaptureFixture[str]) -> None:
    text = command().parser.format_help()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "usage: llamarl show PLACE [MORE] [OPTION ...]"
    for line in (
        "--count K How many",
        "--kind {red,blue} Which of them (default red)",
        "--sizes N,N,... How large (default 1,2)",
        "--stop STOP A text (repeatable)",
        "--caps NAME=VALUE A bound (optional, repeatable)",
        "--extra JSON Anything",
        "--is-dry Do nothing",
    ):
        assert line in lines
    sampling = lines.index("How it samples:")
    assert lines[sampling + 1].startswith("--temperature X Randomness, 100 % at 1 (at least 0, at most 2, default")
    assert "What is added:" in lines
    assert "--adapter.rank N Width of the adapter (at least 1, default 8)" in lines
    assert lines[-2:] == ["examples:", "llamarl show HERE"]


def test_every_command_explains_itself() -> None:
    for name in COMMANDS:
        found = load_command(name)
        assert found.summary and found.examples, name
        for action in found.parser._actions:
            assert action.help, f"{name}: {action.dest}"


QUICK = """
import sys
from llamarl.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
heavy = {"torch", "numpy", "transformers", "rich", "matplotlib", "httpx", "duckdb"}
sys.exit(", ".join(sorted(heavy & set(sys.modules))) or 0)
"""


@pytest.mark.parametrize("words", [["--help"], ["eval", "--help"], *([*name.split(), "--help"] for name in COMMANDS)])
def test_help_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    shown = subprocess.run([sys.executable, "-c", QUICK, *words], capture_output=True, text=True, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "usage: llamarl" in shown.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no command given: use llamarl COMMAND (llamarl --help lists them)"),
        (["trian"], "trian: unknown command. Did you mean 'train'?"),
        (
            ["qqq"],
            "qqq: unknown command. Choose one of: budget, data, demo, detect, doctor, dpo, eval, export, feedback, "
            "generate, judge, launch, plan, resume, reward, runs, serve, sft, train, view, worker.\n",
        ),
        (["judge"], "judge: no command by itself; use llamarl judge run or llamarl judge audit or"),
        (["judge", "adit"], "judge adit: unknown command. Did you mean 'judge audit'?"),
        (["view"], "the following arguments are required: RUN"),
        (["view", "x", "--jsn"], "--jsn: unknown option. Did you mean '--json'?"),
        (["train", "demo", "--dryrun"], "--dryrun: unknown option. Did you mean '--dry-run'?"),
    ],
)
def test_bad_usage_ends_with_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in shown and load_command(name).summary in shown
