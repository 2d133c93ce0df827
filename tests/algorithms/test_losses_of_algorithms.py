"""The trainer's half: losses and gradients of every algorithm."""

import math
from dataclasses import replace

import pytest
import torch

from llamarl.algorithms import (
    AIPOConfig,
    CISPOConfig,
    CRPGConfig,
    CRRAFTConfig,
    DAPOConfig,
    DrGRPOConfig,
    GRPOConfig,
    GSPOConfig,
    RAFTConfig,
    ReinforcePPConfig,
    RLOOConfig,
)
from llamarl.functional.logprobs import token_entropy, token_logprobs
from llamarl.functional.losses import Denominators, LossBatch, mean_metrics

torch.set_num_threads(1)

ALL = [AIPOConfig, CISPOConfig, DAPOConfig, DrGRPOConfig, GRPOConfig, GSPOConfig, ReinforcePPConfig, RLOOConfig]
ALL += [CRPGConfig, CRRAFTConfig, RAFTConfig]
FULL = [config(kl_coef=0.1, entropy_coef=0.05) for config in ALL]  # every term on
PLAIN = [config(kl_coef=0.0) for config in ALL]
NAMES = [config.type for config in PLAIN]
LENGTHS = [3, 7, 1, 5, 2, 6, 7, 4]
GROUPS = [0, 0, 0, 1, 1, 2, 2, 2]
N, T, V = len(LENGTHS), max(LENGTHS), 5


