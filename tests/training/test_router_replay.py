"""Experts that a generator recorded, replayed in training: both sides send each token through the same ones."""

from array import array
from dataclasses import replace

import pytest
import torch
from test_filtered_samples import as_samples
from tiny_policies import gradients, step_of, tiny_model
from torch import nn

from llamarl.algorithms import AIPOConfig
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import GenerationRequest, Trajectory, join_turns
from llamarl.core.sampling import Sampling
from llamarl.generation.executor import GeneratorConfig, build_batcher
from llamarl.generation.native import NativeGenerator
from llamarl.models.decoder import Decoder, causal, named_tensors
from llamarl.models.experts import Experts
from llamarl.scoring.logprobs import PackedScorer, PaddedScorer
from llamarl.scoring.packing import split_packed
from llamarl.scoring.prefixes import PrefixScorer
from llamarl.training.config import TrainerConfig
from llamarl.training.trainer import PolicyTrainer

LAYERS, EXPERTS, ACTIVE = 2, 4, 2


class Unlikely(nn.Module):
    """Experts with a router that sends each token to those that it holds for least likely."""

    def __init__(self, experts):
        super().__init__()
        self.inner = experts
        self.gate, self.num_active = experts.gate, experts.num_active

    def forward(self, x, given=None):
        unlikely = (x @ self.gate.weight.t()).topk(self.num_active, largest=False).indices
        return self.inner(x, unlikely)

    @property
    def chosen(self):
        return self.inner.chosen


def moe(seed=0):
    return tiny_model(
        "qwen3_moe", seed, scale=3.0, num_experts=EXPERTS, num_experts_per_tok=ACTIVE, norm_topk_prob=True
    )


def generator(model, is_forced=False, **options):
    made = NativeGenerator(model, eos_ids=(2,), decode=lambda ids: "", slots=4, routed_experts=True, **options)
    for block in made.decoder.blocks if is_forced else ():
        block.layer.experts = Unlikely(block.layer.experts)
    return made


def requests(num_samples=3, max_tokens=9):
    seeds = tuple(range(num_samples))
    return [
        GenerationRequest(key, prompt, seeds, Sampling(max_tokens=max_tokens))
        for key, prompt in enumerate([(5, 9, 11), (4,)])
    ]


def sample(model, is_forced=False, **options):
    groups = generator(model, is_forced, **options).generate(requests())
    return [completion.trajectory for group in groups for completion in group]


def recorded(rows):
    return torch.tensor([x for row in rows for x in row.logprobs])


def choices(model, row):
    """The experts of the tokens read, by one pass over all of them."""
    decoder, ids = Decoder.live(model), torch.tensor([*row.prompt_ids, *row.token_ids][:-1])
    with torch.no_grad():
        decoder.hidden_states(ids, torch.arange(len(ids)), causal)
    return decoder.chosen_experts(len(ids)).numpy().tobytes()


# golden


def test_given_experts_worked_by_hand():
    # Three experts that double, triple and quadruple silu(x) x; the router says odds 1 : 2 : 5.
    router = torch.tensor([[1.0], [2.0], [5.0]]).log()
    up = torch.ones(3, 2, 1)
    layer = Experts(router, up, torch.tensor([2.0, 3.0, 4.0])[:, None, None], num_active=1, is_normalised=False)
    x, unit = torch.ones(3, 1), float(nn.functional.silu(torch.ones(())))
    free = layer(x)
    assert free[:, 0].tolist() == pytest.approx([4 * unit * 5 / 8] * 3) and layer.chosen.tolist() == [[2]] * 3
    given = layer(x, torch.tensor([[0], [-1], [1]]))
    assert given[:, 0].tolist() == pytest.approx([2 * unit / 8, 4 * unit * 5 / 8, 3 * unit * 2 / 8])
    assert layer.chosen.tolist() == [[0], [2], [1]]
    normalised = Experts(router, up, torch.ones(3, 1, 1), num_active=2, is_normalised=True)
    assert normalised(x, torch.tensor([[0, 1]] * 3))[:, 0].tolist() == pytest.approx([unit] * 3)


def test_a_record_has_the_experts_of_every_token_read():
    model = moe()
    for row in sample(model):
        assert len(row.routed_experts) == (len(row.prompt_ids) + len(row.token_ids) - 1) * LAYERS * ACTIVE
        assert row.routed_experts == choices(model, row)
    assert (
        NativeGenerator(model, eos_ids=(2,), decode=lambda ids: "").generate(requests())[0][0].trajectory.routed_experts
        == b""
    )


def test_the_trainer_follows_a_generator_that_chooses_otherwise():
    model = moe()
    rows = sample(model, is_forced=True)
    free = [replace(row, routed_experts=b"") for row in rows]
    for scorer in (PackedScorer(model), PrefixScorer(model)):
        assert torch.allclose(scorer(rows).logprobs, recorded(rows), atol=2e-5)
        assert not torch.allclose(scorer(free).logprobs, recorded(rows), atol=0.05)
    trainer = PolicyTrainer(model, AIPOConfig(), TrainerConfig(), sampling=Sampling(max_tokens=9), total_steps=2)
    metrics = trainer.train(step_of(as_samples(rows))).metrics
    assert metrics["train/mismatch_kl"] < 1e-9 and metrics["train/mismatch_prob_max"] < 1e-4


