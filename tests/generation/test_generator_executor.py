import asyncio
import contextlib
import math
import pickle
from functools import partial

import pytest
import torch
from tiny_generators import EOS, build, reference_logprobs, request, spell

from llamarl.core.errors import ConfigError, DataError, WeightSyncError
from llamarl.core.records import LogprobGap, WeightManifest, WeightProbe
from llamarl.functional.checksum import checksum
from llamarl.generation.executor import GeneratorConfig, GeneratorExecutor
from llamarl.models.blocks import Dense
from llamarl.models.decoder import Decoder, named_tensors
from llamarl.models.probe import probe_logprobs, probe_rows


class Letters:
    eos_ids = (EOS,)

    def decode(self, ids):
        return spell(ids)


class Shelf:
    """A weight channel whose contents a test may spoil."""

    def __init__(self):
        self.held = {}

    def publish(self, version, tensors):
        self.held[version] = {name: tensor.clone() for name, tensor in tensors.items()}

    async def prepare(self, version):
        pass

    def fetch(self, version):
        return self.held[version]

    def reading(self, version):
        return contextlib.nullcontext(self.held[version])

    def close(self):
        self.held = {}


def probe_of(model, start):
    """What a trainer says that began at the weights of `start` and now holds those of `model`."""
    rows = probe_rows(start, [(5, 9, 11), (8, 3, 20, 4)])
    at_start, now = (
        tuple(x for row in rows for x in probe_logprobs(Decoder.live(each), row)) for each in (start, model)
    )
    return WeightProbe(rows, at_start, now)


def publish(channel, version, model, start=None):
    """What the trainer does: offers the weights and says what they are."""
    tensors = dict(named_tensors(model))
    channel.publish(version, tensors)
    return WeightManifest(version, checksum(tensors), probe_of(model, start or build()), num_bytes=123)


def executor(channel, config=None, load_model=build, cores=None):
    made = GeneratorExecutor(config or GeneratorConfig(slots=4), load_model, Letters(), channel, cores)
    made.setup()
    return made


async def collect_all(generator, num_requests):
    finished = []
    while len(finished) < num_requests:
        got = await generator.collect(10.0)
        assert got, "nothing finished in ten seconds"
        finished += got
    return dict(finished)


def test_requests_finish_while_others_decode_and_status_counts_them():
    async def scenario():
        generator, model = executor(Shelf()), build()
        proof = await generator.update_weights(publish(generator._channel, 0, model))
        assert (proof.version, proof.num_bytes) == (0, 123) and proof.probe_gap < 1e-5
        await generator.submit([request(0, max_tokens=200), request(1, max_tokens=2)])
        first = await generator.collect(10.0)
        assert [key for key, _ in first] == [1]
        status = await generator.status()
        assert status["requests_active"] == 1 and status["version"] == 0 and status["is_serving"] == 1
        done = await collect_all(generator, 1)
        assert done[0][0].logprobs == pytest.approx(reference_logprobs(model, done[0][0]), abs=2e-5)
        status = await generator.status()
        assert status["requests_active"] == 0 and status["tokens"] >= 4 and status["busy_seconds"] > 0

    asyncio.run(scenario())


def test_weights_change_between_two_decode_steps():
    async def scenario():
        channel, old, new = Shelf(), build(seed=0), build(seed=1)
        generator = executor(channel)
        await generator.update_weights(publish(channel, 3, old))
        await generator.submit([request(0, (5, 9, 11), max_tokens=100)])
        while (await generator.status())["tokens"] < 8:
            await asyncio.sleep(0)
        await generator.update_weights(publish(channel, 4, new))
        for completion in (await collect_all(generator, 1))[0]:
            assert [version for version, _ in completion.trajectory.versions] in ([3], [4], [3, 4])
            split = dict(completion.trajectory.versions).get(3, 0)
            assert completion.logprobs[:split] == pytest.approx(reference_logprobs(old, completion)[:split], abs=2e-5)
            assert completion.logprobs[split:] == pytest.approx(reference_logprobs(new, completion)[split:], abs=2e-5)

    asyncio.run(scenario())


class Network(Shelf):
    """A channel whose contents take their time to arrive, until a test lets them."""

    def __init__(self):
        super().__init__()
        self.may_arrive, self.is_broken = asyncio.Event(), False

    async def prepare(self, version):
        await self.may_arrive.wait()
        if self.is_broken:
            raise WeightSyncError("the network is down")


