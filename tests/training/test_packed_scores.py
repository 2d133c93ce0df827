import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policies import VOCABULARY, gradients, rows_of, samples_of, tiny_model

from llamarl.core.errors import DataError
from llamarl.scoring import logprobs as scoring
from llamarl.scoring.logprobs import PackedScorer, PaddedScorer, build_scorer
from llamarl.scoring.packing import Packed, split_packed, split_padded
from llamarl.training.sft_rows import SFTRow

FAMILIES = ["llama", "qwen2", "qwen3", "qwen3_moe", "mistral"]
SHAPES = st.lists(
    st.tuples(st.integers(1, 70), st.lists(st.integers(1, 40), min_size=1, max_size=4)), min_size=1, max_size=4
)


def rows_from(shape, seed=0):
    return rows_of(samples_of(shape, seed))


def distance(left, right):
    """Relative distance of two gradients of all parameters, as one long vector."""
    gap = math.sqrt(sum(float((left[name] - right[name]).square().sum()) for name in right))
    return gap / math.sqrt(sum(float(value.square().sum()) for value in right.values()))


def loss_of(scorer, rows, seed=1):
    """A loss with a different weight on every token, so that no two tokens can be exchanged unseen."""

    def run():
        logprobs = scorer(rows).logprobs
        weights = torch.randn(len(logprobs), generator=torch.Generator().manual_seed(seed)).to(logprobs)
        return (logprobs * weights).sum()

    return run


# golden


def test_packed_positions_of_a_batch_worked_by_hand():
    rows = [SFTRow((5, 6), (7, 8, 9)), SFTRow((5, 6), (4,)), SFTRow((3,), (4, 2))]
    packed = Packed(rows)
    # prompts (longest first), then the inputs of the completions (longest first): a last token is never an input
    assert packed.ids.tolist() == [5, 6, 3, 7, 8, 4]
    assert packed.positions.tolist() == [0, 1, 0, 2, 3, 1]
    # hidden states of the last prompt token per row (places 1, 1, 2), then of the completions' own inputs
    hidden = torch.arange(6.0)[:, None]
    assert packed.predicting(hidden)[:, 0].tolist() == [1, 1, 2, 3, 4, 5]
    assert packed.targets.tolist() == [7, 4, 4, 8, 9, 2]
    assert packed.targets[packed.order].tolist() == [7, 8, 9, 4, 4, 2]


def test_a_model_that_surely_repeats_its_input_gives_logprob_zero_to_a_repetition_and_nothing_else():
    model = tiny_model(num_hidden_layers=1)
    with torch.no_grad():  # no attention, no MLP, orthogonal embeddings: the head recognises the input token
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.zero_()
        model.model.embed_tokens.weight[:16] = 40.0 * torch.eye(16)
    rows = [SFTRow((3, 5), (5, 5, 5)), SFTRow((3, 5), (5, 4))]
    for scorer in (PackedScorer(model), PaddedScorer(model)):
        logprobs = scorer(rows).logprobs
        assert logprobs[:4].tolist() == [0.0] * 4  # an off-by-one shift would score 3 -> 5
        assert logprobs[4] < -50


def test_every_completion_token_counts_once_the_end_token_included():
    rows = rows_from([(4, [1, 6, 3]), (9, [2])])
    assert [len(scorer(rows).logprobs) for scorer in (PackedScorer(tiny_model()), PaddedScorer(tiny_model()))] == [
        12,
        12,
    ]
    packed = Packed(rows)
    assert packed.lengths == [1, 6, 3, 2]
    assert len(packed.ids) == 4 + 9 + (0 + 5 + 2 + 1)


# gradient


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_tied", [True, False])
def test_packed_loss_and_all_gradients_equal_those_of_padded_rows(family, is_tied):
    model = tiny_model(family, tie_word_embeddings=is_tied, scale=3.0)
    rows = rows_from([(40, [30, 8, 29]), (90, [1, 2]), (7, [20, 4, 4, 17]), (1, [1])])
    packed, padded = PackedScorer(model, 0.7), PaddedScorer(model, 0.7)
    ours, theirs = packed(rows).logprobs, padded(rows).logprobs
    assert float((ours - theirs).detach().norm() / theirs.detach().norm()) < 5e-7
    assert distance(gradients(model, loss_of(packed, rows)), gradients(model, loss_of(padded, rows))) < 2e-6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("pad_id", [0, 2])  # 2 also ends a completion, as where pad and eos are one token
def test_the_pad_token_gets_the_gradient_that_transformers_gives_it(family, is_tied, pad_id):
    model = tiny_model(family, tie_word_embeddings=is_tied, pad_token_id=pad_id, eos_token_id=2)
    with torch.no_grad():
        model.model.embed_tokens.weight[pad_id] = 0.0  # as freshly built: the norm of a zero vector has a huge gradient
    rows = [SFTRow((5, 0, 6), (7, 0, 8, 2)), SFTRow((5, 2, 6), (0, 2))]
    packed, padded = PackedScorer(model), PaddedScorer(model)
    ours, theirs = gradients(model, loss_of(packed, rows)), gradients(model, loss_of(padded, rows))
    embedding = "model.embed_tokens.weight"
    if is_tied:
        torch.testing.assert_close(ours[embedding][pad_id], theirs[embedding][pad_id], rtol=1e-4, atol=1e-5)
    else:
        assert not ours[embedding][pad_id].any() and not theirs[embedding][pad_id].any()
    assert distance(ours, theirs) < 2e-6


