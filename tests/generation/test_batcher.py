import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_generators import EOS, VOCAB, build, reference_logprobs, request, spell

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.generation.fallback import TransformersGenerator
from llamarl.generation.native import NativeGenerator
from llamarl.models.decoder import named_tensors

FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe", "mistral"]
KINDS = [NativeGenerator, TransformersGenerator]


def generator(model=None, kind=NativeGenerator, eos_ids=(EOS,), **settings_):
    return kind(model or build(), eos_ids=eos_ids, decode=spell, **settings_)


def mixed_requests():
    """Prompts of many lengths, groups of many sizes, all kinds of sampling."""
    return [
        request(0, (5, 9, 11), 3, max_tokens=30),
        request(1, range(3, 30), 1, max_tokens=5, temperature=0.7),
        request(2, (4,), 4, max_tokens=17, top_k=9, top_p=0.9),
        request(3, (4, 4), 2, max_tokens=25, min_p=0.05),
        request(4, (5, 9, 11), 2, max_tokens=9, temperature=0.0),
    ]


# golden


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_are_those_of_the_transformers_forward(family, kind):
    model = build(family)
    requests = [request(0, (5, 9, 11), 3), request(1, range(3, 20), 2, temperature=0.8)]
    for completions, r in zip(generator(model, kind).generate(requests), requests, strict=True):
        for completion in completions:
            expected = reference_logprobs(model, completion, r.sampling.temperature)
            assert completion.logprobs == pytest.approx(expected, abs=1e-5)


def test_an_architecture_beyond_the_decoder_runs_on_the_fallback():
    model = build("gpt_neox", pad_token_id=0)
    with pytest.raises(ConfigError, match="'gpt_neox'"):
        generator(model)
    (completion,) = generator(model, TransformersGenerator).generate([request(num_samples=1)])[0]
    assert completion.logprobs == pytest.approx(reference_logprobs(model, completion), abs=1e-5)


def test_native_and_fallback_draw_the_same_texts():
    native, fallback = (generator(kind=kind, slots=4).generate(mixed_requests()) for kind in KINDS)
    assert [[c.token_ids for c in group] for group in native] == [[c.token_ids for c in group] for group in fallback]
    assert [[c.finish_reason for c in g] for g in native] == [[c.finish_reason for c in g] for g in fallback]


def test_greedy_takes_the_most_probable_token_with_certainty():
    model = build()
    (completion,) = generator(model).generate([request(num_samples=1, temperature=0.0)])[0]
    ids = list(completion.trajectory.prompt_ids)
    for token in completion.token_ids:
        with torch.no_grad():
            assert model(torch.tensor([ids])).logits[0, -1].argmax() == token
        ids.append(token)
    assert set(completion.logprobs) == {0.0}


# stop rules


def test_end_token_stops_and_stays_in_the_ids_but_not_in_the_text():
    every = [
        c for group in generator().generate([request(k, (k + 3,), 4, max_tokens=60) for k in range(6)]) for c in group
    ]
    stopped = [c for c in every if c.finish_reason == "stop"]
    assert len(stopped) > 3 and len(stopped) < len(every)
    for completion in every:
        ends = completion.token_ids[-1] == EOS
        assert ends == (completion.finish_reason == "stop")
        assert EOS not in completion.token_ids[:-1]
        assert len(completion.token_ids) == 60 or ends
        assert completion.text == spell(completion.token_ids)


def test_any_of_several_end_tokens_stops():
    completions = generator(eos_ids=tuple(range(3, VOCAB, 2))).generate([request(num_samples=8)])[0]
    assert all(c.token_ids[-1] % 2 == 1 for c in completions if c.finish_reason == "stop")
    assert any(c.finish_reason == "stop" for c in completions)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_stop_string_ends_after_the_token_that_completes_it(length):
    free = generator(eos_ids=()).generate([request(num_samples=1, max_tokens=30)])[0][0]
    stop = free.text[10 : 10 + length]
    first = free.text.index(stop)
    cut = generator(eos_ids=()).generate([request(num_samples=1, max_tokens=30, stop=("~~~", stop))])[0][0]
    assert cut.finish_reason == "stop" and cut.text == free.text[: first + length]
    assert cut.token_ids == free.token_ids[: len(cut.token_ids)]


def test_one_token_is_enough_for_a_limit_of_one():
    completions = generator(eos_ids=()).generate([request(max_tokens=1)])[0]
    assert [(len(c.token_ids), c.finish_reason) for c in completions] == [(1, "length")] * 2


# invariance


@given(slots=st.integers(1, 16), order=st.permutations(range(5)), is_split=st.booleans())
@settings(max_examples=15, deadline=None)
def test_texts_depend_on_the_seed_alone(slots, order, is_split):
    """Not on slots, order of arrival or grouping."""
    requests = mixed_requests()
    expected = {
        s: c for r, group in zip(requests, _reference(), strict=True) for s, c in zip(r.seeds, group, strict=True)
    }
    chosen = [requests[i] for i in order]
    if is_split:
        chosen = [GenerationRequest(s, r.prompt_ids, (s,), r.sampling) for r in chosen for s in r.seeds]
    for r, group in zip(chosen, generator(_model(), slots=slots).generate(chosen), strict=True):
        for seed, completion in zip(r.seeds, group, strict=True):
            assert completion.token_ids == expected[seed].token_ids
            assert completion.logprobs == pytest.approx(expected[seed].logprobs, abs=1e-5)


_cache = {}


def _model():
    if "model" not in _cache:
        _cache["model"] = build()
    return _cache["model"]


