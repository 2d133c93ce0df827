"""Weights between executors, as a run uses them."""

import asyncio
from functools import partial
from pathlib import Path

import pytest
from executors import Publisher, Receiver, initial_weights

from llamarl.core.errors import ExecutorLostError, MissingDependencyError, WeightSyncError
from llamarl.core.records import WeightManifest
from llamarl.engine import ENGINES, build_engine
from llamarl.weights import ShmChannel, build_channel


@pytest.mark.parametrize("engine_name", ENGINES)
def test_weights_travel_survive_a_trainer_restart_and_are_proved(engine_name):
    try:
        engine = build_engine(engine_name)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    channel = build_channel(engine_name)

    async def main():
        trainer = await engine.spawn(partial(Publisher, channel), name="trainer")
        receivers = [await engine.spawn(partial(Receiver, channel), name=f"receiver{i}") for i in range(2)]
        sums = []
        for _ in range(3):
            manifest = await trainer.call("step", timeout_seconds=300)
            sums += [await receiver.call("update", manifest, timeout_seconds=300) for receiver in receivers]
        trainer.kill()
        with pytest.raises(ExecutorLostError):
            await trainer.call("step", timeout_seconds=300)
        await trainer.stop()
        trainer = await engine.spawn(partial(Publisher, channel), name="trainer")
        manifest = await trainer.call("step", timeout_seconds=300)  # version 1 again, from the beginning
        sums.append(await receivers[0].call("update", manifest, timeout_seconds=300))
        lie = WeightManifest(manifest.version, {**manifest.checksums, "b": 0})
        with pytest.raises(WeightSyncError, match=r"version 1, .* 1 different \(b\)"):
            await receivers[1].call("update", lie, timeout_seconds=300)
        with pytest.raises(WeightSyncError, match="version 9 are not on the channel"):
            await receivers[1].call("update", WeightManifest(9, {}), timeout_seconds=300)
        return sums

    async def run():
        try:
            async with asyncio.timeout(600):  # against hanging; Ray takes its time to start
                return await main()
        finally:
            await engine.close()
            channel.close()

    base = float(initial_weights()["a"].sum())
    steps = [(s - base) / 64**2 for s in asyncio.run(run())]
    assert steps == pytest.approx([1, 1, 2, 2, 3, 3, 1], abs=1e-4)
    if isinstance(channel, ShmChannel):
        assert not Path(channel.path).exists()
