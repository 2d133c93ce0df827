import pytest
import torch
from tiny_generators import EOS, VOCAB, build, reference_logprobs, request, spell

from llamarl.core.records import GenerationRequest
from llamarl.core.sampling import Sampling
from llamarl.generation.fallback import TransformersGenerator
from llamarl.models.decoder import named_tensors
from llamarl.models.rope import rope_threshold, split_by_side
from llamarl.scoring.logprobs import PaddedScorer

KINDS = {
    "gpt2": {},
    "gpt_neox": {"pad_token_id": 0},
    "bloom": {},
    "falcon": {"alibi": False},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 9},
    "gemma3_text": {"head_dim": 8, "sliding_window": 9},
    "phi": {"hidden_size": 32},
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "sliding_window": 6},
}
THRESHOLD = 24


def long_rope(seed=0, threshold=THRESHOLD):
    rope = {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2],
        "long_factor": [1.5, 3.0, 8.0],
        "original_max_position_embeddings": threshold,
        "rope_theta": 100.0,
        "attention_factor": 1.2,
    }
    return build("phi3", seed, rope_parameters=rope, original_max_position_embeddings=threshold, pad_token_id=0)


def generator(model, **settings):
    return TransformersGenerator(model, eos_ids=(EOS,), decode=spell, **settings)


def requests():
    """More rows than slots, prompts and answers of many lengths."""
    return [
        request(0, (5, 9, 11), 3, max_tokens=30),
        request(1, range(3, 30), 2, max_tokens=15),
        request(2, (4,), 2, max_tokens=9, temperature=0.7),
        request(3, range(20, 35), 2, max_tokens=40),
    ]


def prefix_logprobs(model, completion):
    """Log-probs of a completion's tokens, each from a forward pass over nothing but the tokens before it."""
    ids = [*completion.trajectory.prompt_ids, *completion.token_ids]
    logprobs = []
    for end in range(len(completion.trajectory.prompt_ids), len(ids)):
        with torch.no_grad():
            logits = model(torch.tensor([ids[:end]]), use_cache=False).logits[0, -1]
        logprobs.append(torch.log_softmax(logits.float(), -1)[ids[end]].item())
    return logprobs


@pytest.mark.parametrize("family", KINDS)
def test_logprobs_with_a_cache_are_those_of_the_modules_own_forward(family):
    model = build(family, **KINDS[family])
    g = generator(model, slots=4)
    assert g.backend.has_cache
    for asked, group in zip(requests(), g.generate(requests()), strict=True):
        for completion in group:
            expected = reference_logprobs(model.eval(), completion, asked.sampling.temperature)
            assert completion.logprobs == pytest.approx(expected, abs=2e-5)


def test_a_module_with_another_kind_of_state_reads_its_rows_again():
    model = build("mamba", state_size=4)
    g = generator(model, slots=3)
    assert not g.backend.has_cache
    for completion in (c for group in g.generate(requests()[:2]) for c in group):
        assert completion.logprobs == pytest.approx(reference_logprobs(model.eval(), completion, 1.0), abs=2e-5)


def test_a_step_reads_one_token_of_each_row():
    """Not the whole rows again."""
    model = build("gpt2")
    g = generator(model, slots=4)
    seen = []
    g.backend.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    g.add([request(0, range(3, 20), 3, max_tokens=6)])
    while g.has_work:
        g.step()
    assert seen[0] == (1, 17)
    assert len(seen) > 1 and all(width == 1 and rows <= 3 for rows, width in seen[1:])


def test_new_weights_rebuild_the_cache():
    old, new = build("gpt2", 0), build("gpt2", 1)
    g = generator(old, slots=3)
    g.add([request(0, (5, 9, 11), 3, max_tokens=12)])
    for _ in range(5):
        g.step()
    g.set_weights(1, dict(named_tensors(new)))
    finished = {}
    while g.has_work:
        finished.update(g.step())
    for completion in finished[0]:
        num_old = dict(completion.trajectory.versions).get(0, 0)
        expected = reference_logprobs(new.eval(), completion)
        assert completion.logprobs[num_old:] == pytest.approx(expected[num_old:], abs=1e-5)


def test_bf16_runs_with_a_cache():
    g = generator(build("gpt2"), slots=3, dtype=torch.bfloat16)
    assert g.backend.has_cache
    (completion,) = g.generate([request(0, (5, 9), 1, max_tokens=5)])[0]
    assert completion.logprobs[0] == pytest.approx(reference_logprobs(build("gpt2").eval(), completion)[0], abs=0.2)


# embeddings that depend on the length


def test_the_threshold_is_found_where_there_is_one():
    assert rope_threshold(long_rope().config) == THRESHOLD
    assert rope_threshold(build("llama").config) is None
    assert rope_threshold(build("gemma3_text", head_dim=8).config) is None
    assert split_by_side([3, 30, 24, 25], THRESHOLD) == [[0, 2], [1, 3]]
    assert split_by_side([3, 30], None) == [[0, 1]]


def test_the_length_makes_a_difference_here():
    short, long = long_rope(), long_rope(threshold=2)
    with torch.no_grad():
        gap = short(torch.tensor([[5, 9, 11, 4]])).logits - long(torch.tensor([[5, 9, 11, 4]])).logits
    assert gap.abs().max() > 0.05


@pytest.mark.parametrize("has_cache", [True, False])
@pytest.mark.parametrize("slots", [1, 8])
def test_rows_of_both_sides_are_as_if_each_were_alone(slots, has_cache):
    """Short ones, long ones, and some that cross the threshold under way."""
    model = long_rope().eval()
    g = generator(model, slots=slots)
    assert g.backend.has_cache
    g.backend.has_cache = has_cache
    for completion in (c for group in g.generate(_both_sides()) for c in group):
        assert completion.logprobs == pytest.approx(prefix_logprobs(model, completion), abs=2e-5)


def test_the_trainer_scores_each_token_as_it_was_drawn():
    model = long_rope()
    completions = [c for group in generator(model, slots=8).generate(_both_sides()) for c in group]
    rows = [completion.trajectory for completion in completions]
    assert any(len(r.prompt_ids) < THRESHOLD < len(r.prompt_ids) + len(r.token_ids) - 1 for r in rows)
    scores = PaddedScorer(model)(rows, "value", hidden=True)
    drawn = [logprob for completion in completions for logprob in completion.logprobs]
    assert scores.logprobs.tolist() == pytest.approx(drawn, abs=2e-5)
    alone = [PaddedScorer(model)([row], "value", hidden=True) for row in rows]
    torch.testing.assert_close(scores.hidden, torch.cat([s.hidden for s in alone]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(scores.entropy, torch.cat([s.entropy for s in alone]), rtol=1e-4, atol=1e-4)


def _both_sides():
    long = tuple(3 + (7 * i) % 31 for i in range(40))
    prompts = [(5, 9, 11), long, long[:20], long[:23], long[:24], long[:25]]
    return [
        GenerationRequest(key, prompt, (key, 100 + key), Sampling(max_tokens=6 + 3 * (key % 3)))
        for key, prompt in enumerate(prompts)
    ]


def test_dynamic_angles_stay_the_same_within_the_models_positions():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
    model = build("llama", rope_parameters=rope, max_position_embeddings=64).eval()
    for completion in (c for group in generator(model, slots=8).generate(_both_sides()) for c in group):
        assert completion.logprobs == pytest.approx(prefix_logprobs(model, completion), abs=2e-5)


def test_the_vocabulary_is_the_modules():
    assert generator(build("gpt2")).backend.vocab_size == VOCAB
