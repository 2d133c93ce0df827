"""Do the numbers of `llamarl feedback ab` err as often as they say? Simulated tests, in which the truth is known.

    python -m experiments.ab_calibration                   # every world, 2,000 tests each: 10 minutes on one core
    python -m experiments.ab_calibration --tests 100       # a short try; writes no result

Users differ in how much they write (lognormal: a few write most), in how readily they react (lognormal), and in the
days they come; reactions are rare. In an A/A test both arms are alike, and a share of 5 % may be found different. In a
test of power the arm multiplies every user's rate, and as many users take part as `plan` asked for. The always-valid
interval is looked at after each day, and counts as wrong if any look left out 0.

Writes `results/ab_calibration.json`; a run that was killed goes on with the worlds it lacks.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llamarl.functional import experiments as ab
from llamarl.functional.statistics import wilson_interval
from llamarl.report.environment import environment_record
from llamarl.report.files import read_json, write_json

HERE = Path(__file__).parent
RUNS = HERE / "runs" / "ab_calibration"
EXPECTED_CHANGE = 0.1
POWER = 0.8


@dataclass(frozen=True, slots=True)
class World:
    """What a test is like."""

    name: str
    users: int
    """Of each arm."""
    days: int
    messages_per_day: float
    """Mean over users."""
    rate: float
    """Reactions by messages shown."""
    activity: float = 0.8
    """Standard deviation of the log of a user's messages per day."""
    propensity: float = 1.0
    """Standard deviation of the log of a user's rate."""
    share: float = 0.5
    """Of users in the changed arm."""
    late: bool = True
    """Users come into the test over its first half, or all on the first day."""
    once: bool = False
    """A user who has reacted never does again: what they did speaks against what they will do."""
    change: float = 0.0
    """Relative, of every user's rate in the changed arm."""
    looks: int = 0
    """1 for a test that is looked at on its last day only; otherwise after each day."""


WORLDS = (
    World("usual", 2000, 14, 2.0, 0.02),
    World("rare", 3000, 14, 1.0, 0.01),
    World("heavy tails", 2000, 14, 2.0, 0.02, activity=1.3, propensity=1.3),
    World("small arm", 4000, 14, 2.0, 0.02, share=0.1),
    World("same users daily", 1000, 28, 3.0, 0.03, late=False),
    World("once", 2000, 14, 2.0, 0.02, once=True),
)
POWER_WORLDS = (
    World("power 10 %", 0, 14, 2.0, 0.02, late=False, looks=1, change=0.1),
    World("power 20 % heavy tails", 0, 14, 1.0, 0.015, activity=1.1, propensity=1.2, late=False, looks=1, change=0.2),
)

Users = tuple[NDArray[Any], NDArray[Any]]
"""Reactions and messages up to each day, [users, days] each."""


