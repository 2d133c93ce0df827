import pytest
import torch

from llamarl.algorithms.ibpo import IBPO, IBPOConfig
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Completion, Group, Prompt, Sample
from llamarl.functional.losses import Denominators, LossBatch

SHORT, LONG, BROKEN = "5", "<think>12</think>5", "?"


def ibpo(**settings):
    return IBPO(IBPOConfig(groups="llamarl.tasks.chain:group", **settings))


def sample(text, reward, satisfied=True):
    ids = tuple(range(len(text)))
    return Sample(Completion((1,), ids, (-0.5,) * len(ids), (0,) * len(ids), text, "stop"), {}, reward, None, satisfied)


def batch(*prompts):
    """Per prompt, (text, reward) pairs."""
    return [
        Group(Prompt(f"p{index}", ()), tuple(sample(*pair) for pair in pairs), index=10 + index)
        for index, pairs in enumerate(prompts)
    ]


EASY = [(SHORT, 1.0), (LONG, 1.0)]
HARD = [(SHORT, 0.0), (LONG, 1.0)]


# golden


def test_hard_prompts_learn_the_long_answer_and_easy_ones_the_short():
    found = ibpo(q_plus=0.5).assign(batch(EASY, HARD, HARD))
    assert [(s.group, len(s.token_ids), s.advantage, s.weight) for s in found.samples] == [
        (10, len(SHORT), 1.0, 1.0),
        (11, len(LONG), 1.0, 1.0),
    ]
    assert found.num_prompts == 3
    # margins of long: 0, 1, 1; one prompt of three rejected: with it two of three would be long
    assert found.metrics["used/long"] == 0.5 and found.metrics["slack/long"] == 0.0
    assert found.metrics["margin/long"] == pytest.approx(2 / 3) == -found.metrics["margin/short"]
    assert found.metrics["rejected_frac"] == pytest.approx(1 / 3)
    assert found.metrics["sampled/long"] == 0.5
    assert found.metrics["is_fallback"] == 0.0 and found.metrics["solver_seconds"] > 0


def test_the_loss_is_the_negative_log_prob_of_the_accepted_over_all_prompts():
    # two accepted completions with log-probs -1 - 2 and -3, three prompts in the batch: (3 + 3) / 3
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]], requires_grad=True)
    mask = torch.tensor([[True, True], [True, False]])
    out = ibpo().loss(
        LossBatch(
            logprobs=logprobs,
            behavior_logprobs=torch.full((2, 2), -9.0),
            mask=mask,
            advantages=torch.ones(2),
            weights=torch.ones(2),
            groups=torch.tensor([0, 1]),
            denominators=Denominators(tokens=3, samples=2, groups=2, prompts=3, max_tokens=8),
        )
    )
    assert out.loss.item() == pytest.approx(2.0)
    out.loss.backward()
    assert logprobs.grad.tolist() == (-mask.float() / 3).tolist()  # P6: supervised fine-tuning times 1/n


# defined outcomes


@pytest.mark.parametrize(
    "prompts",
    [[], [[(SHORT, 0.0), (LONG, 0.0)]], [[(BROKEN, 1.0)]], [[(SHORT, None), (LONG, None)]], [[(LONG, 1.0)]]],
    ids=["empty", "nothing right", "malformed", "unjudged", "long only"],
)
def test_nothing_trains(prompts):
    found = ibpo().assign(batch(*prompts))
    assert found.samples == ()
    assert all(isinstance(value, float) for value in found.metrics.values())


def test_unscored_and_unsatisfied_samples_are_never_accepted():
    found = ibpo(q_plus=1.0).assign(batch([(SHORT, None), (LONG, 1.0, False), (SHORT, 0.99), (SHORT, 1.0)]))
    assert [s.token_ids for s in found.samples] == [(0,)] and found.num_prompts == 1
    assert ibpo(correct_from=0.5).assign(batch([(SHORT, 0.6)])).samples


def test_tokens_may_be_bounded():
    # completions of 1 and 18 characters: their mean 9.5 is allowed at 10, not at 9
    assert len(ibpo(q_plus=1.0, mean_tokens=10.0).assign(batch(EASY, HARD)).samples) == 2
    found = ibpo(q_plus=1.0, mean_tokens=9.0).assign(batch(EASY, HARD))
    assert len(found.samples) == 1 and found.metrics["used/mean_cost"] == 1.0


def test_one_pool_for_the_whole_step():
    """P8: solved at once over all prompts, not prompt by prompt or rank by rank."""
    whole = ibpo(q_plus=0.5).assign(batch(*[EASY, HARD] * 8))
    assert whole.metrics["used/long"] == 0.5 and len(whole.samples) == 16
    apart = [ibpo(q_plus=0.5).assign(batch(HARD)) for _ in range(8)]
    assert not any(part.samples for part in apart)  # a share of one long answer alone is 1


# reduces to


def test_without_a_cap_and_with_one_right_sample_each_it_is_rejection_sampling():  # P6
    prompts = [HARD, [(SHORT, 1.0), (LONG, 0.0)], [(SHORT, 0.0), (LONG, 0.0)]]
    found = ibpo(q_plus=1.0).assign(batch(*prompts))
    assert [(s.group, len(s.token_ids)) for s in found.samples] == [(10, len(LONG)), (11, len(SHORT))]


# rejects


@pytest.mark.parametrize(
    "values", [{"q_plus": 1.5}, {"q_plus": -0.1}, {"caps": {"long": 0.5}}, {"caps": {"tool": 2.0}}, {"mean_tokens": 0}]
)
def test_budgets_out_of_range(values):
    with pytest.raises(ConfigError):
        IBPOConfig.parse(values)


def test_stale_samples_need_the_corrected_form():
    assert not ibpo().corrects_staleness and ibpo(off_policy="aipo").corrects_staleness


def test_groups_must_be_known():
    with pytest.raises(ConfigError, match="no module"):
        IBPO(IBPOConfig(groups="nowhere.at_all:group"))


def test_a_group_that_no_cap_names_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def group(prompt, completion):\n    return 'tool'\n")
    with pytest.raises(DataError, match="group 'tool' is not in the budget"):
        IBPO(IBPOConfig(groups=f"{file}:group")).assign(batch(EASY))
    assert IBPO(IBPOConfig(groups=f"{file}:group", caps={"tool": 0.0})).assign(batch(EASY)).samples == ()
