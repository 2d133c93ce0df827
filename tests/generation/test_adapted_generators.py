"""Generators that hold the base once and take adapters."""

import asyncio
from functools import partial

import pytest
import torch
from test_generator_executor import Letters, collect_all
from tiny_generators import EOS, build, request, spell

from llamarl.algorithms.grpo import GRPOConfig
from llamarl.core.errors import WeightSyncError
from llamarl.generation.adapters import Adapted, HeldTensors
from llamarl.generation.executor import GeneratorConfig, GeneratorExecutor
from llamarl.generation.native import NativeGenerator
from llamarl.models.checkpoint import new_config, new_model
from llamarl.models.decoder import Decoder, Dense
from llamarl.models.lora import adapter_shapes
from llamarl.models.lora_config import LoraConfig
from llamarl.models.probe import probe_logprobs
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer
from llamarl.weights import LocalChannel
from llamarl.weights.testing import FaultyChannel

LORA = LoraConfig(rank=3, alpha=6.0)
PROMPTS = [(5, 9, 11), (8, 3, 20, 4)]


def unknown_family(seed=0):
    """A family that the packed decoder doesn't know."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 24, "intermediate_size": 32}
    config = new_config("gpt_neox", vocab_size=37, max_position_embeddings=64, **sizes)
    return new_model(config, seed)


class Trained:
    """A trainer of adapters whose steps are random numbers."""

    def __init__(self, channel, load_model=build, lora=LORA):
        config = TrainerConfig(lora=lora)
        self.trainer = PolicyTrainer(load_model(), GRPOConfig(), config, channel=channel, probe_prompts=PROMPTS)

    def publish(self, seed):
        """A version with other adapters; seed 0: those of the start."""
        self.trainer.version = seed
        if seed:
            noise = torch.Generator().manual_seed(seed)
            for tensor in self.trainer.trained.tensors().values():
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=noise))
        return self.trainer.publish()


def executor(channel, precision="fp32", load_model=build, lora=LORA):
    config = GeneratorConfig(precision=precision, slots=4)
    generator = GeneratorExecutor(config, load_model, Letters(), channel, lora=lora)
    generator.setup()
    return generator


def draw(generator, num=3):
    return generator.generate([request(key, prompt, num) for key, prompt in enumerate(PROMPTS)])


def generator_of(model, precision="fp32", lora=None):
    return NativeGenerator(model, eos_ids=(EOS,), decode=spell, precision=precision, slots=4, lora=lora)


# golden


def test_an_adapted_projection_by_hand():
    """Two parts of one input: x = (3, 1). The first: 5 + 4 * 4 = 21 and 13 + 4 * 1 = 17; the second has no adapter."""
    low, high = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.5], [0.0]])
    dense = Dense(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 1.0]]))
    with torch.no_grad():
        assert Adapted(dense, low, high, 4.0)(torch.tensor([[3.0, 1.0]])).tolist() == [[21.0, 17.0, 4.0]]


# invariance


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_adapters_of_zeros_leave_every_token_and_logprob_as_it_was(precision):
    plain, adapted = draw(generator_of(build(), precision)), draw(generator_of(build(), precision, LORA))
    assert adapted == plain


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("targets", [(), ("k_proj", "up_proj"), ("o_proj", "down_proj")])
def test_adapters_compute_what_merged_weights_do(family, targets):
    lora = LoraConfig(rank=3, alpha=6.0, targets=targets)
    channel = LocalChannel()
    trained = Trained(channel, partial(build, family), lora)
    trained.publish(1)
    generator = generator_of(build(family), lora=lora)
    generator.backend.load(channel.fetch(1))
    trained.trainer.trained.merge()
    merged = Decoder.live(trained.trainer.model)
    ids = torch.tensor(PROMPTS[0])
    base = probe_logprobs(Decoder.live(build(family)), ids.tolist())
    ours, theirs = generator.backend.probe_logprobs(ids.tolist()), probe_logprobs(merged, ids.tolist())
    assert ours == pytest.approx(theirs, abs=2e-5)
    assert max(abs(a - b) for a, b in zip(ours, base, strict=True)) > 1e-3


def test_a_change_that_rounding_would_swallow_reaches_a_bf16_generator():
    """Why adapters stay beside the weights: added to bf16 weights of 1, a change below 1/512 is no change."""
    weight, signs = torch.ones(4, 16, dtype=torch.bfloat16), torch.tensor([[1.0, -1.0] * 8])
    low, high = signs, torch.full((4, 1), 1e-3)
    assert torch.equal((weight.float() + high @ low).bfloat16(), weight)
    with torch.no_grad():
        result = Adapted(Dense(weight), low, high, 1.0)(signs.bfloat16())
    torch.testing.assert_close(result.float(), torch.full((1, 4), 16e-3), rtol=1e-2, atol=0.0)


# the proof


@pytest.mark.parametrize("load_model", [build, unknown_family])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_good_update_of_adapters_is_proven_and_counted_in_bytes(load_model, precision):
    async def scenario():
        channel = LocalChannel()
        trained, generator = Trained(channel, load_model), executor(channel, precision, load_model)
        await generator.update_weights(trained.publish(0))
        proof = await generator.update_weights(trained.publish(1))
        size = sum(4 * rows * columns for rows, columns in adapter_shapes(load_model(), LORA).values())
        assert proof.version == 1 and proof.num_bytes == size
        assert proof.probe_gap < (1e-4 if precision == "fp32" else 0.5)
        await generator.submit([request(0, max_tokens=4)])
        ((_, _),) = (await collect_all(generator, 1)).items()

    asyncio.run(scenario())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("fault", ["skipped", "partial", "zeros", "old", "swapped"])
def test_a_spoilt_update_of_adapters_is_caught_in_one_sync(fault, precision):
    async def scenario():
        channel = FaultyChannel(LocalChannel())
        trained, generator = Trained(channel), executor(channel, precision)
        await generator.update_weights(trained.publish(0))
        manifest = trained.publish(1)
        channel.fault = fault
        with pytest.raises(WeightSyncError, match="weights of version 1"):
            await generator.update_weights(manifest)
        with pytest.raises(WeightSyncError, match="update to version 1 failed"):
            await generator.submit([request(0)])
        channel.fault = "none"
        await generator.update_weights(trained.publish(2))
        await generator.submit([request(0, max_tokens=2)])

    asyncio.run(scenario())


class Forgetful(HeldTensors):
    """Says that it took the adapters and did not."""

    def copy_from(self, tensors):
        pass


class Detached(HeldTensors):
    """Holds the right adapters, which nothing computes with."""

    def __init__(self, views):
        super().__init__({name: view.clone() for name, view in views.items()})


@pytest.mark.parametrize(
    ("held", "message"), [(Forgetful, "tensors differ after loading"), (Detached, "probe's log-p")]
)
def test_a_generator_that_serves_other_adapters_than_it_received_is_caught(held, message):
    async def scenario():
        channel = LocalChannel()
        trained, generator = Trained(channel), executor(channel)
        await generator.update_weights(trained.publish(0))
        backend = generator.batcher.backend
        backend._refreshed = held(backend.named_views())
        with pytest.raises(WeightSyncError, match=message):
            await generator.update_weights(trained.publish(1))

    asyncio.run(scenario())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_another_base_is_caught_in_one_sync_however_like_the_first_it_is(precision):
    def almost():
        model = build()
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-6
        return model

    async def scenario():
        channel = LocalChannel()
        with pytest.raises(
            WeightSyncError, match=r"another base .* 1 different \(model\.layers\.1\.mlp\.down_proj.*give"
        ):
            await executor(channel, precision, almost).update_weights(Trained(channel).publish(0))

    asyncio.run(scenario())


def test_whole_weights_for_a_generator_of_adapters_are_refused_and_the_other_way_round():
    async def scenario():
        channel = LocalChannel()
        whole = PolicyTrainer(build(), GRPOConfig(), TrainerConfig(), channel=channel, probe_prompts=PROMPTS)
        with pytest.raises(WeightSyncError, match="another base"):
            await executor(channel).update_weights(whole.publish())
        channel = LocalChannel()
        with pytest.raises(WeightSyncError, match="another base"):
            await executor(channel, lora=None).update_weights(Trained(channel).publish(0))

    asyncio.run(scenario())


def test_the_base_is_held_once():
    plain, adapted = (generator_of(build(), lora=lora).backend.memory()[0] for lora in (None, LORA))
    assert 0 < adapted - plain < plain


# rejects


def test_adapters_that_do_not_fit_leave_those_held_as_they_were():
    backend = generator_of(build(), lora=LORA).backend
    good = {name: torch.ones(shape) for name, shape in adapter_shapes(build(), LORA).items()}
    backend.load(good)
    with pytest.raises(WeightSyncError, match="missing, unknown or of another shape"):
        backend.load({name: tensor[:1] if "lora_A" in name else tensor for name, tensor in good.items()})
    assert backend.mismatches(good) == []
