import json
import math
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_detectors import claim_of, claims_of, write_tiny

from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.factuality.asking import load_prompt
from llamarl.factuality.detectors.backbone import Backbone, Encoded
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.detectors.files import load_detector, read_record, save_detector
from llamarl.factuality.detectors.labels import Labels, score_labels
from llamarl.factuality.detectors.method import METHODS, find_method
from llamarl.factuality.detectors.prompt_tf import PromptTF
from llamarl.models.tiny import bpe_tokenizer, char_tokenizer, piece_tokenizer
from llamarl.scoring.next_tokens import PaddedNextTokens, build_next_tokens

TEXTS = (
    "Lyon is in France.",
    "Lyon is in Spain.",
    "Nice lies by the sea.",
    "A claim that is somewhat longer than these.",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return Backbone.load(checkpoint, device="cpu")


@pytest.fixture
def saved(backbone, tmp_path):
    save_detector(PromptTF(backbone, threshold=0.4), tmp_path / "detector")
    return tmp_path / "detector"


def change_record(directory, **changes):
    file = directory / "detector.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# golden


def test_p_factual_is_the_share_of_true_among_the_labels_and_mass_is_both():
    score = score_labels(math.log(0.3), math.log(0.1))
    assert score.p_factual == pytest.approx(0.75) and score.mass == pytest.approx(0.4)


def test_labels_of_a_word_tokenizer_are_all_spellings_with_and_without_space():
    tokenizer = bpe_tokenizer(["True False true false TRUE FALSE"] * 9 + [" True False"] * 9, vocab_size=400)
    labels = Labels.of(tokenizer)
    spelt = {tokenizer.decode([token]) for token in labels.true_ids}
    assert {"True", " True", " true", " TRUE"} <= spelt
    assert {tokenizer.decode([token]).strip().lower() for token in labels.false_ids} >= {"false"}


def test_labels_of_a_character_tokenizer_are_first_letters_and_a_shared_space_is_none():
    tokenizer = char_tokenizer()
    labels = Labels.of(tokenizer)
    assert sorted(tokenizer.decode(labels.true_ids)) == ["T", "t"]
    assert sorted(tokenizer.decode(labels.false_ids)) == ["F", "f"]


def test_a_start_of_one_letter_does_not_count_beside_a_whole_word():
    tokenizer = piece_tokenizer(["True", "False", "F", "TR", "UE", " "], r"True|False|TR|UE|F|A|L|S|E| |true|false")
    labels = Labels.of(tokenizer)
    assert [tokenizer.decode([token]) for token in labels.true_ids] == ["True", "TR"]
    assert [tokenizer.decode([token]) for token in labels.false_ids] == ["False"]


def test_scores_are_what_the_model_itself_says_of_the_next_token(backbone):
    prompt = load_prompt("detect")
    scores = PromptTF(backbone).score(claims_of(*TEXTS))
    for text, score in zip(TEXTS, scores, strict=True):
        ids = backbone.tokenizer.encode_chat(
            [{"role": "user", "content": prompt.user.strip().replace("{{claim}}", text)}]
        )
        p = backbone.model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        true, false = (float(p[list(side)].sum()) for side in (backbone.labels.true_ids, backbone.labels.false_ids))
        assert score.p_factual == pytest.approx(true / (true + false), abs=1e-5)
        assert score.mass == pytest.approx(true + false, abs=1e-5)


# invariance


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text(alphabet="abc ", min_size=1, max_size=30), min_size=1, max_size=6), st.integers(1, 400))
def test_packed_scores_equal_padded_ones_whatever_the_batch_and_the_prefix(checkpoint, backbone, texts, cut):
    prompt = load_prompt("detect")
    sequences = [backbone.encode(prompt, claim=text).ids for text in texts]
    tokens = backbone.labels.ids
    prefix = sequences[0][:cut]
    packed = build_next_tokens(backbone.model)(sequences, tokens, prefix)
    padded = PaddedNextTokens(backbone.model)(sequences, tokens)
    torch.testing.assert_close(packed, padded, atol=2e-4, rtol=1e-4)


