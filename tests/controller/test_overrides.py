"""Settings from the command line: what they mean, and what is said of a wrong one."""

from pathlib import Path
from typing import Any

import pytest

from llamarl.cli.main import main
from llamarl.controller.overrides import describe_settings, parse_overrides
from llamarl.controller.recipe import Recipe
from llamarl.core.errors import ConfigError

RECIPE = 'model = "m"\ndata = {source = "x.jsonl"}\njudges = [{function = "format"}]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path / "recipe.toml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--learning-rate 1", "--learning-rate: unknown key. Did you mean 'trainer.learning_rate'?"),
        ("--learning-rates 1", "--learning-rates: unknown key. Did you mean 'trainer.learning_rate'?"),
        ("--schedule.kl-coef 1", "--schedule.kl-coef: unknown key. Did you mean 'algorithm.kl_coef'?"),
        ("--device x", "--device: unknown key. Did you mean 'generator.device' or 'trainer.device'?"),
        ("--schedule.step 3", "--schedule.step: unknown key. Did you mean 'steps'?"),
        ("--algorithm.type gropo", "--algorithm.type: 'gropo' is unknown. Did you mean 'grpo'?"),
        ("--algorithm gropo", "--algorithm.type: 'gropo' is unknown. Did you mean 'grpo'?"),
        ("--algorithm grpo --algorithm.klcoef 1", "--algorithm.klcoef: unknown key. Did you mean 'kl_coef'?"),
        ("--engine monarc", "--engine: 'monarc' is unknown. Did you mean 'monarch'?"),
        ("--trainer.learning-rate fast", "--trainer.learning-rate: must be a number; got 'fast'"),
        ("--schedule.steps 2.5", "--schedule.steps: must be a whole number; got 2.5"),
        ("--schedule.steps -1", "--schedule.steps: must be at least 1; got -1"),
        ("--trainer 3", "--trainer: must be a table of settings; got 3"),
        ("--model none", "--model: must be text; got None"),
        ("--judges.0.weight -1", "--judges.0.weight: must be at least 0.0; got -1"),
        ("--algorithm.clip_low=0.1 --algorithm 3", "--algorithm: settings below 'algorithm' were already given"),
    ],
)
def test_the_command_line_is_blamed_for_what_stood_on_it(file: Path, arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.load(file, arguments.split())
    assert str(caught.value).startswith(message)


def test_the_file_is_blamed_for_what_stands_in_it(file: Path) -> None:
    file.write_text(RECIPE + "learning_rate = 1\n")
    with pytest.raises(ConfigError) as caught:
        Recipe.load(file, ["--engine", "monarc"])
    first, second = str(caught.value).splitlines()
    assert first == f"{file}: learning_rate: unknown key. Did you mean 'trainer.learning_rate'?"
    assert second.strip() == "--engine: 'monarc' is unknown. Did you mean 'monarch'?"


def test_settings_that_contradict_each_other_name_both_sources(file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.load(file, ["--sampling.temperature", "0"])
    assert str(caught.value).startswith(
        f"{file} with --sampling.temperature: sampling.temperature=0 samples no variety"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--algorithm", "grpo", "--algorithm.kl-coef", "0.5"],
        ["--algorithm.kl-coef", "0.5", "--algorithm", "grpo"],
        ["--algorithm.type=grpo", "--algorithm.kl_coef=0.5"],
    ],
)
def test_a_name_alone_is_the_type(file: Path, arguments: list[str]) -> None:
    found = Recipe.load(file, arguments).algorithm
    assert (found.type, found.model_dump()["kl_coef"]) == ("grpo", 0.5)


def test_a_name_alone_keeps_the_settings_of_the_same_type_and_drops_another_s(file: Path) -> None:
    file.write_text(RECIPE + 'algorithm = {type = "grpo", kl_coef = 0.5}\n')
    assert Recipe.load(file, ["--algorithm", "grpo"]).algorithm.model_dump()["kl_coef"] == 0.5
    assert Recipe.load(file, ["--algorithm", "rloo", "--schedule.max-staleness", "0"]).algorithm.type == "rloo"
    file.write_text(RECIPE + 'algorithm = "grpo"\n')
    assert Recipe.load(file).algorithm.type == "grpo"


def names(values: Any) -> list[str]:
    lines = describe_settings(Recipe).splitlines()
    return sorted({line.partition(" = ")[0] for line in lines if " = " in line and not line.startswith("[")})


@pytest.mark.parametrize("value", ["-1", "x", "{x = 1}", "[[]]", "2.5", '""'])
def test_no_message_speaks_of_pydantic(file: Path, value: str) -> None:
    """Every setting that the recipe has, with values that hardly any can have."""
    for name in names(Recipe):
        try:
            Recipe.load(file, [f"--{name.replace('judges.', 'judges.0.')}", value])
        except ConfigError as error:
            for word in ("Input", "pydantic", "validat", "dictionary", "instance", "unable to parse"):
                assert word not in str(error), error


def test_a_list_of_names_and_values() -> None:
    assert parse_overrides(["--a.b-c", "1", "--a.d=x", "--e", "none"]) == {"a": {"b_c": 1, "d": "x"}, "e": None}


def test_none_is_a_choice_where_a_setting_has_it_and_unsets_others(file: Path) -> None:
    words = ["--placement.trainer.checkpointing", "none", "--algorithm.scale", "none", "--threads", "none"]
    chosen = Recipe.load(file, ["--algorithm", "grpo", *words])
    assert chosen.placement.trainer.checkpointing == "none" and chosen.threads is None
    assert chosen.all_tasks[0].algorithm.scale == "none"


@pytest.mark.parametrize(
    "command",
    [
        ["train", "RECIPE", "--dry-run"],
        ["generate", "nope", "hello"],
        ["sft", "nope", "rows.jsonl", "out"],
        ["resume", "nope"],
        ["export", "nope", "out"],
        ["view", "nope"],
    ],
)
def test_a_name_that_nothing_has_is_a_usage_error(
    file: Path, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    file.write_text(RECIPE.replace('"m"', '"nope"'))
    assert main([str(file) if part == "RECIPE" else part for part in command]) == 2
    assert "nope: no" in capsys.readouterr().err


def test_changes_are_what_differs_from_the_defaults(file: Path) -> None:
    recipe = Recipe.load(file, ["--schedule.steps", "7", "--algorithm", "grpo", "--algorithm.kl-coef", "0.5"])
    changes = {change["name"]: change for change in recipe.changes()}
    assert list(changes) == [
        "model", "data.source", "judges.0.function", "algorithm.type", "algorithm.kl_coef", "schedule.steps",
    ]  # fmt: skip
    assert "default" not in changes["model"]
    assert changes["schedule.steps"]["default"] == 100 and changes["algorithm.type"]["default"] == "aipo"
    assert "schedule.steps" not in {each["name"] for each in Recipe.load(file).changes()}