# gradient


def test_the_router_learns_by_the_experts_that_were_given():
    told = torch.tensor([[0, 1], [2, 3], [1, 3]])
    experts = Decoder.live(moe()).routers[0]
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    probs = (x @ experts.gate.weight.t()).softmax(-1).gather(-1, told)
    gate, up = torch.einsum("md,mkid->mki", x, experts.experts.gate_up_proj[told]).chunk(2, dim=-1)
    outputs = torch.einsum("mki,mkdi->mkd", nn.functional.silu(gate) * up, experts.experts.down_proj[told])
    expected = (outputs * (probs / probs.sum(-1, keepdim=True))[..., None]).sum(1)
    assert torch.allclose(experts(x, told), expected, atol=1e-5)
    (found,) = torch.autograd.grad(experts(x, told).square().sum(), experts.gate.weight)
    (by_hand,) = torch.autograd.grad(expected.square().sum(), experts.gate.weight)
    assert torch.allclose(found, by_hand, rtol=1e-4, atol=1e-5) and found.abs().max() > 0


@pytest.mark.parametrize("recompute", ["selective", "full"])
def test_activations_that_are_computed_again_go_to_the_same_experts(recompute):
    model = moe()
    rows = sample(model, is_forced=True)
    decoder = Decoder.live(model)
    scorer = PackedScorer(decoder)

    def run():
        return scorer(rows).logprobs.square().sum()

    expected = gradients(model, run)
    for block in decoder.blocks:
        block.recompute = recompute
    found = gradients(model, run)
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


# invariance


def test_rows_of_any_batch_go_to_their_own_experts():
    model = moe()
    forced, own = sample(model, is_forced=True), sample(model)
    rows = [*own[:3], *forced, replace(own[3], routed_experts=b"")]  # equal prompts, read by other experts
    scorer = PackedScorer(model)
    apart = torch.cat([scorer([row]).logprobs for row in rows])
    assert torch.allclose(scorer(rows).logprobs, apart, atol=2e-5)
    assert sorted(i for part in split_packed(rows, 20) for i in part) == list(range(len(rows)))


@pytest.mark.parametrize("on_update", ["recompute", "keep"])
def test_completions_under_newer_weights_have_the_experts_of_their_cache(on_update):
    old, new = moe(0), moe(1)
    batcher = generator(old, on_update=on_update)
    batcher.add(requests(num_samples=2, max_tokens=12))
    for _ in range(4):
        batcher.step()
    batcher.set_weights(1, dict(named_tensors(new)))
    rows = []
    while batcher.has_work:
        rows += [completion.trajectory for _, group in batcher.step() for completion in group]
    assert any(len(row.versions) == 2 for row in rows)
    for row in rows:
        assert len(row.routed_experts) == (len(row.prompt_ids) + len(row.token_ids) - 1) * LAYERS * ACTIVE
        if on_update == "recompute" and row.versions[-1][0] == 1:
            assert row.routed_experts == choices(new, row)


def test_many_samples_that_share_and_reuse_the_cache_have_the_experts_of_one_pass():
    model = moe()
    batcher = generator(model)
    batcher.reuses_cache = True
    prompt = tuple(3 + i % 20 for i in range(40))
    first = batcher.generate([GenerationRequest(0, prompt, tuple(range(9)), Sampling(max_tokens=6))])[0]
    whole = (*prompt, *first[0].token_ids)
    second = batcher.generate([GenerationRequest(1, whole, (1, 2), Sampling(max_tokens=6))])[0]
    assert batcher.num_recalled > 0
    for completion in (*first, *second):
        assert completion.trajectory.routed_experts == choices(model, completion.trajectory)
    turns = [first[0].trajectory, second[0].trajectory]
    assert join_turns(turns).routed_experts == turns[1].routed_experts


# rejects


def test_records_that_do_not_fit_are_refused():
    row = sample(moe())[0]
    with pytest.raises(ValueError, match="routed_experts: 7 bytes for 3 prompt tokens"):
        replace(row, routed_experts=b"1234567")
    with pytest.raises(DataError, match="4 experts a token, but this model sends each to 2"):
        other = tiny_model("qwen3_moe", num_experts=EXPERTS, num_experts_per_tok=1)
        PackedScorer(other)([row])
    far = replace(row, routed_experts=bytes([9]) * len(row.routed_experts))
    with pytest.raises(DataError, match="expert 9, but this model has 4"):
        PackedScorer(moe())([far])
    with pytest.raises(DataError, match="forward pass of transformers, which chooses experts itself"):
        PaddedScorer(moe())([row])
    assert row.as_given().routed_experts == b""
    assert Trajectory.given((1,), array("i", [2])).routed_experts == b""


def test_a_model_that_has_none_or_does_not_tell_is_refused():
    class Letters:
        eos_ids = (2,)

        def decode(self, ids):
            return ""

    config = GeneratorConfig(routed_experts=True)
    with pytest.raises(ConfigError, match=r"generator\.routed_experts: this model has 0 experts"):
        build_batcher(tiny_model(), config, Letters())
    with pytest.raises(ConfigError, match=r"generator\.routed_experts: this model runs on the transformers fallback"):
        build_batcher(tiny_model("gpt_neox"), config, Letters())
