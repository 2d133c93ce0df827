import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_generators import EOS, VOCAB, build, reference_logprobs, spell

from llamarl.core.records import GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.generation.cache import BlockCache
from llamarl.generation.native import NativeGenerator
from llamarl.models.decoder import Geometry, named_tensors

BLOCK = 16
_models = {}


def model(seed=0):
    if seed not in _models:
        _models[seed] = build(seed=seed, max_position_embeddings=1024)
    return _models[seed]


def generator(slots, eos_ids=(), **settings_):
    return NativeGenerator(model(), eos_ids=eos_ids, decode=spell, slots=slots, **settings_)


def bytes_per_token(g):
    sizes = g.decoder.geometry
    return 2 * 4 * sizes.num_layers * sizes.num_kv_heads * sizes.head_dim


def needed(g):
    """Tokens that active rows hold, the prompt of a group once; and how many runs of tokens that makes."""
    counts = g._state.count[: g.num_active].tolist()
    prompts = {row.job.request.prompt_ids for row in g._rows} | g._find_begun()
    return sum(map(len, prompts)) + sum(count - 1 for count in counts), len(prompts) + len(counts)


def run(g, requests, chance=None, watch=lambda: None):
    """Adds the requests one after another while it steps; may cancel some."""
    done, waiting = {}, list(requests)
    while waiting or g.has_work:
        if waiting and (chance is None or chance.random() < 0.3 or not g.has_work):
            g.add([waiting.pop()])
        if chance is not None and chance.random() < 0.03 and g._jobs:
            g.cancel([chance.choice(list(g._jobs))])
        done.update(g.step())
        watch()
    return done


def random_requests(chance, num_requests, max_prompt=60, max_tokens=40):
    prompts = [[chance.randrange(3, VOCAB) for _ in range(chance.randrange(1, max_prompt))] for _ in range(4)]
    requests = []
    for key in range(num_requests):
        base = chance.choice(prompts)
        prompt = tuple(base[: chance.randrange(1, len(base) + 1)] if chance.random() < 0.3 else base)
        if chance.random() < 0.3:
            prompt += tuple(chance.randrange(3, VOCAB) for _ in range(chance.randrange(1, 20)))
        seeds = tuple(1000 * key + i for i in range(chance.randrange(1, 6)))
        requests.append(GenerationRequest(key, prompt, seeds, Sampling(max_tokens=chance.randrange(1, max_tokens))))
    return requests


# golden


def test_the_prompt_of_a_group_is_held_once():
    g = generator(8)
    g.add([GenerationRequest(0, tuple(range(3, 35)), tuple(range(8)), Sampling(max_tokens=20))])
    g.step()
    cache = g.backend.cache
    assert (len(cache.shared), len(cache.own), len(cache.kept)) == (2, 8, 0)  # 32 tokens; one block a sample
    assert cache.num_tokens == 32 + 8
    chains = [cache.chain(row) for row in range(8)]
    assert all(chain[:2] == chains[0][:2] and len(chain) == 3 for chain in chains)
    for _ in range(20):
        g.step()
    assert cache.num_blocks == 0


def test_samples_that_start_later_hold_the_prompt_of_the_first():
    g = generator(4)
    prompt = tuple(range(3, 37))
    g.add([GenerationRequest(0, prompt, tuple(range(9)), Sampling(max_tokens=20))])
    g.step()
    assert g.num_read == len(prompt)
    while g.has_work:
        g.step()
    assert g.num_read == len(prompt) + 2  # two more times the last token, whose logits are wanted
    assert g.backend.cache.num_blocks == 0


def test_what_two_rows_hold_is_never_written():
    cache = BlockCache(
        Geometry(
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=8,
            hidden_size=8,
            vocab_size=9,
            norm_eps=1e-6,
            max_positions=64,
        ),
        4,
        torch.float32,
        torch.device("cpu"),
    )
    cache.begin([0], 0, 20)
    cache.move([0], [1])
    assert cache.num_blocks == 2 and cache.num_tokens == 20
    places = cache.begin([1], 18, 20)  # 18 of its tokens stay: the second block is forked
    assert cache.num_blocks == 3 and [position for _, position in places] == [2, 3]
    assert cache.chain(0)[0] is cache.chain(1)[0] and cache.chain(0)[1] is not cache.chain(1)[1]
    assert places[0][0] is cache.chain(1)[1]
    cache.move([0], [2])
    cache.begin([2], 20, 21)  # all of them stay: the next one gets a block of its own
    assert [len(cache.chain(row)) for row in range(3)] == [2, 2, 3]
    cache.hold([1])
    assert cache.num_blocks == 2
    cache.hold([])
    assert cache.num_blocks == 0


# invariance


