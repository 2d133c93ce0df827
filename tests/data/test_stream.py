import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Prompt
from llamarl.data import PromptStream


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{i}", ({"role": "user", "content": str(i)},)) for i in range(count)]


def ids(stream: PromptStream, count: int) -> list[str]:
    return [issue.prompt.id for issue in stream.take(count)]


def test_positions_epochs_and_end() -> None:
    issues = list(PromptStream(prompts(3), seed=1, epochs=2))
    assert [issue.position for issue in issues] == [0, 1, 2, 3, 4, 5]
    assert [issue.epoch for issue in issues] == [0, 0, 0, 1, 1, 1]
    assert list(PromptStream(prompts(3), seed=1, epochs=0)) == []


def test_an_issue_unpacks() -> None:
    position, epoch, prompt = next(PromptStream(prompts(1), seed=0))
    assert (position, epoch, prompt.id) == (0, 0, "p0")


def test_order_is_that_of_seed_and_epoch_alone() -> None:
    golden = ["p2", "p3", "p4", "p1", "p0"]  # resumed runs depend on it: must never change
    assert ids(PromptStream(prompts(5), seed=1), 5) == golden
    assert ids(PromptStream(prompts(5)[::-1], seed=1), 5) == golden
    assert ids(PromptStream(prompts(5), seed=2), 5) != golden
    assert ids(PromptStream(prompts(5), seed=1), 10)[5:] != golden


def test_without_shuffling_each_epoch_keeps_the_order_of_the_data() -> None:
    assert ids(PromptStream(prompts(3), seed=1, should_shuffle=False), 6) == ["p0", "p1", "p2"] * 2


def test_added_prompts_leave_the_order_of_the_others() -> None:
    few, more = ids(PromptStream(prompts(5), seed=1), 5), ids(PromptStream(prompts(9), seed=1), 9)
    assert [identifier for identifier in more if identifier in few] == few


@given(
    size=st.integers(1, 7),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 3),
    steps=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_any_interleaving_of_take_and_restore_yields_each_prompt_once_an_epoch(
    size: int, epochs: int, seed: int, steps: list[tuple[int, bool]]
) -> None:
    data = prompts(size)
    stream, seen = PromptStream(data, seed=seed, epochs=epochs), []
    for count, should_restore in steps:
        seen += stream.take(count)
        if should_restore:
            state = json.loads(json.dumps(stream.state()))
            stream.take(3)  # lost: as if the process had died after issuing them
            stream = PromptStream(data, seed=seed, epochs=epochs)
            stream.restore(state)
    seen += list(stream)
    assert seen == list(PromptStream(data, seed=seed, epochs=epochs))
    assert Counter((issue.epoch, issue.prompt.id) for issue in seen) == {
        (epoch, prompt.id): 1 for epoch in range(epochs) for prompt in data
    }


@given(
    size=st.integers(1, 7),
    epochs=st.integers(1, 3),
    kills=st.lists(st.tuples(st.integers(1, 6), st.sets(st.integers(0, 5))), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_resuming_from_what_was_finished_loses_and_repeats_nothing(
    size: int, epochs: int, kills: list[tuple[int, set[int]]]
) -> None:
    """Each kill: some prompts were issued, an arbitrary subset of them was finished, the rest was in flight."""
    data, finished = prompts(size), []
    for issued, done in kills:
        stream = PromptStream(data, seed=5, epochs=epochs, done=finished)
        finished += [(i.epoch, i.prompt.id) for n, i in enumerate(stream.take(issued)) if n in done]
    rest = list(PromptStream(data, seed=5, epochs=epochs, done=finished))
    finished += [(issue.epoch, issue.prompt.id) for issue in rest]
    assert sorted(finished) == sorted((epoch, prompt.id) for epoch in range(epochs) for prompt in data)
    assert all(before.position < after.position for before, after in pairwise(rest))


def test_a_done_prompt_leaves_a_gap_and_moves_no_other() -> None:
    whole = list(PromptStream(prompts(4), seed=1, epochs=2))
    done = (1, whole[5].prompt.id)
    assert list(PromptStream(prompts(4), seed=1, epochs=2, done=[done])) == whole[:5] + whole[6:]


def test_state_holds_only_what_lies_ahead() -> None:
    stream = PromptStream(prompts(3), seed=1, done=[(0, "p0"), (1, "p1")])
    stream.take(3)
    assert stream.state()["done"] == [[1, "p1"]]


def test_finished_epochs_are_passed_without_sorting_them() -> None:
    data = prompts(200)
    done = [(epoch, prompt.id) for epoch in range(2000) for prompt in data]
    assert next(PromptStream(data, seed=1, done=done)).epoch == 2000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed is 2, this stream has 1"),
        ({"data": "other"}, "data is 'other'"),
        ({"next": "x"}, "the state is damaged"),
        ({"done": [[0, "q"]]}, "'q' of epoch 0 is not in the data"),
    ],
)
def test_a_state_of_another_run_is_refused(change: dict[str, object], message: str) -> None:
    stream = PromptStream(prompts(3), seed=1)
    with pytest.raises(DataError, match=message):
        stream.restore({**stream.state(), **change})


def test_data_without_unique_ids_is_refused() -> None:
    with pytest.raises(DataError, match="unique ids"):
        PromptStream(prompts(2) + prompts(1), seed=1)
    with pytest.raises(DataError, match="at least one"):
        PromptStream([], seed=1)
    with pytest.raises(ConfigError, match="epochs: got -1"):
        PromptStream(prompts(1), seed=1, epochs=-1)
