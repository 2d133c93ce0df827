"""Completions that were drawn under sampling filters, and how they train: among the tokens that the filters left."""

import math
from array import array
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policies import VOCABULARY, gradients, step_of, tiny_model

from llamarl.algorithms import AIPOConfig, GRPOConfig, RAFTConfig
from llamarl.core.errors import DataError
from llamarl.core.records import GenerationRequest, Support, TrainSample, Trajectory, join_turns
from llamarl.core.sampling import Sampling
from llamarl.generation.draw import Filters, apply_filters
from llamarl.generation.fallback import TransformersGenerator
from llamarl.generation.native import NativeGenerator
from llamarl.scoring import logprobs as scoring
from llamarl.scoring.logprobs import PackedScorer, PaddedScorer
from llamarl.scoring.prefixes import PrefixScorer
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer

FILTERS = [{"top_p": 0.7}, {"top_k": 4}, {"min_p": 0.2}, {"top_k": 9, "top_p": 0.8, "min_p": 0.02, "temperature": 0.7}]


def sample(model, keeps_support=True, kind=NativeGenerator, num_samples=3, **sampling):
    """Completions of two prompts."""
    generator = kind(model, eos_ids=(2,), decode=lambda ids: "", slots=4)
    drawn = Sampling(max_tokens=9, **sampling)
    seeds = tuple(range(num_samples))
    asked = [
        GenerationRequest(key, prompt, seeds, drawn, keeps_support=keeps_support)
        for key, prompt in enumerate([(5, 9, 11), (4,)])
    ]
    return [completion.trajectory for group in generator.generate(asked) for completion in group]


def as_samples(trajectories):
    return [
        TrainSample(each, advantages=0.5 - (index % 3), group=index // 3) for index, each in enumerate(trajectories)
    ]


def tables(model, trajectory):
    """Logits that each response token was drawn from, by the module's own forward pass."""
    ids = [*trajectory.prompt_ids, *trajectory.token_ids]
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, len(trajectory.prompt_ids) - 1 : -1].float()


# golden


@pytest.mark.parametrize("kind", [NativeGenerator, TransformersGenerator])
@pytest.mark.parametrize("filters", FILTERS)
def test_a_generator_tells_the_tokens_that_its_filters_left(filters, kind):
    model = tiny_model(scale=3.0)
    setting = Sampling(**filters)
    for trajectory in sample(model, kind=kind, **filters):
        count = len(trajectory.token_ids)
        columns = (setting.temperature, setting.top_k, setting.top_p, setting.min_p)
        own = Filters(*(torch.tensor([column] * count) for column in columns))
        left = apply_filters(tables(model, trajectory), own)
        assert trajectory.support.counts.tolist() == (left > -math.inf).sum(-1).tolist()
        assert trajectory.support.ids.tolist() == (left > -math.inf).nonzero()[:, 1].tolist()
        expected = left.log_softmax(-1)[torch.arange(count), torch.tensor(trajectory.token_ids)]
        assert trajectory.logprobs.tolist() == pytest.approx(expected.tolist(), abs=2e-5)


def test_nobody_who_does_not_ask_is_told():
    assert all(each.support is None for each in sample(tiny_model(), keeps_support=False, top_p=0.7))


@pytest.mark.parametrize("algorithm", [AIPOConfig(), GRPOConfig(kl_coef=0.1)])
@pytest.mark.parametrize("filters", FILTERS)
def test_generator_and_trainer_agree_under_filters(filters, algorithm):
    model = tiny_model(scale=3.0)
    samples = as_samples(sample(model, **filters))
    sampling = Sampling(max_tokens=9, **filters)
    trainer = PolicyTrainer(model, algorithm, TrainerConfig(), sampling=sampling, total_steps=2)
    if algorithm.needs.reference:
        known = trainer._score([each.trajectory for each in samples]).logprobs.detach()
        parts = torch.split(known, [each.trajectory.response_length for each in samples])
        samples = [replace(s, reference_logprobs=array("f", p.tolist())) for s, p in zip(samples, parts, strict=True)]
    metrics = trainer.train(step_of(samples)).metrics
    assert metrics["train/mismatch_kl"] < 1e-9 and metrics["train/mismatch_prob_max"] < 1e-4
    assert metrics["train/ratio/mean"] == pytest.approx(1.0, abs=1e-5)


# gradient


