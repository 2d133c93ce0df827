"""Figures of instruction-following evaluations, from the plain values of their `results.json`.

One row per language, so that its name stands once: accuracy after each turn, what was forgotten, what was recovered.
A filled dot is official mode, an open one fixed mode; lines are 95% intervals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llamarl.report.plots import BLUE, GREEN, GREY, INK, LIGHT, ORANGE, PURPLE, RED, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TURN_COLOURS = (BLUE, ORANGE, RED)
PAIR_COLOURS = (PURPLE, GREEN)
FOUR = (("strict", "conversation"), ("strict", "instruction"), ("loose", "conversation"), ("loose", "instruction"))
CHANGES = {"ifr_percent": "Forgotten, % of followed", "ecr_percent": "Recovered, % of not followed"}
WIDTH_INCHES = 13
ROW_INCHES = 0.62
ROW_SHARE = 0.62
"""The share of a row's height that dots take up."""

Rate = Mapping[str, Any]
"""`{"value", "low", "high"}`."""
Series = Sequence[tuple[str, str]]
"""Label and colour of each dot of a row."""


def plot_accuracy(results: Mapping[str, Any], path: str | Path) -> Path:
    """Draws an evaluation: by language and turn; by type of instruction where there is one language and one turn.

    Args:
        results: of `evals.results.build_results`.
        path: of the PNG.

    Returns:
        The path.
    """
    model = ((results.get("generation") or {}).get("chat") or {}).get("model")
    data, is_plain = results["data"], len(_turns(results)) == 1 and len(_rows(results)) == 1
    title = f"{results['benchmark']}{f': {model}' if model else ''}"
    with drawing(path, WIDTH_INCHES, 8.2 if is_plain else _height(results)) as figure:
        counts = f"{data['conversations']:,} conversations, {data['turns']:,} turns"
        _draw_title(figure, f"{title}   ({counts})", results)
        if is_plain:
            _draw_types(figure, results)
        else:
            panels = _draw_turns(figure, results)
            panels[0].set_xlim(*_fraction_limits(panels[0]))
            for panel in panels[1:]:
                panel.set_xlim(0, max(5.0, panel.get_xlim()[1]))
    return Path(path)


def plot_comparison(comparison: Mapping[str, Any], path: str | Path) -> Path:
    """Draws the differences of two evaluations, by language and turn.

    Args:
        comparison: of `evals.comparison.compare`.
        path: of the PNG.

    Returns:
        The path.
    """
    results = {**comparison, "modes": _differences(comparison["modes"])}
    with drawing(path, WIDTH_INCHES, _height(results)) as figure:
        _draw_title(figure, f"{comparison['benchmark']}: {comparison['b']} minus {comparison['a']}", results)
        for panel in _draw_turns(figure, results):
            panel.axvline(0, color=INK, linewidth=1, zorder=1)
    return Path(path)


def _differences(tree: Any) -> Any:
    """The leaves of a comparison as rates of their own."""
    if not isinstance(tree, Mapping):
        return tree
    if "difference" in tree:
        return {"value": tree["difference"], "low": tree["low"], "high": tree["high"]}
    return {name: _differences(branch) for name, branch in tree.items()}


# ---- rows -----------------------------------------------------------------------------------------------------------


