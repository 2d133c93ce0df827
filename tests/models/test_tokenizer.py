import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llamarl.core.errors import ConfigError
from llamarl.models.templates import STYLES
from llamarl.models.tiny import ALPHABET, bpe_tokenizer, char_tokenizer
from llamarl.models.tokenizer import Tokenizer

CHAT = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "ok"},
)

# golden: CHAT with the generation prompt, as text and as ids. Ids count from <pad> 0, <unk> 1, then BOS (if any), EOS,
# the family's special tokens, and this alphabet. For plain: <eos> 2, <|system|> 3, <|user|> 4, <|assistant|> 5,
# <|tool|> 6, "\n" 7, " " 8, "H" 9, "Y" 10, "I" 11, ..., "i" 21, ..., "o" 25, ..., "k" 30.
GOLDEN_ALPHABET = "\n HYINST[]/aedilmnorstuk"
GOLDEN = {
    "plain": (
        "<|user|>Hi<|assistant|>Yo<eos><|user|>ok<|assistant|>",
        "4 9 21 5 10 25 2 4 25 30 5",
    ),
    "llama2": (
        "<s>[INST] Hi [/INST] Yo </s><s>[INST] ok [/INST]",
        "2 12 8 9 10 11 13 5 6 18 5 12 14 8 9 10 11 13 5 7 22 5 3 2 12 8 9 10 11 13 5 22 27 5 12 14 8 9 10 11 13",
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nok<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "2 4 28 26 18 25 5 6 6 8 20 3 "
        "4 17 26 26 20 26 27 17 23 27 5 6 6 9 24 3 "
        "4 28 26 18 25 5 6 6 24 29 3 "
        "4 17 26 26 20 26 27 17 23 27 5 6 6",
    ),
    "chatml": (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
        "<|im_start|>user\nok<|im_end|>\n<|im_start|>assistant\n",
        "3 26 24 16 23 4 6 18 2 4 "
        "3 15 24 24 18 24 25 15 21 25 4 7 22 2 4 "
        "3 26 24 16 23 4 22 27 2 4 "
        "3 15 24 24 18 24 25 15 21 25 4",
    ),
    "mistral": (
        "<s>[INST] Hi[/INST] Yo</s>[INST] ok[/INST]",
        "2 4 9 10 22 5 9 11 26 3 4 9 26 31 5",
    ),
    "gemma": (
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
        "<start_of_turn>user\nok<end_of_turn>\n<start_of_turn>model\n",
        "2 4 27 25 17 24 5 7 19 3 5 4 21 23 18 17 20 5 8 23 3 5 4 27 25 17 24 5 23 28 3 5 4 21 23 18 17 20 5",
    ),
    "phi": (
        "<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n<|user|>\nok<|end|>\n<|assistant|>\n",
        "4 7 9 21 2 7 5 7 10 25 2 7 4 7 25 30 2 7 5 7",
    ),
}


@pytest.mark.parametrize("style", STYLES)
def test_golden_ids_of_each_template_family(style):
    text, ids = GOLDEN[style]
    tokenizer = char_tokenizer(style, GOLDEN_ALPHABET)
    encoded = tokenizer.encode_chat(CHAT)
    assert tokenizer.decode(encoded, skip_special=False) == text
    assert " ".join(map(str, encoded)) == ids


@pytest.mark.parametrize("style", STYLES)
def test_chat_ids_start_with_the_bos_once_or_not_at_all(style):
    tokenizer = char_tokenizer(style)
    ids = tokenizer.encode_chat(CHAT[:1])
    assert ids.count(tokenizer.bos_id) == (1 if STYLES[style].bos else 0)
    assert all(isinstance(i, int) for i in ids)


@pytest.mark.parametrize("style", STYLES)
def test_chat_ids_are_those_of_transformers_own_call(style):
    tokenizer = char_tokenizer(style)
    own = tokenizer.backend.apply_chat_template(list(CHAT), add_generation_prompt=True, return_dict=False)
    assert tokenizer.encode_chat(CHAT) == tuple(own)


def test_threads_may_share_one_tokenizer():
    texts = [f"message {i}" * (i % 7) for i in range(400)]
    expected = [_BPE.encode_chat([{"role": "user", "content": text}]) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda t: _BPE.encode_chat([{"role": "user", "content": t}]), texts)) == expected


