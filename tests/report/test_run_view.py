import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llamarl.core.errors import DataError
from llamarl.report.health import warnings_of
from llamarl.report.rundir import read_run, total_steps
from llamarl.report.view import render_run, run_as_dict

START = 1_767_225_600.0


def page(run_dir: Path, columns: int = 100, **options: Any) -> str:
    console = Console(width=columns, file=io.StringIO(), record=True)
    console.print(render_run(run_dir, **options))
    return console.export_text()


def test_page_of_a_finished_run(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=60)
    (run_dir / "run.png").write_bytes(b"")
    (run_dir / "checkpoints" / "step_60").mkdir(parents=True)
    text = page(run_dir, ledger_counts={"issued": 980, "trained": 961})
    for part in (
        "finished  step 60/60", "held-out reward 0.170 → 0.910", "type=aipo, clip=2.0", "max_staleness=2", "python 3.",
        "staleness, max (versions)", "format: pass rate", "generator-0", "peak memory", "812 MiB", "median 3.00 ms",
        "16 dropped, 4 failed", "961 trained", "step 60, words, prompt p60", "✓ 1.00 cat dog sun sky",
        "fail: 2 words, wanted 4", "staleness 2", "run.png", "step_60", "step 1",
    ):  # fmt: skip
        assert part in text, part
    assert "warnings" not in text


@pytest.mark.parametrize("width", [50, 60, 80, 140])
def test_page_fits(example_run: Callable[..., Path], width: int) -> None:
    text = page(example_run(steps=30), width)
    assert max(map(len, text.split("\n"))) <= width


def test_page_takes_the_width_it_is_given(example_run: Callable[..., Path]) -> None:
    lines = page(example_run(steps=30), 200, width=70).split("\n")
    assert max(len(line.rstrip()) for line in lines) == 70


def test_messages_are_shown(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=3)
    (run_dir / "messages.log").write_text("".join(f"12:00 message {i}\x1b[2J\n" for i in range(9)))
    text = page(run_dir)
    assert "message 8␛[2J" in text and "message 4" in text and "message 3" not in text


def test_a_run_stopped_early_says_so(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=30)
    recipe = run_dir / "recipe.json"
    recipe.write_text(recipe.read_text().replace('"steps": 30', '"steps": 90'))
    text = page(run_dir)
    assert "stopped  step 30/90" in text and "ended at step 30 of 90" in text