def _first_mode(results: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(iter(results["modes"].values()))
    return found


def _turns(results: Mapping[str, Any]) -> list[str]:
    return list(_first_mode(results)["pooled"]["turns"])


def _rows(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(group, label): languages, the best first, then both means of several."""
    languages = _first_mode(results)["languages"]
    order = sorted(languages, key=lambda name: -(languages[name]["mean_over_turns"]["value"] or 0))
    means = [("macro", "mean of\nlanguages"), ("pooled", "all\nconversations")] if len(order) > 1 else []
    return [*((name, results["language_names"].get(name, name)) for name in order), *means]


def _height(results: Mapping[str, Any]) -> float:
    return 2.0 + ROW_INCHES * len(_rows(results))


def _group(found: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group: Mapping[str, Any] = found[name] if name in ("macro", "pooled") else found["languages"][name]
    return group


# ---- panels ---------------------------------------------------------------------------------------------------------


def _draw_turns(figure: "Figure", results: Mapping[str, Any]) -> list["Axes"]:
    """Accuracy by turn, and where there are several turns what was forgotten and recovered; a row per group."""
    turns, rows = _turns(results), _rows(results)
    pairs = list(_first_mode(results)["pooled"].get("transitions", {}))
    ratios = (2.2, 1, 1) if pairs else (1,)
    panels = list(figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios, squeeze=False)[0])
    turn_series = [(f"turn {turn}", TURN_COLOURS[index]) for index, turn in enumerate(turns)]
    pair_series = [(f"turn {pair.replace('-', ' to ')}", PAIR_COLOURS[index]) for index, pair in enumerate(pairs)]
    marks = _Marks(list(results["modes"]))
    for mode, found in results["modes"].items():
        for row, (name, _) in enumerate(rows):
            group = _group(found, name)
            marks.draw(panels[0], row, mode, [group["turns"][turn]["overall"] for turn in turns], turn_series)
            for panel, rate in zip(panels[1:], CHANGES, strict=False):
                changes = [group["transitions"][pair]["strict"][rate] for pair in pairs]
                marks.draw(panel, row, mode, changes, pair_series, is_joined=False)
    _finish(panels[0], "Accuracy: mean of strict and loose, conversation and instruction", turn_series)
    for panel, title in zip(panels[1:], CHANGES.values(), strict=False):
        _finish(panel, title, pair_series)
    _name_rows(panels[0], [label for _, label in rows])
    for panel in panels:
        panel.tick_params(axis="y", length=0)
        if len(rows) > 1:
            panel.axhspan(len(rows) - 2.5, len(rows) - 0.5, color=LIGHT, alpha=0.45, linewidth=0, zorder=0)
    return panels


def _draw_types(figure: "Figure", results: Mapping[str, Any]) -> None:
    """One turn in one language: the four accuracies, and strict accuracy by type of instruction."""
    whole, types = figure.subplots(1, 2, width_ratios=(1, 1.5))
    sizes = {id: turns["all"]["of"] for id, turns in _first_mode(results)["instructions"].items()}
    order = sorted(sizes, key=lambda id: -_strict(_first_mode(results), id))
    marks = _Marks(list(results["modes"]))
    for mode, found in results["modes"].items():
        turn = found["pooled"]["turns"]["1"]
        for row, rate in enumerate([*(turn[kind][level] for kind, level in FOUR), turn["overall"]]):
            marks.draw(whole, row, mode, [rate], [("", BLUE)])
        for row, id in enumerate(order):
            if id in found["instructions"]:
                marks.draw(types, row, mode, [{"value": _strict(found, id), "low": None, "high": None}], [("", BLUE)])
    _finish(whole, "Accuracy", [])
    _finish(types, "Strict accuracy by type of instruction, and their number", [])
    _name_rows(whole, [*(f"{kind}, per {level}" for kind, level in FOUR), "mean of the four"])
    _name_rows(types, [f"{id}  {sizes[id]}" for id in order])
    whole.set_xlim(*_fraction_limits(whole))
    types.set_xlim(-0.02, 1.06)


def _strict(found: Mapping[str, Any], id: str) -> float:
    return float(found["instructions"][id]["all"]["strict"])


@dataclass(frozen=True, slots=True)
class _Marks:
    """Dots with intervals; the modes share a row, one under the other."""

    modes: Sequence[str]

    def draw(
        self, axes: "Axes", row: int, mode: str, rates: Sequence[Rate], series: Series, *, is_joined: bool = True
    ) -> None:
        """A dot for each rate, one under the other, joined by a thin line."""
        height = ROW_SHARE / len(self.modes)
        top = row - ROW_SHARE / 2 + height * self.modes.index(mode)
        points = []
        for index, (rate, (_, colour)) in enumerate(zip(rates, series, strict=True)):
            if rate["value"] is None:
                continue
            y = top + height * (index + 0.5) / len(rates)
            points.append((rate["value"], y))
            if rate["low"] is not None:
                axes.plot([rate["low"], rate["high"]], [y, y], color=colour, linewidth=1.3, alpha=0.65, zorder=2)
            face = "white" if mode == "fixed" else colour
            axes.plot(rate["value"], y, "o", color=colour, markerfacecolor=face, markersize=5, zorder=3)
            if len(self.modes) == 1:
                _label(axes, rate, y)
        if is_joined and len(points) > 1:
            axes.plot(*zip(*points, strict=True), color=GREY, linewidth=0.7, zorder=1)


def _label(axes: "Axes", rate: Rate, y: float) -> None:
    end = rate["value"] if rate["high"] is None else rate["high"]
    text = f"{rate['value']:.3f}" if abs(rate["value"]) <= 1 else f"{rate['value']:.1f}"
    axes.annotate(text, (end, y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=7, color=INK)


def _name_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)


def _finish(axes: "Axes", title: str, series: Series) -> None:
    axes.set_title(title, fontsize=9.5)
    axes.grid(axis="x", color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)
    for label, colour in series:
        axes.plot([], [], "o", color=colour, label=label)
    if len(series) > 1:
        _legend_below(axes, len(series))


def _legend_below(axes: "Axes", columns: int) -> None:
    """A legend under the tick labels, at a distance in inches: panels may be low or high."""
    from matplotlib.transforms import ScaledTranslation

    shift = ScaledTranslation(0, -0.3, axes.figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=axes.transAxes + shift,
        ncols=columns,
        fontsize=8.5,
        handletextpad=0.2,
    )


def _draw_title(figure: "Figure", title: str, results: Mapping[str, Any]) -> None:
    from matplotlib.lines import Line2D

    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    faces = {"official": INK, "google": INK, "fixed": "white"}
    dots = [
        Line2D([], [], marker="o", color=INK, markerfacecolor=faces[mode], linewidth=0) for mode in results["modes"]
    ]
    labels = [f"{mode} mode" for mode in results["modes"]]
    figure.legend(dots, labels, loc="upper right", ncols=2, fontsize=9, handletextpad=0.2)


def _fraction_limits(axes: "Axes") -> tuple[float, float]:
    """The drawn range, widened, within 0 and 1."""
    low, high = axes.get_xlim()
    return max(-0.02, low - 0.03), min(1.06, high + 0.04)
