"""What experiments share: arms and seeds, runs that resume, intervals, a result file, a figure.

An experiment is a set of arms; an arm makes a recipe from a seed. Every (arm, seed) is one run with a directory of its
own below `experiments/runs/`, so a killed experiment goes on with the runs it lacks when it is started again.
"""

import argparse
import fcntl
import hashlib
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scipy import stats

from llamarl.controller.recipe import Recipe
from llamarl.controller.run import train
from llamarl.report.environment import environment_record
from llamarl.report.files import write_json
from llamarl.report.metrics import read_metrics

HERE = Path(__file__).parent
Curves = list[Mapping[str, Any]]
"""The records of a run's `metrics.jsonl`."""
TUNING_SEEDS = range(3)
WORLDS = HERE / "runs" / "worlds"
"""Checkpoints and data that runs start from, made once each; `--fresh` leaves them."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#333333", "#8A8A8A")


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds with its 95 % interval (Student's t)."""

    mean: float
    half_width: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Of one value per seed; without width for a single one."""
        mean, count = statistics.fmean(values), len(values)
        if count < 2:
            return cls(mean, math.nan, count)
        error = statistics.stdev(values) / math.sqrt(count)
        return cls(mean, float(stats.t.ppf(0.975, count - 1)) * error, count)

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.half_width:.3f}"


@dataclass(frozen=True, slots=True)
class Done:
    """One finished run."""

    arm: str
    seed: int
    seconds: float
    curves: Curves
    numbers: Mapping[str, float]
    """What the experiment measured of it."""


class Experiment:
    """One experiment: its command line, its runs, its result file.

    Args:
        name: of `results/NAME.json` and `results/NAME.png`.
        description: for `--help`.
        module: where its command is, below `experiments`, if not in the module of that name.
        seeds: what is reported; `--tune` runs seeds 0 to 2 instead, and writes no result. None: seeds 0, 1, ... are
            reported, as many as `--seeds` says.
    """

    def __init__(
        self, name: str, description: str | None, module: str | None = None, seeds: Sequence[int] | None = None
    ) -> None:
        self.name, self._seeds = name, seeds
        self.parser = argparse.ArgumentParser(
            prog=f"python -m experiments.{module or name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if seeds is None:
            self.parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ... (default 3)")
        else:
            self.parser.add_argument("--tune", action="store_true", help="seeds 0 to 2, for trying; writes no result")
        self.parser.add_argument("--arms", help="only these, separated by commas")
        self.parser.add_argument("--steps", type=int, help="shorter runs, to try the code; writes no result")
        self.parser.add_argument("--fresh", action="store_true", help="forget the runs that are there")

    def start(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parses the command line."""
        self.options = self.parser.parse_args(arguments)
        self.folder = HERE / "runs" / (self.name if self.options.steps is None else f"{self.name}-try")
        if self.options.fresh or self.options.steps is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.options

    def run(
        self, arms: Mapping[str, Callable[[int], Recipe]], measure: Callable[[Curves], Mapping[str, float]]
    ) -> list[Done]:
        """Every arm with every seed, seed by seed so that an early end still compares arms."""
        return [self._run(name, seed, arms[name], measure) for seed in self.seeds for name in self.choose(arms)]

    @property
    def seeds(self) -> Sequence[int]:
        """The seeds that this command runs."""
        if self._seeds is None:
            return range(self.options.seeds)
        return TUNING_SEEDS if self.options.tune else self._seeds

    def choose(self, arms: Iterable[str]) -> list[str]:
        """The arms that this command runs."""
        return [arm for arm in arms if not self.options.arms or arm in self.options.arms.split(",")]

    def _run(
        self,
        name: str,
        seed: int,
        make_recipe: Callable[[int], Recipe],
        measure: Callable[[Curves], Mapping[str, float]],
    ) -> Done:
        directory, started = self.folder / f"{name}-{seed}", time.monotonic()
        mark = directory / "experiment.json"
        if not mark.exists():
            shutil.rmtree(directory, ignore_errors=True)
            recipe = make_recipe(seed)
            if self.options.steps is not None:
                recipe = recipe.model_copy(
                    update={"schedule": recipe.schedule.model_copy(update={"steps": self.options.steps})}
                )
            summary, _ = train(recipe, directory)
            if summary.steps < recipe.schedule.steps:
                raise SystemExit(f"{name}, seed {seed}: stopped at step {summary.steps}; the same command goes on")
            write_json(mark, {"arm": name, "seed": seed, "seconds": round(time.monotonic() - started, 1)})
        curves = [dict(record) for record in read_metrics(directory / "metrics.jsonl")]
        numbers = measure(curves)
        done = Done(name, seed, time.monotonic() - started, curves, numbers)
        self.say(done)
        return done

    @staticmethod
    def say(run: Done) -> None:
        """Prints what was measured of a run."""
        numbers = "  ".join(f"{key} {value:.3f}" for key, value in run.numbers.items())
        print(f"{run.arm:24} seed {run.seed}  {run.seconds:6.0f} s  {numbers}", flush=True)

    @property
    def is_try(self) -> bool:
        """True where this command writes no result."""
        return self.options.steps is not None or (self._seeds is not None and self.options.tune)

    def finish(
        self,
        runs: Sequence[Done],
        notes: Sequence[str] = (),
        compared: Sequence[tuple[str, str]] = (),
        **more: Any,
    ) -> None:
        """Prints the means and writes the result file, unless this was a short try.

        Args:
            runs: all of them.
            notes: sentences for the file.
            compared: pairs of arms whose differences, seed by seed, the file holds.
            more: further fields of the file.
        """
        arms = list(dict.fromkeys(run.arm for run in runs))
        means = {arm: self.intervals([run for run in runs if run.arm == arm]) for arm in arms}
        for arm, numbers in means.items():
            print(f"{arm:24} " + "  ".join(f"{key} {value}" for key, value in numbers.items()))
        if self.is_try:
            print("to try or to tune: no result written")
            return
        record = {
            "experiment": self.name,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": self.parser.prog,
            "environment": environment_record(HERE),
            "settings": self.settings(),
            "arms": {
                arm: {k: {"mean": v.mean, "half_width": v.half_width, "seeds": v.count} for k, v in numbers.items()}
                for arm, numbers in means.items()
            },
            "runs": [{"arm": run.arm, "seed": run.seed, **run.numbers} for run in runs],
            "differences": differences([{"arm": r.arm, "seed": r.seed, **r.numbers} for r in runs], compared),
            "notes": list(notes),
            **more,
        }
        write_json(HERE / "results" / f"{self.name}.json", record)

    def settings(self) -> dict[str, Any]:
        """Of every arm, the recipe of its first run, and digests of those of all its runs, whose seeds differ."""
        found: dict[str, Any] = {}
        for path in sorted(self.folder.glob("*/recipe.json")):
            arm, _, seed = path.parent.name.rpartition("-")
            text = path.read_text()
            # files of the recipe as seen from the repository: where that lies is nobody's business
            recipe = json.loads(text.replace(f"{HERE.parent}/", ""))
            of_arm = found.setdefault(arm, {"recipe": recipe, "sha256": {}})
            of_arm["sha256"][seed] = hashlib.sha256(text.encode()).hexdigest()
        return found

    @staticmethod
    def intervals(runs: Sequence[Done]) -> dict[str, Interval]:
        """Each number's mean and interval over the runs (the seeds of one arm)."""
        return {key: Interval.of([run.numbers[key] for run in runs]) for key in runs[0].numbers}

    def plot(self, runs: Sequence[Done], panels: Mapping[str, str], smooth: int = 5) -> None:
        """One panel per metric (name -> title): each arm's mean over seeds against the step, with the seeds' range."""
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib import pyplot

        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(4.6 * columns, 3.4 * rows), squeeze=False, layout="constrained"
        )
        for axis, (metric, title) in zip(axes.flat, panels.items(), strict=False):
            for colour, arm in zip(COLOURS, dict.fromkeys(run.arm for run in runs), strict=False):
                lines = [curve(run.curves, metric, smooth) for run in runs if run.arm == arm]
                steps = sorted(set.intersection(*(set(line) for line in lines)))
                values = [[line[step] for line in lines] for step in steps]
                axis.plot(steps, [statistics.fmean(each) for each in values], color=colour, label=arm)
                axis.fill_between(
                    steps, [min(e) for e in values], [max(e) for e in values], color=colour, alpha=0.15, linewidth=0
                )
            axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
            axis.set_xlabel("step")
            axis.spines[["top", "right"]].set_visible(False)
        for axis in list(axes.flat)[len(panels) :]:
            axis.set_visible(False)
        axes.flat[0].legend(fontsize=8, frameon=False)
        figure.savefig(self.figure_path, dpi=150)
        print(f"figure: {self.figure_path}")

    @property
    def figure_path(self) -> Path:
        """Where the figure goes; that of a short try stays with its runs."""
        return self.folder / "figure.png" if self.is_try else HERE / "results" / f"{self.name}.png"


