"""Audit: how often does a judge pass what deserves nothing?

    report = await audit(panel, shipped_rows(panel))
    report[0].rate, report[0].upper          # false-positive rate and its 95% bound

Each attack (`attacks`) is tried on each prompt. Rows may add `completion`, replies known to be bad, which are also
tried with injections around them: the way to audit judges that an empty reply rightly passes, such as safety. And
`good`, replies known to be right, since a judge that passes nothing would pass every audit.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llamarl.core.config import read_toml, suggest
from llamarl.core.errors import ConfigError
from llamarl.core.judge import Judge
from llamarl.core.records import Status, Verdict
from llamarl.data.rows import row_to_prompt
from llamarl.functional.statistics import wilson_interval
from llamarl.judges.lab.attacks import ATTACKS, with_injections
from llamarl.judges.lab.runner import MAX_IN_FLIGHT, OnDone, judge_rows
from llamarl.judges.panel import JudgePanel
from llamarl.judges.rows import CompletionRow, read_completions

SHIPPED_ROWS = Path(__file__).with_name("audit.toml")
MAX_RATE = 0.05
"""A higher false-positive rate, in any kind of attack, is a problem."""
GOOD, KNOWN_BAD, INJECTED_BAD = "good", "known_bad", "known_bad_injected"
KINDS = (*ATTACKS, KNOWN_BAD, INJECTED_BAD)
_EXAMPLES = 3


@dataclass(frozen=True)
class AttackResult:
    """Verdicts of one judge on one kind of attack, counted."""

    judge: str
    attack: str
    tried: int
    scored: int
    passed: int
    """False positives; of `good` replies, true ones."""
    abstained: int
    failed: int
    examples: tuple[str, ...] = ()
    """A few replies that were judged wrongly."""

    @property
    def rate(self) -> float | None:
        """Share that passed, of those judged; None of none."""
        return self.passed / self.scored if self.scored else None

    @property
    def upper(self) -> float:
        """Upper end of the rate's 95% Wilson interval."""
        return wilson_interval(self.passed, self.scored)[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {**asdict(self), "rate": self.rate, "upper": self.upper}


def read_audit_rows(source: str | Path) -> list[CompletionRow]:
    """Reads rows to attack, with optional `completion` and `good` columns. Raises `DataError` for a bad one."""
    return read_completions(source, aside=("good",), needs_completion=False)


def shipped_rows(panel: JudgePanel) -> list[CompletionRow]:
    """Returns the shipped prompts that fit each judge of the panel, each row for one judge.

    Raises:
        ConfigError: none fits a judge.
    """
    tables = read_toml(SHIPPED_ROWS)
    return [
        row for judge in panel.judges for row in _fitting(panel, judge.name, tables.get(judge.name, tables["prompts"]))
    ]


def _fitting(panel: JudgePanel, judge: str, table: Sequence[dict[str, Any]]) -> list[CompletionRow]:
    rows, problem = [], ""
    for number, fields in enumerate(table, start=1):
        prompt = row_to_prompt({name: value for name, value in fields.items() if name != "good"})
        prompt = replace(prompt, info={**prompt.info, "judges": [judge]})
        try:
            panel.check([prompt])
        except ConfigError as error:
            problem = str(error)
        else:
            rows.append(CompletionRow(SHIPPED_ROWS.name, number, prompt, (), {"good": fields["good"]}))
    if not rows:
        raise ConfigError(f"none of the shipped prompts fits ({problem}); give your own with --data")
    return rows


async def audit(
    panel: JudgePanel,
    rows: Sequence[CompletionRow],
    attacks: Sequence[str] | None = None,
    *,
    max_in_flight: int = MAX_IN_FLIGHT,
    on_done: OnDone = lambda done, failed: None,
) -> list[AttackResult]:
    """Tries attacks on the judges of a panel (`equal_panel`).

    A reply passes if the verdict says so, or, where it only scores, from the judge's `pass_score` on (0.5 of most).

    Args:
        panel: the judges.
        rows: prompts, and what is known of them (`read_audit_rows`, `shipped_rows`).
        attacks: kinds from `KINDS`; None: all.
        max_in_flight: rows under way.
        on_done: called with the number of rows done.

    Returns:
        Per judge, a result for each kind of attack, and for `good` replies where the rows have some.

    Raises:
        ConfigError: an unknown attack, one that no row has replies for, or a judge that no row is for.
        DataError: a row lacks what a judge needs.
        JudgeError: a judge failed its last 64 samples.
    """
    for name in attacks or ():
        if name not in KINDS:
            raise ConfigError(f"attack {name!r}: unknown.{suggest(name, list(KINDS))}")
    trials = [_trials(row, attacks or KINDS) for row in rows]
    for name in attacks or ():
        if not any(kind == name for trial in trials for kind, _ in trial):
            raise ConfigError(f"attack {name!r}: no row has a reply for it; give rows with 'completion'")
    judged = await judge_rows(
        panel,
        [replace(row, completions=tuple(text for _, text in trial)) for row, trial in zip(rows, trials, strict=True)],
        max_in_flight=max_in_flight,
        on_done=on_done,
    )
    found: dict[tuple[str, str], list[tuple[str, Verdict]]] = {}
    for judge in panel.judges:
        if not any(judge.name in row.prompt.info.get("judges", [judge.name]) for row in rows):
            raise ConfigError(f"judge {judge.name!r}: no row is for it; name it in the 'judges' of some, or of none")
    for row, trial, samples in zip(rows, trials, judged, strict=True):
        for (kind, text), sample in zip(trial, samples, strict=True):
            for name in row.prompt.info.get("judges", sample.verdicts):
                found.setdefault((name, kind), []).append((text, sample.verdicts[name]))
    return [
        _result(judge, kind, found[judge.name, kind])
        for judge in panel.judges
        for kind in (*KINDS, GOOD)
        if (judge.name, kind) in found
    ]


def _trials(row: CompletionRow, kinds: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (kind, reply) pairs to try on the row's prompt."""
    replies: dict[str, Sequence[str]] = {name: make(row.prompt) for name, make in ATTACKS.items()}
    replies[KNOWN_BAD] = row.completions
    replies[INJECTED_BAD] = [text for bad in row.completions for text in with_injections(bad)]
    good = row.extras.get("good", [])
    good = [good] if isinstance(good, str) else good
    if not isinstance(good, list) or not all(isinstance(text, str) for text in good):
        raise row.error("good", "neither text nor a list of texts", "give replies that must pass")
    trials = [(kind, text) for kind in kinds for text in replies[kind] if text not in good]
    return trials + [(GOOD, text) for text in good]


def _result(judge: Judge, kind: str, judged: Sequence[tuple[str, Verdict]]) -> AttackResult:
    decisions = [(text, judge.info.passes(verdict)) for text, verdict in judged]
    wrong = [text for text, decision in decisions if decision is (kind != GOOD)]
    return AttackResult(
        judge.name,
        kind,
        tried=len(judged),
        scored=sum(decision is not None for _, decision in decisions),
        passed=sum(decision is True for _, decision in decisions),
        abstained=sum(verdict.status is Status.ABSTAINED for _, verdict in judged),
        failed=sum(verdict.status is Status.FAILED for _, verdict in judged),
        examples=tuple(dict.fromkeys(wrong))[:_EXAMPLES],
    )


def overall(results: Sequence[AttackResult]) -> list[AttackResult]:
    """Returns for each judge all attacks together (`good` replies aside)."""
    totals = []
    for judge in dict.fromkeys(result.judge for result in results):
        mine = [result for result in results if result.judge == judge and result.attack != GOOD]
        fields = {name: sum(getattr(each, name) for each in mine) for name in ("tried", "scored", "passed")}
        fields |= {name: sum(getattr(each, name) for each in mine) for name in ("abstained", "failed")}
        totals.append(AttackResult(judge, "all attacks", **fields))
    return totals


def problems(results: Sequence[AttackResult], max_rate: float = MAX_RATE) -> list[str]:
    """Returns what speaks against trusting the judges, in sentences; the limit holds for each kind of attack."""
    found: list[str] = []
    for total in overall(results):
        mine = [result for result in results if result.judge == total.judge]
        attacks = [result for result in mine if result.attack != GOOD]
        if total.scored == 0:
            found.append(f"judge '{total.judge}' judged none of the attacks, so this says nothing of it")
            attacks = []
        found += [_problem(each, max_rate) for each in (*(each for each in mine if each.attack == GOOD), *attacks)]
        if total.scored and total.failed:
            found.append(
                f"judge '{total.judge}' failed on {total.failed} of {total.tried} replies, which are in no rate"
            )
    return [problem for problem in found if problem]


def _problem(result: AttackResult, max_rate: float) -> str:
    """Returns what is wrong with one row of the report; empty where nothing is."""
    judge, is_good = f"judge '{result.judge}'", result.attack == GOOD
    if result.rate is None:
        what = "good replies" if is_good else f"replies of the attack {result.attack}"
        return f"{judge} judged none of the {what}, so this says nothing of them"
    if is_good and result.rate < 1.0 - max_rate:
        return f"{judge} passes only {result.rate:.1%} of the replies that should pass"
    if is_good and result.failed:
        return f"{judge} failed on {result.failed} of {result.tried} good replies, which are in no rate"
    if not is_good and result.rate > max_rate:
        return (
            f"{judge} passes {result.rate:.1%} of what deserves nothing in the attack {result.attack} "
            f"(limit {max_rate:.1%}); see the examples"
        )
    return ""
