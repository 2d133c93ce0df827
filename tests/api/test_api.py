"""llamarl from Python: runs on the shipped tiny checkpoint, in plain code and inside a running event loop."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import llamarl
from llamarl.api import Changes, Sections
from llamarl.controller.recipe import Recipe
from llamarl.core.errors import CheckpointError, ConfigError, DataError, JudgeError, LlamaRLError
from llamarl.core.judge import Judge
from llamarl.judges.adapters.function import FunctionJudge
from llamarl.judges.process.judge import ProcessJudge
from llamarl.recipes import recipe_path
from llamarl.report.summary import read_summary
from llamarl.tasks.demo import DEMO_CHECKPOINT
from llamarl.tasks.format import WORDS, FormatTask

ROWS = [{"prompt": prompt.messages[0]["content"], "id": prompt.id} for prompt in FormatTask().prompts(24)]
TINY: dict[str, Any] = {
    "model": DEMO_CHECKPOINT,
    "schedule": {"steps": 2, "prompts_per_step": 2, "samples_per_prompt": 4, "max_staleness": 0},
    "evaluation": {"num_prompts": 2},
    "sampling": {"max_tokens": 12},
    "generator": {"slots": 8},
    "threads": 1,
}


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ends(prompt: llamarl.Prompt, completion: llamarl.Completion) -> bool:
    """A judge that other processes find by its name."""
    return completion.text.endswith(("!", "."))


class DataSet:
    """Has what this package uses of a `datasets.Dataset`."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._rows)


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def numbers(run: llamarl.Run) -> list[dict[str, Any]]:
    """The metrics that are no clock readings."""
    clocks = ("time", "perf/")
    return [
        {name: value for name, value in record.items() if not name.startswith(clocks) and "latency" not in name}
        for record in run.metrics
    ]


# the package


