"""Supervised training on several ranks: the numbers of one, and what is said of ranks that are lost."""

import os
import signal
from pathlib import Path
from typing import Any

import fit_cases as cases
import pytest
import torch
from rank_processes import run_ranks as run_forked
from tiny_rewards import language_model, marker_pairs

from llamarl.core.errors import CheckpointError, ConfigError, ExecutorLostError
from llamarl.models.checkpoint import load_classifier, load_model
from llamarl.report.metrics import read_metrics
from llamarl.training.fit import fit
from llamarl.training.objectives import SFT, PairObjective, RewardConfig, SFTConfig
from llamarl.training.rank_processes import run_ranks

NAMES = list(cases.cases())


class StopError(Exception):
    """Ends a training from outside."""


def stop_after(number: int) -> Any:
    def stop(step: int, *_: Any) -> None:
        if step == number:
            raise StopError

    return stop


def test_steps_scores_and_checkpoints_are_those_of_one_rank(tmp_path: Path) -> None:
    found = run_forked(cases.compare_fits, ["sft", "reward"], str(tmp_path), fsdp=2)[0]
    assert len(found) == 8
    for case, difference in found.items():
        assert difference <= 1e-5, case


@pytest.mark.slow
@pytest.mark.parametrize(("fsdp", "tp"), [(2, 1), (1, 2), (2, 2), (3, 1)])
def test_steps_scores_and_checkpoints_are_those_of_one_rank_on_other_layouts(
    fsdp: int, tp: int, tmp_path: Path
) -> None:
    for case, difference in run_forked(cases.compare_fits, NAMES, str(tmp_path), fsdp=fsdp, tp=tp)[0].items():
        assert difference <= 1e-5, case


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return language_model(tmp_path_factory.mktemp("models"))


ROWS = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in marker_pairs(12)]
SHORT = SFTConfig(
    num_steps=6, batch_size=4, learning_rate=3e-3, warmup_steps=0, held_out=3, evaluate_every=2, checkpoint_every=2,
    keep="loss",
)  # fmt: skip
TWO = SHORT.model_copy(update={"fsdp": 2})


def assert_same_weights(path: Path, other: Path, load: Any = load_model) -> None:
    ours, theirs = (dict(load(str(place)).named_parameters()) for place in (path, other))
    assert ours.keys() == theirs.keys()
    assert max(float((ours[name] - theirs[name]).detach().abs().max()) for name in ours) <= 1e-5


@pytest.mark.slow
def test_a_training_goes_on_with_other_ranks_and_ends_with_the_weights_of_one(model: str, tmp_path: Path) -> None:
    expected = fit(SFT(SHORT), model, ROWS, tmp_path / "alone")
    with pytest.raises(StopError):
        fit(SFT(SHORT), model, ROWS, tmp_path / "out", on_step=stop_after(3))
    steps: list[int] = []
    summary = fit(SFT(TWO), model, ROWS, tmp_path / "out", on_step=lambda step, *_: steps.append(step))
    assert steps == [3, 4, 5, 6]  # told once, by the first rank
    assert summary["ranks"] == 2 and summary["held_out"]["loss"] == pytest.approx(
        expected["held_out"]["loss"], abs=1e-5
    )
    assert summary["model_step"] == expected["model_step"]
    assert summary["trained_parameters"] == expected["trained_parameters"]
    assert [record["step"] for record in read_metrics(tmp_path / "out/metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(tmp_path / "out", tmp_path / "alone")


@pytest.mark.slow
def test_adapters_of_a_reward_model_are_merged_as_one_rank_merges_them(model: str, tmp_path: Path) -> None:
    settings = {"num_steps": 3, "batch_size": 4, "lora": {"rank": 2}, "learning_rate": 1e-2, "warmup_steps": 0}
    for name, ranks in (("alone", {}), ("two", {"ranks": 2, "fsdp": 2})):
        config = RewardConfig.model_validate({**settings, **ranks})
        fit(PairObjective(config), model, marker_pairs(12), tmp_path / name)
    assert (tmp_path / "two/reward.png").exists()
    assert_same_weights(tmp_path / "two/model", tmp_path / "alone/model", load_classifier)


def pid_of_rank(number: int) -> int:
    """The process of a rank: those that this process has started come in their order."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    found = [int(pid) for pid in children if b"rank_processes" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return sorted(found)[number]


@pytest.mark.slow
def test_a_rank_that_dies_is_named_and_the_training_can_go_on(model: str, tmp_path: Path) -> None:
    def kill(step: int, *_: Any) -> None:
        if step == 3:
            os.kill(pid_of_rank(1), signal.SIGKILL)

    with pytest.raises(ExecutorLostError, match="rank 1 of 2 was ended by SIGKILL"):
        fit(SFT(TWO), model, ROWS, tmp_path / "out", on_step=kill)
    assert len(list((tmp_path / "out.partial/checkpoints").glob("step-*"))) == 1
    assert fit(SFT(SHORT), model, ROWS, tmp_path / "out")["steps"] == 6


@pytest.mark.slow
def test_a_rank_that_falls_silent_is_named() -> None:
    config = TWO.model_copy(update={"exchange_seconds": 40.0})
    with pytest.raises(ExecutorLostError, match=r"rank 1 of 2 no longer answers \(rank 0 lost touch"):
        run_ranks(cases.meet_then_fall_silent, config)


@pytest.mark.slow
def test_the_error_of_one_rank_is_raised_and_ends_the_others() -> None:
    with pytest.raises(ValueError, match="second"):
        run_ranks(cases.fail_on_the_second, TWO)


# rejects


def test_what_cannot_be_sent_to_other_processes_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be sent to other processes"):
        run_ranks(lambda ranks, tell: None, TWO)


def test_what_cannot_be_cut_up_is_refused_before_anything_is_written(model: str, tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"tp": 3})
    with pytest.raises(ConfigError, match=r"tp=3: .* cannot be cut into 3 equal parts"):
        fit(SFT(config), model, ROWS, tmp_path / "out")
    with pytest.raises(ConfigError, match="ranks=3, but fsdp=2 x tp=1 is 2"):
        SFTConfig.parse({"ranks": 3, "fsdp": 2})
    assert not list(tmp_path.iterdir())


def test_other_settings_still_make_another_training(model: str, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        fit(SFT(SHORT), model, ROWS, tmp_path / "out", on_step=stop_after(3))
    with pytest.raises(CheckpointError, match="seed=0, now 1"):
        fit(SFT(TWO.model_copy(update={"seed": 1})), model, ROWS, tmp_path / "out")


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