def test_generation_goes_on_while_weights_arrive_over_a_network():
    async def scenario():
        channel, old, new = Network(), build(seed=0), build(seed=1)
        generator = executor(channel)
        channel.may_arrive.set()
        await generator.update_weights(publish(channel, 3, old))
        channel.may_arrive.clear()
        update = asyncio.create_task(generator.update_weights(publish(channel, 4, new)))
        await generator.submit([request(0, (5, 9, 11), max_tokens=20)])
        completions = (await collect_all(generator, 1))[0]  # before they are there
        assert all([version for version, _ in done.trajectory.versions] == [3] for done in completions)
        assert not update.done()
        channel.may_arrive.set()
        assert (await update).version == 4
        channel.is_broken = True
        with pytest.raises(WeightSyncError, match="the network is down"):
            await generator.update_weights(publish(channel, 5, old))
        with pytest.raises(WeightSyncError, match="the update to version 5 failed"):
            await generator.submit([request(1)])

    asyncio.run(scenario())


def test_collect_waits_no_longer_than_its_time_out():
    async def scenario():
        generator = executor(Shelf())
        assert await generator.collect(0.01) == []
        await generator.update_weights(publish(generator._channel, 0, build()))
        waiting = asyncio.create_task(generator.collect(10.0))
        await asyncio.sleep(0)
        await generator.submit([request(5)])
        assert [key for key, _ in await waiting] == [5]

    asyncio.run(scenario())


def test_nothing_is_served_before_the_first_proven_weights():
    async def scenario():
        generator = executor(Shelf())
        with pytest.raises(WeightSyncError, match="no weights were proven yet"):
            await generator.submit([request(0)])
        assert (await generator.status())["is_serving"] == 0

    asyncio.run(scenario())


FIRST_LAYER = "model.layers.0.mlp.up_proj.weight"


def skipped(channel, manifest, old):
    channel.held[1] = channel.held[0]  # the trainer's copy never ran


def partial_update(channel, manifest, old):
    channel.held[1][FIRST_LAYER] = old[FIRST_LAYER]


def half_a_tensor(channel, manifest, old):
    tensor = channel.held[1][FIRST_LAYER]
    tensor[16:] = old[FIRST_LAYER][16:]


def zeros(channel, manifest, old):
    channel.held[1] = {name: torch.zeros_like(t) for name, t in channel.held[1].items()}


def one_element(channel, manifest, old):
    channel.held[1][FIRST_LAYER][3, 7] += 1e-4


def swapped_tensors(channel, manifest, old):
    held = channel.held[1]
    other = FIRST_LAYER.replace("up_proj", "gate_proj")
    held[FIRST_LAYER], held[other] = held[other], held[FIRST_LAYER]


def missing_tensor(channel, manifest, old):
    del channel.held[1][FIRST_LAYER]


def wrong_shape(channel, manifest, old):
    channel.held[1][FIRST_LAYER] = channel.held[1][FIRST_LAYER].t().contiguous()


FAULTS = [skipped, partial_update, half_a_tensor, zeros, one_element, swapped_tensors, missing_tensor, wrong_shape]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_spoilt_update_is_caught_and_quarantines_until_a_good_one(fault):
    async def scenario():
        channel, old, new = Shelf(), build(seed=0), build(seed=1)
        generator = executor(channel)
        await generator.update_weights(publish(channel, 0, old))
        await generator.submit([request(0, max_tokens=100)])
        manifest = publish(channel, 1, new)
        fault(channel, manifest, dict(named_tensors(old)))
        tokens_before = (await generator.status())["tokens"]
        with pytest.raises(WeightSyncError):
            await generator.update_weights(manifest)
        with pytest.raises(WeightSyncError, match="update to version 1 failed"):
            await generator.submit([request(1)])
        assert await generator.collect(0.01) == []
        assert (await generator.status())["tokens"] == tokens_before
        await generator.update_weights(publish(channel, 2, new))
        (completion, _) = (await collect_all(generator, 1))[0]
        assert dict(completion.trajectory.versions).keys() <= {0, 2}

    asyncio.run(scenario())


class Forgetful:
    """Wraps a backend that says it loaded the weights and did not."""

    def __init__(self, inner):
        self.inner = inner

    def load(self, tensors):
        pass

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Stale(Forgetful):
    """Holds the right tensors, computes with others."""

    def load(self, tensors):
        self.inner.load(tensors)
        self.inner.decoder.layers[0].down.weight = torch.zeros_like(self.inner.decoder.layers[0].down.weight)


