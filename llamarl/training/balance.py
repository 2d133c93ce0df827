"""Dealing a step's samples out over ranks: a pure function, so that every rank knows everybody's share."""

import heapq
from collections.abc import Sequence

from llamarl.scoring.packing import TokenRow


def deal_out(
    rows: Sequence[TokenRow], groups: Sequence[int], num_shares: int, *, are_together: bool = False
) -> list[list[int]]:
    """Deals rows out into shares of nearly equal numbers of tokens; every index once, in order within each share.

    Rows of one group stay together, as their prompt is then computed once, unless there are fewer groups than shares.
    The largest group goes first, each to the share with the fewest tokens. One share gets all rows as they are.

    Args:
        rows: the step's samples.
        groups: the group of each row.
        num_shares: shares to make.
        are_together: True where the rows of a group must not be parted: some shares may then be empty.
    """
    if num_shares == 1:
        return [list(range(len(rows)))]
    members: dict[int, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group if are_together or len(set(groups)) >= num_shares else index, []).append(index)
    parts = list(members.values())
    shares = deal([_tokens([rows[index] for index in part]) for part in parts], num_shares)
    return [sorted(index for number in share for index in parts[number]) for share in shares]


def deal(costs: Sequence[int], num_shares: int) -> list[list[int]]:
    """Deals indices out into shares of nearly equal cost; every index once, in order within each share.

    The dearest goes first, each to the share that costs least so far.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    cheapest = [(0, share) for share in range(num_shares)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        cost, share = heapq.heappop(cheapest)
        shares[share].append(index)
        heapq.heappush(cheapest, (cost + costs[index], share))
    return [sorted(share) for share in shares]


def _tokens(rows: Sequence[TokenRow]) -> int:
    """Packed tokens of the rows of one group."""
    return len(rows[0].prompt_ids) + sum(len(row.token_ids) for row in rows)
