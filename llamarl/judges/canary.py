"""Canaries: completions whose verdict is known. A judge that gets them wrong is broken, before a run or during it.

    [[judges]]
    function = "llm"
    canaries = "canaries.jsonl"

    {"prompt": "2 + 2 =", "answer": "4", "completion": ["4", "5", ""], "label": [true, false, false]}

Rows are those of `llamarl judge calibrate`. `CanaryWatch` shows them to the judge before the run, which a wrong verdict
ends, and again every so many groups, when a wrong verdict rings.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamarl.core.errors import ConfigError, JudgeError
from llamarl.core.judge import Judge
from llamarl.core.records import Prompt, Status, Verdict, text_completion
from llamarl.judges.panel import JudgePanel
from llamarl.judges.rows import labels_of, read_completions
from llamarl.judges.seat import Canary, Seat

MAX_IN_FLIGHT = 8
_SHOWN_CHARACTERS = 60


async def check_canaries(judge: Judge, cases: Sequence[tuple[Prompt, str]]) -> None:
    """Judges answers known to be right.

    Args:
        judge: any judge.
        cases: prompts with the text of a right answer each.

    Raises:
        JudgeError: an answer fails, scores 0 or less, or does not pass; or the judge abstains from all of them.
    """
    num_scored = 0
    for prompt, answer in cases:
        verdicts = await judge.judge(prompt, [text_completion(answer)])
        for verdict in verdicts:
            is_wrong = verdict.score is not None and (verdict.score <= 0 or verdict.passed is False)
            if verdict.status is Status.FAILED or is_wrong:
                raise JudgeError(
                    f"judge '{judge.name}' on the right answer {answer!r} to prompt {prompt.id!r}: {verdict}"
                )
            num_scored += verdict.score is not None
    if cases and not num_scored:
        raise JudgeError(f"judge '{judge.name}' abstained from all {len(cases)} right answers; does it fit this data?")


def read_canaries(path: str | Path) -> tuple[Canary, ...]:
    """Reads the canaries of a file: rows with `completion` and `label` (true: must pass), one or a list of each.

    Raises:
        ConfigError: there is no such file.
        DataError: a bad row, naming file, line and field.
    """
    if not Path(path).is_file():
        raise ConfigError(f"canaries={str(path)!r}: no such file; give rows with 'completion' and 'label'")
    canaries: list[Canary] = []
    for row in read_completions(path, aside=("label",)):
        if "label" not in row.extras:
            raise row.error("label", "missing", "give true where the completion must pass, or else false")
        pairs = zip(row.completions, labels_of(row), strict=True)
        canaries += [Canary(row.prompt, text, label == 1, f"{row.source}, line {row.line}") for text, label in pairs]
    return tuple(canaries)


@dataclass
class _Look:
    """Outcome of a judge's last look at its canaries."""

    num_groups: int = 0
    """Groups that the panel had judged then."""
    error_rate: float | None = None
    """Share of the canaries judged wrongly, of those judged; None where none was."""
    wrong: frozenset[int] = frozenset()
    """Indices of the canaries that got a wrong verdict."""


class CanaryWatch:
    """The canaries of a panel's judges, and what the judges made of them last."""

    def __init__(self, panel: JudgePanel) -> None:
        self._panel = panel
        self._looks = {seat.name: _Look() for seat in panel.seats if seat.canaries}

    async def look(self, *, during_run: bool = False) -> list[str]:
        """Lets the judges judge their canaries, which counts in no metric of the panel.

        Args:
            during_run: only those judges that have judged enough groups since the last time, and only what went wrong
                since; a judge that fails now is known by other signs.

        Returns:
            A sentence on each canary that got a wrong verdict, or none.
        """
        found: list[str] = []
        for seat in self._panel.seats:
            last = self._looks.get(seat.name)
            if last is None or (during_run and self._panel.num_groups - last.num_groups < seat.canaries_every):
                continue
            num_groups = self._panel.num_groups
            verdicts = await self._ask(seat)
            passes = [seat.judge.info.passes(verdict) for verdict in verdicts]
            wrong = {i for i, canary in enumerate(seat.canaries) if passes[i] is (not canary.should_pass)}
            unjudged = {i for i, passed in enumerate(passes) if passed is None}
            named = wrong - last.wrong if during_run else wrong | unjudged
            found += [_complain(seat, seat.canaries[i], verdicts[i]) for i in sorted(named)]
            num_judged = len(verdicts) - len(unjudged)
            rate = len(wrong) / num_judged if num_judged else None
            self._looks[seat.name] = _Look(num_groups, rate, frozenset(wrong))
        return found

    def metrics(self) -> dict[str, float | None]:
        """Returns `judge/<name>/canary_error_rate`: the share judged wrongly at the last look, of those judged."""
        return {f"judge/{name}/canary_error_rate": look.error_rate for name, look in self._looks.items()}

    async def _ask(self, seat: Seat) -> list[Verdict]:
        limit = asyncio.Semaphore(MAX_IN_FLIGHT)  # during a run the judge has groups to judge beside these

        async def ask(canary: Canary) -> Verdict:
            async with limit:
                return (await self._panel.ask(seat, canary.prompt, [text_completion(canary.text)]))[0]

        return await asyncio.gather(*map(ask, seat.canaries))


def _complain(seat: Seat, canary: Canary, verdict: Verdict) -> str:
    """Says in a sentence what the judge made of a canary."""
    text = canary.text if len(canary.text) <= _SHOWN_CHARACTERS else canary.text[:_SHOWN_CHARACTERS] + "…"
    passed = seat.judge.info.passes(verdict)
    did = verdict.status.value if passed is None else "passed" if passed else "did not pass"
    must = "pass" if canary.should_pass else "not pass"
    why = f": {verdict.reason}" if verdict.reason else ""
    return f"judge '{seat.name}' {did} on {text!r}, which must {must} ({canary.place}){why}"
