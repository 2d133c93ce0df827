import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_generators import EOS, VOCAB, build, reference_logprobs, request, spell

from llamarl.core.records import GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.generation.fallback import TransformersGenerator
from llamarl.generation.kept import MIN_KNOWN, KeptRows
from llamarl.generation.native import NativeGenerator
from llamarl.models.decoder import named_tensors

KINDS = [NativeGenerator, TransformersGenerator]
LONG = tuple(3 + i % 30 for i in range(40))


def generator(model=None, kind=NativeGenerator, **settings_):
    g = kind(model or build(), eos_ids=(EOS,), decode=spell, **settings_)
    g.reuses_cache = g.backend.can_reuse
    return g


def next_turn(completion, *words):
    return (*completion.trajectory.prompt_ids, *completion.token_ids, *words)


def hold_dialogues(g, num_dialogues, num_turns, seed=0):
    """Turns of all dialogues, each asked as soon as the one before it is answered."""
    chance = random.Random(seed)
    openings = [tuple(chance.randrange(3, VOCAB) for _ in range(chance.randrange(5, 30))) for _ in range(num_dialogues)]
    words = [[tuple(chance.randrange(3, VOCAB) for _ in range(4)) for _ in range(num_turns)] for _ in openings]
    lengths = [[chance.randrange(3, 25) for _ in range(num_turns)] for _ in openings]
    completions = [[] for _ in openings]

    def ask(dialogue, prompt):
        turn = len(completions[dialogue])
        seeds, sampling = (100 * dialogue + turn,), Sampling(max_tokens=lengths[dialogue][turn])
        g.add([GenerationRequest(dialogue, prompt, seeds, sampling)])

    for dialogue, prompt in enumerate(openings):
        ask(dialogue, prompt)
    while g.has_work:
        for dialogue, (completion,) in g.step():
            completions[dialogue].append(completion)
            if len(completions[dialogue]) < num_turns:
                ask(dialogue, next_turn(completion, *words[dialogue][len(completions[dialogue])]))
    return completions


# golden


def test_a_later_turn_reads_only_what_is_new():
    model = build()
    g = generator(model, slots=4)
    (first,) = g.generate([request(0, LONG, 1)])[0]
    assert g.num_recalled == 0
    (second,) = g.generate([request(1, next_turn(first, 5, 6, 7), 1)])[0]
    assert g.num_recalled == len(LONG) + len(first.token_ids) - 1  # the last token drawn was never read
    assert second.logprobs == pytest.approx(reference_logprobs(model, second), abs=1e-5)


def test_a_history_that_was_rewritten_is_known_as_far_as_it_is_the_same():
    model = build()
    g = generator(model, slots=4)
    (first,) = g.generate([request(0, LONG, 1)])[0]
    changed = (*LONG[:30], 4, 4, 4, *first.token_ids)
    (second,) = g.generate([request(1, changed, 1)])[0]
    assert g.num_recalled == 30
    assert second.logprobs == pytest.approx(reference_logprobs(model, second), abs=1e-5)


def test_a_system_message_is_shared_with_rows_under_way():
    model = build()
    g = generator(model, slots=8)
    g.add([request(0, LONG, 2, max_tokens=30)])
    finished = dict(g.step())
    g.add([request(1, (*LONG[:25], 9, 9), 3), request(2, (*LONG[:20], 8), 1)])
    while g.has_work:
        finished.update(g.step())
    assert g.num_recalled == 25 + 20
    for completion in (c for group in finished.values() for c in group):
        assert completion.logprobs == pytest.approx(reference_logprobs(model, completion), abs=1e-5)


def test_nothing_is_reused_unless_asked_for():
    """A training run that is resumed has no rows of before, and must repeat exactly."""
    g = NativeGenerator(build(), eos_ids=(EOS,), decode=spell, slots=4)
    (first,) = g.generate([request(0, LONG, 1)])[0]
    g.generate([request(1, next_turn(first, 5), 1)])
    assert g.num_recalled == 0


def test_samples_of_a_group_that_start_later_know_their_prompt():
    g = generator(slots=2)
    g.add([request(0, LONG, 4, max_tokens=5)])
    while g.has_work:
        g.step()
    assert g.num_recalled >= len(LONG) - 1