@pytest.mark.parametrize(("backend", "message"), [(Forgetful, "differ after loading"), (Stale, "probe")])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_generator_that_serves_other_weights_than_it_received_is_caught(backend, message, precision):
    async def scenario():
        channel = Shelf()
        generator = executor(channel, GeneratorConfig(precision=precision))
        generator.batcher.backend = backend(generator.batcher.backend)
        with pytest.raises(WeightSyncError, match=message):
            await generator.update_weights(publish(channel, 1, build(seed=1)))

    asyncio.run(scenario())


def test_one_improbable_token_that_a_precision_blurs_is_no_alarm():
    async def scenario():
        channel = Shelf()
        manifest = publish(channel, 0, build())
        probe = manifest.probe
        blurred = (probe.now[0] - 3.0, *probe.now[1:])  # as bf16 does to a token of log-prob -14
        gaps = LogprobGap.between(blurred, probe.now)
        cost = gaps.mean / 3  # a precision that blurs tokens by a third of that on average
        at_start = tuple(each + cost for each in probe.at_start)
        generator = executor(channel, GeneratorConfig(precision="bf16"))
        proof = await generator.update_weights(
            WeightManifest(0, manifest.checksums, WeightProbe(probe.rows, at_start, blurred))
        )
        assert proof.probe_gap > 4 * proof.precision_cost.largest

    asyncio.run(scenario())


def test_a_probe_of_other_weights_is_caught():
    async def scenario():
        channel = Shelf()
        manifest, other = publish(channel, 0, build(seed=0)), publish(Shelf(), 0, build(seed=1))
        lying = WeightManifest(0, manifest.checksums, other.probe)
        with pytest.raises(WeightSyncError, match=r"fp32 alone cost .*, and probe_factor=4 allows 0\.0001"):
            await executor(channel).update_weights(lying)

    asyncio.run(scenario())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_a_good_update_is_accepted_at_every_precision(precision):
    async def scenario():
        channel = Shelf()
        generator = executor(channel, GeneratorConfig(precision=precision))
        for version in range(2):
            proof = await generator.update_weights(publish(channel, version, build(seed=version)))
            assert proof.probe_gap < 2 * proof.precision_cost.largest + 1e-5
        await generator.submit([request(0)])
        assert len((await collect_all(generator, 1))[0]) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("fp32", 0.0, 1e-5), ("bf16", 1e-4, 0.1), ("int8", 1e-4, 0.1)]
)
def test_what_a_precision_costs_is_measured_once_before_any_update(precision, least, most):
    async def scenario():
        channel = Shelf()
        generator = executor(channel, GeneratorConfig(precision=precision))
        costs = []
        for version in range(2):
            proof = await generator.update_weights(publish(channel, version, build(seed=version)))
            costs.append(proof.precision_cost)
        assert costs[0] is costs[1] and least <= costs[0].mean <= costs[0].largest
        assert costs[0].mean <= most

    asyncio.run(scenario())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_sides_that_started_from_other_checkpoints_are_told_apart_from_rounding(precision):
    async def scenario():
        generator = executor(channel := Shelf(), GeneratorConfig(precision=precision), partial(build, seed=7))
        with pytest.raises(WeightSyncError, match=rf"before any update.*{precision} cannot explain: they hold other"):
            await generator.update_weights(publish(channel, 0, build()))

    asyncio.run(scenario())


def test_a_gap_is_the_mean_and_the_largest_difference_and_nan_is_seen():
    assert LogprobGap.between([-1.0, -2.0, 0.0], [-1.5, -2.0, -1.0]) == LogprobGap(0.5, 1.0)
    gap = LogprobGap.between([-1.0, math.nan, 0.0], [-1.5, -2.0, -1.0])
    assert math.isnan(gap.mean) and math.isnan(gap.largest)


