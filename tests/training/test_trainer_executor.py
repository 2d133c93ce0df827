import asyncio
import pickle
from functools import partial

import pytest
from tiny_policies import samples_of, step_of, tiny_model

from llamarl.algorithms.grpo import GRPOConfig
from llamarl.core.errors import ConfigError
from llamarl.core.sampling import Sampling
from llamarl.engine.inprocess import InProcessEngine
from llamarl.functional.checksum import checksum, verify
from llamarl.models.checkpoint import load_model
from llamarl.models.tiny import build_tiny
from llamarl.training.config import TrainerConfig
from llamarl.training.executor import TrainerExecutor
from llamarl.weights import LocalChannel, ShmChannel


def executor_of(load=tiny_model, channel=None, **arguments):
    config = TrainerConfig(learning_rate=1e-2)
    return TrainerExecutor(config, GRPOConfig(kl_coef=0.0), load, Sampling(), channel or LocalChannel(), **arguments)


def test_an_engine_drives_all_verbs(tmp_path):
    async def run():
        engine, channel = InProcessEngine(), LocalChannel()
        handle = await engine.spawn(lambda: executor_of(channel=channel), name="trainer")
        try:
            assert (await handle.call("publish")).version == 0
            result = await handle.call("train", step_of(samples_of([(4, [3, 5])])))
            assert result.version == 1 and not result.is_skipped
            manifest = await handle.call("publish")
            verify(manifest, 1, checksum(channel.fetch(1)))
            await handle.call("save", str(tmp_path / "c"))
            await handle.call("train", step_of(samples_of([(4, [3, 5])])))
            assert await handle.call("load", str(tmp_path / "c")) == 1
            assert (await handle.call("publish")).checksums == manifest.checksums
        finally:
            await engine.close()

    asyncio.run(run())


def test_its_arguments_pickle_for_process_engines(tmp_path):
    source = build_tiny("llama", tmp_path / "source")
    channel = ShmChannel()
    try:
        copy = pickle.loads(pickle.dumps(executor_of(partial(load_model, source), channel)))
        copy.setup()
        assert copy.publish().version == 0
    finally:
        channel.close()


def test_more_than_one_rank_is_refused():
    executor = executor_of()
    executor.world_size = 2
    with pytest.raises(ConfigError, match="num_ranks=2"):
        executor.setup()
