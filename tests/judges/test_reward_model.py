import asyncio
import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_classifiers import classifier, completion, prompt

from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.core.judge import JudgeInfo
from llamarl.core.records import Completion, Prompt, Status, Trajectory
from llamarl.functional.preference import calibrated_reward
from llamarl.judges.config import JudgeConfig, build_judge
from llamarl.judges.panel import JudgePanel
from llamarl.judges.reward_model import RewardModel
from llamarl.judges.seat import Seat
from llamarl.models.checkpoint import quiet

TEXTS = ["yes", "no, never", "perhaps", "", "a much longer answer than the others"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("models"))


def judge(model, asked, completions):
    return asyncio.run(model.judge(asked, completions))


def scores(model, asked, texts=TEXTS):
    return [verdict.score for verdict in judge(model, asked, [completion(text) for text in texts])]


# golden


def test_the_score_is_what_transformers_gives_for_the_rendered_text(path):
    with quiet() as transformers:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(path)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    expected = []
    for text in TEXTS:
        turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]
        rendered = tokenizer.apply_chat_template(turns, tokenize=False)
        with torch.no_grad():
            expected.append(theirs(**tokenizer(rendered, return_tensors="pt", add_special_tokens=False)).logits.item())
    ours = scores(RewardModel(path), prompt())
    assert ours == pytest.approx(expected, abs=1e-5) and max(ours) - min(ours) > 0.1


def test_the_calibrated_score_is_the_margin_over_the_baseline(path):
    plain, calibrated = RewardModel(path), RewardModel(path, calibrated=True)
    (baseline,) = scores(plain, prompt(), ["so so"])
    margins = scores(calibrated, prompt(baseline="so so"))
    assert margins == pytest.approx([score - baseline for score in scores(plain, prompt())], abs=1e-5)


def test_the_baseline_itself_has_a_margin_of_exactly_zero(path):
    """cgpo P2: R_calib(s, baseline) = 0.5."""
    margins = scores(RewardModel(path, calibrated=True), prompt(baseline="no, never"))
    assert margins[1] == 0.0 and calibrated_reward(margins[1]) == 0.5
    assert all(margin != 0.0 for place, margin in enumerate(margins) if place != 1)


def test_the_answer_may_be_the_baseline(path):
    by_info = RewardModel(path, calibrated=True)
    by_answer = RewardModel(path, calibrated=True, baseline="answer")
    asked = Prompt("x", prompt().messages, answer="so so")
    assert scores(by_answer, asked) == scores(by_info, prompt(baseline="so so"))


def test_a_cut_answer_pays_its_penalty_and_so_does_a_cut_baseline(path):
    model = RewardModel(path, cut_penalty=2.0)
    whole, cut = judge(model, prompt(), [completion("yes"), completion("yes", "length")])
    assert cut.score == pytest.approx(whole.score - 2.0)
    calibrated = RewardModel(path, calibrated=True, cut_penalty=2.0)
    asked = prompt(baseline="yes", baseline_finish_reason="length")
    whole, cut = judge(calibrated, asked, [completion("yes"), completion("yes", "length")])
    assert (whole.score, cut.score) == (2.0, 0.0)


def test_a_threshold_passes(path):
    plain = scores(RewardModel(path), prompt())
    bound = sorted(plain)[2]
    verdicts = judge(RewardModel(path, threshold=bound), prompt(), [completion(text) for text in TEXTS])
    assert [verdict.passed for verdict in verdicts] == [score >= bound for score in plain]
    assert judge(RewardModel(path), prompt(), [completion("yes")])[0].passed is None


def test_a_margin_passes_audits_and_calibrations_from_zero_on() -> None:
    assert RewardModel("anywhere", calibrated=True).info.pass_score == 0.0
    assert RewardModel("anywhere").info.pass_score == JudgeInfo().pass_score


# invariance


def test_a_constraint_needs_a_threshold() -> None:
    with pytest.raises(ConfigError, match="'rm' is a constraint, but only scores; give it a threshold"):
        Seat(RewardModel("anywhere", name="rm"), role="constraint")
    Seat(RewardModel("anywhere", name="rm", threshold=0.5), role="constraint")


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.5}, {"calibrated": True}])
def test_a_judge_says_and_checks_the_same_in_a_worker_process(path, settings):
    config = JudgeConfig(function="reward_model", name="rm", settings={"model": str(path), **settings})
    here, there = build_judge(config), build_judge(config.model_copy(update={"isolation": "process"}))
    assert replace(there.info, has_deadline=False) == here.info != JudgeInfo()
    outcomes = []
    for each in (here, there):
        for role in ("reward", "constraint"):
            try:
                JudgePanel([Seat(each, role=role)]).check([prompt("a"), Prompt("bare", prompt("b").messages)])
                outcomes.append("")
            except ConfigError as error:
                outcomes.append(str(error))
    there.close()
    assert outcomes[:2] == outcomes[2:] and any(outcomes) == (settings != {"threshold": 0.5})


@settings(max_examples=20, deadline=None)
@given(st.permutations(TEXTS), st.integers(1, 200))
def test_scores_do_not_depend_on_the_group_or_the_batch(path, order, batch_tokens):
    whole = dict(zip(TEXTS, scores(RewardModel(path), prompt()), strict=True))
    model = RewardModel(path, batch_tokens=batch_tokens)
    assert scores(model, prompt(), order) == pytest.approx([whole[text] for text in order], abs=1e-5)


