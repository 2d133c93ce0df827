"""Prompts that begin alike: the same numbers as by themselves, and fewer tokens."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_policies import VOCABULARY, gradients, tiny_model

from llamarl.scoring.logprobs import PaddedScorer
from llamarl.scoring.packing import Packed
from llamarl.scoring.prefixes import MIN_SHARED, PrefixScorer, cluster_rows, share_prefixes
from llamarl.training.sft_rows import SFTRow

SHAPES = st.lists(
    st.tuples(st.sampled_from([0, 3, 20, 40]), st.integers(1, 30), st.integers(1, 9)), min_size=1, max_size=7
)


def rows_of(shapes, seed=0):
    """Rows whose prompts begin with so many tokens of one text, and end each in its own way."""
    noise = torch.Generator().manual_seed(seed)

    def draw(count):
        return tuple(torch.randint(2, VOCABULARY, (count,), generator=noise).tolist())

    text = draw(40)
    return [SFTRow((*text[:shared], *draw(own)), draw(answer)) for shared, own, answer in shapes]


# golden


def test_the_beginning_costs_once():
    question = tuple(range(2, 2 + MIN_SHARED))
    rows = [SFTRow((*question, 3, 4), (5, 6)), SFTRow((*question, 7), (8, 9)), SFTRow((3, 4), (5, 6))]
    shared = share_prefixes(rows)
    assert [(row.prompt_ids, row.token_ids, row.turns) for row in shared] == [
        (question, (3, 4, 5, 6), [(2, 4)]),
        (question, (7, 8, 9), [(1, 3)]),
        ((3, 4), (5, 6), [(0, 2)]),
    ]
    # 16 once, then 3 + 2 inputs; the third row 2 + 1. A completion's last token is no input
    assert Packed(shared).num_tokens == MIN_SHARED + 3 + 2 + 3 < Packed(rows).num_tokens


def test_a_row_joins_its_neighbours_only_where_that_saves_tokens():
    long, short = tuple(range(2, 42)), tuple(range(2, 20))  # begin with 18 tokens alike
    detection = [SFTRow((*long, 50 + n), (5,)) for n in range(4)]
    question = SFTRow((*short, 60), (5,))
    found = [(each.num_shared, each.members) for each in cluster_rows([*detection, question])]
    # were the question in the same cluster, each of the four would compute 22 tokens more to save it 18
    assert found == [(40, [0, 1, 2, 3]), (19, [4])]
    assert [each.num_shared for each in cluster_rows([detection[0], question])] == [18]


# invariance


@settings(max_examples=25, deadline=None)
@given(SHAPES)
def test_the_numbers_are_those_of_rows_by_themselves(shapes):
    model, rows = tiny_model(), rows_of(shapes)
    with torch.no_grad():
        found = PrefixScorer(model)(rows).logprobs
        alone = torch.cat([PaddedScorer(model)([row]).logprobs for row in rows])
    assert found.tolist() == pytest.approx(alone.tolist(), abs=2e-5)


def test_gradients_are_those_of_padded_rows():
    model, rows = tiny_model(), rows_of([(20, 5, 3), (20, 2, 1), (40, 9, 4), (0, 6, 2)])
    found, expected = (
        gradients(model, lambda scorer=scorer: scorer(rows).logprobs.sum())
        for scorer in (PrefixScorer(model), PaddedScorer(model))
    )
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(SHAPES, st.integers(1, 200))
def test_micro_batches_hold_every_row_once_and_keep_to_their_tokens(shapes, max_tokens):
    rows = rows_of(shapes)
    batches = PrefixScorer(tiny_model()).split(rows, max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or Packed(share_prefixes([rows[index] for index in batch])).num_tokens <= max_tokens
