"""The staleness budget: which groups may start, and which may train now.

Symbols: B groups per step, V the version the next batch will be trained at (= batches taken so far), d_i the oldest
policy version in group i, k the maximum staleness. Group i is *due* at d_i + k: trained at a later version it would
hold a token older than k versions.

Rule. The groups not yet trained, sorted by due version, are numbered 0, 1, 2, ...; number j can train at V + j // B at
the earliest. The set is *feasible* if that is at most its due version, for every j. A group may start, and a batch may
be taken, only if what is outstanding afterwards is feasible.

Bound. By induction every outstanding set is feasible, so no group is ever trained past its due version: no trained
token is older than k versions, and nothing has to be dropped for age. Between those limits ready groups overtake
unfinished ones (a batch takes the earliest due of the *ready* groups), so one long completion doesn't hold up a step.
k = 0 is the synchronous run: B groups start, all B train, then the next B start.
"""

from dataclasses import dataclass

from llamarl.core.records import Group, Prompt, Purpose


@dataclass(slots=True, eq=False)
class Ticket:
    """One issued group: a prompt on its way to the trainer, or to an evaluation."""

    index: int
    """Issue order within the run, or within an evaluation."""
    epoch: int
    prompt: Prompt
    version: int
    """Lower bound on the policy version of its oldest token."""
    purpose: Purpose = Purpose.TRAIN
    is_complete: bool = False
    """True once all completions have arrived, so that only verdicts are still awaited."""


class WorkBuffer:
    """Tickets and judged groups of a run, under one staleness bound.

    Args:
        batch_groups: B, groups per optimizer step.
        max_staleness: k, in policy versions.
        lookahead: batches that may be under way beyond the next one, 0 <= lookahead <= k. Below k it leaves stragglers
            k - lookahead further steps to finish.
        next_version: V at the start (the version of the checkpoint on resume).
    """

    def __init__(
        self, batch_groups: int, max_staleness: int, lookahead: int | None = None, next_version: int = 0
    ) -> None:
        lookahead = max_staleness if lookahead is None else lookahead
        if batch_groups < 1 or max_staleness < 0 or not 0 <= lookahead <= max_staleness:
            raise ValueError(
                f"need batch_groups >= 1 and 0 <= lookahead <= max_staleness; got batch_groups={batch_groups}, "
                f"lookahead={lookahead}, max_staleness={max_staleness}"
            )
        self.batch_groups, self.max_staleness, self.lookahead = batch_groups, max_staleness, lookahead
        self.next_version = next_version
        self.is_exhausted = False
        """Set when the prompt stream has ended: the last batch may then be smaller than B."""
        self._pending: dict[int, Ticket] = {}
        self._ready: dict[int, tuple[Ticket, Group]] = {}

    @property
    def num_pending(self) -> int:
        """Issued groups not yet judged."""
        return len(self._pending)

    @property
    def num_ready(self) -> int:
        """Judged groups waiting to train."""
        return len(self._ready)

    def may_issue(self, served_version: int) -> bool:
        """True if one more group may start on weights of `served_version` without breaking the staleness bound."""
        outstanding = self._versions()
        window = (served_version - self.next_version + self.lookahead + 1) * self.batch_groups
        return len(outstanding) < window and self._is_feasible([*outstanding, served_version], self.next_version)

    def issue(self, ticket: Ticket) -> None:
        """Records a started group. Call only where `may_issue(ticket.version)`."""
        self._pending[ticket.index] = ticket

    def restart(self, index: int, version: int) -> None:
        """Notes that a group starts over on weights of `version` (its generator was lost)."""
        self._pending[index].version = version

    def finish(self, index: int, group: Group) -> None:
        """Takes a judged group in; its true oldest version replaces the bound."""
        ticket = self._pending.pop(index)
        ticket.version = max(ticket.version, group.oldest_version)
        self._ready[index] = (ticket, group)

    def drop(self, index: int) -> None:
        """Takes a pending group out: it will not train."""
        del self._pending[index]

    @property
    def is_over(self) -> bool:
        """True once the stream has ended and every group it gave was trained or dropped."""
        return self.is_exhausted and not self._pending and not self._ready

    @property
    def has_batch(self) -> bool:
        """True if `take_batch` would return a batch."""
        return self._choose() is not None

    def take_batch(self) -> list[Group] | None:
        """The next batch in issue order, or None while it must wait.

        B groups, or all that remain once the stream is exhausted and nothing is pending.
        """
        chosen = self._choose()
        if chosen is None:
            return None
        self.next_version += 1
        # In issue order, so that a batch does not depend on which of its groups was judged first.
        return [self._ready.pop(index)[1] for index in sorted(chosen)]

    def _choose(self) -> list[int] | None:
        """Indices of the groups that the next batch would take."""
        size = self.batch_groups
        if self.is_exhausted and not self._pending:
            size = min(size, len(self._ready))
        if not size or len(self._ready) < size:
            return None
        # The oldest first, as they fall due first; the index breaks ties, so that the choice can be repeated.
        chosen = sorted(self._ready, key=lambda i: (self._ready[i][0].version, i))[:size]
        rest = [t.version for i, (t, _) in self._ready.items() if i not in set(chosen)]
        rest += [ticket.version for ticket in self._pending.values()]
        return chosen if self._is_feasible(rest, self.next_version + 1) else None

    def blocking(self) -> list[Ticket]:
        """Pending groups that the next batch must wait for, by due version: what a stalled trainer waits for."""
        return sorted(self._pending.values(), key=lambda ticket: (ticket.version, ticket.index))[: self.batch_groups]

    def _versions(self) -> list[int]:
        return [t.version for t in self._pending.values()] + [t.version for t, _ in self._ready.values()]

    def _is_feasible(self, versions: list[int], next_version: int) -> bool:
        return all(
            # Oldest first, B a step: the j-th trains at version `next_version + j // B`.
            next_version + j // self.batch_groups <= version + self.max_staleness
            for j, version in enumerate(sorted(versions))
        )