@pytest.mark.parametrize("reuses_cache", [False, True])
@given(seed=st.integers(0, 10_000), slots=st.integers(1, 9))
@settings(max_examples=15, deadline=None)
def test_any_schedule_gives_the_logprobs_of_a_plain_forward_and_leaks_nothing(reuses_cache, seed, slots):
    chance = random.Random(seed)
    g = generator(slots, eos_ids=(EOS,))
    g.reuses_cache = reuses_cache
    requests = {r.key: r for r in random_requests(chance, 10)}
    for completions in run(g, requests.values(), chance).values():
        for completion in completions:
            assert completion.logprobs == pytest.approx(reference_logprobs(model(), completion), abs=2e-5)
    cache = g.backend.cache
    assert cache.num_blocks == len({block for row in g._kept.rows for block in cache.chain(row)})
    assert reuses_cache or cache.num_blocks == 0
    g.adopt(1)
    assert cache.num_blocks == 0 and cache.num_bytes == 3 * BLOCK * bytes_per_token(g)  # a null block in each pool


@given(seed=st.integers(0, 10_000), slots=st.integers(2, 9))
@settings(max_examples=10, deadline=None)
def test_updates_under_way_rebuild_what_every_row_holds(seed, slots):
    chance = random.Random(seed)
    g = generator(slots)
    updates = []

    def update():
        if chance.random() < 0.1:
            updates.append(len(updates) % 2 + 1)
            g.set_weights(len(updates), dict(named_tensors(model(updates[-1]))))

    done = run(g, random_requests(chance, 6), chance, update)
    weights = [0, *updates]
    for completion in (c for group in done.values() for c in group):
        start = 0
        for version, count in completion.trajectory.versions:
            expected = reference_logprobs(model(weights[version]), completion)
            assert completion.logprobs[start : start + count] == pytest.approx(
                expected[start : start + count], abs=2e-5
            )
            start += count
    assert g.backend.cache.num_blocks == 0


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_low_precisions_hold_the_same_tokens(precision):
    chance = random.Random(1)
    requests = random_requests(chance, 8)
    g, alone = generator(6, precision=precision), generator(1, precision=precision)
    together = run(g, requests)
    for request in requests[:4]:
        for i, completion in enumerate(together[request.key]):
            ids = [*request.prompt_ids, *completion.token_ids]
            expected = alone.backend.probe_logprobs(ids)[len(request.prompt_ids) - 1 :]
            assert completion.logprobs == pytest.approx(expected, abs=0.2), i
    assert g.backend.cache.num_blocks == 0


@given(seed=st.integers(0, 10_000), slots=st.integers(1, 12), num_samples=st.integers(1, 8))
@settings(max_examples=6, deadline=None)
def test_memory_is_at_most_that_of_the_tokens_and_a_third(seed, slots, num_samples):
    """At every moment but for the last block of each run of tokens; at the peak of long rows whatever."""
    chance = random.Random(seed)
    g = generator(slots)
    size = bytes_per_token(g)
    peaks = [0, 0]

    def watch():
        num_tokens, num_runs = needed(g)
        held = g.backend.memory()[1]
        assert held <= size * (8 / 7 * (num_tokens + num_runs * (BLOCK - 1)) + 3 * BLOCK * 8 / 7)
        peaks[:] = max(peaks[0], held), max(peaks[1], num_tokens * size)

    requests = []
    for key in range(2 * slots // num_samples + 1):
        prompt = tuple(chance.randrange(3, VOCAB) for _ in range(chance.randrange(40, 200)))
        seeds = tuple(range(key * 100, key * 100 + num_samples))
        requests.append(GenerationRequest(key, prompt, seeds, Sampling(max_tokens=chance.randrange(100, 200))))
    run(g, requests, None, watch)
    assert peaks[0] <= 1.3 * peaks[1] + 3 * BLOCK * size


def test_dialogues_that_go_on_take_no_memory_twice():
    g = generator(6)
    g.reuses_cache = True
    cache = g.backend.cache
    ratios = []

    def watch():
        ratios.append(g.backend.memory()[1] / bytes_per_token(g) / max(cache.num_tokens, 1))

    def ask(prompts, turn):
        requests = [
            GenerationRequest(i, p, (10 * turn + i,), Sampling(max_tokens=5 + 7 * i)) for i, p in enumerate(prompts)
        ]
        done = run(g, requests, None, watch)
        return [(*p, *done[i][0].token_ids, 5, 6) for i, p in enumerate(prompts)]

    second = ask([tuple(3 + (i * j) % 30 for j in range(150 + 40 * i)) for i in range(1, 7)], 0)
    num_read = g.num_read
    ask(second, 1)
    assert max(ratios) <= 1.3
    assert g.num_read - num_read == 6 * 3  # the last token of each answer, which was never read, and two words