def test_importing_the_package_and_its_functions_loads_no_torch() -> None:
    code = (
        "import sys, llamarl; from llamarl import train, Run, Verdict; llamarl.generate; print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


def test_the_names_of_the_package() -> None:
    assert set(llamarl.__all__) <= set(dir(llamarl))
    for name in llamarl.__all__:
        assert getattr(llamarl, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        llamarl.trian  # noqa: B018


def test_keywords_are_the_sections_of_the_recipe() -> None:
    assert set(Sections.__annotations__) == set(Recipe.model_fields)
    assert set(Recipe.model_fields) - set(Changes.__annotations__) == {"model", "data", "judges", "tasks"}


# runs


def test_a_run_of_memory_alone_in_a_loop_is_the_run_outside_and_the_run_of_files(tmp_path: Path) -> None:
    async def asynchronous(prompt: llamarl.Prompt, completion: llamarl.Completion) -> float:
        await asyncio.sleep(0)
        return float(len(completion.text))

    def train(name: str, data: Any, judge: Any) -> list[dict[str, Any]]:
        judges = [{"function": judge, "name": "length"}]
        return numbers(llamarl.train(data=data, judges=judges, run_dir=name, **TINY))

    async def in_a_loop() -> list[dict[str, Any]]:
        return train("inside", DataSet(ROWS), asynchronous)

    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    Path("rewards.py").write_text("def length(prompt, completion):\n    return float(len(completion.text))\n")
    plain = train("plain", ROWS, lambda prompt, completion: float(len(completion.text)))
    assert plain == asyncio.run(in_a_loop()) == train("written", Path("rows.jsonl"), "rewards.py:length")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, with rows and a closure in memory."""
    wanted = "!"
    directory = tmp_path_factory.mktemp("finished") / "run"
    judges = [{"function": lambda prompt, completion: wanted in completion.text, "name": "bang", "weight": 2.0}, ends]
    llamarl.train(data=ROWS, judges=judges, run_dir=directory, progress=False, **TINY)
    return directory


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, which has moved by that."""
    return Path(shutil.copytree(finished, tmp_path / "moved"))


def bang(prompt: llamarl.Prompt, completion: llamarl.Completion) -> bool:
    return "!" in completion.text


def test_what_a_run_says(run_dir: Path) -> None:
    run = llamarl.Run(run_dir)
    assert repr(run).startswith(f"Run('{run_dir}'): 2 of 2 steps in ") and "held-out reward" in repr(run)
    assert run.summary == read_summary(run_dir) and run.summary.steps == 2
    assert [record["step"] for record in run.metrics if "train/loss" in record] == [1, 2]
    steps, rewards = run.column("rollout/reward/mean")
    assert steps == [1, 2] and all(0.0 <= reward <= 1.0 for reward in rewards)
    with pytest.raises(ConfigError, match=r"no metric of this run\. Did you mean 'rollout/reward/mean'"):
        run.column("rollout/reward/meen")


def test_the_recipe_says_plainly_what_it_cannot_hold(run_dir: Path) -> None:
    recipe = json.loads((run_dir / "recipe.json").read_text())
    assert recipe["data"]["source"] == "rows.jsonl"
    assert [judge["function"] for judge in recipe["judges"]] == ["in memory: bang", f"{__file__}:ends"]
    assert [json.loads(line) for line in (run_dir / "rows.jsonl").read_text().splitlines()] == ROWS


def test_a_run_s_model_generates_what_its_export_does(run_dir: Path) -> None:
    run = llamarl.Run(run_dir)
    prompts = ["write 3 words with moon", [{"role": "user", "content": "write 2 words with cat, upper"}]]
    answers = run.generate(prompts, samples=2, seed=3)
    assert run.export("model") == Path("model")
    again = llamarl.generate("model", prompts, samples=2, seed=3, max_tokens=12)
    assert [[c.token_ids for c in group] for group in answers] == [[c.token_ids for c in group] for group in again]
    assert [len(group) for group in answers] == [2, 2] and isinstance(answers[0][0].text, str)
    assert run.generate(prompts[:1], temperature=0.0) != run.generate(prompts[:1], step=2, seed=1)
    with pytest.raises(CheckpointError, match="choose latest, best, or one of"):
        run.generate(prompts, step=7)


def test_a_resumed_run_goes_on_with_its_rows_and_the_judges_given_again(run_dir: Path) -> None:
    before = files(run_dir)
    with pytest.raises(
        ConfigError, match=r"judges: 'bang' was a function in the memory .* llamarl.resume\(RUN, judges="
    ):
        llamarl.resume(run_dir, schedule={"steps": 3})
    with pytest.raises(ConfigError, match=r"judges: 'bong' is no judge that the run began with\. Did you mean 'bang'"):
        llamarl.resume(run_dir, judges={"bong": bang})
    with pytest.raises(ConfigError, match="judges: 'math' is no judge that the run began with"):
        llamarl.resume(run_dir, judges="math")
    with pytest.raises(ConfigError, match="judges: 'bong' is no judge that the run began with"):
        llamarl.resume(run_dir, judges=FunctionJudge(lambda prompt, completion: True, "bong"))
    assert files(run_dir) == before
    run = llamarl.resume(run_dir, judges=[bang, ends], schedule={"steps": 3})
    assert run.summary.steps == 3 and run.recipe.judges[0].weight == 2.0
    assert run.recipe.judges[0].function == f"{__file__}:bang"  # this one has a name that leads to it
    assert llamarl.resume(run_dir, schedule={"steps": 4}).summary.steps == 4
    assert len({record["step"] for record in run.metrics}) == 5


def test_a_closure_given_again_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    def judges() -> list[Any]:
        return [
            {"function": lambda prompt, completion: float(len(completion.text)), "name": "long"},
            FunctionJudge(bang, "own"),
        ]

    settings = {**TINY, "evaluation": {"num_prompts": 0}}
    whole = llamarl.train(data=ROWS, judges=judges(), run_dir="whole", **settings)
    one_step = {**TINY["schedule"], "steps": 1}
    llamarl.train(data=ROWS, judges=judges(), run_dir="halves", **{**settings, "schedule": one_step})
    halves = llamarl.resume("halves", judges=judges(), schedule={"steps": 2})
    assert numbers(halves) == numbers(whole)


def test_a_recipe_file_with_sections_over_it(tmp_path: Path) -> None:
    def shout(prompt: llamarl.Prompt, completion: llamarl.Completion) -> float:
        return float(completion.text.isupper())

    sections = {name: value for name, value in TINY.items() if name != "model"}
    run = llamarl.train(recipe=recipe_path("demo"), judges=[shout], algorithm="rloo", run_dir="run", **sections)
    assert (run.recipe.algorithm.type, run.recipe.sampling.max_tokens, run.recipe.trainer.warmup_steps) == (
        "rloo",
        12,
        10,
    )
    with pytest.raises(ConfigError, match=r"demo\.toml with schedule: schedule\.steps: must be at least 1; got -3"):
        llamarl.train(recipe=recipe_path("demo"), schedule={"steps": -3})


def test_several_tasks_with_rows_and_functions_each(tmp_path: Path) -> None:
    tasks = [
        {"name": "short", "data": ROWS[:12], "judges": [lambda prompt, completion: -float(len(completion.text))]},
        {"name": "long", "data": {"source": ROWS[12:]}, "judges": [ends], "held_out": ROWS[:2]},
    ]
    run = llamarl.train(tasks=tasks, run_dir="run", **TINY)
    assert run.summary.steps == 2
    assert [task.data.source for task in run.recipe.tasks] == [
        str(tmp_path / "run" / f"{n}.rows.jsonl") for n in ("short", "long")
    ]
    lambdas = {"<lambda>": lambda prompt, completion: 0.0}
    assert llamarl.resume("run", judges=lambdas, schedule={"steps": 3}).summary.steps == 3


INTERRUPTED = """
import asyncio, os, signal, sys
import llamarl
from llamarl.tasks.demo import DEMO_CHECKPOINT

judged = 0

def judge(prompt, completion):
    global judged
    judged += 1
    if judged == 40:
        os.kill(os.getpid(), signal.SIGINT)
    return float(len(completion.text))

async def main():
    rows = [{"prompt": f"write {i} words with moon"} for i in range(24)]
    schedule = {"steps": 10000, "prompts_per_step": 2, "samples_per_prompt": 4}
    llamarl.train(model=DEMO_CHECKPOINT, data=rows, judges=[judge], schedule=schedule, sampling={"max_tokens": 8},
                  evaluation={"num_prompts": 0}, threads=1, run_dir="run")
    print("went on")

main() if sys.argv[1] == "plain" else asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loop", "plain"])
def test_ctrl_c_saves_and_ends_the_program(where: str, tmp_path: Path) -> None:
    script = INTERRUPTED if where == "loop" else INTERRUPTED.replace("async def main", "def main")
    Path("script.py").write_text(script)
    result = subprocess.run([sys.executable, "script.py", where], capture_output=True, text=True, timeout=280)
    assert result.returncode != 0, result.stderr
    assert "went on" not in result.stdout and "stopping after this step" in result.stdout
    run = llamarl.Run("run")
    steps = run.summary.steps
    assert 0 < steps < 100 and f"KeyboardInterrupt: stopped at step {steps} of 10000; llamarl.resume(" in result.stderr
    assert llamarl.resume("run", judges={"judge": bang}, schedule={"steps": steps + 1})
    assert run.summary.steps == steps + 1


# what is wrong


def no_answer(prompt: llamarl.Prompt, completion: llamarl.Completion) -> float:
    return float(prompt.info["answer_key"])


@pytest.mark.parametrize(
    ("sections", "kind", "message"),
    [
        ({"modle": "x"}, ConfigError, r"modle: unknown key\. Did you mean 'model'"),
        ({"schedule": {"step": 3}}, ConfigError, r"schedule\.step: unknown key\. Did you mean 'steps'"),
        ({"schedule": {"steps": "many"}}, ConfigError, r"schedule\.steps: must be a whole number; got 'many'"),
        ({"algorithm": {"type": "gropo"}}, ConfigError, r"algorithm\.type: 'gropo' is unknown\. Did you mean 'grpo'"),
        ({"model": "nowhere/at/all"}, CheckpointError, "nowhere/at/all"),
        ({"data": 5}, ConfigError, r"data\.source: must be the name of a file .* or rows: a list .*; got 5"),
        ({"data": (row for row in ROWS)}, ConfigError, r"data\.source: must be the name of a file"),
        ({"data": []}, DataError, "rows: no rows"),
        ({"data": ["2 + 2 ="] * 9}, DataError, "rows, line 1: a str: '2 . 2 ='; each row is one mapping"),
        ({"data": {"train": ROWS, "test": ROWS}}, ConfigError, "data: a table of 'train', 'test', not of rows"),
        ({"data": [{"question": "2 + 2 ="}] * 9}, DataError, "rows, line 1, field 'prompt': no column 'prompt'"),
        ({"data": "nowhere.jsonl"}, DataError, r"nowhere\.jsonl: no such file"),
        ({"judges": []}, ConfigError, "judges: required"),
        ({"judges": [5]}, ConfigError, r"judges\.0\.function: must be a function of \(prompt, completion\).*; got 5"),
        ({"judges": [lambda: 0.0]}, ConfigError, r"is no judge's signature"),
        ({"judges": [lambda p, c: 0.0] * 2}, ConfigError, "give each a different 'name'"),
        ({"judges": [no_answer]}, ConfigError, "judge 'no_answer' failed on every completion .*'answer_key'"),
        ({"judges": ["nojudge"]}, ConfigError, "no shipped judge 'nojudge'"),
        (
            {"judges": [{"function": lambda p, c: 0.0, "isolation": "process"}]},
            ConfigError,
            r"isolation='process': another process does not see '<lambda>'",
        ),
        (
            {"judges": [lambda p, c: 0.0], "engine": "monarch"},
            ConfigError,
            r"engine='monarch': its processes do not see the judge '<lambda>'",
        ),
    ],
)
def test_a_failed_start_says_why_and_leaves_nothing(
    sections: dict[str, Any], kind: type[LlamaRLError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        llamarl.train(**{**TINY, "data": ROWS, "judges": [bang], "run_dir": "runs/here", **sections})
    assert not files(tmp_path)


@pytest.mark.parametrize("made_before", [False, True])
def test_a_start_that_fails_after_the_directory_was_made_leaves_it_as_it_was(made_before: bool, tmp_path: Path) -> None:
    Path("canaries.jsonl").write_text('{"prompt": "p", "completion": "no", "label": true}\n')
    if made_before:
        Path("runs/here").mkdir(parents=True)
    before = files(tmp_path)
    judges = [{"function": bang, "canaries": "canaries.jsonl"}]
    for _ in range(2):  # the second attempt finds no half-made directory in its way
        with pytest.raises(JudgeError, match="canaries: 1 got a wrong verdict"):
            llamarl.train(data=ROWS, judges=judges, run_dir="runs/here", **TINY)
        assert files(tmp_path) == before


# judge and generate


def test_judging_rows_in_memory_inside_and_outside_a_loop() -> None:
    rows = [{"id": "a", "prompt": "2 + 2 =", "answer": "4", "completion": [r"\boxed{4}", "5"]}]

    async def right(prompt: llamarl.Prompt, completion: llamarl.Completion) -> bool:
        return prompt.answer in completion.text

    async def in_a_loop() -> list[dict[str, Any]]:
        return llamarl.judge(rows, ["math", right])

    records = llamarl.judge(rows, ["math", right])
    shown = [(record["id"], record["sample"], record["judge"], record["passed"]) for record in records]
    assert shown == [("a", 0, "math", True), ("a", 0, "right", True), ("a", 1, "math", False), ("a", 1, "right", False)]
    assert [{**r, "seconds": 0} for r in asyncio.run(in_a_loop())] == [{**r, "seconds": 0} for r in records]


@pytest.mark.parametrize("judge", [ends, "math", {"function": "math"}, iter(["math"])])
def test_a_single_judge_needs_no_list(judge: Any) -> None:
    rows = [{"prompt": "2 + 2 =", "answer": "4", "completion": r"\boxed{4}."}]
    assert [(r["judge"], r["passed"]) for r in llamarl.judge(rows, judge)] in ([("ends", True)], [("math", True)])


def test_prompts_may_come_from_any_iterable() -> None:
    prompts = ["write 2 words with moon", "write 2 words with sun"]
    found = llamarl.generate(DEMO_CHECKPOINT, (prompt for prompt in prompts), max_tokens=4)
    assert found == llamarl.generate(DEMO_CHECKPOINT, prompts, max_tokens=4)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: llamarl.judge([{"prompt": "p"}], ["math"]), DataError, "rows, line 1, field 'completion': missing"),
        (lambda: llamarl.judge([], ["math"]), DataError, "rows: no rows"),
        (
            lambda: llamarl.judge([{"prompt": "p", "completion": "c"}], [7]),
            ConfigError,
            r"judges\.0: function: must be",
        ),
        (lambda: llamarl.judge([], ["math"], max_in_flight=0), ConfigError, "max_in_flight=0"),
        (
            lambda: llamarl.judge([], ["math"], max_in_flight="3"),
            ConfigError,
            "max_in_flight='3': give at least 1, a whole number",
        ),
        (lambda: llamarl.judge([], None), ConfigError, "judges: None; give functions, judges or names"),
        (lambda: llamarl.generate(DEMO_CHECKPOINT, ["a"], samples=1.5), ConfigError, "samples=1.5: .* whole number"),
        (lambda: llamarl.generate(DEMO_CHECKPOINT, 3), ConfigError, "prompts: 3 is no list; give a list of prompts"),
        (
            lambda: llamarl.generate(DEMO_CHECKPOINT, {"role": "user"}),
            ConfigError,
            "prompts: .* is no list; give a list",
        ),
        (lambda: llamarl.Run("a\0b"), ConfigError, r"run_dir='a\\x00b': a NUL stands in the name"),
        (lambda: llamarl.resume("a\0b"), ConfigError, "run_dir=.*: a NUL stands in the name"),
        (lambda: llamarl.train(data=ROWS, judges=ends, run_dir="a\0b", **TINY), ConfigError, "run_dir=.*: a NUL"),
        (lambda: llamarl.generate(DEMO_CHECKPOINT, [3]), ConfigError, r"prompts\[0\]: 3 is no list of messages"),
        (
            lambda: llamarl.generate(DEMO_CHECKPOINT, ["a", "\ud800"]),
            ConfigError,
            r"prompts\[1\]: half a surrogate pair: '\\ud800'; repair",
        ),
        (lambda: llamarl.generate(DEMO_CHECKPOINT, ["a"], system="\ud800"), ConfigError, "system: half a surrogate"),
        (lambda: llamarl.generate(DEMO_CHECKPOINT, ["a"], samples=0), ConfigError, "samples=0: give at least 1"),
        (lambda: llamarl.generate(DEMO_CHECKPOINT, ["a"], temprature=1), ConfigError, "Did you mean 'temperature'"),
        (lambda: llamarl.generate("nowhere/at/all", ["a"]), CheckpointError, "nowhere"),
        (lambda: llamarl.Run("nowhere"), CheckpointError, r"no recipe\.json"),
    ],
)
def test_rejects(call: Callable[[], Any], kind: type[LlamaRLError], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_one_text_is_no_list_of_prompts() -> None:
    with pytest.raises(ConfigError, match="prompts: one text; give a list of prompts"):
        llamarl.generate(DEMO_CHECKPOINT, "write 3 words")


def test_the_directory_is_left_where_it_is_used(run_dir: Path) -> None:
    before = files(run_dir)
    with pytest.raises(ConfigError, match="not empty; `llamarl resume"):
        llamarl.train(data=ROWS, judges=[bang], run_dir=run_dir, **TINY)
    assert files(run_dir) == before and os.path.isdir(run_dir)


# sft and dpo

CHATS = [{"prompt": row["prompt"], "completion": "moon cat."} for row in ROWS]
PAIRS = [{"prompt": f"write 2 words with {word}", "chosen": f"{word} cat.", "rejected": "no"} for word in WORDS]
SHORT = {"num_steps": 3, "batch_size": 4, "device": "cpu", "learning_rate": 1e-3}


def test_fine_tuning_on_rows_in_memory_says_what_the_command_does(capsys: pytest.CaptureFixture[str]) -> None:
    async def in_a_loop() -> dict[str, Any]:
        return llamarl.sft(DEMO_CHECKPOINT, DataSet(CHATS), "inside", eval_data=CHATS[:2], **SHORT)

    summary = llamarl.sft(DEMO_CHECKPOINT, CHATS, "tuned", held_out=4, **SHORT)
    assert summary["steps"] == 3 and summary["rows"]["train"] == len(CHATS) - 4
    assert f"step 3/3  loss {summary['loss']:.4f}" in capsys.readouterr().out
    assert json.loads(Path("tuned/summary.json").read_text())["loss"] == summary["loss"]
    assert llamarl.generate("tuned", ["write 2 words with moon"], max_tokens=8)[0][0].token_ids
    assert asyncio.run(in_a_loop())["held_out"]["loss"] > 0.0


def test_preference_pairs_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    summary = llamarl.dpo(DEMO_CHECKPOINT, PAIRS, Path("tuned"), beta=0.5, progress=False, **SHORT)
    assert summary["steps"] == 3 and summary["held_out"]["accuracy"]["count"] > 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: llamarl.sft(DEMO_CHECKPOINT, CHATS, "out", num_step=3), ConfigError, "Did you mean 'num_steps'"),
        (lambda: llamarl.sft(DEMO_CHECKPOINT, [{"prompt": "p"}], "out"), DataError, "rows, line 1"),
        (lambda: llamarl.dpo(DEMO_CHECKPOINT, None, "out"), ConfigError, "data: None is no list of rows; give dict"),
        (lambda: llamarl.sft(DEMO_CHECKPOINT, CHATS[0], "out"), ConfigError, "data: .* is no list of rows; give dict"),
        (lambda: llamarl.dpo(DEMO_CHECKPOINT, PAIRS, "out", eval_data=""), ConfigError, "eval_data: an empty name;"),
        (lambda: llamarl.dpo(DEMO_CHECKPOINT, PAIRS, None), ConfigError, "out=None: no path; give the name of a dir"),
        (lambda: llamarl.dpo(DEMO_CHECKPOINT, PAIRS, "a\0b"), ConfigError, "out=.*: a NUL stands in the name"),
        (lambda: llamarl.dpo(DEMO_CHECKPOINT, PAIRS, "."), CheckpointError, "out='.': no name of a new directory"),
        (lambda: llamarl.dpo(DEMO_CHECKPOINT, PAIRS, ""), CheckpointError, "out='': no name of a new directory"),
        (lambda: llamarl.sft(DEMO_CHECKPOINT, CHATS, "/"), CheckpointError, "out='/': no name of a new directory"),
        (lambda: llamarl.sft(DEMO_CHECKPOINT, CHATS, "x/.."), CheckpointError, "no name of a new directory"),
        (lambda: llamarl.dpo(DEMO_CHECKPOINT, PAIRS, "out", beta=-1), ConfigError, "beta: must be greater than 0"),
    ],
)
def test_training_on_rows_rejects(
    call: Callable[[], Any], kind: type[LlamaRLError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=message):
        call()
    assert not files(tmp_path)


def test_a_run_that_ends_early_says_why_where_it_lies(tmp_path: Path) -> None:
    def silent(prompt: llamarl.Prompt, completion: llamarl.Completion) -> None:
        return None

    with pytest.raises(JudgeError) as caught:
        llamarl.train(data=ROWS, judges=[silent], run_dir="silent", **TINY)
    shown = subprocess.run([sys.executable, "-m", "llamarl", "view", "silent"], capture_output=True, text=True)
    assert f"error: {caught.value}" in (tmp_path / "silent" / "messages.log").read_text()
    assert "no completion of the" in shown.stdout and "ran out of prompts" not in shown.stdout


class Held(Judge):
    """Judges until it is closed."""

    name = "held"
    is_closed = False

    async def judge(self, prompt: llamarl.Prompt, completions: Sequence[Any]) -> list[llamarl.Verdict]:
        if self.is_closed:
            raise JudgeError("closed")
        return [llamarl.Verdict.scored(float(len(completion.text))) for completion in completions]

    def close(self) -> None:
        self.is_closed = True


def test_a_judge_object_is_left_open_for_the_next_call() -> None:
    held = Held()
    for number in range(2):
        llamarl.train(data=ROWS, judges=[held], run_dir=f"run-{number}", progress=False, **TINY)
        (record,) = llamarl.judge([{"prompt": "x", "completion": "four"}], [held])
        assert record["score"] == 4.0
    assert not held.is_closed


def test_a_judge_with_processes_is_given_as_an_object(tmp_path: Path) -> None:
    (tmp_path / "pj.py").write_text("def one(prompt, completion):\n    return len(completion.text)\n")
    judge = ProcessJudge(f"{tmp_path}/pj.py:one", num_workers=1)
    llamarl.train(data=ROWS, judges=[judge], run_dir="run", progress=False, **TINY)
    judge.close()


def test_a_close_that_fails_hides_no_verdicts(caplog: pytest.LogCaptureFixture) -> None:
    class Careless(Held):
        def close(self) -> None:
            raise OSError("disk is gone")

    (record,) = llamarl.judge([{"prompt": "x", "completion": "four"}], [{"function": Careless, "settings": {}}])
    assert record["score"] == 4.0
    assert "judge 'held' failed while it closed: OSError: disk is gone" in caplog.text
