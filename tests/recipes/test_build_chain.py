import json

import torch

from llamarl.data.prompts import read_prompts
from llamarl.models.checkpoint import load_tokenizer
from llamarl.recipes.build_chain import BUDGETS, NUM_HELDOUT, NUM_SFT, NUM_TRAIN, build_chain, chain_tokenizer
from llamarl.tasks.chain import MAX_TOKENS, ChainTask
from llamarl.training.sft_rows import read_sft_rows


def test_a_short_build_is_repeatable_and_complete(tmp_path):
    losses = []
    first = build_chain(tmp_path / "first", steps=3, progress=lambda step, loss: losses.append(loss))
    threads = torch.get_num_threads()
    second = build_chain(tmp_path / "second", steps=3)
    names = ("model/model.safetensors", "sft.jsonl", "train.jsonl", "conditioned.jsonl", "heldout.jsonl")
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert losses[-1] < losses[0] and torch.get_num_threads() == threads
    tokenizer = load_tokenizer(first / "model")
    assert tokenizer.fingerprint == chain_tokenizer().fingerprint
    lines = (first / "sft.jsonl").read_text().splitlines()
    rows = read_sft_rows([json.loads(line) for line in lines[-300:]], tokenizer)
    assert len(lines) == NUM_SFT and max(len(row.token_ids) for row in rows) == MAX_TOKENS
    assert len(read_prompts(first / "train.jsonl")) == NUM_TRAIN
    assert len(read_prompts(first / "heldout.jsonl")) == NUM_HELDOUT
    conditioned = read_prompts(first / "conditioned.jsonl")
    assert len(conditioned) == NUM_TRAIN and {prompt.info["budget"] for prompt in conditioned} == set(BUDGETS)
    assert max(len(tokenizer.encode_chat(prompt.messages)) for prompt in conditioned) == 12


def test_every_text_of_the_task_is_one_token_per_character_or_tag():
    tokenizer = chain_tokenizer()
    for index in range(50):
        prompt, text = ChainTask(0).demonstration(index)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text.replace("<think>", "(").replace("</think>", ")"))
        assert len(tokenizer.encode_chat(prompt.messages)) == 12  # <|user|>, ten characters, <|assistant|>