def test_order_batches_and_repetitions_change_no_score(checkpoint, backbone):
    claims = claims_of(*TEXTS)
    whole = PromptTF(backbone).score(claims)
    small = PromptTF(Backbone.load(checkpoint, device="cpu", batch_tokens=1))
    for left, right in zip(whole, small.score(claims), strict=True):
        assert left.p_factual == pytest.approx(right.p_factual, abs=1e-5)
    twice = PromptTF(backbone).score([*claims, *reversed(claims)])
    assert twice[:4] == twice[:3:-1]


@pytest.mark.parametrize("most", [1, 100, 250, 100_000])
def test_batches_hold_every_claim_once_and_stay_within_their_tokens(backbone, most):
    prompt = load_prompt("detect")
    sequences = [backbone.encode(prompt, claim="x" * length).ids for length in (90, 3, 40, 41, 7)]
    for scorer in (build_next_tokens(backbone.model), PaddedNextTokens(backbone.model)):
        parts = scorer.split(sequences, most, sequences[0][:60])
        assert sorted(index for part in parts for index in part) == [0, 1, 2, 3, 4]
        assert all(len(part) == 1 for part in parts) or most > 1


def test_a_model_that_the_packed_decoder_does_not_know_is_scored_by_its_own_forward_pass(tmp_path):
    backbone = Backbone.load(write_tiny(tmp_path / "model", "gpt_neox"), device="cpu")
    (score,) = PromptTF(backbone).score(claims_of("Lyon is in France."))
    ids = backbone.encode(load_prompt("detect"), claim="Lyon is in France.").ids
    p = backbone.model(torch.tensor([ids])).logits[0, -1].softmax(-1)
    assert score.mass == pytest.approx(float(p[list(backbone.labels.ids)].sum()), abs=1e-5)


def test_the_input_of_a_detector_holds_the_claim_and_nothing_else_of_the_row(backbone):
    prompt = load_prompt("detect")
    with_answer = claim_of("Lyon is old.")
    text = backbone.tokenizer.decode(backbone.encode(prompt, claim=with_answer.text).ids)
    assert text.count("{{") == 0 and "Lyon is old." in text and "Tell me." not in text


# reduces_to


def test_a_saved_detector_scores_as_it_did(backbone, saved):
    loaded = load_detector(saved, device="cpu")
    assert loaded.name == "prompt_tf" and loaded.threshold == 0.4
    assert loaded.score(claims_of(*TEXTS)) == PromptTF(backbone).score(claims_of(*TEXTS))


def test_a_detector_asks_with_the_prompts_it_was_saved_with(saved):
    prompts = json.loads((saved / "detector.json").read_text())["prompts"]
    prompts["detect"] |= {"user": "Sure? {{claim}}", "version": "0"}
    change_record(saved, prompts=prompts)
    detector = load_detector(saved, device="cpu")
    prompt = detector.prompts["detect"]
    assert "Sure? x" in detector.backbone.tokenizer.decode(detector.backbone.encode(prompt, claim="x").ids)


def test_a_model_that_was_moved_is_named_and_can_be_said(saved, checkpoint, tmp_path):
    record = json.loads((saved / "detector.json").read_text())
    change_record(saved, model=record["model"] | {"path": str(tmp_path / "gone")})
    with pytest.raises(ConfigError, match=r"gone: no such directory.*--model"):
        load_detector(saved)
    shutil.copytree(checkpoint, tmp_path / "elsewhere")
    assert load_detector(saved, tmp_path / "elsewhere", device="cpu").threshold == 0.4


def test_every_method_of_the_list_is_there_under_its_name():
    for name in METHODS:
        assert find_method(name).name == name


# rejects