class StaleHead(Forgetful):
    """Computes with a copy of the tied output head that updates never reach, as servers that pack it do."""

    def __init__(self, inner):
        super().__init__(inner)
        inner.decoder.lm_head = Dense(inner.decoder.named_views()["model.embed_tokens.weight"].clone())

    def load(self, tensors):
        self.inner.load(tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("learning_rate", [1e-5, 1e-2])  # the small one moves log-probs by less than bf16 rounds them
def test_a_tied_head_left_out_of_an_update_is_caught(precision, learning_rate):
    async def scenario():
        channel, start, trained = Shelf(), build(), build()
        with torch.no_grad():
            for parameter in trained.parameters():
                parameter += learning_rate * torch.randn_like(parameter).sign()
        generator = executor(channel, GeneratorConfig(precision=precision))
        generator.batcher.backend = StaleHead(generator.batcher.backend)
        await generator.update_weights(publish(channel, 0, start))  # the head is the checkpoint's own: all is well
        with pytest.raises(WeightSyncError, match=r"1 tensors differ after loading \(model.embed_tokens.weight"):
            await generator.update_weights(publish(channel, 1, trained, start))

    asyncio.run(scenario())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_subnormal_weights_that_a_kernel_flushes_to_zero_are_no_alarm(precision):
    async def scenario():
        def load():
            model = build()
            with torch.no_grad():
                model.get_output_embeddings().weight[3] = 1e-38
            return model

        channel = Shelf()
        generator = executor(channel, GeneratorConfig(precision=precision), load)
        await generator.update_weights(publish(channel, 0, load(), load()))

    asyncio.run(scenario())


def test_a_bad_request_is_refused_and_the_good_ones_go_on():
    async def scenario():
        generator = executor(Shelf())
        await generator.update_weights(publish(generator._channel, 0, build()))
        await generator.submit([request(0)])
        with pytest.raises(DataError, match="request 1"):
            await generator.submit([request(1, ())])
        assert list(await collect_all(generator, 1)) == [0]

    asyncio.run(scenario())


class Broken(Forgetful):
    def decode(self, tokens, longest):
        raise RuntimeError("out of memory")


def test_a_failing_step_surfaces_at_collect():
    async def scenario():
        generator = executor(Shelf())
        await generator.update_weights(publish(generator._channel, 0, build()))
        generator.batcher.backend = Broken(generator.batcher.backend)
        await generator.submit([request(0)])
        with pytest.raises(RuntimeError, match="out of memory"):
            await generator.collect(10.0)

    asyncio.run(scenario())


class CountedCores:
    """Counts who computes, and how often a share is taken."""

    def __init__(self):
        self.active, self.users, self.num_shares = 0, set(), 0

    @contextlib.contextmanager
    def using(self, who):
        self.users.add(who)
        self.active += 1
        try:
            yield self.take
        finally:
            self.active -= 1

    def take(self):
        self.num_shares += 1


def test_it_takes_its_share_of_cores_before_each_step_and_none_when_idle():
    async def scenario():
        cores = CountedCores()
        generator = executor(Shelf(), cores=cores)
        await generator.update_weights(publish(generator._channel, 0, build()))
        assert cores.active == 0
        await generator.submit([request(0, max_tokens=5)])
        await asyncio.sleep(0)
        assert cores.active == 1
        await collect_all(generator, 1)
        await asyncio.sleep(0)
        assert (cores.active, cores.users, cores.num_shares) == (0, {"generator"}, 4)  # a prefill draws the fifth token

    asyncio.run(scenario())


def test_unsupported_models_run_on_the_fallback_and_say_why(caplog):
    load = partial(build, "gpt_neox", pad_token_id=0)

    async def scenario():
        channel, model = Shelf(), load()
        generator = executor(channel, load_model=load)
        tensors = dict(named_tensors(model))
        channel.publish(0, tensors)
        backend = generator.batcher.backend
        rows = probe_rows(model)
        logprobs = backend.probe_logprobs(rows[0])
        manifest = WeightManifest(0, checksum(tensors), WeightProbe(rows, logprobs, logprobs))
        assert (await generator.update_weights(manifest)).probe_gap == 0.0
        await generator.submit([request(0)])
        (completion, _) = (await collect_all(generator, 1))[0]
        assert completion.logprobs == pytest.approx(reference_logprobs(model, completion), abs=1e-5)

    asyncio.run(scenario())
    assert caplog.text.count("falls back") == 1 and "'gpt_neox'" in caplog.text
    for config in (GeneratorConfig(precision="int8"), GeneratorConfig(on_update="keep")):
        with pytest.raises(ConfigError, match=r"'gpt_neox'.*neither precision 'int8' nor"):
            executor(Shelf(), config, load_model=load)


def test_it_pickles_before_setup():
    made = GeneratorExecutor(GeneratorConfig(precision="bf16"), build, Letters(), Shelf())
    assert pickle.loads(pickle.dumps(made)).config == made.config


def test_teardown_ends_the_decode_task():
    async def scenario():
        generator = executor(Shelf())
        await generator.update_weights(publish(generator._channel, 0, build()))
        await generator.submit([request(0, max_tokens=200)])
        await asyncio.sleep(0)
        generator.teardown()
        before = (await generator.status())["tokens"]
        for _ in range(5):
            await asyncio.sleep(0)
        assert (await generator.status())["tokens"] == before

    asyncio.run(scenario())


def test_config_rejects():
    with pytest.raises(ConfigError, match="precision"):
        GeneratorConfig.parse({"precision": "fp64"})
    with pytest.raises(ConfigError, match="slots"):
        GeneratorConfig.parse({"slots": 0})