def draw_arm(world: World, rng: np.random.Generator, users: int, factor: float = 1.0) -> Users:
    """The users of one arm. Their mean rate over messages is the world's, times the factor."""
    activity = rng.lognormal(-(world.activity**2) / 2, world.activity, users)
    rate = world.rate * factor * rng.lognormal(-(world.propensity**2) / 2, world.propensity, users)
    joined = rng.integers(world.days // 2 + 1, size=users) if world.late else np.zeros(users, dtype=int)
    if world.looks == 1:
        shown = rng.poisson(activity * world.messages_per_day * (world.days - joined))[:, None]
    else:
        shown = rng.poisson((activity * world.messages_per_day)[:, None] * (np.arange(world.days) >= joined[:, None]))
    loved = rng.binomial(shown, np.minimum(rate, 0.9)[:, None])
    reactions, messages = (each.cumsum(axis=1).astype(float) for each in (loved, shown))
    return (np.minimum(reactions, 1.0), messages) if world.once else (reactions, messages)


def draw_test(world: World, seed: Sequence[int]) -> tuple[Users, Users]:
    """The changed arm and the control."""
    rng = np.random.default_rng(seed)
    users = round(2 * world.users * world.share)
    return draw_arm(world, rng, users, 1.0 + world.change), draw_arm(world, rng, 2 * world.users - users)


def moments_by_day(arm: Users) -> list[ab.Moments]:
    """Of the users who were there by each day."""
    reactions, messages = arm
    columns = (reactions, messages, messages > 0, reactions**2, reactions * messages, messages**2)
    return [ab.Moments(*day) for day in np.stack([column.sum(axis=0) for column in columns], axis=1).tolist()]


def resample(arm: Users, seed: Sequence[int], resamples: int) -> NDArray[Any]:
    """Resampled moments at the end."""
    reactions, messages = (each[:, -1] for each in arm)
    there = messages > 0
    codes, counts = np.unique(reactions[there] + 1j * messages[there], return_counts=True)  # quicker than rows
    return ab.resample_moments(np.stack([codes.real, codes.imag], axis=1), counts, seed, resamples)


def is_ever_found(treatment: Sequence[ab.Moments], control: Sequence[ab.Moments]) -> bool:
    """True if the always-valid interval leaves out 0 on any day."""
    for pair in zip(treatment, control, strict=True):
        estimate = ab.log_change(*pair)
        if estimate is not None and ab.is_settled(*pair):
            low, high = ab.always_valid_interval(estimate, EXPECTED_CHANGE)
            if low > 0.0 or high < 0.0:
                return True
    return False


def find(world: World, seed: Sequence[int], resamples: int) -> dict[str, bool]:
    """What one test finds."""
    arms = draw_test(world, seed)
    treatment, control = (moments_by_day(arm) for arm in arms)
    found = {
        "p": ab.difference_p(treatment[-1], control[-1]) < 0.05,
        "p of messages": ab.unclustered_p(treatment[-1], control[-1]) < 0.05,
        "p, any day": any(ab.difference_p(*pair) < 0.05 for pair in zip(treatment, control, strict=True)),
        "always valid, any day": is_ever_found(treatment, control),
    }
    if resamples:
        drawn = [resample(arm, [*seed, place], resamples) for place, arm in enumerate(arms)]
        low, high = ab.bootstrap_interval(treatment[-1], control[-1], *drawn)
        found["bootstrap"] = not (low <= 0.0 and (high is None or high >= 0.0))
    return found


def plan_users(world: World, seed: int = 0) -> tuple[int, float]:
    """The users of each arm that the power asks for, and the power that the plan promises with so many.

    Likeness and activity are measured on users of another draw, as on a log of last month.
    """
    reactions, messages = draw_arm(world, np.random.default_rng([seed, 99]), 200_000)
    moments = ab.Moments.of(reactions[:, -1], messages[:, -1])
    per_user = moments.size / moments.users
    effect = ab.design_effect(per_user, ab.user_correlation(moments), ab.activity_spread(moments))

    def power(users: int) -> float:
        return ab.Plan(moments.ratio, world.change, users * per_user, effect).power()

    low, high = 1, 1
    while power(high) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high, power(high)


def measure(world: World, tests: int, resamples: int) -> dict[str, Any]:
    """How often tests find a change, with Wilson's 95 % interval."""
    number = [each.name for each in (*WORLDS, *POWER_WORLDS)].index(world.name)
    found = [find(world, [number, seed], resamples) for seed in range(tests)]
    shares = {}
    for name in found[0]:
        count = sum(each[name] for each in found)
        shares[name] = {"share": count / tests, "interval": wilson_interval(count, tests), "tests": tests}
    return {"world": asdict(world), "resamples": resamples, "expected_change": EXPECTED_CHANGE, "found": shares}


def run_world(world: World, options: argparse.Namespace) -> dict[str, Any]:
    """The result of a world; one that an earlier run with the same numbers finished is read."""
    settings = {"tests": options.tests, "power_tests": options.power_tests, "resamples": options.resamples}
    path = RUNS / f"{world.name.replace(' ', '-').replace('%', 'percent')}.json"
    if path.exists() and (done := read_json(path))["settings"] == settings:
        return done
    started = time.monotonic()
    if world.change:
        users, promised = plan_users(world)
        found = measure(replace(world, users=users), options.power_tests, 0) | {"promised_power": promised}
    else:
        found = measure(world, options.tests, options.resamples)
    git = environment_record(HERE).get("git")
    write_json(path, {"settings": settings, "git": git, "seconds": round(time.monotonic() - started), **found})
    return read_json(path)


def calibration_table(result: Mapping[str, Any]) -> str:
    """How often tests find a change, in percent, a row a world; the docs show it."""
    names = ("p", "bootstrap", "p of messages", "p, any day", "always valid, any day")
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for each in result["results"]:
        cells = [f"{100 * each['found'][name]['share']:.1f} %" if name in each["found"] else "" for name in names]
        if each["world"]["looks"] == 1:  # its p is that of the only look
            cells[names.index("p, any day")] = ""
        lines.append(f"| {each['world']['name']} | {' | '.join(cells)} |")
    counts = sorted({each["found"]["p"]["tests"] for each in result["results"]})
    git = result["environment"].get("git") or {}
    made = f"{result['date'][:10]}, commit {str(git.get('commit', 'unknown'))[:7]}"
    return "\n".join([*lines, "", f"{' and '.join(f'{count:,}' for count in counts)} tests a row; {made}."])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=2000)
    parser.add_argument("--power-tests", type=int, default=4000)
    parser.add_argument("--resamples", type=int, default=399)
    parser.add_argument("--worlds", help="only these, separated by commas; writes no result")
    options = parser.parse_args()
    worlds = (*WORLDS, *POWER_WORLDS)
    chosen = options.worlds.split(",") if options.worlds else [each.name for each in worlds]
    results = []
    for world in (each for each in worlds if each.name in chosen):
        results.append(run_world(world, options))
        shares = "  ".join(f"{name} {each['share']:.4f}" for name, each in results[-1]["found"].items())
        print(f"{world.name:26} {results[-1]['world']['users']} users an arm  {shares}", flush=True)
    if options.tests < parser.get_default("tests") or options.worlds:
        print("no result written")
        return
    record = {
        "experiment": "ab_calibration",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "python -m experiments.ab_calibration",
        "environment": environment_record(HERE),
        "results": results,
    }
    write_json(HERE / "results" / "ab_calibration.json", record)


if __name__ == "__main__":
    main()
