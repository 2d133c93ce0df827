"""The trainer of several ranks as the loop sees it: which of their errors is the cause."""

import asyncio
import pickle
from typing import Any

import pytest

from llamarl.controller.clients import TrainerClient
from llamarl.controller.prepare import prepare
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import with_smaller_micro_batches
from llamarl.core.errors import DataError, ExecutorLostError, LostTouchError, RankMemoryError, StallError
from llamarl.recipes import recipe_path
from llamarl.testing import RecordingObserver

LOST_TOUCH = LostTouchError("rank 0 lost touch with the others: Connection closed by peer")


class ScriptedHandle:
    """Ranks whose answers are given; a rank that hangs never answers."""

    name = "trainer"

    def __init__(self, answers: list[Any], silent: tuple[int, ...] = ()) -> None:
        self.answers, self.silent = answers, silent

    async def call(self, method: str, *args: Any, rank: int | None = 0, timeout_seconds: float | None = None) -> Any:
        assert rank is not None
        if method == "progress":
            if rank in self.silent:
                raise StallError("trainer.progress: no answer")
            return (1, 0)
        answer = self.answers[rank]
        if isinstance(answer, Exception):
            raise answer
        return answer


def error_of(answers: list[Any], silent: tuple[int, ...] = ()) -> Exception:
    client = TrainerClient(ScriptedHandle(answers, silent), RecordingObserver(), 1.0, len(answers))  # type: ignore[arg-type]
    with pytest.raises(Exception) as caught:
        asyncio.run(client.publish())
    return caught.value  # type: ignore[return-value]


def test_the_first_rank_answers_for_all() -> None:
    client = TrainerClient(ScriptedHandle(["first", "second"]), RecordingObserver(), 1.0, 2)  # type: ignore[arg-type]
    assert asyncio.run(client.publish()) == "first"  # type: ignore[comparison-overlap]


def test_a_rank_that_no_longer_answers_is_named() -> None:
    error = error_of([LOST_TOUCH, StallError("trainer.publish: no answer")], silent=(1,))
    assert isinstance(error, ExecutorLostError)
    assert str(error).startswith("trainer rank 1 of 2 no longer answers, in publish (rank 0 lost touch")


def test_a_dead_rank_is_named_and_not_those_that_waited_for_it() -> None:
    # an engine that knows of a death answers for no rank any more
    error = error_of([LOST_TOUCH, ExecutorLostError("executor 'trainer' rank 1 is lost: killed")], silent=(0, 1))
    assert str(error).startswith("trainer rank 1 of 2 no longer answers, in publish (rank 0 lost touch")


def test_where_all_answer_the_error_itself_is_raised() -> None:
    assert error_of([StallError("trainer.publish: no answer"), "second"]).args == ("trainer.publish: no answer",)


def test_what_is_wrong_with_the_data_goes_before_what_it_does_to_the_others() -> None:
    assert isinstance(error_of([LOST_TOUCH, DataError("a bad row")]), DataError)


def test_a_full_memory_halves_the_micro_batches_of_the_next_life() -> None:
    error = error_of([LOST_TOUCH, pickle.loads(pickle.dumps(RankMemoryError("rank 1 ran out of memory", 4096)))])
    assert isinstance(error, RankMemoryError) and str(error) == "rank 1 ran out of memory"
    smaller = with_smaller_micro_batches(prepare(Recipe.load(recipe_path("demo"))), error)
    assert smaller.recipe.trainer.micro_batch_tokens == 2048
