"""A look at a run's judges before the run: each is called once, so that what breaks every call breaks none of the run.

for note in await try_out(panel, prompts, complete):      # what was not called, and why
    print(note)
"""

from collections.abc import Callable, Sequence

from llamarl.core.errors import ConfigError
from llamarl.core.records import Completion, Prompt, Status, Verdict
from llamarl.judges.panel import JudgePanel
from llamarl.judges.seat import Seat

MAX_ROWS = 3
"""A judge that fails on the first row is tried on so many; some rows are odd."""


async def try_out(
    panel: JudgePanel, prompts: Sequence[Prompt], complete: Callable[[Prompt], Sequence[Completion]]
) -> list[str]:
    """Lets each judge judge plausible completions of the first row that wants it.

    Judges whose calls cost money, ask a server or run a model are not called; their settings are checked elsewhere.

    Args:
        panel: the judges.
        prompts: real rows.
        complete: plausible completions of one.

    Returns:
        A sentence on each judge that was not called, or that failed and only watches.

    Raises:
        ConfigError: a judge that decides something failed on all completions; names judge, row and reason.
    """
    notes = []
    for seat in panel.seats:
        kind = seat.judge.info.cost_class
        rows = [prompt for prompt in prompts[:1000] if seat.name in panel.judges_for(prompt)][:MAX_ROWS]
        if kind != "free":
            notes.append(f"judge '{seat.name}' was not tried: it is {kind}; only its settings were checked")
        elif rows:
            notes += filter(None, [await _try(panel, seat, rows, complete)])
    return notes


async def _try(
    panel: JudgePanel, seat: Seat, rows: Sequence[Prompt], complete: Callable[[Prompt], Sequence[Completion]]
) -> str:
    """Tries one judge; returns what there is to say of it."""
    first: Verdict | None = None
    for prompt in rows:
        verdicts = await panel.ask(seat, prompt, complete(prompt))
        if not all(verdict.status is Status.FAILED for verdict in verdicts):
            return ""
        first = first or verdicts[0]
    assert first is not None
    problem = (
        f"judge '{seat.name}' failed on every completion that it was tried on, the first one of prompt "
        f"{rows[0].id!r} (task {rows[0].task!r}): {first.reason}"
    )
    if not seat.decides:
        return f"{problem}; it only watches, so the run goes on without it"
    raise ConfigError(f"{problem}; mend it, or let it score or return None (abstain) for texts that it can't read")
