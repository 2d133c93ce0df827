import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.models.checkpoint import load_classifier, load_model, load_tokenizer, quiet, save_model
from llamarl.models.classifier import (
    PaddedClassifier,
    conversation_ids,
    ensure_padding,
    text_ids,
    without_padding,
)
from llamarl.models.tiny import build_tiny, char_tokenizer
from llamarl.scoring.classifier import Labels, LazyClassifier

USER = [{"role": "user", "content": "hi"}]
ANSWER = [{"role": "assistant", "content": "yo"}]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return build_tiny("llama", tmp_path_factory.mktemp("models") / "llama")


def classifier_from(path, directory, labels=1, seed=0):
    """A checkpoint with a head that says something."""
    model, tokenizer = load_classifier(path, new_labels=labels), load_tokenizer(path)
    ensure_padding(model, tokenizer)
    with torch.no_grad():
        model.score.weight.normal_(generator=torch.Generator().manual_seed(seed))
    return save_model(model, tokenizer, directory)


@pytest.fixture(scope="module")
def reward(llama, tmp_path_factory):
    return classifier_from(llama, tmp_path_factory.mktemp("models") / "reward")


# checkpoints


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt_neox"])
def test_a_language_model_gives_its_body_below_a_head_of_zeros(family, tmp_path):
    path = build_tiny(family, tmp_path / "lm")
    state = torch.random.get_rng_state()
    model, body = load_classifier(path, new_labels=3), load_model(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.score.weight.shape == (3, 32) and not model.score.weight.any()
    own = dict(model.base_model.named_parameters())
    assert own and all(torch.equal(own[name], p) for name, p in body.base_model.named_parameters())


def test_a_reload_by_transformers_is_bit_equal(reward):
    with quiet() as transformers:
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(reward)
        tokenizer = transformers.AutoTokenizer.from_pretrained(reward)
    ours = load_classifier(reward)
    assert theirs.config.num_labels == 1 and theirs.config.pad_token_id == tokenizer.pad_token_id == 0
    pairs = list(zip(ours.named_parameters(), theirs.named_parameters(), strict=True))
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)
    text = tokenizer.apply_chat_template([*USER, *ANSWER], tokenize=False)
    inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    ids = conversation_ids(load_tokenizer(reward), USER, ANSWER)
    assert inputs["input_ids"][0].tolist() == list(ids)
    with torch.no_grad():
        assert torch.equal(PaddedClassifier(ours)([ids]), theirs(**inputs).logits)


def test_training_goes_on_from_a_classifier_and_another_number_of_labels_gets_a_new_head(reward):
    assert load_classifier(reward, new_labels=1).score.weight.any()
    two = load_classifier(reward, new_labels=2).score.weight
    assert two.shape == (2, 32) and not two.any()


def test_a_language_model_is_no_reward_model(llama, tmp_path):
    with pytest.raises(CheckpointError, match=r"score\.weight is not in the weights.*llamarl reward train"):
        load_classifier(llama)
    with pytest.raises(ConfigError, match="is a LlamaForCausalLM, not a sequence classifier"):
        _ = LazyClassifier(llama).labels
    with pytest.raises(CheckpointError, match="no such directory"):
        _ = LazyClassifier(tmp_path / "none").labels


def test_weights_of_another_body_are_refused(reward, tmp_path):
    other = build_tiny("llama", tmp_path / "wide", intermediate_size=96)
    (other / "model.safetensors").write_bytes((reward / "model.safetensors").read_bytes())
    (other / "llamarl_export.json").unlink()
    with pytest.raises(CheckpointError, match=r"mismatched keys, first model\.layers\.0\.mlp"):
        load_classifier(other, new_labels=1)


# text


def test_a_conversation_ends_as_its_template_ends_a_turn():
    plain = char_tokenizer("plain")
    ids = conversation_ids(plain, USER, ANSWER)
    assert plain.decode(ids, skip_special=False) == "<|user|>hi<|assistant|>yo<eos>"
    assert ids[-1] == plain.eos_ids[0]


