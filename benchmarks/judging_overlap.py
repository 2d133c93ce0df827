"""Whether judging hides behind generation and training: an asynchronous step with a slow judge against an instant one.

    python -m benchmarks.judging_overlap [--staleness 1 4] [--engine monarch]

The demo's model on the demo's prompts through the real controller (`asynchrony` describes the runs): a judge that takes
J seconds without a core, against the same judge at once, at the same staleness bound K. With instant judgements the
step is what generator and trainer need beside each other; `slow / instant` is what waiting for the judge adds to it.

    K = 4    five steps' worth of groups may be under way, more seconds than J: the generator has work meanwhile
    K = 1    for contrast: two steps' worth are fewer seconds than J, so by the staleness bound the run must wait:
             (generate + J + train) / 2 a step, whatever the controller does

`asynchrony` holds the same runs against a model with a core for each side; this asks what the judge costs, alone.
"""

from collections.abc import Callable
from functools import partial

from benchmarks.asynchrony import Measured, run_in_process
from benchmarks.common import Benchmark, paired_ratio, spread, take_turns

THREADS = 2
INSTANT, SLOW = 0, 1
"""Seconds of the judges."""


def runner(benchmark: Benchmark, latency: int, staleness: int, engine: str, steady: int) -> Callable[[], Measured]:
    """One run with as many steps in the steady state, those before and after it not counted."""

    def run() -> Measured:
        benchmark.note(f"judge {latency} s, staleness {staleness}")
        return run_in_process(latency, staleness, THREADS, engine, steady + 2 * staleness + 3)

    return run


def main() -> None:
    benchmark = Benchmark("judging_overlap", __doc__, repeats=4, quick_repeats=1)
    benchmark.parser.add_argument("--staleness", nargs="+", type=int, default=[4], help="bounds K (default 4)")
    benchmark.parser.add_argument("--engine", default="inprocess", choices=["inprocess", "monarch"])
    options = benchmark.start()
    run = partial(runner, benchmark, engine=options.engine, steady=10 if options.quick else 30)
    runs = {(j, k): run(latency=j, staleness=k) for k in options.staleness for j in (INSTANT, SLOW)}
    results = take_turns({f"{j} {k}": work for (j, k), work in runs.items()}, options.repeats, warm_up=0)
    rows, headlines = [], {}
    for k in options.staleness:
        instant, slow = results[f"{INSTANT} {k}"], results[f"{SLOW} {k}"]
        steps = {name: [each["step"] for each in column] for name, column in (("instant", instant), ("slow", slow))}
        ratio = paired_ratio(steps["slow"], steps["instant"])
        rows.append(
            {
                "K": k,
                "step, instant judge, s": spread(steps["instant"]),
                f"step, judge of {SLOW} s, s": spread(steps["slow"]),
                "slow / instant": ratio,
                "(K + 1) steps, s": round((k + 1) * spread(steps["instant"])["median"], 3),
                "staleness mean, instant": round(sum(each["staleness mean"] for each in instant) / len(instant), 2),
                "staleness mean, slow": round(sum(each["staleness mean"] for each in slow) / len(slow), 2),
            }
        )
        headlines[f"K={k} slow / instant"] = ratio["median"]
    benchmark.finish(
        rows, headlines, [f"{options.engine}, {THREADS} threads; {int(slow[0]['steps'])} counted steps a run"]
    )


if __name__ == "__main__":
    main()
