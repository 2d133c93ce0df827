import pytest
import torch
from tiny_generators import EOS, build, reference_logprobs, request, spell

from llamarl.core.errors import ConfigError
from llamarl.generation.int8 import Int8, check_int8, find_outliers, quantise_rows
from llamarl.generation.native import NativeGenerator
from llamarl.models.decoder import named_tensors


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rows_are_rounded_to_127_levels_of_their_own_maximum():
    # 254 / 127 = 2 per level: 3 -> 1.5 -> 2 (to even), -10 -> -5; a row of 1.27 at most has levels of 0.01
    scale, levels = quantise_rows(torch.tensor([[254.0, 3.0, -10.0], [0.02, -1.27, 0.0]]))
    assert scale[:, 0].tolist() == pytest.approx([2.0, 0.01])
    assert levels.tolist() == [[127, 2, -5], [2, -127, 0]]


def test_product_is_exact_where_levels_are():
    weight = torch.tensor([[127.0, -3.0], [0.0, 0.0]])
    out = Int8(weight, torch.tensor([0.5, 0.25]))(torch.tensor([[127.0, 10.0], [-127.0, 0.0]]))
    assert torch.allclose(out, torch.tensor([[127.0 * 127 - 30 + 0.5, 0.25], [-127.0 * 127 + 0.5, 0.25]]))


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_error_is_that_of_the_rounding(rows):
    weight, x = random(96, 128), random(rows, 128, seed=1)
    error = (Int8(weight)(x) - x @ weight.t()).square().mean().sqrt() / (x @ weight.t()).square().mean().sqrt()
    assert error < 0.02  # about 1/127 of relative noise on each side


def test_a_row_does_not_depend_on_its_neighbours():
    projection, x = Int8(random(96, 128)), random(64, 128, seed=1)
    assert torch.equal(projection(x)[:1], projection(x[:1]))


def test_outliers_stay_in_float32_and_leave_the_others_their_levels():
    weight, x = random(96, 128), random(64, 128, seed=1)
    x[:, [7, 100]] *= 100
    exact = x @ weight.t()
    plain, kept = Int8(weight)(x), Int8(weight, outliers=torch.tensor([7, 100]))(x)
    assert (kept - exact).square().mean() < (plain - exact).square().mean() / 100
    # by hand: channel 1 is exact, and 3 and -1 of the others are levels 127 and -42 of 3/127
    projection = Int8(torch.tensor([[127.0, 0.3, 127.0]]), outliers=torch.tensor([1]))
    expected = (127 * 127 - 127 * 42) * (3 / 127) + 1000 * 0.3
    assert projection(torch.tensor([[3.0, 1000.0, -1.0]])).item() == pytest.approx(expected, rel=1e-6)


def test_written_outliers_are_compared_as_they_are():
    old, new = random(12, 16), random(12, 16, seed=1)
    projection = Int8(old, outliers=torch.tensor([3, 5]))
    projection.write(slice(None), new)
    assert projection.holds(slice(None), new)
    projection.kept[2, 1] = old[2, 5]
    assert not projection.holds(slice(None), new)


def test_outliers_are_the_channels_that_carry_most_on_any_text():
    model = build(hidden_size=64, intermediate_size=96)
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[[3, 40]] *= 100
    found = find_outliers(model)
    assert set(found["model.layers.1.self_attn.k_proj"].tolist()) == {3, 40}
    assert len(found["model.layers.0.mlp.down_proj"]) == 3
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_writing_rows_replaces_them_and_gap_tells():
    old, new = random(12, 16), random(12, 16, seed=1)
    projection = Int8(old)
    rows = slice(4, 8)
    projection.write(rows, new[rows])
    assert projection.holds(rows, new[rows]) and not projection.holds(rows, old[rows])
    assert projection.holds(slice(0, 4), old[:4])
    assert not projection.holds(rows, torch.full((4, 16), torch.nan))


def test_generator_draws_near_the_models_own_distribution_and_proves_its_weights():
    model = build(hidden_size=64, intermediate_size=96)
    generator = NativeGenerator(model, eos_ids=(EOS,), decode=spell, precision="int8")
    completions = generator.generate([request(num_samples=8, max_tokens=40)])[0]
    gaps = [
        abs(ours - theirs)
        for completion in completions
        for ours, theirs in zip(completion.logprobs, reference_logprobs(model, completion), strict=True)
    ]
    assert 1e-4 < sum(gaps) / len(gaps) < 0.1
    tensors = dict(named_tensors(model))
    assert generator.backend.mismatches(tensors) == []
    name = "model.layers.1.self_attn.k_proj.weight"
    tensors[name] = tensors[name] * 1.05
    assert generator.backend.mismatches(tensors) == [name]


def test_other_devices_are_refused():
    with pytest.raises(ConfigError, match=r"precision 'int8' needs a CPU with VNNI.*'cuda'.*fp32 or bf16"):
        check_int8("cuda")