def parameters(spread=0.6):
    """Logits `[N, T, V]` of the policy (a leaf) and a batch of tokens sampled by a nearby behaviour policy."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(N, T, V, generator=generator, dtype=torch.float64)
    tokens = torch.randint(0, V, (N, T), generator=generator)
    picked = logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    fixed = {
        "behavior_logprobs": picked + spread * torch.randn(N, T, generator=generator, dtype=torch.float64),
        "reference_logprobs": picked + 0.3 * torch.randn(N, T, generator=generator, dtype=torch.float64),
        "mask": torch.arange(T) < torch.tensor(LENGTHS)[:, None],
        "advantages": torch.randn(N, generator=generator, dtype=torch.float64),
        "weights": torch.rand(N, generator=generator, dtype=torch.float64) + 0.5,
        "groups": torch.tensor(GROUPS),
    }
    return logits.requires_grad_(), tokens, fixed


STEP = Denominators.count(LENGTHS, GROUPS, prompts=4, max_tokens=9)


def batch_of(logits, tokens, fixed, rows=slice(None), denominators=STEP):
    mask = fixed["mask"][rows]
    width = int(mask.sum(-1).max())
    logits, tokens = logits[rows][:, :width], tokens[rows][:, :width]
    shape = tokens.shape
    cut = {k: v[rows][:, :width] if v.ndim == 2 else v[rows] for k, v in fixed.items()}
    return LossBatch(
        logprobs=token_logprobs(logits.reshape(-1, V), tokens.reshape(-1)).reshape(shape),
        entropy=token_entropy(logits.reshape(-1, V)).reshape(shape),
        denominators=denominators,
        **cut,
    )


def simple_batch(ratios, advantages, behavior=-2.0):
    """One completion per row, no padding, at the given policy / behaviour ratios; returns the batch and its leaf."""
    ratios = torch.tensor(ratios)
    leaf = (behavior + ratios.log()).requires_grad_()
    rows, width = ratios.shape
    return LossBatch(
        logprobs=leaf,
        behavior_logprobs=torch.full_like(ratios, behavior),
        mask=torch.ones_like(ratios, dtype=torch.bool),
        advantages=torch.tensor(advantages),
        weights=torch.ones(rows),
        groups=torch.zeros(rows, dtype=torch.int64),
        denominators=Denominators.count([width] * rows, [0] * rows, prompts=1, max_tokens=2 * width),
    ), leaf


def gradient(config, batch, leaf):
    leaf.grad = None
    config.loss()(batch).loss.backward()
    return leaf.grad


# golden


def test_aipo_gradient_table():  # llamarl P1: the paper's estimator, 2 at ratio 5 and 1.5 at ratio 1.5 for rho = 2
    batch, leaf = simple_batch([[5.0, 1.5, 0.5]], [1.0])
    config = AIPOConfig(rho=2.0, reduction="sample_sum")
    assert torch.allclose(-gradient(config, batch, leaf), torch.tensor([[2.0, 1.5, 0.5]]))


def test_aipo_differs_from_objectives_that_lose_the_gradient_above_rho():
    batch, leaf = simple_batch([[5.0, 1.5]], [1.0])
    undetached = -(batch.logprobs - batch.behavior_logprobs).exp().clamp(max=2.0).sum()
    (wrong,) = torch.autograd.grad(undetached, leaf)
    assert torch.allclose(-wrong, torch.tensor([[0.0, 1.5]]))
    assert not torch.allclose(gradient(AIPOConfig(rho=2.0, reduction="sample_sum"), batch, leaf), wrong)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        # ratios 1.25 and 0.7, advantages 1 and -1, one token each. Two tokens, two samples, limit 2 tokens.
        (AIPOConfig(), [-1.25 / 2, 0.7 / 2]),
        (CISPOConfig(), [-1.25 / 2, 0.7 / 2]),
        (RLOOConfig(kl_coef=0), [-1 / 2, 1 / 2]),
        (GRPOConfig(kl_coef=0), [0, 0]),  # 1.25 > 1.2 and 0.7 < 0.8: both clipped
        (DrGRPOConfig(), [0, 0]),
        (DrGRPOConfig(clip=0.5), [-1.25 / 4, 0.7 / 4]),
        (DAPOConfig(), [-1.25 / 2, 0]),  # 1.25 < 1.28
        (GSPOConfig(), [0, 0]),
        (ReinforcePPConfig(kl_coef=0, clip=0.5), [-1.25 / 2, 0.7 / 2]),
    ],
)
def test_gradients_by_hand(config, expected):
    batch, leaf = simple_batch([[1.25], [0.7]], [1.0, -1.0])
    assert torch.allclose(gradient(config, batch, leaf).squeeze(-1), torch.tensor(expected, dtype=torch.float32))


def test_gspo_weighs_and_clips_whole_completions():
    batch, leaf = simple_batch([[2.0, 8.0]], [1.0])  # sequence ratio sqrt(16) = 4, shared by the two tokens
    assert torch.allclose(gradient(GSPOConfig(clip_high=4.0), batch, leaf), torch.tensor([[-2.0, -2.0]]))
    batch, leaf = simple_batch([[2.0, 0.5]], [1.0])  # each token is far out, the sequence is at ratio 1
    assert torch.allclose(gradient(GSPOConfig(), batch, leaf), torch.tensor([[-0.5, -0.5]]))
    batch, leaf = simple_batch([[1.001, 1.001]], [1.0])  # a token clip would not care, 1 + 4e-4 does
    assert not gradient(GSPOConfig(), batch, leaf).any()


def test_kl_and_entropy_terms_by_hand():
    batch, leaf = simple_batch([[1.0, 1.0]], [0.0])
    entropy = torch.tensor([[0.4, 0.6]], requires_grad=True)
    batch = replace(batch, reference_logprobs=torch.tensor([[-2.5, -1.0]]), entropy=entropy)
    output = AIPOConfig(kl_coef=0.1, kl_estimator="k2", entropy_coef=0.2).loss()(batch)
    # deltas 0.5 and -1: k2 = 0.125 and 0.5; (0.1 * 0.625 - 0.2 * 1.0) / 2 tokens
    assert output.loss.item() == pytest.approx(-0.06875)
    output.loss.backward()
    assert torch.allclose(leaf.grad, torch.tensor([[0.1 * 0.5 / 2, 0.1 * -1.0 / 2]]))
    assert torch.allclose(entropy.grad, torch.tensor([[-0.1, -0.1]]))


def test_metrics_by_hand():
    batch, _ = simple_batch([[5.0, 1.5, 0.5, 1.0]], [1.0])
    batch = replace(batch, reference_logprobs=batch.logprobs.detach() - 1.0, entropy=torch.full((1, 4), 0.7))
    metrics = mean_metrics([AIPOConfig(rho=2.0).loss()(batch).metrics])
    assert metrics == pytest.approx({
        "train/ratio/mean": 2.0,
        # mean of r - 1 - log r: (4 - 1.609438 + 0.5 - 0.405465 - 0.5 + 0.693147 + 0) / 4
        "train/ppo_kl": 0.669561,
        "train/clip_frac/low": 0.0,
        "train/clip_frac/high": 0.25,
        "train/kl_ref": math.exp(-1),  # exp(-1) - 1 + 1
        "train/entropy": 0.7,
    }, abs=1e-6)  # fmt: skip


CLIPPED = [DAPOConfig, DrGRPOConfig, GRPOConfig, GSPOConfig, ReinforcePPConfig]


@pytest.mark.parametrize("config", CLIPPED)
def test_dual_clip_by_hand(config):
    # one token each at ratio 5: with A = -1 it pushes with -5, or not at all above delta; A = 1 was clipped before
    batch, leaf = simple_batch([[5.0], [2.0], [5.0]], [-1.0, -1.0, 1.0])
    settings = {"kl_coef": 0.0, "reduction": "sample_sum"}
    assert config().delta == 3.0
    assert torch.allclose(gradient(config(**settings), batch, leaf).squeeze(-1), torch.tensor([0.0, 2 / 3, 0.0]))
    published = config(**settings, delta=None)
    assert torch.allclose(gradient(published, batch, leaf).squeeze(-1), torch.tensor([5 / 3, 2 / 3, 0.0]))
    metrics = mean_metrics([config(**settings).loss()(batch).metrics])
    assert metrics["train/clip_frac/delta"] == pytest.approx(1 / 3) == metrics["train/clip_frac/high"]
    assert "train/clip_frac/delta" not in published.loss()(batch).metrics


# gradient


@pytest.mark.parametrize("config", FULL, ids=NAMES)
def test_masked_tokens_get_no_gradient(config):  # llamarl P2
    logits, tokens, fixed = parameters()
    grad = gradient(config, batch_of(logits, tokens, fixed), logits)
    assert torch.equal(grad[~fixed["mask"]], torch.zeros_like(grad[~fixed["mask"]]))
    assert grad[fixed["mask"]].abs().sum() > 0


@pytest.mark.parametrize("config", PLAIN, ids=NAMES)
def test_zero_advantage_gives_zero_gradient_exactly_when_declared(config):
    logits, tokens, fixed = parameters()
    fixed["advantages"] = torch.zeros_like(fixed["advantages"])
    assert not config.needs.zero_advantages
    assert not gradient(config, batch_of(logits, tokens, fixed), logits).any()
    for coefficient in ("kl_coef", "entropy_coef"):
        extra = config.model_copy(update={coefficient: 0.1})
        assert extra.needs.zero_advantages
        assert gradient(extra, batch_of(logits, tokens, fixed), logits).any()


@pytest.mark.parametrize("config", PLAIN, ids=NAMES)
def test_skipping_rows_of_zero_advantage_changes_nothing(config):
    logits, tokens, fixed = parameters()
    fixed["advantages"][[1, 4, 5]] = 0.0
    whole = gradient(config, batch_of(logits, tokens, fixed), logits)
    kept = gradient(config, batch_of(logits, tokens, fixed, rows=[0, 2, 3, 6, 7]), logits)
    assert torch.allclose(whole, kept, atol=1e-12)


@pytest.mark.parametrize("config", PLAIN, ids=NAMES)
def test_a_step_raises_what_was_good_and_lowers_what_was_bad(config):
    logits, tokens, fixed = parameters(spread=1e-5)
    before = batch_of(logits, tokens, fixed)
    grad = gradient(config, before, logits)
    with torch.no_grad():
        logits -= 1e-2 * grad
    after = batch_of(logits, tokens, fixed)
    change = ((after.logprobs - before.logprobs) * fixed["mask"]).sum(-1)
    assert torch.equal(change.sign(), fixed["advantages"].sign())


def test_inner_epochs_move_the_ratio():  # a ratio against the policy's own detached log-probs would stay at 1
    logits, tokens, fixed = parameters(spread=0.0)
    ratios = []
    for _ in range(2):
        output = AIPOConfig().loss()(batch_of(logits, tokens, fixed))
        ratios.append(mean_metrics([output.metrics])["train/ppo_kl"])
        (grad,) = torch.autograd.grad(output.loss, logits)
        with torch.no_grad():
            logits -= 0.5 * grad
    assert ratios[0] < 1e-12 and ratios[1] > 1e-6


# invariance


@pytest.mark.parametrize("config", FULL, ids=NAMES)
def test_micro_batches_add_up(config):
    logits, tokens, fixed = parameters()
    results = []
    for count in (1, 2, 4, 8):
        logits.grad = None
        parts = []
        for rows in torch.arange(N).chunk(count):
            output = config.loss()(batch_of(logits, tokens, fixed, rows))
            output.loss.backward()
            parts.append(output.metrics)
        results.append((logits.grad, mean_metrics(parts)))
    for grad, metrics in results[1:]:
        assert torch.allclose(grad, results[0][0], atol=1e-12, rtol=1e-9)
        assert metrics == pytest.approx(results[0][1])


@pytest.mark.parametrize("config", FULL, ids=NAMES)
@pytest.mark.parametrize("junk", [0.0, math.nan, -math.inf, 1e30])
def test_padding_never_matters(config, junk):
    logits, tokens, fixed = parameters()
    batch = batch_of(logits, tokens, fixed)
    output = config.loss()(batch)
    leaf = torch.cat([batch.logprobs.detach(), torch.full((N, 100), junk)], 1).requires_grad_()
    entropy = torch.cat([batch.entropy.detach(), torch.full((N, 100), junk)], 1).requires_grad_()
    wide = LossBatch(
        logprobs=leaf,
        entropy=entropy,
        behavior_logprobs=torch.cat([batch.behavior_logprobs, torch.full((N, 100), -junk)], 1),
        reference_logprobs=torch.cat([batch.reference_logprobs, torch.full((N, 100), junk)], 1),
        mask=torch.cat([batch.mask, torch.zeros(N, 100, dtype=torch.bool)], 1),
        advantages=batch.advantages,
        weights=batch.weights,
        groups=batch.groups,
        denominators=STEP,
    )
    padded = config.loss()(wide)
    assert torch.allclose(padded.loss, output.loss, atol=1e-12)
    assert mean_metrics([padded.metrics]) == pytest.approx(mean_metrics([output.metrics]))
    expected = torch.autograd.grad(output.loss, batch.logprobs)[0]
    padded.loss.backward()
    assert torch.allclose(leaf.grad[:, :T], expected, atol=1e-12)
    assert not leaf.grad[:, T:].any() and not entropy.grad[:, T:].any()


@pytest.mark.parametrize("config", FULL, ids=NAMES)
def test_order_and_duplicates_do_not_matter(config):
    logits, tokens, fixed = parameters()
    whole = config.loss()(batch_of(logits, tokens, fixed)).loss
    order = torch.randperm(N, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(config.loss()(batch_of(logits, tokens, fixed, order)).loss, whole)
    rows = torch.arange(N).repeat(2)
    doubled = replace(STEP, tokens=2 * STEP.tokens, samples=2 * N, groups=2 * STEP.groups, prompts=2 * STEP.prompts)
    assert torch.allclose(config.loss()(batch_of(logits, tokens, fixed, rows, doubled)).loss, whole)


@pytest.mark.parametrize("config", FULL, ids=NAMES)
def test_a_weight_of_two_is_the_sample_twice(config):
    logits, tokens, fixed = parameters()
    fixed["weights"] = torch.ones(N, dtype=torch.float64)
    twice = config.loss()(batch_of(logits, tokens, fixed, [*range(N), 3])).loss
    fixed["weights"][3] = 2.0
    assert torch.allclose(config.loss()(batch_of(logits, tokens, fixed)).loss, twice)


@pytest.mark.parametrize("config", FULL, ids=NAMES)
def test_absurd_ratios_stay_finite(config):
    leaf = torch.tensor([[-0.5, -400.0, -0.1], [-90.0, -1.0, -1.0]], requires_grad=True)
    batch = LossBatch(
        logprobs=leaf,
        behavior_logprobs=torch.tensor([[-400.0, -0.5, -89.2], [-1.0, -90.0, -1.0]]),
        reference_logprobs=torch.tensor([[-1.0, -1.0, -300.0], [-1.0, -1.0, -1.0]]),
        entropy=torch.ones(2, 3),
        mask=torch.ones(2, 3, dtype=torch.bool),
        advantages=torch.tensor([1.0, -1.0]),
        weights=torch.ones(2),
        groups=torch.zeros(2, dtype=torch.int64),
        denominators=Denominators.count([3, 3], [0, 0], prompts=1, max_tokens=3),
    )
    output = config.loss()(batch)
    output.loss.backward()
    assert torch.isfinite(output.loss) and torch.isfinite(leaf.grad).all()
    assert all(math.isfinite(value) for value in mean_metrics([output.metrics]).values())


def test_metrics_carry_no_graph():
    logits, tokens, fixed = parameters()
    for config in FULL:
        for total, count in config.loss()(batch_of(logits, tokens, fixed)).metrics.values():
            assert not total.requires_grad and not count.requires_grad


# reduces to


def test_at_ratio_one_all_agree_up_to_their_reduction():
    logits, tokens, fixed = parameters(spread=0.0)
    batch = batch_of(logits, tokens, fixed)
    for reduction in ("token_mean", "sequence_mean", "fixed_length", "sample_sum", "group_sum", "prompt_sum"):
        configs = [config(kl_coef=0.0, reduction=reduction) for config in ALL]
        grads = [torch.autograd.grad(c.loss()(batch).loss, logits, retain_graph=True)[0] for c in configs]
        for config, grad in zip(configs, grads, strict=True):
            assert torch.allclose(grad, grads[0], atol=1e-12), config.type


@pytest.mark.parametrize("config", CLIPPED)
def test_on_policy_the_dual_clip_changes_no_bit(config):
    logits, tokens, fixed = parameters(spread=0.0)
    bounded, free = (gradient(config(delta=d), batch_of(logits, tokens, fixed), logits).clone() for d in (1.01, None))
    assert torch.equal(bounded, free)


def test_dapo_with_equal_bounds_is_grpo_with_a_token_mean():
    logits, tokens, fixed = parameters()
    dapo = gradient(DAPOConfig(clip_high=0.2), batch_of(logits, tokens, fixed), logits)
    grpo = gradient(GRPOConfig(reduction="token_mean", kl_coef=0.0), batch_of(logits, tokens, fixed), logits)
    assert torch.equal(dapo, grpo)


def test_cispo_without_a_lower_bound_is_aipo():
    logits, tokens, fixed = parameters()
    cispo = gradient(CISPOConfig(max_weight=1.5), batch_of(logits, tokens, fixed), logits)
    aipo = gradient(AIPOConfig(rho=1.5), batch_of(logits, tokens, fixed), logits)
    assert torch.equal(cispo, aipo)
    bounded = gradient(CISPOConfig(max_weight=1.5, min_weight=0.8), batch_of(logits, tokens, fixed), logits)
    assert not torch.allclose(bounded, aipo)


def test_wide_bounds_reduce_clipping_to_aipo_without_truncation():
    logits, tokens, fixed = parameters()
    wide = gradient(DAPOConfig(clip_low=0.9999, clip_high=1e6, delta=None), batch_of(logits, tokens, fixed), logits)
    aipo = gradient(AIPOConfig(rho=1e6), batch_of(logits, tokens, fixed), logits)
    assert torch.allclose(wide, aipo, atol=1e-12)


def test_gspo_on_one_token_is_grpo_with_its_clip():
    batch, leaf = simple_batch([[1.1], [0.95], [1.3], [0.5]], [1.0, -1.0, 1.0, -1.0])
    gspo = gradient(GSPOConfig(clip_low=0.2, clip_high=0.2), batch, leaf)
    assert torch.allclose(gspo, gradient(GRPOConfig(kl_coef=0.0), batch, leaf))


@pytest.mark.parametrize("config", [CRPGConfig, CRRAFTConfig, RAFTConfig])
def test_corrected_for_staleness_the_published_forms_become_aipo(config):
    logits, tokens, fixed = parameters()
    corrected = config(off_policy="aipo", rho=1.5, reduction="token_mean")
    aipo = gradient(AIPOConfig(rho=1.5), batch_of(logits, tokens, fixed), logits)
    assert torch.equal(gradient(corrected, batch_of(logits, tokens, fixed), logits), aipo)


def test_rloo_is_rescaled_aipo_on_policy():
    batch, leaf = simple_batch([[1.0]] * 4, [0.75, -0.25, -0.25, -0.25])  # rewards 1 0 0 0 minus their mean
    aipo = gradient(AIPOConfig(reduction="sample_sum"), batch, leaf)
    others = replace(batch, advantages=torch.tensor([1.0, -1 / 3, -1 / 3, -1 / 3]))  # minus the mean of the others
    assert torch.allclose(gradient(RLOOConfig(kl_coef=0.0), others, leaf), 4 / 3 * aipo)


# rejects


def test_missing_tensors_are_named():
    batch, _ = simple_batch([[1.0]], [1.0])
    with pytest.raises(ValueError, match="reference_logprobs is missing, but kl_coef > 0"):
        GRPOConfig().loss()(batch)
    with pytest.raises(ValueError, match="entropy is missing, but entropy_coef > 0"):
        AIPOConfig(entropy_coef=0.1).loss()(batch)