def test_the_policy_s_tokens_do_not_matter(path):
    """Its tokenizer may be another: only the text counts."""
    theirs = [Completion(Trajectory.sampled((7, 7), (999_999, 5), (-1.0, -1.0), (3, 3)), text) for text in TEXTS]
    found = [verdict.score for verdict in judge(RewardModel(path), prompt(), theirs)]
    assert found == scores(RewardModel(path), prompt())


def test_a_baseline_is_scored_once_and_then_stays(path):
    model = RewardModel(path, calibrated=True)
    first, again = scores(model, prompt(baseline="b")), scores(model, prompt(baseline="b"))
    assert first == again and len(model._frozen) == 1
    scores(model, prompt("another", baseline="b"))
    scores(model, prompt(baseline="c"))
    assert len(model._frozen) == 3


def test_it_pickles_before_and_after_it_was_used(path):
    model = RewardModel(path, calibrated=True)
    before = pickle.dumps(model)
    expected = scores(model, prompt(baseline="b"))
    for payload in (before, pickle.dumps(model)):
        assert len(payload) < 4000 and scores(pickle.loads(payload), prompt(baseline="b")) == expected


def test_many_groups_at_once(path):
    model = RewardModel(path, calibrated=True)
    groups = [prompt(f"question {n}", baseline="b") for n in range(24)]

    async def all_at_once():
        return await asyncio.gather(*(model.judge(group, [completion(t) for t in TEXTS]) for group in groups))

    found = [[verdict.score for verdict in verdicts] for verdicts in asyncio.run(all_at_once())]
    assert found == [scores(model, group) for group in groups]


def test_equal_completions_have_equal_scores(path):
    found = scores(RewardModel(path), prompt(), ["yes", "no", "yes", "perhaps so", "yes"])
    assert found[0] == found[2] == found[4] and len(set(found)) == 3


def test_a_group_of_none(path):
    assert judge(RewardModel(path), prompt(), []) == []


# rejects


def test_a_prompt_without_its_baseline_fails_and_is_found_before_the_run(path):
    model = RewardModel(path, calibrated=True)
    words = r"prompt 'id of hi': info\.baseline is None.*llamarl reward baselines"
    with pytest.raises(ConfigError, match=words):
        model.check(prompt())
    model.check(prompt(baseline=""))
    verdicts = judge(model, prompt(), [completion("a"), completion("b")])
    assert [verdict.status for verdict in verdicts] == [Status.FAILED] * 2
    assert "prompt 'id of hi': info.baseline is None" in verdicts[0].reason
    with pytest.raises(ConfigError, match="answer is 42, but"):
        RewardModel(path, calibrated=True, baseline="answer").check(Prompt("x", prompt().messages, answer=42))


def test_a_completion_too_long_fails_alone(path):
    verdicts = judge(RewardModel(path, max_tokens=120), prompt(), [completion("a"), completion("b" * 200)])
    assert verdicts[0].status is Status.SCORED
    assert verdicts[1].reason.endswith("the model takes at most 120") and verdicts[1].score is None
    asked = prompt(baseline="b" * 200)
    failed = judge(RewardModel(path, calibrated=True, max_tokens=120), asked, [completion("a")])
    assert "prompt 'id of hi': its baseline cannot be scored" in failed[0].reason


def test_a_score_that_is_no_number_fails(tmp_path):
    broken = classifier(tmp_path, seed=1)
    import safetensors.torch

    weights = safetensors.torch.load_file(f"{broken}/model.safetensors")
    weights["score.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(weights, f"{broken}/model.safetensors", metadata={"format": "pt"})
    (verdict,) = judge(RewardModel(broken), prompt(), [completion("a")])
    assert (verdict.status, verdict.reason) == (Status.FAILED, "the model's scores are [nan]")


def test_models_of_the_wrong_kind_are_found_before_the_run(tmp_path, path):
    two = classifier(tmp_path, labels=2)
    with pytest.raises(ConfigError, match=r"a classifier of 2 labels, not a reward model.*ClassifierJudge"):
        RewardModel(two).check(prompt())
    with pytest.raises(ConfigError, match="is a LlamaForCausalLM, not a sequence classifier"):
        RewardModel(str(tmp_path / "lm-llama")).check(prompt())
    with pytest.raises(CheckpointError, match="no such directory"):
        RewardModel(str(tmp_path / "none")).check(prompt())
    (verdict,) = judge(RewardModel(two), prompt(), [completion("a")])
    assert verdict.status is Status.FAILED
    with pytest.raises(ConfigError, match="baseline='gold'; choose"):
        RewardModel(path, baseline="gold")


def test_in_a_panel_a_missing_checkpoint_is_a_failed_verdict(tmp_path):
    panel = JudgePanel([Seat(RewardModel(str(tmp_path / "none")))])
    (sample,) = asyncio.run(panel.judge_group(prompt(), [completion("a")]))
    assert sample.reward is None and "no such directory" in sample.verdicts["reward_model"].reason


def test_a_recipe_names_it_with_its_settings(path):
    config = JudgeConfig(function="reward_model", name="helpful", settings={"model": path, "calibrated": True})
    model = build_judge(config)
    assert model.name == "helpful" and scores(model, prompt(baseline="yes"))[0] == 0.0
