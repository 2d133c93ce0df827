import json
import math
from dataclasses import replace

import pytest
import torch

from llamarl.algorithms.ibpo import IBPOConfig
from llamarl.algorithms.running_values import RunningValues
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Completion, Group, Prompt, Sample, Trajectory
from llamarl.functional.losses import Denominators, LossBatch

SHORT, LONG, BROKEN = "5", "<think>12</think>5", "?"


def settings_of(**settings):
    return IBPOConfig(groups="llamarl.tasks.chain:group", **settings)


def ibpo(**settings):
    return settings_of(**settings).credit()


def sample(text, reward, satisfied=True):
    ids = tuple(range(len(text)))
    return Sample(Completion(Trajectory.given((1,), ids), text), {}, reward, None, satisfied)


def batch(*prompts, epoch=0, budgets=None):
    """Per prompt, (text, reward) pairs; per prompt, the budget in its field `q`."""
    infos = [{}] * len(prompts) if budgets is None else [{"q": budget} for budget in budgets]
    return [
        Group(Prompt(f"p{index}", (), info=info), tuple(sample(*pair) for pair in pairs), index=10 + index, epoch=epoch)
        for index, (pairs, info) in enumerate(zip(prompts, infos, strict=True))
    ]


def is_long(found):
    """By group index."""
    return {s.group: s.trajectory.response_length > 1 for s in found.samples}


EASY = [(SHORT, 1.0), (LONG, 1.0)]
HARD = [(SHORT, 0.0), (LONG, 1.0)]


# golden