# invariance


@pytest.mark.parametrize("kind", KINDS)
@given(slots=st.integers(1, 7), num_dialogues=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_dialogues_are_the_same_without_reuse(kind, slots, num_dialogues, seed):
    plain = generator(_model(), slots=16)
    plain.reuses_cache = False
    expected = hold_dialogues(plain, num_dialogues, 3, seed)
    assert plain.num_recalled == 0
    g = generator(_model(), kind, slots=slots)
    for ours, theirs in zip(hold_dialogues(g, num_dialogues, 3, seed), expected, strict=True):
        assert [c.token_ids for c in ours] == [c.token_ids for c in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_with_a_slot_for_each_dialogue_no_history_is_read_twice():
    g = generator(_model(), slots=6)
    dialogues = hold_dialogues(g, 6, 3)
    known = sum(
        len(c.trajectory.prompt_ids) - 5 for turns in dialogues for c in turns[1:]
    )  # 4 new words and the last token
    assert g.num_recalled >= known


_cache = {}


def _model():
    if "model" not in _cache:
        _cache["model"] = build()
    return _cache["model"]


# weights


def test_new_weights_know_nothing_of_the_old_ones_rows():
    new = build(seed=1)
    g = generator(slots=4)
    (first,) = g.generate([request(0, LONG, 1)])[0]
    g.set_weights(1, dict(named_tensors(new)))
    (second,) = g.generate([request(1, next_turn(first, 5), 1)])[0]
    assert g.num_recalled == 0
    assert second.logprobs == pytest.approx(reference_logprobs(new, second), abs=1e-5)


def test_a_cache_of_two_versions_is_not_kept():
    new = build(seed=1)
    g = generator(slots=4, on_update="keep")
    g.add([request(0, LONG, 1, max_tokens=20)])
    g.step()
    g.set_weights(1, dict(named_tensors(new)))
    g.add([request(2, (*LONG, 5), 1)])
    finished = {}
    while g.has_work:
        finished.update(g.step())
    (second,) = g.generate([request(1, next_turn(finished[0][0], 5), 1)])[0]
    assert second.logprobs == pytest.approx(reference_logprobs(new, second), abs=1e-5)
    (other,) = finished[2]
    assert other.logprobs == pytest.approx(reference_logprobs(new, other), abs=1e-5)


# which rows stay


def test_the_oldest_rows_make_room():
    kept = KeptRows(4)
    for row in (3, 1, 2):
        kept.keep(row, (row,) * 30)
    plan = kept.make_room({(9,) * 5: [1]}, {})
    assert (plan.num_known, plan.sources, plan.targets) == ([0], [1], [3])  # 3 was the oldest; 1 takes its place
    assert len(kept) == 2
    assert kept.make_room({(1,) * 40: [1]}, {}).num_known == [30]


def test_a_continued_row_is_not_kept_twice():
    kept = KeptRows(3)
    kept.keep(1, (7,) * 30)
    kept.keep(2, (8,) * 30)
    plan = kept.make_room({(7,) * 40: [1]}, {})
    assert (plan.num_known, plan.sources, len(kept)) == ([30], [], 1)


def test_rows_change_places_at_once():
    kept = KeptRows(4)
    kept.keep(1, (7,) * 30)
    kept.keep(2, (8,) * 30)
    plan = kept.make_room({(8,) * 40: [1], (7,) * 41: [2]}, {})
    assert plan.num_known == [30, 30]
    assert list(zip(plan.sources, plan.targets, strict=True)) == [(2, 1), (1, 2)]


@pytest.mark.parametrize("num_equal", [MIN_KNOWN - 1, MIN_KNOWN])
def test_a_few_equal_tokens_are_not_worth_a_copy(num_equal):
    kept = KeptRows(4)
    kept.keep(1, (7,) * 30)
    prompt = (7,) * num_equal + (8,) * 30
    assert kept.make_room({prompt: [0]}, {}).num_known == [num_equal if num_equal >= MIN_KNOWN else 0]


def test_at_least_one_token_is_read():
    kept = KeptRows(4)
    kept.keep(1, (7,) * 30)
    assert kept.make_room({(7,) * 30: [0]}, {}).num_known == [29]