def _reference():
    if "reference" not in _cache:
        _cache["reference"] = [generator(_model()).generate([r])[0] for r in mixed_requests()]
    return _cache["reference"]


def test_samples_of_a_group_differ_and_repeat():
    first, again = (generator().generate([request(num_samples=6)])[0] for _ in range(2))
    assert first == again
    assert len({c.trajectory.key for c in first}) == 6


def test_cache_grows_past_its_first_capacity():
    model = build(max_position_embeddings=400)
    requests = [request(0, (5,), 2, max_tokens=20), request(1, (6,), 2, max_tokens=300), request(2, range(3, 33), 1)]
    completions = [c for g in generator(model, eos_ids=(), slots=3).generate(requests) for c in g]
    for completion in completions:
        assert completion.logprobs == pytest.approx(reference_logprobs(model, completion), abs=2e-5)


def test_prompts_beyond_one_prefill_pass_are_read_in_parts():
    model = build(max_position_embeddings=3000)
    requests = [request(k, [3 + (i * (k + 7)) % 30 for i in range(1500)], 1, max_tokens=2) for k in range(4)]
    for (completion,) in generator(model).generate(requests):
        assert completion.logprobs == pytest.approx(reference_logprobs(model, completion), abs=2e-5)


# order of service


def test_lower_priority_numbers_start_first_and_groups_finish_whole():
    g = generator(slots=2, eos_ids=())
    requests = [request(0, num_samples=3), request(1, num_samples=1), request(2, num_samples=1)]
    g.add([*requests[:2], GenerationRequest(2, (5,), (9,), Sampling(max_tokens=12), priority=-1)])
    finished = []
    while g.has_work:
        finished += g.step()
        assert g.num_active <= 2
    assert [key for key, _ in finished] == [2, 0, 1]
    assert [len(group) for _, group in finished] == [1, 3, 1]


def test_cancel_forgets_active_and_waiting_requests():
    g = generator(slots=2, eos_ids=())
    expected = generator(eos_ids=()).generate([request(3)])[0]
    g.add([request(k) for k in range(4)])
    g.step()
    g.cancel([0, 2, 99])
    assert (g.num_active, g.num_requests) == (0, 2)
    finished = {}
    while g.has_work:
        finished.update(g.step())
    assert finished.keys() == {1, 3} and [c.token_ids for c in finished[3]] == [c.token_ids for c in expected]
    g.add([request(0)])  # its key is free again


# weights


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_after_a_swap_carry_the_new_version_and_its_exact_logprobs(kind):
    old, new = build(seed=0), build(seed=1)
    g = generator(old, kind, eos_ids=(), slots=3, version=4)
    g.add([request(0, (5, 9, 11), 3, max_tokens=12), request(1, (7,), 2, max_tokens=20)])
    finished = {}
    for _ in range(5):
        finished.update(g.step())
    g.set_weights(7, dict(named_tensors(new)))
    while g.has_work:
        finished.update(g.step())
    swapped = finished[0][0]
    assert swapped.trajectory.versions == ((4, 6), (7, 6))  # five steps drew six tokens: a prefill draws one more
    assert swapped.logprobs[:6] == pytest.approx(reference_logprobs(old, swapped)[:6], abs=1e-5)
    assert swapped.logprobs[6:] == pytest.approx(reference_logprobs(new, swapped)[6:], abs=1e-5)
    assert dict(finished[1][1].trajectory.versions).keys() == {7}


def test_keep_goes_on_with_the_old_cache():
    tails = []
    for on_update in ("recompute", "keep"):
        g = generator(build(seed=0), eos_ids=(), on_update=on_update)
        g.add([request(num_samples=1)])
        for _ in range(4):
            g.step()
        g.set_weights(1, dict(named_tensors(build(seed=1))))
        finished = []
        while g.has_work:
            finished += g.step()
        (completion,) = finished[0][1]
        assert completion.trajectory.versions == ((0, 5), (1, 7))
        exact = reference_logprobs(build(seed=1), completion)
        tails.append(max(abs(a - b) for a, b in zip(completion.logprobs[5:], exact[5:], strict=True)))
    assert tails[0] < 1e-5 < 1e-2 < tails[1]


def test_the_generator_owns_its_weights():
    model = build()
    g = generator(model)
    expected = g.generate([request()])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert g.generate([request()]) == expected


# rejects


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            request(8, range(3, 33), max_tokens=250),
            r"request 8: 30 prompt tokens \+ max_tokens 250 exceed .* 256 .* 226",
        ),
        (request(8, ()), "request 8: 0 prompt tokens and 2 seeds"),
        (request(8, num_samples=0), "3 prompt tokens and 0 seeds"),
        (request(8, (5, VOCAB)), f"request 8: token id {VOCAB}"),
        (request(8, (5, -1)), "request 8: token id -1"),
        (request(1), "request 1: this key is already under way"),
    ],
)
def test_impossible_requests_are_refused_and_nothing_is_queued(bad, message):
    g = generator()
    g.add([request(1)])
    with pytest.raises(DataError, match=message):
        g.add([request(2), bad])
    assert g.num_requests == 1


def test_a_key_given_twice_at_once_is_refused():
    with pytest.raises(DataError, match="request 1: this key"):
        generator().add([request(1), request(1)])


def test_slots_must_be_positive():
    with pytest.raises(ConfigError, match="slots: 0"):
        generator(slots=0)


def test_unknown_precision_is_refused():
    with pytest.raises(ConfigError, match="'fp4' is unknown"):
        generator(precision="fp4")
