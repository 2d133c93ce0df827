"""Runs under constraints: nothing satisfied, nothing learnt, all of it logged; rows that judges cannot use."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from llamarl.controller.checkpoints import CheckpointStore
from llamarl.controller.prepare import prepare
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train
from llamarl.core.errors import ConfigError
from llamarl.models.checkpoint import load_model
from llamarl.models.decoder import named_tensors
from llamarl.recipes import recipe_path
from llamarl.report.metrics import read_metrics

TINY = [
    *("--schedule.steps", "2", "--schedule.max-staleness", "0", "--schedule.prompts-per-step", "2"),
    *("--schedule.samples-per-prompt", "2", "--sampling.max-tokens", "8", "--generator.slots", "16"),
    *("--evaluation.num-prompts", "0", "--threads", "1"),
]
CONSTRAINED = ("crpg", "codpo", "crraft")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def recipe_of(tasks: list[dict[str, Any]]) -> Recipe:
    plain = Recipe.load(recipe_path("demo"), TINY)
    values = plain.model_dump(mode="json", exclude={"data", "judges", "algorithm", "tasks", "coverage"})
    assert plain.data is not None
    tasks = [{"data": plain.data.model_dump(mode="json"), **task} for task in tasks]
    return Recipe.parse({**values, "evaluation": {"num_prompts": 0}, "tasks": tasks})


@pytest.fixture
def judges(tmp_path: Path) -> list[dict[str, Any]]:
    """A reward, and a constraint that every sample violates."""
    file = tmp_path / "judges.py"
    file.write_text(
        "def pay(prompt, completion):\n    return float(len(completion.text))\n"
        "def never(prompt, completion):\n    return False\n"
    )
    return [{"function": f"{file}:pay"}, {"function": f"{file}:never", "role": "constraint"}]


def test_tasks_whose_samples_all_violate_learn_exactly_nothing_and_say_so(tmp_path: Path, judges: Any) -> None:
    tasks = [{"name": name, "judges": judges, "algorithm": {"type": name}} for name in CONSTRAINED]
    recipe = recipe_of(tasks)
    train(recipe, tmp_path / "run")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2]
    for record in records:
        for name in CONSTRAINED:
            assert record[f"task/{name}/algorithm/violation_rate"] == 1.0
            assert record[f"task/{name}/algorithm/kept_frac"] == 0.0
            assert record[f"task/{name}/judge/never/violation_rate"] == 1.0
            assert record[f"task/{name}/judge/satisfied_frac"] == 0.0
            assert record[f"task/{name}/train/grad_norm"] == 0.0
    before = dict(named_tensors(load_model(recipe.model)))
    newest = CheckpointStore(tmp_path / "run" / "checkpoints").load_latest().path
    after = load_file(newest / "trainer" / "model.safetensors")
    assert after.keys() == before.keys() and all(torch.equal(before[name], value) for name, value in after.items())


# rows and tasks that cannot be used


@pytest.mark.parametrize(
    ("judge", "field"),
    [
        ({"function": "math"}, "answer is missing"),
        ({"function": "instructions"}, "info.instructions="),
        (
            {"function": "llm", "settings": {"base_url": "http://127.0.0.1:1/v1", "model": "m", "template": "rubric"}},
            "criteria: this judge grades by criteria",
        ),
    ],
)
def test_a_row_without_its_judge_s_field_is_refused_before_anything_starts(
    tmp_path: Path, judge: Any, field: str
) -> None:
    source = tmp_path / "rows.jsonl"
    wrong = {"instructions": 3} if judge["function"] == "instructions" else {}
    source.write_text(json.dumps({"id": "row-17", "prompt": "2 + 2 =", "info": wrong}))
    recipe = recipe_of([{"name": "sums", "judges": [judge], "data": {"source": str(source)}}])
    name = judge.get("settings", {}).get("template", judge["function"])
    with pytest.raises(ConfigError, match=rf"prompt 'sums/row-17' \(task 'sums'\), judge '{name}': {field}"):
        prepare(recipe)


def test_a_task_has_no_model_or_tokenizer_of_its_own(judges: Any) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.0\.model: unknown key"):
        recipe_of([{"name": "other", "judges": judges, "model": "another"}])