@settings(max_examples=25, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 9), family=st.sampled_from(FAMILIES))
def test_packed_equals_padded_for_any_lengths_and_groups(shape, seed, family):
    model = tiny_model(family, seed, scale=3.0).double()  # but the reference's norms stay in fp32, hence 1e-6
    rows = rows_from(shape, seed)
    packed, padded = PackedScorer(model), PaddedScorer(model)
    gap = (packed(rows).logprobs - padded(rows).logprobs).detach()
    assert float(gap.abs().max()) < 1e-6
    assert distance(gradients(model, loss_of(packed, rows)), gradients(model, loss_of(padded, rows))) < 1e-6


def test_entropy_carries_a_gradient_only_where_it_is_asked_for():
    model, rows = tiny_model(), rows_from([(4, [5, 2])])
    for scorer in (PackedScorer(model), PaddedScorer(model)):
        assert scorer(rows).entropy is None
        value, differentiable = scorer(rows, "value").entropy, scorer(rows, "gradient").entropy
        assert not value.requires_grad and differentiable.requires_grad
        torch.testing.assert_close(value, differentiable.detach())
        assert float(value.min()) > 0 and float(value.max()) < math.log(VOCABULARY)


# invariance


def test_an_output_head_run_in_pieces_gives_the_same_scores_and_gradients(monkeypatch):
    model, rows = tiny_model(), rows_from([(4, [5, 2, 9]), (3, [8])])
    scorer = PackedScorer(model)
    whole, expected = scorer(rows, "gradient"), gradients(model, lambda: scorer(rows, "gradient").entropy.sum())
    monkeypatch.setattr(scoring, "MAX_LOGITS", 7 * VOCABULARY)
    pieces = scorer(rows, "gradient")
    torch.testing.assert_close(pieces.logprobs, whole.logprobs)
    torch.testing.assert_close(pieces.entropy, whole.entropy)
    assert distance(gradients(model, lambda: scorer(rows, "gradient").entropy.sum()), expected) < 1e-6
    assert (
        distance(gradients(model, loss_of(scorer, rows)), gradients(model, loss_of(PaddedScorer(model), rows))) < 2e-6
    )


@settings(max_examples=60, deadline=None)
@given(shape=SHAPES, max_tokens=st.integers(1, 400))
def test_micro_batches_hold_every_row_once_and_keep_the_budget(shape, max_tokens):
    rows = rows_from(shape)
    for split in (split_packed, split_padded):
        assert sorted(index for part in split(rows, max_tokens) for index in part) == list(range(len(rows)))
    for part in split_packed(rows, max_tokens):
        assert len(part) == 1 or Packed([rows[index] for index in part]).num_tokens <= max_tokens
    for part in split_padded(rows, max_tokens):
        longest = max(len(rows[index].prompt_ids) + len(rows[index].token_ids) for index in part)
        assert len(part) == 1 or len(part) * longest <= max_tokens


def test_a_prompt_is_computed_once_for_all_its_completions_and_a_tail_rounds_the_rest():
    rows = rows_from([(50, [10, 60, 35, 2]), (20, [90])])
    packed = Packed(rows)
    assert packed.num_tokens == 50 + 9 + 59 + 34 + 1 + 20 + 89 == 262
    assert len(packed.ids) == 272  # 262 // 16 = 16: the next multiple of 16


def test_the_tail_has_no_gradient_and_no_score():
    model, rows = tiny_model(), rows_from([(50, [10, 60, 35, 2]), (20, [90]), (30, [70, 80])])
    packed = Packed(rows)
    assert len(packed.ids) > packed.num_tokens and len(packed.targets) > len(packed.order)
    assert len(PackedScorer(model)(rows).logprobs) == sum(len(row.token_ids) for row in rows)
    ours, theirs = (gradients(model, loss_of(scorer(model), rows)) for scorer in (PackedScorer, PaddedScorer))
    assert distance(ours, theirs) < 2e-6


def test_temperature_divides_the_logits():
    model, rows = tiny_model(), rows_from([(5, [6])])
    ids = torch.tensor([[*rows[0].prompt_ids, *rows[0].token_ids]])
    logits = model(input_ids=ids, use_cache=False).logits[0, 4:-1].detach()
    expected = torch.log_softmax(logits / 0.6, -1).gather(1, ids[0, 5:, None])[:, 0]
    for scorer in (PackedScorer(model, 0.6), PaddedScorer(model, 0.6)):
        torch.testing.assert_close(scorer(rows).logprobs.detach(), expected, rtol=1e-5, atol=1e-5)


# reduces to


def test_models_the_decoder_does_not_know_are_scored_as_padded_rows():
    assert isinstance(build_scorer(tiny_model("gpt_neox")), PaddedScorer)
    assert isinstance(build_scorer(tiny_model("qwen3")), PackedScorer)


# rejects


@pytest.mark.parametrize("row", [SFTRow((), (3,)), SFTRow((3,), ())])
def test_rows_without_prompt_or_completion_are_refused(row):
    with pytest.raises(DataError, match="row 1: needs at least one prompt token and one completion token"):
        PackedScorer(tiny_model())([SFTRow((3,), (4,)), row])
