"""Which points are dominated, by how much, and the figure that shows it."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from experiments.common import COLOURS, Done

Point = Sequence[float]


def is_dominated(point: Point, others: Sequence[Point]) -> bool:
    """Whether another point is at least as good in everything and better in something."""
    return any(
        all(o >= p for o, p in zip(other, point, strict=True)) and tuple(other) != tuple(point) for other in others
    )


def lead(point: Point, others: Sequence[Point]) -> float:
    """How far a point lies beyond the front of the others; below 0: how far it is inside.

        min over others of  max over coordinates of  point - other

    What it could lose in every coordinate before one of the others is as good in all (the additive epsilon indicator).
    """
    return min(max(p - o for p, o in zip(point, other, strict=True)) for other in others)


def hypervolume(points: Sequence[Point]) -> float:
    """Area of what the points dominate above (0, 0); coordinates of at least 0."""
    area, height = 0.0, 0.0
    for x, y in sorted(((x, y) for x, y in points), reverse=True):
        if y > height:
            area, height = area + x * (y - height), y
    return area


def draw(runs: Sequence[Done], panels: Mapping[str, str], x: str, path: Path) -> None:
    """One panel per number of `panels` (name -> title) against `x`: seeds as dots, their mean as a large mark."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.8 * len(panels), 4.2), squeeze=False, sharex=True, layout="constrained"
    )
    for axis, (y, title) in zip(axes.flat, panels.items(), strict=True):
        for arm, (colour, mark) in looks(dict.fromkeys(run.arm for run in runs)).items():
            found = [(run.numbers[x], run.numbers[y]) for run in runs if run.arm == arm]
            mean = tuple(map(fmean, zip(*found, strict=True)))
            axis.scatter(*zip(*found, strict=True), s=12, color=colour, alpha=0.5, linewidths=0)
            axis.scatter(*mean, s=90, color=colour, marker=mark)
            axis.annotate(arm, mean, xytext=(6, 6), textcoords="offset points", fontsize=8)
        axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
        axis.set_xlabel("pass rate, mean of format and sums")
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    print(f"figure: {path}")


def looks(arms: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and mark of each arm, by its algorithm."""
    return {arm: (COLOURS[0], "o") if arm.startswith("ppo") else (COLOURS[1], "*") for arm in arms}