def test_a_claim_that_is_too_long_has_a_problem_and_the_others_have_scores(checkpoint):
    detector = PromptTF(Backbone.load(checkpoint, device="cpu", max_tokens=130))
    short, long = detector.score(claims_of("Short.", "long " * 10_000))
    assert short.p_factual is not None
    assert long.p_factual is None and "the most is 130" in long.problem


def test_the_positions_of_the_model_bound_a_claim(backbone):
    assert backbone.max_tokens == 512
    (score,) = PromptTF(backbone).score(claims_of("x" * 600))
    assert score.p_factual is None and "512" in score.problem


def test_a_claim_cannot_end_the_question(backbone):
    (score,) = PromptTF(backbone).score(claims_of("Lyon.<|eot_id|>"))
    assert score == Score(None, problem="the claim holds <|eot_id|>, a special token of the model")


def test_no_claims_and_claims_that_all_have_problems_are_no_error(backbone):
    assert backbone.score_labels(load_prompt("detect"), []) == []
    assert backbone.score_labels(load_prompt("detect"), [Encoded((), "broken")]) == [Score(None, problem="broken")]


def test_a_tokenizer_that_cannot_tell_the_labels_apart_is_refused():
    tokenizer = piece_tokenizer(["a", "b"], r"[\s\S]")  # every other letter is <unk>
    with pytest.raises(ConfigError, match=r"True and False with the same tokens \('<unk>'.*cot_tf"):
        Labels.of(tokenizer)


def test_another_base_and_another_tokenizer_are_refused(saved, tmp_path):
    write_tiny(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match=r"another model than the detector's \(weights"):
        load_detector(saved, tmp_path / "other", device="cpu")
    write_tiny(tmp_path / "qwen", "qwen2")
    with pytest.raises(CheckpointError, match=r"another model than the detector's \(tokenizer"):
        load_detector(saved, tmp_path / "qwen", device="cpu")


def test_an_unknown_method_and_wrong_settings_name_their_field(saved):
    change_record(saved, method="prompt_tff")
    with pytest.raises(ConfigError, match=r"method='prompt_tff': unknown; choose one of .*Did you mean"):
        load_detector(saved)
    change_record(saved, method="prompt_tf", settings={"max_tokens": 0})
    with pytest.raises(ConfigError, match="settings: max_tokens"):
        load_detector(saved)
    change_record(saved, settings={}, prompts={})
    with pytest.raises(CheckpointError, match="no 'detect'"):
        load_detector(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ("{}", "format=None"),
        ('{"format": 1}', "method"),
        ('{"format": 2}', "reads 1"),
    ],
)
def test_a_broken_record_is_named(saved, text, message):
    (saved / "detector.json").write_text(text)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        read_record(saved)


def test_no_detector_and_lost_or_exchanged_files_are_named(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"no such directory.*detect train"):
        read_record(tmp_path / "nothing")
    change_record(saved, files={"probe.safetensors": "00"})
    with pytest.raises(CheckpointError, match=r"no probe.safetensors"):
        read_record(saved)
    (saved / "probe.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"is not the file that the detector was saved with"):
        read_record(saved)


@pytest.mark.parametrize("user", ["", "True or false?", "{{claim}} {{prompt}}", "{claim}"])
def test_a_prompt_that_leaves_out_the_claim_or_wants_more_is_refused(saved, user):
    prompt = {"version": "1", "system": "", "user": user}
    change_record(saved, prompts={"detect": prompt})
    with pytest.raises(CheckpointError, match=r"prompts.detect.user: takes .*write \{\{claim\}\} where"):
        load_detector(saved, device="cpu")


def test_a_threshold_that_is_no_probability_is_refused(saved):
    change_record(saved, threshold=5.0)
    with pytest.raises(ConfigError, match=r"detector.json: threshold: .* 5"):
        load_detector(saved)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1' + "0" * 5000 + "}"])
def test_json_beyond_what_python_reads_is_refused(saved, text):
    (saved / "detector.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"detector.json: not usable JSON"):
        load_detector(saved)
