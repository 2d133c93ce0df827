"""The staleness bound holds for any schedule; the synchronous case is the by-hand order; stragglers are overtaken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.controller.buffer import Ticket, WorkBuffer
from llamarl.core.records import Completion, Group, Prompt, Sample, Trajectory

PROMPT = Prompt(id="p", messages=({"role": "user", "content": "x"},))


def ticket(index: int, version: int) -> Ticket:
    return Ticket(index, 0, PROMPT, version)


def judged(index: int, version: int) -> Group:
    completion = Completion(Trajectory.sampled((1,), (2,), (-0.5,), (version,)), "a")
    return Group(PROMPT, (Sample(completion, {}, 1.0),), index=index)


def test_synchronous_run_issues_one_batch_and_waits_for_its_weights() -> None:
    buffer = WorkBuffer(batch_groups=2, max_staleness=0)
    for index in range(2):
        assert buffer.may_issue(0)
        buffer.issue(ticket(index, 0))
    assert not buffer.may_issue(0)
    buffer.finish(1, judged(1, 0))
    assert buffer.take_batch() is None
    buffer.finish(0, judged(0, 0))
    batch = buffer.take_batch()
    assert batch is not None and [group.index for group in batch] == [0, 1]
    assert not buffer.may_issue(0)  # version 1 is being made; old weights must not start new groups
    assert buffer.may_issue(1)


def test_younger_groups_pass_a_straggler_until_it_is_due() -> None:
    buffer = WorkBuffer(batch_groups=1, max_staleness=2, lookahead=1)
    buffer.issue(ticket(0, 0))  # the straggler, due at version 2
    for index, version in ((1, 0), (2, 1)):
        assert buffer.may_issue(version)
        buffer.issue(ticket(index, version))
        buffer.finish(index, judged(index, version))
        batch = buffer.take_batch()
        assert batch is not None and batch[0].index == index
    assert buffer.may_issue(2)
    buffer.issue(ticket(3, 2))
    buffer.finish(3, judged(3, 2))
    assert buffer.take_batch() is None  # group 0 must train at version 2, or never
    assert [t.index for t in buffer.blocking()] == [0]
    buffer.finish(0, judged(0, 0))
    batch = buffer.take_batch()
    assert batch is not None and batch[0].index == 0


def test_last_batch_may_be_small_once_the_stream_ended() -> None:
    buffer = WorkBuffer(batch_groups=4, max_staleness=1)
    buffer.issue(ticket(0, 0))
    buffer.finish(0, judged(0, 0))
    assert buffer.take_batch() is None
    buffer.is_exhausted = True
    batch = buffer.take_batch()
    assert batch is not None and len(batch) == 1
    assert buffer.is_over and not buffer.has_batch and buffer.take_batch() is None


def test_a_dropped_group_makes_room_for_another() -> None:
    buffer = WorkBuffer(batch_groups=1, max_staleness=0)
    buffer.issue(ticket(0, 0))
    assert not buffer.may_issue(0)
    buffer.drop(0)
    assert buffer.may_issue(0)


@pytest.mark.parametrize("bad", [(0, 1, None), (1, -1, None), (1, 1, 2), (1, 1, -1)])
def test_rejects_impossible_bounds(bad: tuple[int, int, int | None]) -> None:
    with pytest.raises(ValueError, match="lookahead"):
        WorkBuffer(*bad)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_schedule_trains_a_token_older_than_the_bound_or_deadlocks(data: st.DataObject) -> None:
    size, bound = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 4))
    lookahead = data.draw(st.integers(0, bound))
    buffer = WorkBuffer(size, bound, lookahead)
    served = issued = trained = 0  # `served` lags behind the trainer: weights take a while to arrive
    for _ in range(data.draw(st.integers(10, 80))):
        moves = []
        if buffer.may_issue(served):
            moves.append("issue")
        if buffer.num_pending:
            moves += ["finish", "drop", "lose"]
        if served < buffer.next_version:
            moves.append("sync")
        before = buffer.next_version
        batch = buffer.take_batch()
        if batch is not None:
            trained += len(batch)
            assert len(batch) == size
            assert all(before - group.oldest_version <= bound for group in batch)
        assert moves or batch is not None, "deadlock"
        if not moves:
            continue
        move = data.draw(st.sampled_from(moves))
        if move == "issue":
            buffer.issue(ticket(issued, served))
            issued += 1
        elif move == "sync":
            served = buffer.next_version
        else:
            index = data.draw(st.sampled_from(sorted(buffer._pending)))
            if move == "drop":
                buffer.drop(index)
            elif move == "lose":
                buffer.restart(index, served)
            else:
                version = data.draw(st.integers(buffer._pending[index].version, served))
                buffer.finish(index, judged(index, version))
    assert issued >= trained