def differences(runs: Sequence[Mapping[str, Any]], compared: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Each number of one arm minus another's, seed by seed, with the 95 % interval of the mean.

    Args:
        runs: with `arm`, `seed` and numbers.
        compared: pairs of arms, the second to be subtracted.
    """
    by_arm: dict[str, dict[int, Mapping[str, Any]]] = {}
    for run in runs:
        by_arm.setdefault(run["arm"], {})[run["seed"]] = run
    found = []
    for arm, minus in compared:
        seeds = sorted(by_arm.get(arm, {}).keys() & by_arm.get(minus, {}).keys())
        both = [] if not seeds else [by_arm[each][seeds[0]] for each in (arm, minus)]
        names = [name for name in (both[0] if both else ()) if name in both[1] and name not in ("arm", "seed")]
        for name in names:
            values = [by_arm[arm][seed][name] - by_arm[minus][seed][name] for seed in seeds]
            interval = Interval.of(values)
            found.append(
                {
                    "arm": arm,
                    "minus": minus,
                    "number": name,
                    "mean": interval.mean,
                    "half_width": interval.half_width,
                    "seeds": interval.count,
                }
            )
    return found


def made_once(directory: Path, make: Callable[[Path], object]) -> Path:
    """The directory that `make` fills. Several processes make it once; a killed one leaves nothing half done."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            draft = directory.with_suffix(".part")
            shutil.rmtree(draft, ignore_errors=True)
            make(draft)
            draft.rename(directory)
    return directory


def curve(records: Curves, metric: str, smooth: int = 1) -> dict[int, float]:
    """A metric by step, as the mean over the last `smooth` records that have it."""
    found = [(int(r["step"]), float(r[metric])) for r in records if r.get(metric) is not None]
    values = [value for _, value in found]
    return {step: statistics.fmean(values[max(0, i - smooth + 1) : i + 1]) for i, (step, _) in enumerate(found)}


def last(records: Curves, metric: str) -> float:
    """The newest value of a metric."""
    return next(float(r[metric]) for r in reversed(records) if r.get(metric) is not None)
