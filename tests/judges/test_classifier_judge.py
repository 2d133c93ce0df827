import asyncio
import math
import pickle

import pytest
import torch
from tiny_classifiers import classifier, completion, prompt

from llamarl.core.errors import ConfigError
from llamarl.core.records import Status
from llamarl.judges.classifier import ClassifierJudge
from llamarl.judges.config import JudgeConfig
from llamarl.judges.executor import JudgeExecutor
from llamarl.models.checkpoint import load_classifier, load_tokenizer
from llamarl.models.classifier import PaddedClassifier, conversation_ids, text_ids

NAMES = {"id2label": {0: "refuses", 1: "answers"}, "label2id": {"refuses": 0, "answers": 1}}
TEXTS = ["yes", "I cannot help", ""]


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return classifier(tmp_path_factory.mktemp("models"), labels=2, **NAMES)


def judge(model, texts=TEXTS, asked=None):
    return asyncio.run(model.judge(asked or prompt(), [completion(text) for text in texts]))


def logits(path, sequences):
    with torch.no_grad():
        return PaddedClassifier(load_classifier(path))(sequences)


# golden


def test_the_score_is_the_probability_of_the_positive_label(path):
    tokenizer = load_tokenizer(path)
    turns = [[{"role": "assistant", "content": text}] for text in TEXTS]
    expected = logits(path, [conversation_ids(tokenizer, prompt().messages, turn) for turn in turns]).softmax(-1)
    for positive, index in (("answers", 1), (1, 1), ("refuses", 0)):
        verdicts = judge(ClassifierJudge(path, positive=positive))
        assert [verdict.score for verdict in verdicts] == pytest.approx(expected[:, index].tolist(), abs=1e-6)
        assert [verdict.passed for verdict in verdicts] == (expected[:, index] >= 0.5).tolist()
    likeliest = [("refuses", "answers")[int(index)] for index in expected.argmax(-1)]
    assert [verdict.reason for verdict in verdicts] == [f"likeliest: {name}" for name in likeliest]


def test_it_may_see_the_response_alone(path):
    rows = [text_ids(load_tokenizer(path), text) for text in TEXTS]
    expected = logits(path, rows).softmax(-1)[:, 1].tolist()
    model = ClassifierJudge(path, response_only=True)
    found = [verdict.score for verdict in judge(model)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert [verdict.score for verdict in judge(model, asked=prompt("something else"))] == found


def test_labels_that_are_independent_each_have_their_own_probability(tmp_path):
    path = classifier(tmp_path, labels=3, problem_type="multi_label_classification")
    row = text_ids(load_tokenizer(path), "yes")
    value = logits(path, [row])[0, 2].item()
    (verdict,) = judge(ClassifierJudge(path, positive=2, response_only=True), ["yes"])
    assert verdict.score == pytest.approx(1 / (1 + math.exp(-value)), abs=1e-6)


def test_the_threshold_decides(path):
    score = judge(ClassifierJudge(path), ["yes"])[0].score
    for bound, passed in ((0.0, True), (score, True), (min(1.0, score + 0.01), False)):
        assert judge(ClassifierJudge(path, threshold=bound), ["yes"])[0].passed is passed


# invariance


def test_batches_and_pickling_change_nothing(path):
    whole = [verdict.score for verdict in judge(ClassifierJudge(path))]
    for model in (ClassifierJudge(path, batch_tokens=1), pickle.loads(pickle.dumps(ClassifierJudge(path)))):
        assert [verdict.score for verdict in judge(model)] == pytest.approx(whole, abs=1e-6)


def test_an_executor_loads_the_model_before_the_first_group(path):
    executor = JudgeExecutor([JudgeConfig(function="classifier", settings={"model": path}, timeout_seconds=60.0)])
    executor.setup()
    (model,) = executor.panels[""].judges
    loaded = model._classifier._loaded
    assert loaded is not None
    asyncio.run(executor.judge_group(prompt(), [completion("yes")]))
    assert model._classifier._loaded is loaded
    assert ClassifierJudge(path)._classifier._loaded is None, "not by being described"


def test_a_checkpoint_that_is_gone_ends_the_start(tmp_path):
    config = JudgeConfig(function="classifier", settings={"model": str(tmp_path / "none")})
    with pytest.raises(ConfigError, match=r"judge 'classifier' does not load: .*no such directory"):
        JudgeExecutor([config]).setup()


# rejects


def test_wrong_labels_and_models_are_found_before_the_run(path, tmp_path):
    ClassifierJudge(path).check(prompt())
    with pytest.raises(ConfigError, match="label 'helps': the classifier has 'refuses', 'answers'"):
        ClassifierJudge(path, positive="helps").check(prompt())
    with pytest.raises(ConfigError, match=r"has one label.*RewardModel"):
        ClassifierJudge(classifier(tmp_path)).check(prompt())
    with pytest.raises(ConfigError, match=r"threshold=1\.5: a probability"):
        ClassifierJudge(path, threshold=1.5)
    (verdict,) = judge(ClassifierJudge(path, positive=7), ["yes"])
    assert verdict.status is Status.FAILED and "label 7" in verdict.reason


def test_a_completion_too_long_fails_alone(path):
    verdicts = judge(ClassifierJudge(path, max_tokens=100), ["yes", "x" * 150])
    assert [verdict.status for verdict in verdicts] == [Status.SCORED, Status.FAILED]
