import asyncio
import pickle
from functools import partial

import pytest
import torch
from tiny_policies import rows_of, samples_of, tiny_model

from llamarl.core.errors import DataError
from llamarl.core.records import Trajectory
from llamarl.core.sampling import Sampling
from llamarl.engine.inprocess import InProcessEngine
from llamarl.models.checkpoint import load_model
from llamarl.models.tiny import build_tiny
from llamarl.scoring.logprobs import PaddedScorer
from llamarl.training.config import TrainerConfig
from llamarl.training.reference import ReferenceExecutor

ROWS = rows_of(samples_of([(3, [4, 1, 7]), (6, [2, 5]), (1, [3, 12])]))


def executor_of(load=tiny_model, temperature=1.0, **settings):
    executor = ReferenceExecutor(TrainerConfig(**settings), load, Sampling(temperature=temperature))
    executor.setup()
    return executor


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_it_scores_each_token_as_the_sampler_would_have(temperature):
    scorer = PaddedScorer(tiny_model(), temperature)
    expected = [scorer([row]).logprobs.tolist() for row in ROWS]
    found = executor_of(temperature=temperature).logprobs(ROWS)
    assert [len(row) for row in found] == [row.response_length for row in ROWS]
    assert all(row == pytest.approx(other, abs=1e-5) for row, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("micro_batch_tokens", [1, 12])
def test_the_cut_into_micro_batches_and_the_order_of_rows_do_not_matter(micro_batch_tokens):
    whole = executor_of().logprobs(ROWS)
    cut = executor_of(micro_batch_tokens=micro_batch_tokens).logprobs(ROWS[::-1])[::-1]
    assert all(left == pytest.approx(right, abs=1e-5) for left, right in zip(cut, whole, strict=True))


def test_it_is_frozen_and_repeats_itself():
    executor = executor_of(partial(tiny_model, attention_dropout=0.5))
    with torch.enable_grad():
        assert executor.logprobs(ROWS) == executor.logprobs(ROWS)
    assert not any(p.requires_grad for p in executor._model.parameters())
    assert executor.logprobs([]) == []


def test_half_precision_is_close():
    load = partial(tiny_model, scale=1.0)
    for half, full in zip(
        executor_of(load, precision="bf16").logprobs(ROWS), executor_of(load).logprobs(ROWS), strict=True
    ):
        assert half == pytest.approx(full, abs=0.05)


def test_an_engine_drives_it_from_pickled_arguments(tmp_path):
    source = build_tiny("llama", tmp_path / "source")
    executor = ReferenceExecutor(TrainerConfig(), partial(load_model, source), Sampling())

    async def run():
        engine = InProcessEngine()
        handle = await engine.spawn(lambda: pickle.loads(pickle.dumps(executor)), name="reference")
        try:
            return await handle.call("logprobs", ROWS)
        finally:
            await engine.close()

    assert [len(row) for row in asyncio.run(run())] == [row.response_length for row in ROWS]


def test_rejects_rows_without_tokens():
    with pytest.raises(DataError, match="at least one prompt token and one completion token"):
        executor_of().logprobs([Trajectory.given((1, 2), ())])