def test_without_a_template_prompt_and_answer_are_joined_and_ended():
    tokenizer = char_tokenizer("plain")
    tokenizer.backend.chat_template = None
    assert conversation_ids(tokenizer, USER, ANSWER) == (*tokenizer.encode("hiyo"), tokenizer.eos_ids[0])
    assert text_ids(tokenizer, "yo<eos>") == text_ids(tokenizer, "yo")
    with pytest.raises(ConfigError, match=r"no chat template.*got roles \['system', 'user', 'assistant'\]"):
        conversation_ids(tokenizer, [{"role": "system", "content": "x"}, *USER], ANSWER)


def test_trailing_padding_is_not_scored():
    assert without_padding((5, 0, 6, 0, 0), 0) == (5, 0, 6)
    assert without_padding((0, 0), 0) == (0,)
    assert without_padding((5, 6), None) == (5, 6)


def test_a_padding_token_is_never_the_end_token(llama):
    model, tokenizer = load_classifier(llama, new_labels=1), load_tokenizer(llama)
    model.config.pad_token_id, tokenizer.backend.pad_token = None, tokenizer.backend.eos_token
    ensure_padding(model, tokenizer)
    assert model.config.pad_token_id == tokenizer.backend.pad_token_id == 0  # `<pad>`, by its name
    tokenizer.eos_ids = tuple(range(tokenizer.vocab_size))
    with pytest.raises(ConfigError, match="no padding token besides its end token"):
        ensure_padding(model, tokenizer)


# scores


def test_scores_do_not_depend_on_order_batch_or_padding(reward):
    whole, cut = LazyClassifier(reward), LazyClassifier(reward, batch_tokens=30)
    rows = [whole.encode(USER, "x" * n) for n in (3, 40, 0, 7, 7)]
    together = whole(rows)
    assert torch.tensor(together).std() > 0.01
    for other in (cut(rows), [whole([row])[0] for row in rows], whole(rows[::-1])[::-1]):
        assert torch.allclose(torch.tensor(together), torch.tensor(other), atol=1e-5)
    assert together[3] == together[4]
    assert whole([]) == []


def test_a_checkpoint_without_a_padding_token_is_scored_row_by_row(reward):
    model = load_classifier(reward)
    rows = [(3, 4, 5), (6, 7)]
    with torch.no_grad():
        padded = PaddedClassifier(model)(rows)
        model.config.pad_token_id = None
        assert torch.allclose(PaddedClassifier(model)(rows), padded, atol=1e-6)


def test_it_pickles_without_its_weights_and_answers_many_threads(reward):
    classifier = LazyClassifier(reward)
    expected = classifier([classifier.encode(USER, "a")])
    payload = pickle.dumps(classifier)
    assert len(payload) < 2000
    copy = pickle.loads(payload)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: copy([copy.encode(USER, "a")]), range(40)))
    assert answers == [expected] * 40


def test_the_longest_input_is_that_of_the_positions_or_the_one_asked_for(reward):
    assert LazyClassifier(reward).why_too_long((5,) * 256) is None
    assert LazyClassifier(reward).why_too_long((5,) * 257) == "257 tokens, the model takes at most 256"
    assert LazyClassifier(reward, max_tokens=3).why_too_long((5,) * 4) == "4 tokens, the model takes at most 3"


def test_labels_by_name_or_index():
    labels = Labels(("bad", "good"), False)
    assert labels.index("good") == labels.index(1) == 1
    for wrong in ("great", 2, -1):
        with pytest.raises(ConfigError, match="the classifier has 'bad', 'good'"):
            labels.index(wrong)


def test_a_device_that_is_not_there_is_named(reward):
    with pytest.raises(ConfigError, match="device='cuda:99'"):
        load_classifier(reward, device="cuda:99")
