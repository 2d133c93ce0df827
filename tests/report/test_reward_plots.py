import struct
from pathlib import Path

from llamarl.functional.statistics import Bin
from llamarl.report.reward_plots import plot_reward_model


def test_a_training_is_drawn_wide_enough_to_read(tmp_path: Path) -> None:
    records = [{"step": n, "train/loss": 0.7 - n / 50, "train/accuracy": 0.5 + n / 50} for n in range(1, 20)]
    records[9] |= {"eval/loss": 0.5, "eval/accuracy": 0.7, "eval/accuracy/low": 0.6, "eval/accuracy/high": 0.8}
    answers = {"chosen": [(3.0, 1.0), (5.0, 2.0)], "rejected": [(4.0, -1.0)]}
    path = plot_reward_model(tmp_path / "a" / "x.png", records, [Bin(3, 0.6, 0.5), Bin(9, 0.9, 1.0)], answers, "t")
    assert struct.unpack(">II", path.read_bytes()[16:24]) == (1800, 1125)


def test_a_training_without_held_out_rows_is_drawn_too(tmp_path: Path) -> None:
    assert plot_reward_model(tmp_path / "x.png", [{"step": 1, "train/loss": 0.7}], [], {}, "t").exists()
    assert plot_reward_model(tmp_path / "y.png", [], [], {"chosen": []}, "t").exists()
