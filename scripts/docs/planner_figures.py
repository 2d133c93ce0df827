"""The planner's figures in docs/assets. Other versions of matplotlib draw other bytes, so no check compares them.

Run it as python scripts/docs/planner_figures.py.
"""

from pathlib import Path

from llamarl.planner.cost import default_rates
from llamarl.planner.devices import find_device
from llamarl.planner.public import LADDER, public_rows
from llamarl.planner.shapes import public_shape
from llamarl.planner.theory import share_lost, throughput_gain
from llamarl.report.plan_plots import draw_shares, draw_speedups

ASSETS = Path(__file__).resolve().parents[2] / "docs" / "assets"
MODELS = ("llama-3.1-8b", "qwen3-32b", "llama-3.1-70b", "llama-3.1-405b")
DEVICES = (16, 32, 64, 128, 256, 512, 1024)


def main() -> None:
    """Draws both."""
    curves: dict[str, list[float]] = {}
    for label, precisions in (("bf16 on both sides", ("bf16",)), ("fp8 generators allowed", ("bf16", "fp8"))):
        gains = [
            throughput_gain(public_shape(name), find_device("h100"), default_rates(), LADDER, precisions)
            for name in MODELS
        ]
        curves[f"the theorem's setting, {label}"] = [synchronous / asynchronous for synchronous, asynchronous in gains]
    paper = {row["model"]: row["synchronous_seconds"] / row["asynchronous_seconds"] for row in public_rows()["ladder"]}
    curves["the paper's table"] = [paper.get(name, float("nan")) for name in MODELS]
    print({label: [round(value, 2) for value in values] for label, values in curves.items()})
    title = "Synchronous / asynchronous device-seconds per sample"
    draw_speedups(ASSETS / "asynchrony-sizes.png", MODELS, curves, title, "ratio")
    shares = [share_lost(devices) for devices in DEVICES]
    print(dict(zip(DEVICES, shares, strict=True)))
    title = "Random cases in which whole instances take the advantage away"
    draw_shares(ASSETS / "asynchrony-devices.png", DEVICES, shares, title, "devices")


if __name__ == "__main__":
    main()