def test_hard_prompts_learn_the_long_answer_and_easy_ones_the_short():
    found = ibpo(q_plus=0.5).assign(batch(EASY, HARD, HARD))
    assert [(s.group, s.trajectory.response_length, s.advantages, s.weight) for s in found.samples] == [
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
    out = settings_of().loss()(
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


# each prompt's own budget


def test_prompts_of_one_budget_share_a_program():
    # four hard prompts under 0.5 whose short answer is right too, now and then; four under 0: one program each
    hard = [(SHORT, 1.0), (SHORT, 0.0), (LONG, 1.0), (LONG, 1.0)]
    prompts, budgets = [hard] * 8, [0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0]
    found = ibpo(q_plus_field="q", q_plus=1.0).assign(batch(*prompts, budgets=budgets))
    assert is_long(found) == {10: True, 12: True, 14: False, 16: False, 11: False, 13: False, 15: False, 17: False}
    metrics = found.metrics
    assert metrics["budget/0.5/used/long"] == 0.5 and metrics["budget/0/used/long"] == 0.0
    assert metrics["used/long"] == 0.25 and metrics["slack/long"] == 0.0  # of the mean budget, 0.25
    assert metrics["sampled/long"] == 0.5 and metrics["margin/long"] == metrics["budget/0/margin/long"] == 0.5
    assert metrics["rejected_frac"] == 0.0 and metrics["solver_seconds"] > metrics["budget/0/solver_seconds"]


def test_metrics_over_all_budgets_weigh_each_by_what_it_counts():
    # q 1: three hard prompts, all accepted long, margin 1; q 0: an easy one, short, margin 0, and one with no answer
    found = ibpo(q_plus_field="q").assign(
        batch(HARD, HARD, HARD, EASY, [(SHORT, 0.0)], budgets=[1.0, 1.0, 1.0, 0.0, 0.0])
    )
    assert found.metrics["used/long"] == pytest.approx(3 / 4)
    assert found.metrics["margin/long"] == pytest.approx(3 / 4)  # over the four prompts that have both groups
    assert found.metrics["rejected_frac"] == pytest.approx(1 / 5) == found.metrics["one_sided_frac"]
    assert found.metrics["budget/0/rejected_frac"] == 0.5 and found.num_prompts == 5


def test_one_budget_for_all_in_a_field_is_that_budget():
    prompts = [EASY, HARD, HARD, HARD]
    one, other = ibpo(q_plus=0.5), ibpo(q_plus_field="q", q_plus=0.0)
    plain, own = one.assign(batch(*prompts)), other.assign(batch(*prompts, budgets=[0.5] * 4))
    assert plain.samples == own.samples
    shared = plain.metrics.keys() - {"solver_seconds"}
    assert {key: own.metrics[key] for key in shared} == {key: plain.metrics[key] for key in shared}


@pytest.mark.parametrize(
    "info", [{}, {"q": None}, {"q": "0.5"}, {"q": True}, {"q": 1.25}, {"q": -0.5}, {"q": math.nan}]
)
def test_prompts_without_a_budget_of_their_own_are_named(info):
    prompts = [Prompt("fine", (), info={"q": 0.5}), Prompt("x7", (), info=info)]
    with pytest.raises(DataError, match=r"prompt 'x7': the field 'q' (is missing|is ).*number from 0 to 1"):
        ibpo(q_plus_field="q").check_prompts(prompts)
    ibpo().check_prompts(prompts)


# what is maximised


def test_correctness_alone_sends_every_prompt_with_a_right_short_answer_to_short():
    lucky = [(SHORT, 1.0), *[(SHORT, 0.0)] * 7, *[(LONG, 1.0)] * 4]  # margin of long 7/8
    for worth, is_bought in (("margin", True), ("correctness", False)):
        found = ibpo(q_plus=1.0, worth=worth).assign(batch(lucky, HARD))
        assert is_long(found) == {10: is_bought, 11: True}


# values of earlier epochs


def test_a_group_that_a_prompt_lacks_has_its_value_of_earlier_epochs():
    algorithm = ibpo(q_plus=1.0, running_values=0.5)
    first = algorithm.assign(batch(EASY, HARD))  # short is always right on p0, never on p1
    assert is_long(first) == {10: False, 11: True}
    # now both lack short answers. By the batch's mean of them, 1/2, long is worth 1 - 1/2 on both; by their own memory
    # 1 - 1 = 0 on p0 and 1 - 0 = 1 on p1. There is room for one beside the short answer of p2.
    later = batch([(LONG, 1.0)], [(LONG, 1.0)], [(SHORT, 1.0), (SHORT, 0.0)], epoch=1)
    assert is_long(ibpo(q_plus=0.5).assign(later)) == {10: True, 12: False}  # the earlier of equals
    tighter = ibpo(q_plus=0.5, running_values=0.5)
    tighter.restore(algorithm.state())
    assert is_long(tighter.assign(later)) == {11: True, 12: False}


def test_epochs_fade_and_count_once():
    values = RunningValues(0.75)
    values.update("p", 0, {"short": 1.0})
    values.update("p", 0, {"short": 0.0, "long": 1.0})  # the same epoch again, after a resume
    assert values.of("p") == {"short": 1.0}
    values.update("p", 1, {"short": 0.0, "long": 0.5})
    assert values.of("p") == {"short": 0.75, "long": 0.5}  # 0.75 x 1 + 0.25 x 0
    assert values.of("unknown") == {}
    again = RunningValues(0.75)
    again.restore(json.loads(json.dumps(values.state())))
    again.update("p", 1, {"short": 1.0})
    assert again.of("p") == values.of("p")


def test_memory_goes_into_a_checkpoint():
    algorithm, other = (ibpo(running_values=0.5) for _ in range(2))
    algorithm.assign(batch(EASY, HARD))
    other.restore(json.loads(json.dumps(algorithm.state())))
    assert other.state() == algorithm.state() != ibpo().state()
    off = ibpo()
    off.assign(batch(EASY))
    assert off.state() == {"running_values": {}}


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
    assert [s.trajectory.token_ids.tolist() for s in found.samples] == [[0]] and found.num_prompts == 1
    assert ibpo(correct_from=0.5).assign(batch([(SHORT, 0.6)])).samples


def test_a_truncated_response_is_never_right_where_they_are_masked():
    cut = batch([(SHORT, 1.0), (LONG, 1.0)], HARD)
    first = cut[0].samples[0]
    trajectory = replace(first.completion.trajectory, finish_reason="length")
    first = replace(first, completion=replace(first.completion, trajectory=trajectory))
    cut[0] = replace(cut[0], samples=(first, *cut[0].samples[1:]))
    assert is_long(ibpo(q_plus=1.0).assign(cut)) == {10: False, 11: True}
    found = ibpo(q_plus=1.0, mask_truncated=True).assign(cut)
    assert is_long(found) == {10: True, 11: True} and found.metrics["masked_frac"] == 0.25


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


def test_a_step_of_three_groups_has_margins_where_two_of_them_meet(tmp_path):
    file = tmp_path / "by.py"
    file.write_text(
        "def group(prompt, completion):\n    return {'5': 'short', 'T': 'tool'}.get(completion.text, 'long')\n"
    )
    found = IBPOConfig(groups=f"{file}:group", caps={"tool": 0.1}).credit().assign(batch(EASY, HARD, [("T", 1.0)]))
    assert found.metrics["one_sided_frac"] == pytest.approx(1 / 3)
    assert {"margin/short", "margin/long"} <= found.metrics.keys() and "margin/tool" not in found.metrics


# warns


def test_a_spell_without_training_is_told_once(caplog):
    algorithm = ibpo()
    for prompts in ([[(BROKEN, 1.0)], [(SHORT, 0.0)]], [[(BROKEN, 1.0)]], [EASY], [[(BROKEN, 0.0)]]):
        algorithm.assign(batch(*prompts))
    first, second = (record.getMessage() for record in caplog.records)
    assert "rejects all 2 prompts, so that nothing trains: of 2 responses 1 are right and 1 have no group" in first
    assert "rejects all 1 prompts" in second
    assert caplog.records[0].name == "llamarl.algorithms.ibpo_credit"


def test_a_bound_on_tokens_that_no_choice_keeps_is_told(caplog):
    found = ibpo(mean_tokens=0.5).assign(batch(EASY, HARD))
    assert found.samples == () and found.metrics["is_fallback"] == 1.0
    assert "too low a bound on the mean cost" in caplog.text and "raise algorithm.mean_tokens = 0.5" in caplog.text
    assert "rejects all 2 prompts" in caplog.text


def test_a_step_that_trains_as_meant_warns_of_nothing(caplog):
    ibpo(mean_tokens=10.0).assign(batch(EASY, HARD))
    ibpo().assign(batch())
    assert not caplog.records


# reduces to


def test_without_a_cap_and_with_one_right_sample_each_it_is_rejection_sampling():  # P6
    prompts = [HARD, [(SHORT, 1.0), (LONG, 0.0)], [(SHORT, 0.0), (LONG, 0.0)]]
    found = ibpo(q_plus=1.0).assign(batch(*prompts))
    assert [(s.group, s.trajectory.response_length) for s in found.samples] == [(10, len(LONG)), (11, len(SHORT))]


# rejects


@pytest.mark.parametrize(
    "values", [{"q_plus": 1.5}, {"q_plus": -0.1}, {"caps": {"long": 0.5}}, {"caps": {"tool": 2.0}}, {"mean_tokens": 0}]
)
def test_budgets_out_of_range(values):
    with pytest.raises(ConfigError):
        IBPOConfig.parse(values)


@pytest.mark.parametrize("values", [{"worth": "reward"}, {"running_values": 1.0}, {"running_values": -0.1}])
def test_settings_out_of_range(values):
    with pytest.raises(ConfigError):
        IBPOConfig.parse(values)


def test_stale_samples_need_the_corrected_form():
    assert not settings_of().needs.corrects_staleness and settings_of(off_policy="aipo").needs.corrects_staleness


def test_groups_must_be_known():
    with pytest.raises(ConfigError, match="no module"):
        IBPOConfig(groups="nowhere.at_all:group").credit()


def test_a_group_that_no_cap_names_is_refused(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def group(prompt, completion):\n    return 'tool'\n")
    with pytest.raises(DataError, match=r"prompt 'p0' the group 'tool', which is not in .*set algorithm\.caps\.tool"):
        IBPOConfig(groups=f"{file}:group").credit().assign(batch(EASY))
    assert IBPOConfig(groups=f"{file}:group", caps={"tool": 0.0}).credit().assign(batch(EASY)).samples == ()