def test_eos_ids_put_the_tokenizers_own_first_and_repeat_none():
    backend = char_tokenizer("plain").backend
    assert Tokenizer(backend).eos_ids == (2,)
    assert Tokenizer(backend, (5, 2, 4)).eos_ids == (2, 5, 4)


def test_pad_id_falls_back_to_the_end_token():
    tokenizer = char_tokenizer("plain")
    assert tokenizer.pad_id == 0
    tokenizer.backend.pad_token = None
    assert tokenizer.pad_id == 2


def test_vocab_size_covers_the_largest_id():
    assert char_tokenizer("plain", "abc").vocab_size == 2 + 1 + 4 + 3
    assert char_tokenizer("plain", "abc").why_unfit(10) is None
    assert "up to 9" in char_tokenizer("plain", "abc").why_unfit(9)


def test_decode_leaves_special_tokens_out_unless_asked():
    tokenizer = char_tokenizer("plain")
    ids = [*tokenizer.encode("A b!"), 2]
    assert tokenizer.decode(ids) == "A b!"
    assert tokenizer.decode(ids, skip_special=False) == "A b!<eos>"
    assert tokenizer.decode([]) == ""


@settings(max_examples=50, deadline=None)
@given(st.text(ALPHABET))
def test_char_tokenizer_round_trips_its_alphabet(text):
    tokenizer = _CHARS
    assert len(tokenizer.encode(text)) == len(text) or "<" in text
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_bpe_tokenizer_round_trips_any_text(text):
    assert _BPE.decode(_BPE.encode(text), skip_special=False) == text


_CHARS = char_tokenizer("plain")
_BPE = bpe_tokenizer(["the cat and the dog and the moon"] * 4, vocab_size=300)


def test_bpe_training_is_deterministic_and_merges():
    again = bpe_tokenizer(["the cat and the dog and the moon"] * 4, vocab_size=300)
    assert again.fingerprint == _BPE.fingerprint
    assert len(_BPE.encode("the cat")) < len("the cat")


def test_pickle_keeps_ids_ends_and_fingerprint():
    tokenizer = Tokenizer(char_tokenizer("llama3").backend, (7,))
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode_chat(CHAT) == tokenizer.encode_chat(CHAT)
    assert (copy.eos_ids, copy.fingerprint) == (tokenizer.eos_ids, tokenizer.fingerprint)


def test_fingerprint_sees_vocabulary_template_and_ends():
    base = char_tokenizer("plain")
    other_template = char_tokenizer("plain")
    other_template.backend.chat_template += " "
    others = [char_tokenizer("plain", "abc"), other_template, Tokenizer(base.backend, (3,))]
    assert len({t.fingerprint for t in (base, *others)}) == 4
    assert char_tokenizer("plain").fingerprint == base.fingerprint


def test_tools_reach_a_template_that_knows_them():
    tokenizer = char_tokenizer("chatml")
    tool = {"type": "function", "function": {"name": "add"}}
    assert '"name": "add"' in tokenizer.decode(tokenizer.encode_chat(CHAT[:1], [tool]))


def test_base_model_continues_one_user_message_as_plain_text():
    tokenizer = char_tokenizer("plain")
    tokenizer.backend.chat_template = None
    assert tokenizer.encode_chat(CHAT[:1]) == tokenizer.encode("Hi")


def test_rejects_a_conversation_without_a_template():
    tokenizer = char_tokenizer("plain")
    tokenizer.backend.chat_template = None
    with pytest.raises(ConfigError, match=r"chat_template\.jinja"):
        tokenizer.encode_chat(CHAT)
    with pytest.raises(ConfigError, match=r"chat_template\.jinja"):
        tokenizer.render(CHAT)


def test_rejects_messages_the_template_refuses():
    with pytest.raises(ConfigError, match=r"roles \['system'\].*knows user and assistant only"):
        char_tokenizer("gemma").encode_chat([{"role": "system", "content": "x"}])


def test_rejects_unknown_style():
    with pytest.raises(ConfigError, match="'chatlm'"):
        char_tokenizer("chatlm")