def test_first_last_best_are_those_of_the_file(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=30)
    rewards = [json.loads(line)["rollout/reward/mean"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    stats = run_as_dict(run_dir)["metrics"]
    assert stats["rollout/reward/mean"] == {
        "first": rewards[0], "last": rewards[-1], "min": min(rewards), "max": max(rewards), "best": max(rewards),
        "count": 30,
    }  # fmt: skip
    assert stats["time/step"]["best"] == 0.7 and "best" not in stats["rollout/response_len/mean"]


def test_json_form_is_json(example_run: Callable[..., Path]) -> None:
    values = run_as_dict(example_run(steps=30), ledger_counts={"issued": 5})
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert (values["state"], values["step"], values["total_steps"]) == ("finished", 30, 30)
    assert values["summary"]["prompts_trained"] == 960 and values["ledger"] == {"issued": 5}
    assert values["utilisation"]["generator-0"] == pytest.approx(0.62 / 0.7, abs=0.01)
    assert values["recipe"]["algorithm"]["type"] == "aipo"


def test_crashed_run_with_torn_lines_is_shown_and_said_so(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=30, is_finished=False)
    for name in ("metrics.jsonl", "rollouts.jsonl", "timeline.jsonl"):
        content = (run_dir / name).read_bytes()
        (run_dir / name).write_bytes(content[:-7])
    text = page(run_dir)
    assert "stopped  step 29/30" in text
    assert text.count("cut off by a crash") == 3
    assert "crashed, was killed, or hangs" in text


def test_state_is_running_while_records_come(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=30, is_finished=False)
    last = START + 0.7 * 29
    assert read_run(run_dir, clock=lambda: last + 50).state == "running"
    assert read_run(run_dir, clock=lambda: last + 70).state == "stopped"


def test_a_summary_older_than_the_metrics_does_not_finish_the_run(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=30)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 31}\n')
    assert read_run(run_dir).summary is None


def test_a_run_before_its_first_step(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=1)
    for name in ("metrics.jsonl", "rollouts.jsonl", "timeline.jsonl", "summary.json", "environment.json"):
        (run_dir / name).unlink()
    assert "no step yet" in page(run_dir)
    (run_dir / "recipe.json").rename(run_dir / "other.json")
    (run_dir / "recipe.toml").write_text("name = 'x'\n[schedule]\nsteps = 7\n")
    assert total_steps(read_run(run_dir).recipe) == 7


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metrics.jsonl", b'{"step"\n{"step": 1}\n', r"metrics\.jsonl, line 1"),
        ("timeline.jsonl", b'{"executor": 3}\n', r"timeline\.jsonl, line 1: 'executor'"),
        ("rollouts.jsonl", b"{}\n", r"rollouts\.jsonl, line 1"),
        ("summary.json", b"{", r"summary\.json, line 1"),
        ("recipe.json", b"[]", r"recipe\.json: expected a JSON object"),
        ("environment.json", b"\xff", r"environment\.json"),
    ],
)
def test_a_broken_file_is_named(example_run: Callable[..., Path], name: str, content: bytes, said: str) -> None:
    run_dir = example_run(steps=3)
    (run_dir / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        render_run(run_dir)


def test_what_is_no_run_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        run_as_dict(tmp_path / "none")
    with pytest.raises(DataError, match=r"neither metrics\.jsonl nor a recipe"):
        run_as_dict(tmp_path)
    (tmp_path / "recipe.toml").write_text("a = ")
    with pytest.raises(DataError, match=r"recipe\.toml: Invalid value"):
        run_as_dict(tmp_path)


def test_untrusted_text_in_a_run_cannot_steer_the_terminal(example_run: Callable[..., Path]) -> None:
    run_dir = example_run(steps=3)
    log = run_dir / "rollouts.jsonl"
    evil = "\\u001b[2J[bold]evil"
    log.write_text(log.read_text().replace("cat dog", evil).replace("2 words", evil).replace("Write", evil))
    recipe = run_dir / "recipe.json"
    recipe.write_text(recipe.read_text().replace("aipo", evil))
    text = page(run_dir)
    assert "\x1b" not in text and text.count("␛[2J[bold]evil") == 5


def record(step: int, **values: float | None) -> dict[str, Any]:
    return {"step": step, **{name.replace("__", "/"): value for name, value in values.items()}}


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([record(4, nonfinite=1, train__kl_ref=None)], "the last at step 4: train/kl_ref"),
        ([record(3, train__skipped_nonfinite=1), record(4, train__skipped_nonfinite=0)], "last at step 3"),
        ([record(1, data__issued=100, data__dropped=11)], "11% of the prompts"),
        ([record(1, judge__x__error_rate=0.2)], "x: failed in 20%"),
        ([record(1, rollout__truncated_frac=0.5)], "50% of recent completions"),
        ([record(1, rollout__frac_zero_std=0.9)], "90% of recent groups"),
        ([record(1, train__mismatch_kl=0.2)], "0.200 is the recent mismatch"),
        ([record(i, train__entropy=1.0 if i < 15 else 0.1) for i in range(1, 50)], "entropy fell to 10%"),
        ([record(i, train__grad_norm=11.0 if i == 12 else 1.0) for i in range(1, 20)], "last at step 12"),
    ],
)
def test_each_sign_of_trouble_is_said(records: list[dict[str, Any]], said: str) -> None:
    (warning,) = warnings_of(records)
    assert said in warning


def test_a_healthy_run_has_no_warnings(example_run: Callable[..., Path]) -> None:
    assert warnings_of(read_run(example_run(steps=60)).metrics) == []
    assert warnings_of([]) == []
