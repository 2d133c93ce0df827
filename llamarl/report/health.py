"""Warnings, in words, about what in a run's metrics a person should look at."""

from collections.abc import Sequence
from statistics import fmean, median

from llamarl.core import metric_names as names
from llamarl.report.files import Record
from llamarl.report.metrics import column
from llamarl.report.monitors import last_readings
from llamarl.report.names import describe
from llamarl.report.text import format_number

RECENT = 20
"""Records that count as recent."""


def warnings_of(metrics: Sequence[Record]) -> list[str]:
    """Sentences on non-finite values, skipped updates, drops, judges, signal, length, entropy, gradients, monitors."""
    found = [*_check_finite(metrics), *_check_skips(metrics), *_check_drops(metrics), *_check_judges(metrics)]
    found += [*_check_levels(metrics), *_check_entropy(metrics), *_check_gradient(metrics)]
    return [*found, *_check_monitors(metrics)]


def _check_finite(metrics: Sequence[Record]) -> list[str]:
    bad = [record for record in metrics if record.get(names.NONFINITE)]
    if not bad:
        return []
    which = sorted({name for record in bad for name, value in record.items() if value is None})
    return [
        f"{len(bad)} records hold NaN or infinite values, the last at step {bad[-1]['step']}: {', '.join(which[:4])}"
    ]


def _check_skips(metrics: Sequence[Record]) -> list[str]:
    steps = [step for step, value in zip(*column(metrics, names.SKIPPED_NONFINITE), strict=True) if value > 0]
    return [f"updates were skipped for a non-finite loss or gradient, last at step {steps[-1]}"] if steps else []


def _check_drops(metrics: Sequence[Record]) -> list[str]:
    last = {name: (column(metrics, name)[1] or [0.0])[-1] for name in (names.DATA_ISSUED, names.DATA_DROPPED)}
    issued, dropped = last[names.DATA_ISSUED], last[names.DATA_DROPPED]
    if issued > 0 and dropped > 0.1 * issued:
        return [f"{dropped / issued:.0%} of the prompts issued were dropped ({format_number(dropped)})"]
    return []


def _check_judges(metrics: Sequence[Record]) -> list[str]:
    keys = {name for record in metrics[-RECENT:] for name in record if name.endswith("/error_rate")}
    rates = {name: fmean(column(metrics[-RECENT:], name)[1] or [0.0]) for name in sorted(keys)}
    return [f"{describe(name).title} in {rate:.0%} of recent verdicts" for name, rate in rates.items() if rate > 0.02]


_LEVELS = (
    (names.TRUNCATED, 0.3, "of recent completions were cut by the token limit; raise sampling.max_tokens"),
    (names.FRAC_ZERO_STD, 0.8, "of recent groups have equal rewards and teach nothing; change the prompts' difficulty"),
    (names.MISMATCH_KL, 0.05, "is the recent mismatch KL: generator and trainer disagree about the same tokens"),
)


def _check_levels(metrics: Sequence[Record]) -> list[str]:
    found = []
    for name, limit, sentence in _LEVELS:
        values = column(metrics[-RECENT:], name)[1]
        if values and fmean(values) > limit:
            level = fmean(values)
            found.append(f"{format_number(level) if name == names.MISMATCH_KL else format(level, '.0%')} {sentence}")
    return found


def _check_entropy(metrics: Sequence[Record]) -> list[str]:
    values = column(metrics, names.ENTROPY)[1]
    if len(values) <= 10 + RECENT or values[9] <= 0:
        return []
    share = fmean(values[-RECENT:]) / values[9]
    return [f"entropy fell to {share:.0%} of its value at the tenth record; the policy narrows"] if share < 0.2 else []


def _check_monitors(metrics: Sequence[Record]) -> list[str]:
    """The monitors that rang when they looked last."""
    found = []
    for each in last_readings(metrics):
        if each.level:
            verb = "passed its stop" if each.level > 1 else "warns"
            found.append(f"the monitor {each.name} {verb}: {format_number(each.ratio)} times the control's")
    return found


def _check_gradient(metrics: Sequence[Record]) -> list[str]:
    steps, values = column(metrics, names.GRAD_NORM)
    if len(values) < 10:
        return []
    usual = median(values[-50:])
    spikes = [step for step, value in zip(steps[-50:], values[-50:], strict=True) if usual > 0 and value > 10 * usual]
    return [f"gradient norm over ten times its median, last at step {spikes[-1]}"] if spikes else []
