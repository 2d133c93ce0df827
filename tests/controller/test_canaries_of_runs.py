"""Canaries of a run: wrong before it, no run; wrong later, a message. On virtual time."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from llamarl.controller.canaries import watch_canaries
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train
from llamarl.core.errors import ConfigError, JudgeError, StallError
from llamarl.recipes import recipe_path
from llamarl.report.metrics import read_metrics
from llamarl.testing import run_virtual

torch.set_num_threads(1)


class Judge:
    """Stands in for the judges' client: answers what its script says; the last entry repeats."""

    def __init__(self, *script: Any) -> None:
        self.script, self.calls = list(script), []

    async def check_canaries(self, *, during_run: bool = False) -> list[str]:
        self.calls.append(during_run)
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Listener:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def on_message(self, text: str) -> None:
        self.messages.append(text)


def watched(judge: Judge, seconds: float) -> list[str]:
    listener = Listener()

    async def main() -> None:
        async with watch_canaries(judge, listener, poll_seconds=2.0):
            await asyncio.sleep(seconds)
        await asyncio.sleep(100.0)

    run_virtual(main())
    return listener.messages


def test_a_wrong_verdict_before_the_run_ends_it() -> None:
    with pytest.raises(
        JudgeError, match=r"^canaries: 6 got a wrong verdict or none before the first step: a; b; c; d$"
    ):
        watched(Judge(list("abcdef")), 1.0)


def test_later_ones_ring_until_the_end_of_the_run() -> None:
    judge = Judge([], ["a"], [], ["b", "c"], [])
    assert watched(judge, 9.0) == ["canary: a", "canary: b", "canary: c"]
    assert judge.calls == [False] + [True] * 4, "after 2, 4, 6 and 8 seconds"


def test_a_look_that_is_not_answered_does_not_end_the_run() -> None:
    assert watched(Judge([], StallError("no answer in 600 s"), ["a"]), 5.0) == [
        "canary: not looked at: no answer in 600 s",
        "canary: a",
    ]


# runs

DEMO = ["--schedule.steps", "1", "--sampling.max-tokens", "8", "--evaluation.num-prompts", "0", "--threads", "1"]


def recipe(tmp_path: Path, labels: list[bool]) -> Recipe:
    file = tmp_path / "canaries.jsonl"
    info = {"num_words": 2, "keyword": "moon", "is_upper": False, "has_bang": True}
    row = {"prompt": "write 2 words with moon, end !", "info": info, "completion": ["moon", "moon cat!"]}
    file.write_text(json.dumps({**row, "label": labels}))
    return Recipe.load(recipe_path("demo"), [*DEMO, "--judges.0.canaries", str(file)])


def test_a_run_whose_judge_errs_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"judge 'format' .* on 'moon', which must pass .*canaries.jsonl, line 1"):
        train(recipe(tmp_path, [True, True]), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "the next attempt may use the name"


def test_a_run_whose_judge_is_right_logs_it(tmp_path: Path) -> None:
    train(recipe(tmp_path, [False, True]), tmp_path / "run")
    (record,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert record["judge/format/canary_error_rate"] == 0.0


def test_files_of_judges_stand_beside_the_recipe(tmp_path: Path) -> None:
    for name in ("canaries.jsonl", "mine.toml", "rewards.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "recipe.toml").write_text(
        'model = "m"\n[data]\nsource = "d"\n'
        '[[judges]]\nfunction = "math"\ncanaries = "canaries.jsonl"\n'
        '[[judges]]\nfunction = "llm"\nsettings = {template = "mine.toml", model = "judge"}\n'
        '[[judges]]\nfunction = "rewards.py:exact"\n'
    )
    math, llm, own = Recipe.load(tmp_path / "recipe.toml").judges
    assert (math.function, math.canaries) == ("math", str(tmp_path / "canaries.jsonl"))
    assert (llm.function, llm.settings) == ("llm", {"template": str(tmp_path / "mine.toml"), "model": "judge"})
    assert own.function == f"{tmp_path}/rewards.py:exact"


def test_a_missing_file_is_found_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        train(Recipe.load(recipe_path("demo"), [*DEMO, "--judges.0.canaries", "nowhere.jsonl"]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
