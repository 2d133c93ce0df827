"""A trainer and a receiver of weights, importable by child processes."""

import torch

from llamarl.core.protocols import Executor
from llamarl.core.records import WeightManifest
from llamarl.functional.checksum import checksum, verify


def initial_weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(64, 64, generator=generator) for name in ("a", "b")}


class Publisher(Executor):
    def __init__(self, channel):
        self.channel = channel

    def setup(self):
        torch.set_num_threads(1)
        self.version, self.weights = 0, initial_weights()

    def step(self):
        self.version += 1
        for tensor in self.weights.values():
            tensor.add_(1)
        self.channel.publish(self.version, self.weights)
        return WeightManifest(self.version, checksum(self.weights))

    def teardown(self):
        self.channel.close()


class Receiver(Executor):
    def __init__(self, channel):
        self.channel = channel

    def setup(self):
        torch.set_num_threads(1)
        self.weights = initial_weights()

    async def update(self, manifest):
        self.channel.fetch(manifest.version, self.weights)
        verify(manifest, manifest.version, checksum(self.weights))
        return float(self.weights["a"].sum())

    def teardown(self):
        self.channel.close()
