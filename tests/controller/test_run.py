"""Whole runs on the shipped tiny checkpoint: resume equals no interruption, kills lose nothing, exports load."""

import asyncio
import io
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from rich.console import Console

from llamarl.controller.checkpoints import CheckpointStore
from llamarl.controller.directory import hold
from llamarl.controller.export import export_run
from llamarl.controller.interrupts import first_interrupt
from llamarl.controller.ledger import Ledger, read_counts
from llamarl.controller.prepare import prepare
from llamarl.controller.recipe import Recipe
from llamarl.controller.reporter import Reporter
from llamarl.controller.run import resume, train
from llamarl.core.errors import CheckpointError, ConfigError, DataError
from llamarl.models.checkpoint import load_model
from llamarl.models.decoder import named_tensors
from llamarl.recipes import recipe_path
from llamarl.report.live import LiveView
from llamarl.report.metrics import read_metrics
from llamarl.report.rollouts import read_rollouts
from llamarl.report.summary import read_summary
from llamarl.report.view import run_as_dict

SMALL = [
    *("--schedule.prompts-per-step", "4", "--schedule.samples-per-prompt", "4", "--evaluation.num-prompts", "4"),
    *("--schedule.checkpoint-every", "2", "--sampling.max-tokens", "24", "--generator.slots", "16", "--threads", "1"),
]
TIMES = ("time", "perf/")
RACING = ("data/issued", "data/finished")


def recipe(*overrides: str) -> Recipe:
    return Recipe.load(recipe_path("demo"), [*SMALL, *overrides])


def numbers(run_dir: Path) -> list[dict[str, float]]:
    """All metrics but clocks, and how far the next step's work has come when this one is recorded."""
    records = read_metrics(run_dir / "metrics.jsonl")
    return [
        {k: v for k, v in record.items() if not k.startswith(TIMES) and "latency" not in k and k not in RACING}
        for record in records
    ]


def test_a_run_with_sampling_filters_keeps_generator_and_trainer_together(tmp_path: Path) -> None:
    train(recipe("--schedule.steps", "2", "--schedule.max-staleness", "0", "--sampling.top-p", "0.8"), tmp_path / "run")
    records = [each for each in read_metrics(tmp_path / "run" / "metrics.jsonl") if "train/loss" in each]
    assert len(records) == 2
    for record in records:
        assert record["train/mismatch_kl"] < 1e-9 and record["train/ratio/mean"] == pytest.approx(1.0, abs=1e-5)