def test_the_expected_gradient_of_a_constant_reward_is_zero_under_a_filter():
    """What makes a baseline harmless: the sum over k in K of pi(k | K) grad log pi(k | K) is 0.

    Without the kept set, mass would flow between kept and cut tokens whatever the rewards say.
    """
    model, prompt = tiny_model(scale=3.0), (5, 9, 11)
    (first, *_) = sample(model, top_p=0.8)
    left = first.support.ids[: first.support.counts[0]].tolist()
    assert 1 < len(left) < VOCABULARY
    one = Support(array("i", left), array("i", [len(left)]))
    rows = [Trajectory.sampled(prompt, (token,), (0.0,), (0,), support=one) for token in left]
    scorer = PackedScorer(model)

    def expected(rows):
        def run():
            logprobs = scorer(rows).logprobs
            return (logprobs.detach().exp() * logprobs).sum()

        return max(float(value.abs().max()) for value in gradients(model, run).values())

    assert expected(rows) < 1e-5
    assert expected([replace(row, support=None) for row in rows]) > 1e-2


# invariance


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 99),
    top_p=st.floats(0.2, 0.99),
    temperature=st.floats(0.5, 2.0),
    family=st.sampled_from(["llama", "qwen3", "qwen3_moe"]),
)
def test_packed_padded_and_sampled_log_probs_are_alike_for_any_filter(seed, top_p, temperature, family):
    model = tiny_model(family, seed, scale=3.0)
    rows = sample(model, num_samples=2, top_p=top_p, temperature=temperature)
    recorded = torch.tensor([x for row in rows for x in row.logprobs])
    mixed = [*rows, *(replace(row, support=None) for row in rows)]
    packed, padded = PackedScorer(model, temperature)(mixed), PaddedScorer(model, temperature)(mixed)
    assert torch.allclose(packed.logprobs, padded.logprobs, atol=2e-5)
    assert torch.allclose(packed.logprobs[: len(recorded)], recorded, atol=2e-5)
    assert bool((packed.logprobs[len(recorded) :] <= recorded + 1e-5).all())  # a share of less


def test_an_output_head_run_in_pieces_gives_the_same_scores_and_gradients(monkeypatch):
    model = tiny_model(scale=3.0)
    rows, scorer = sample(model, top_p=0.8), PackedScorer(model)
    whole, expected = scorer(rows).logprobs, gradients(model, lambda: scorer(rows).logprobs.square().sum())
    monkeypatch.setattr(scoring, "MAX_LOGITS", 7 * VOCABULARY)
    assert torch.allclose(scorer(rows).logprobs, whole, atol=1e-6)
    found = gradients(model, lambda: scorer(rows).logprobs.square().sum())
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


def test_hidden_states_and_entropy_are_those_without_filters():
    model = tiny_model(scale=3.0)
    rows, scorer = sample(model, top_p=0.8), PackedScorer(model)
    plain = scorer([replace(row, support=None) for row in rows], "value", hidden=True)
    under = scorer(rows, "value", hidden=True)
    assert torch.allclose(under.hidden, plain.hidden, atol=1e-6)
    assert torch.allclose(under.entropy, plain.entropy, atol=1e-5)


def test_dialogues_and_shared_prefixes_keep_each_token_with_its_own_set():
    model = tiny_model(scale=3.0)
    first, *_ = sample(model, top_p=0.8)
    second = replace(first, prompt_ids=first.prompt_ids + first.token_ids + array("i", [7, 8]))
    scorer = PaddedScorer(model)
    whole = join_turns([first, replace(second, support=None)])
    apart = torch.cat([scorer([row]).logprobs for row in (first, replace(second, support=None))])
    for each in (scorer, PackedScorer(model), PrefixScorer(model)):
        assert torch.allclose(each([whole]).logprobs, apart, atol=2e-5)


# reduces to


def test_filters_that_cut_nothing_train_as_no_filter():
    model = tiny_model(scale=3.0)
    rows = sample(model, top_k=VOCABULARY)
    assert {count for row in rows for count in row.support.counts} == {VOCABULARY}
    plain = [replace(row, support=None) for row in rows]
    scorer = PackedScorer(model)
    assert torch.allclose(scorer(rows).logprobs, scorer(plain).logprobs, atol=1e-6)


def test_what_learns_by_heart_needs_no_kept_tokens():
    model = tiny_model(scale=3.0)
    samples = [replace(each, advantages=1.0) for each in as_samples(sample(model, keeps_support=False, top_p=0.7))]
    trainer = PolicyTrainer(model, RAFTConfig(), sampling=Sampling(max_tokens=9, top_p=0.7), total_steps=2)
    assert math.isfinite(trainer.train(step_of(samples)).metrics["train/loss"])


# rejects


def test_filtered_samples_without_their_kept_tokens_are_refused():
    model = tiny_model(scale=3.0)
    samples = as_samples(sample(model, keeps_support=False, top_p=0.7))
    trainer = PolicyTrainer(model, AIPOConfig(), sampling=Sampling(max_tokens=9, top_p=0.7), total_steps=2)
    with pytest.raises(DataError, match=r"group 0: sampled with {'top_p': 0\.7}, but without.*keeps_support"):
        trainer.train(step_of(samples))
