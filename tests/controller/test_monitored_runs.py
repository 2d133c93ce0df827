"""Training runs whose monitors compare with a file: warned, stopped with a checkpoint, shown, gone on with."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from llamarl.cli.main import main
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train
from llamarl.core.errors import HackingError
from llamarl.recipes import recipe_path
from llamarl.report.metrics import read_metrics
from llamarl.tasks.format import WORDS

TINY = [
    *("--schedule.steps", "4", "--schedule.max-staleness", "0", "--schedule.prompts-per-step", "8"),
    *("--schedule.samples-per-prompt", "4", "--sampling.max-tokens", "24", "--generator.slots", "32"),
    *("--evaluation.num-prompts", "0", "--threads", "1", "--watch.window", "2"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The demo's model says nothing but those words, which the control never says."""
    control = tmp_path / "control.jsonl"
    control.write_text("".join(json.dumps({"prompt": str(n), "completion": "Well, then."}) + "\n" for n in range(200)))
    path = tmp_path / "recipe.toml"
    text = recipe_path("demo").read_text().replace('"../tasks', f'"{recipe_path("demo").parent.parent}/tasks')
    monitor = f'[[watch.monitors]]\nsignal = "phrases"\nname = "words"\nphrases = {json.dumps(list(WORDS))}\n'
    quiet = '[[watch.monitors]]\nsignal = "emoji"\n'
    assert "[watch]" not in text
    path.write_text(f'{text}\n[watch]\ncontrol = "control.jsonl"\n{monitor}{quiet}')
    return path


def test_a_monitor_that_passes_its_stop_ends_the_run_with_a_checkpoint_and_status_1(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--run-dir", str(run), "--quiet", *TINY]) == 1
    error = capsys.readouterr().err
    assert (
        "error: task default, step 1: words: " in error and "of responses have a phrase, 0.00% of the control" in error
    )
    assert "beyond 2 times" in error and "watch.monitors" in error
    assert (run / "checkpoints" / "step_000001").is_dir()
    messages = (run / "messages.log").read_text()
    assert "possible reward hacking in task default: step 1: words: " in messages
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["watch/monitor/words/level"] == 2.0 and last["watch/monitor/emoji/level"] == 0.0
    assert last["watch/monitor/words/value"] > 0.5 and last["watch/monitor/words/control"] == 0.0
    assert main(["view", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "monitors, against the control" in shown and "stops" in shown and "quiet" in shown
    assert "the monitor words passed its stop" in shown
    # still beyond its stop, it stops again; what was meant goes on, under another stop
    assert main(["resume", str(run), "--quiet"]) == 1
    monitor = f'{{signal = "phrases", name = "words", phrases = {json.dumps(list(WORDS))}, stop = 1e6}}'
    assert main(["resume", str(run), "--quiet", "--watch.monitors", f"[{monitor}]"]) == 0


def test_a_monitor_without_a_stop_warns_and_the_run_goes_on(recipe: Path, tmp_path: Path) -> None:
    plain = Recipe.load(recipe, TINY)
    monitors = [{"signal": "phrases", "name": "words", "phrases": list(WORDS), "stop": None}]
    warned = Recipe.parse({**plain.record(), "watch": {**plain.record()["watch"], "monitors": monitors}})
    train(warned, tmp_path / "run")
    text = (tmp_path / "run" / "messages.log").read_text()
    assert text.count("possible reward hacking in task default: step ") == 1
    with pytest.raises(HackingError, match="words"):
        train(plain, tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("", "no responses"), ('{"prompt": "a"}\n', "line 1"), ("[1]\n", "line 1")],
)
def test_a_control_that_cannot_be_read_is_refused_before_the_run(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    control = tmp_path / "control.jsonl"
    control.unlink()
    if content is not None:
        control.write_text(content)
    assert main(["train", str(recipe), "--run-dir", str(tmp_path / "run"), *TINY]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
