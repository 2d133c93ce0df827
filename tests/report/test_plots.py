import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from llamarl.core.errors import DataError
from llamarl.report.metrics import JsonlSink
from llamarl.report.plots import plot_run, smooth


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def test_smooth_golden() -> None:
    # Width 3: (1+2)/2, (1+2+6)/3, (2+6+7)/3, (6+7)/2.
    assert smooth([1, 2, 6, 7], 3) == [1.5, 3.0, 5.0, 6.5]
    assert smooth([4, 5], 1) == [4, 5]


def test_a_whole_run_is_drawn_wide_enough_to_read(example_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = example_run(steps=40)
    assert plot_run(run_dir, run_dir / "figures" / "run.png") == run_dir / "figures" / "run.png"
    width, height = png_size(run_dir / "figures" / "run.png")
    assert width == 1800 and height >= 1200


def test_a_run_that_recorded_almost_nothing_is_drawn_too(tmp_path: Path) -> None:
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write(1, {"rollout/reward/mean": None, "perf/tokens_per_second": 0.0, "train/mismatch_kl": 0.0})
    plot_run(tmp_path, tmp_path / "run.png")
    sink.write(2, {"rollout/reward/mean": 0.5, "rollout/staleness/max": 0})
    sink.close()
    plot_run(tmp_path, tmp_path / "run.png")
    assert png_size(tmp_path / "run.png")[0] == 1800


def test_no_run_no_figure(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        plot_run(tmp_path / "none", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_run_with_monitors_has_a_panel_of_them(example_run: Callable[..., Path], tmp_path: Path) -> None:
    run_dir = example_run(steps=40)
    plot_run(run_dir, tmp_path / "without.png")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    with (run_dir / "metrics.jsonl").open("w") as file:
        for line in lines:
            record = json.loads(line)
            for name, ratio in (("farewell", 1.06 ** record["step"]), ("own_é", 0.0), ("ending", None)):
                prefix = f"watch/monitor/{name}/"
                record |= {f"{prefix}value": 0.1, f"{prefix}ratio": ratio, f"{prefix}level": float((ratio or 0) > 1.5)}
            file.write(json.dumps(record) + "\n")
    plot_run(run_dir, tmp_path / "with.png")
    (width, height), (other_width, other_height) = png_size(tmp_path / "with.png"), png_size(tmp_path / "without.png")
    assert width == other_width and height > other_height