def weights(run_dir: Path) -> bytes:
    return (CheckpointStore(run_dir / "checkpoints").load_latest().path / "trainer" / "model.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def one_thread() -> "object":
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_synchronous_run_resumed_equals_one_without_interruption_bit_for_bit(tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    sync = ("--schedule.max-staleness", "0")
    train(recipe(*sync, "--schedule.steps", "4"), whole)
    train(recipe(*sync, "--schedule.steps", "2"), halves)
    with open(halves / "metrics.jsonl") as file:  # the shorter run's closing evaluation isn't part of the longer one
        lines = [line for line in file if "eval/reward/mean" not in line or json.loads(line)["step"] == 0]
    (halves / "metrics.jsonl").write_text("".join(lines))
    resume(halves, ["--schedule.steps", "4"])
    assert weights(whole) == weights(halves)
    for one, other in zip(numbers(whole), numbers(halves), strict=True):
        assert one == other


def test_two_synchronous_runs_are_identical(tmp_path: Path) -> None:
    crowded = ("--schedule.prompts-per-step", "16", "--evaluation.num-prompts", "16", "--generator.slots", "8")
    for name in "ab":  # more work than slots: when it is handed out decides what is decoded together
        train(recipe("--schedule.max-staleness", "0", "--schedule.steps", "2", *crowded), tmp_path / name)
    assert weights(tmp_path / "a") == weights(tmp_path / "b")
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    steps = [record for record in read_metrics(tmp_path / "a" / "metrics.jsonl") if "train/loss" in record]
    if Path("/proc/self/status").exists():
        assert all(record["perf/memory/main"] > 2**20 for record in steps)


def test_an_asynchronous_run_keeps_its_bound_and_its_export_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    summary, _ = train(recipe("--schedule.steps", "5", "--schedule.max-staleness", "2"), tmp_path / "run")
    assert summary.steps == 5 and summary.staleness_max is not None and summary.staleness_max <= 2
    assert summary.mismatch_max is not None and summary.mismatch_max < 1e-4
    assert summary.prompts_trained == 20 and summary.prompts_failed == 0
    assert export_run(tmp_path / "run", tmp_path / "model") == 5
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    start = dict(named_tensors(load_model(recipe().model)))
    assert any(not torch.equal(tensor, start[name]) for name, tensor in named_tensors(exported))
    assert AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
    with pytest.raises(CheckpointError, match="choose latest, best, or one of"):
        export_run(tmp_path / "run", tmp_path / "other", step="77")


def test_going_on_from_an_earlier_checkpoint_forgets_what_came_after(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(recipe("--schedule.steps", "4", "--schedule.max-staleness", "0"), run_dir)
    weights_before, numbers_before = weights(run_dir), numbers(run_dir)
    resume(run_dir, step="2")
    assert weights(run_dir) == weights_before and numbers(run_dir) == numbers_before
    with pytest.raises(CheckpointError, match="choose latest, best, or one of"):
        resume(run_dir, step="3")


def test_logged_rollouts_hold_the_trainers_logprobs_beside_the_generators(tmp_path: Path) -> None:
    train(recipe("--schedule.steps", "1", "--schedule.max-staleness", "0", "--report.rollouts-per-step", "4"), tmp_path)
    samples = [sample for group in read_rollouts(tmp_path / "rollouts.jsonl") for sample in group.samples]
    known = [sample for sample in samples if sample.trainer_logprobs is not None]
    assert known
    for sample in known:
        assert sample.trainer_logprobs == pytest.approx(sample.logprobs, abs=1e-3)


DEADLY = """
import os, signal
from pathlib import Path
from llamarl.tasks.format import judge as inner

here, judged = Path(__file__).parent, 0

def judge(prompt, completion):
    global judged
    if (here / "armed").exists() and list(here.glob("run/checkpoints/step_*")):
        judged += 1
        if judged == int((here / "armed").read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
    return inner(prompt, completion)
"""


@pytest.mark.slow
@pytest.mark.parametrize("last", [1, 20])
def test_a_killed_run_resumes_with_every_prompt_trained_exactly_once_an_epoch(tmp_path: Path, last: int) -> None:
    """Dies with the `last` completion judged after the first checkpoint; 32 or more are left by then."""
    run_dir = tmp_path / "run"
    (tmp_path / "deadly.py").write_text(DEADLY)
    (tmp_path / "armed").write_text(str(last))
    flags = [*SMALL, "--data.limit", "24", "--data.epochs", "1", "--schedule.steps", "50"]
    flags += ["--judges.0.function", f"{tmp_path}/deadly.py:judge"]
    command = ["train", str(recipe_path("demo")), "--quiet", "--run-dir", str(run_dir), *flags]
    child = subprocess.run([sys.executable, "-m", "llamarl", *command], capture_output=True)
    assert child.returncode == -signal.SIGKILL, child.stderr.decode()
    (tmp_path / "armed").unlink()
    summary, _ = resume(run_dir)
    with Ledger(run_dir / "ledger.sqlite") as ledger:
        counts = ledger.counts()
        assert len(ledger.read_accounted()) == 24
    assert counts == {"issued": 24, "finished": 0, "trained": 24, "dropped": 0}
    assert summary.steps == 6
    steps = [record["step"] for record in read_metrics(run_dir / "metrics.jsonl") if "train/loss" in record]
    assert steps == sorted(set(steps)) == list(range(1, 7))


@pytest.fixture
def heard_hangup() -> Iterator[None]:
    """`nohup` starts what it runs with SIGHUP ignored, and children inherit that; here it is heard."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.usefixtures("heard_hangup")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_the_first_interrupt_finishes_the_step_and_saves(tmp_path: Path, number: int) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "llamarl", "train", str(recipe_path("demo")), "--plain"]
    command += ["--run-dir", str(run_dir), *SMALL, "--schedule.checkpoint-every", "0", "--schedule.steps", "10000"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 600  # against hanging
    while not (run_dir / "metrics.jsonl").is_file() or "train/loss" not in (run_dir / "metrics.jsonl").read_text():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(number)
    output, _ = child.communicate(timeout=600)
    assert child.returncode == 130, output
    assert "stopping after this step" in output
    done = CheckpointStore(run_dir / "checkpoints").load_latest().step
    assert f"stopped at step {done} of 10000; llamarl resume {run_dir}" in output
    assert read_metrics(run_dir / "metrics.jsonl")[-1]["step"] == done
    summary, _ = resume(run_dir, ["--schedule.steps", str(done + 1)])
    assert summary.steps == done + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_of_either_kind_ends_at_once(tmp_path: Path, number: int) -> None:
    reporter = Reporter(tmp_path, Ledger(":memory:"), 5)
    stops: list[str] = []

    async def run() -> None:
        with first_interrupt(lambda: stops.append("asked"), reporter):
            os.kill(os.getpid(), number)
            while not stops:
                await asyncio.sleep(0)
            assert stops == ["asked"] and reporter.is_interrupted
            os.kill(os.getpid(), number)
            await asyncio.sleep(600)
            stops.append("went on")

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(run())
    assert stops == ["asked"] and signal.getsignal(signal.SIGTERM) is before
    reporter.close()


@pytest.mark.usefixtures("heard_hangup")
@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_a_closed_terminal_is_a_first_interrupt_and_what_is_ignored_stays_so(tmp_path: Path, ignored: int) -> None:
    reporter = Reporter(tmp_path, Ledger(":memory:"), 5)
    stops: list[str] = []

    async def run(*numbers: int) -> None:
        with first_interrupt(lambda: stops.append("asked"), reporter):
            for number in numbers:
                os.kill(os.getpid(), number)
                while not stops:
                    await asyncio.sleep(0)

    before = signal.getsignal(signal.SIGHUP)
    asyncio.run(run(signal.SIGHUP, signal.SIGHUP))  # shell and system may both send it
    assert stops == ["asked"] and reporter.is_interrupted and signal.getsignal(signal.SIGHUP) is before
    handler = signal.signal(ignored, signal.SIG_IGN)
    try:
        asyncio.run(run(ignored))
        assert stops == ["asked"]
    finally:
        signal.signal(ignored, handler)
    reporter.close()


def test_an_interrupt_says_what_is_still_done(tmp_path: Path) -> None:
    reporter = Reporter(tmp_path, Ledger(":memory:"), 5)
    for version, says in ((0, "a step under way is finished first"), (5, "all steps are done")):
        reporter.restore({}, version)
        reporter.on_interrupt()
        assert says in (tmp_path / "messages.log").read_text()
    reporter.close()


def test_progress_says_what_the_next_step_waits_for(tmp_path: Path) -> None:
    out = io.StringIO()
    ledger = Ledger(":memory:")
    with LiveView(console=Console(file=out), plain=True, plain_seconds=0.0) as view:
        reporter = Reporter(tmp_path, ledger, 5, groups_per_step=4, live=view)
        with reporter.span("trainer", "wait"):
            for prompt in ("a", "b"):
                ledger.issue(0, prompt)
                ledger.finish(0, prompt)
                reporter.refresh()
                reporter.refresh()
        for activity in ("train", "wait for sync", "wait for evaluation", "checkpoint"):
            with reporter.span("trainer", activity):
                reporter.refresh()
        reporter.progress.write(3, 5)
        with reporter.span("trainer", "train"):
            reporter.on_progress()
        reporter.close()
    assert not (tmp_path / "training_progress").exists()
    assert [line.split("  ")[1] for line in out.getvalue().splitlines()] == [
        "generating 1 of 4 groups",
        "generating 2 of 4 groups",
        "training",
        "passing weights on",
        "evaluating",
        "writing a checkpoint",
        "training micro-batch 3 of 5",
    ]


@pytest.fixture(scope="module")
def four_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "four"
    train(recipe("--schedule.steps", "4", "--schedule.max-staleness", "0"), run_dir)
    return run_dir


@pytest.fixture
def run_dir(four_steps: Path, tmp_path: Path) -> Path:
    """A copy of a run with checkpoints of steps 2 and 4."""
    return Path(shutil.copytree(four_steps, tmp_path / "run"))


def contents(run_dir: Path) -> dict[str, bytes]:
    """What a resume goes on from."""
    names = ["recipe.json", "metrics.jsonl", *(str(p.relative_to(run_dir)) for p in run_dir.glob("checkpoints/**/*"))]
    files = {name: (run_dir / name).read_bytes() for name in names if (run_dir / name).is_file()}
    with Ledger(run_dir / "ledger.sqlite") as ledger:
        return files | {"ledger": repr(sorted(ledger.read_accounted())).encode()}


def test_what_the_checkpoint_refuses_leaves_the_run_as_it_was(run_dir: Path) -> None:
    before = contents(run_dir)
    for step in ("latest", "2"):
        with pytest.raises(CheckpointError, match="holds critics"):
            resume(run_dir, ["--algorithm.type", "ppo"], step=step)
        assert contents(run_dir) == before
    assert resume(run_dir)[0].steps == 4


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("seed", "7", r"seed was 0, now 7"),
        ("evaluation.num-prompts", "16", r"evaluation.num_prompts was 4, now 16"),
        ("data.limit", "24", r"data.limit was None, now 24"),
        ("data.system", "Be brief.", r"data.system was None, now 'Be brief.'"),
        ("trainer.lora.rank", "8", r"trainer.lora was None, now \{'rank': 8, 'alpha': 32.0, 'targets': \(\)\}"),
        ("model", "elsewhere", r"model was '.*', now 'elsewhere'.* new run from `llamarl export"),
    ],
)
def test_a_resume_keeps_what_its_numbers_mean(run_dir: Path, setting: str, value: str, message: str) -> None:
    before = contents(run_dir)
    with pytest.raises(ConfigError, match=message):
        resume(run_dir, [f"--{setting}", value])
    assert contents(run_dir) == before


def test_one_process_works_on_a_run_and_others_may_look(run_dir: Path, tmp_path: Path) -> None:
    with hold(run_dir):
        with pytest.raises(ConfigError, match=f"process {os.getpid()} is training in it"):
            resume(run_dir)
        assert read_counts(run_dir / "ledger.sqlite")["trained"] == 16
        assert export_run(run_dir, tmp_path / "model") == 4


def test_a_damaged_checkpoint_is_named_in_the_messages(run_dir: Path) -> None:
    (run_dir / "checkpoints" / "step_000004" / "run.json").unlink()
    assert resume(run_dir, ["--schedule.steps", "3"])[0].steps == 3
    assert "skipping a damaged checkpoint" in (run_dir / "messages.log").read_text()
    assert CheckpointStore(run_dir / "checkpoints").steps() == [2, 3]


def test_rejects_a_ledger_that_does_not_know_the_checkpoint(run_dir: Path) -> None:
    (run_dir / "ledger.sqlite").unlink()
    with pytest.raises(CheckpointError, match=r"ledger.sqlite: differs from what it held when step 4 was saved"):
        resume(run_dir)


def test_rejects_a_ledger_with_one_altered_row_and_leaves_the_run_as_it_was(run_dir: Path) -> None:
    before = contents(run_dir)
    with sqlite3.connect(run_dir / "ledger.sqlite") as db:
        ((epoch, prompt),) = db.execute("SELECT epoch, prompt_id FROM prompts WHERE version = 3 LIMIT 1")
        key = "WHERE epoch = ? AND prompt_id = ?"
        db.execute(f"UPDATE prompts SET status = 'issued' {key}", (epoch, prompt))  # it would train again
    with pytest.raises(CheckpointError, match="restore the file from a copy"):
        resume(run_dir)
    with sqlite3.connect(run_dir / "ledger.sqlite") as db:
        db.execute(f"UPDATE prompts SET status = 'trained' {key}", (epoch, prompt))
    assert contents(run_dir) == before
    assert resume(run_dir, ["--schedule.steps", "5"])[0].steps == 5


def test_rejects_a_torn_recipe(run_dir: Path, tmp_path: Path) -> None:
    (run_dir / "recipe.json").write_text('{"model": ')
    for use in (lambda: resume(run_dir), lambda: export_run(run_dir, tmp_path / "model")):
        with pytest.raises(DataError, match=r"recipe.json, line 1: not JSON"):
            use()


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """Stands for a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_without_room_for_a_line_ends_the_run_with_a_word(tmp_path: Path) -> None:
    with files_of_at_most(1000), pytest.raises(CheckpointError, match=r"the disk takes no more .* make room, then"):
        train(recipe("--schedule.steps", "1"), tmp_path)


def test_a_full_disk_costs_checkpoints_and_the_run_only_at_its_end(tmp_path: Path) -> None:
    refused = r"the last step, 2, could not be written .*no earlier one is kept"
    with files_of_at_most(1_000_000), pytest.raises(CheckpointError, match=refused):  # smaller than the weights
        train(recipe("--schedule.steps", "2", "--schedule.checkpoint-every", "1"), tmp_path)
    assert read_summary(tmp_path).steps == 2
    messages = (tmp_path / "messages.log").read_text()
    assert "checkpoint 1 not written" in messages and "checkpoint 2 not written" in messages
    assert "there is none yet" in messages
    assert not list((tmp_path / "checkpoints").iterdir())
    with pytest.raises(CheckpointError, match="no checkpoint yet; `llamarl resume"):
        export_run(tmp_path, tmp_path / "model")


def test_a_run_that_cannot_keep_its_last_steps_names_what_it_kept(run_dir: Path) -> None:
    kept = r"the last step, 6, .* the newest kept is of step 4 \(.*checkpoints\); make room, then `llamarl resume"
    with files_of_at_most(1_000_000), pytest.raises(CheckpointError, match=kept):
        resume(run_dir, ["--schedule.steps", "6"])
    assert "steps 5 to 6 are in no checkpoint" in " ".join(run_as_dict(run_dir)["warnings"])
    assert resume(run_dir)[0].steps == 6  # there is room again
    assert not any("in no checkpoint" in warning for warning in run_as_dict(run_dir)["warnings"])


def test_a_full_disk_is_not_blamed_on_the_ledger(run_dir: Path) -> None:
    with files_of_at_most(0), pytest.raises(CheckpointError, match=r"the disk (takes no more|refuses it) .* make room"):
        resume(run_dir)
    assert resume(run_dir)[0].steps == 4


WANDERING = """
import os

def judge(prompt, completion):
    os.chdir({elsewhere!r})
    return float(len(completion.text) % 2)
"""


def test_a_judge_that_changes_the_working_directory_moves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    shutil.copytree(recipe().model, here / "model")
    shutil.copy(recipe().data.source, here / "prompts.jsonl")
    elsewhere.mkdir()
    (here / "wander.py").write_text(WANDERING.format(elsewhere=str(elsewhere)))
    monkeypatch.chdir(here)
    values = recipe("--schedule.steps", "2").model_dump() | {
        "model": "model",
        "data": {"source": "prompts.json*"},
        "judges": [{"function": "wander.py:judge"}],
    }
    _, reporter = train(Recipe.parse(values), "run")
    assert Path.cwd() == elsewhere and not list(elsewhere.iterdir())
    assert reporter.directory == here / "run" and CheckpointStore(here / "run" / "checkpoints").steps() == [2]
    assert resume(here / "run", ["--schedule.steps", "3"])[0].steps == 3  # what the recipe names is found from anywhere


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run"])
def test_rejects_a_run_directory_that_cannot_be_made(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match=r"run_dir=.*choose another directory"):
        train(recipe(), tmp_path / place)


def test_rejects_a_run_directory_in_use_and_a_directory_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="not empty; `llamarl resume"):
        train(recipe(), tmp_path)
    with pytest.raises(CheckpointError, match=r"no recipe\.json"):
        resume(tmp_path)
    assert os.listdir(tmp_path) == ["file"]


def test_rejects_prompts_that_leave_no_room_and_leaking_evaluations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has \d+ tokens; with sampling.max_tokens=500"):
        prepare(recipe("--sampling.max-tokens", "500"))
    base = recipe()
    with pytest.raises(DataError, match="are also training prompts"):
        prepare(recipe("--evaluation.source", base.data.source))
    assert len(prepare(Recipe.parse(base.model_dump() | {"evaluation": {"num_prompts": 600}})).held_out) == 1024 // 5


def test_rejects_stale_samples_without_a_correction() -> None:
    with pytest.raises(ConfigError, match="has no off-policy correction"):
        recipe("--algorithm.type", "rloo", "--schedule.max-staleness", "1")


ONE = ("--schedule.samples-per-prompt", "1", "--schedule.max-staleness", "0")


@pytest.mark.parametrize(
    "algorithm",
    ["aipo", "cispo", "grpo", "dr_grpo", "dapo", "gspo", "rloo", "raft", "online_dpo", "codpo"],
)
def test_rejects_lone_samples_where_rewards_are_compared_within_a_prompt(algorithm: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"schedule\.samples_per_prompt=1: algorithm.type='{algorithm}' as it is set"
    ):
        recipe(*ONE, "--algorithm.type", algorithm)


def test_lone_samples_may_train_where_rewards_are_compared_within_the_step_or_not_at_all() -> None:
    for algorithm in ("reinforce_pp", "crpg", "ppo", "crraft", "ibpo"):
        recipe(*ONE, "--algorithm.type", algorithm)
    with pytest.raises(ConfigError, match="others of its prompt"):
        recipe(*ONE, "--algorithm.type", "reinforce_pp", "--algorithm.group-baseline", "true")
    for algorithm in ("reinforce_pp", "crpg"):
        with pytest.raises(ConfigError, match=r"others of the step.* or more prompts_per_step"):
            recipe(*ONE, "--algorithm.type", algorithm, "--schedule.prompts-per-step", "1")


def test_a_task_with_lone_samples_is_named() -> None:
    values = recipe().model_dump() | {"judges": (), "data": None, "evaluation": {}}
    task = {"data": recipe().data.model_dump(), "judges": [judge.model_dump() for judge in recipe().judges]}
    tasks = [task | {"name": "a"}, task | {"name": "b", "samples_per_prompt": 1}]
    with pytest.raises(ConfigError, match=r"tasks\.1\.samples_per_prompt=1: algorithm.type='aipo'"):
        Recipe.parse(values | {"tasks": tasks})
