import torch

from llamarl.core.records import text_completion
from llamarl.models.checkpoint import load_config, load_model, load_tokenizer
from llamarl.models.decoder import why_unsupported
from llamarl.models.template_check import check_template
from llamarl.tasks.demo import DEMO_CHECKPOINT
from llamarl.tasks.format import MAX_TOKENS, FormatTask, judge


def test_it_is_small_and_of_the_documented_shape():
    config = load_config(DEMO_CHECKPOINT)
    shape = (config.hidden_size, config.num_hidden_layers, config.intermediate_size, config.num_attention_heads)
    assert shape == (96, 3, 256, 3)
    assert sum(p.numel() for p in load_model(DEMO_CHECKPOINT).parameters()) == 341_856
    assert sum(file.stat().st_size for file in DEMO_CHECKPOINT.iterdir()) < 2_000_000
    assert why_unsupported(config) is None


def test_its_template_passes_the_start_up_check():
    tokenizer = load_tokenizer(DEMO_CHECKPOINT)
    report = check_template(tokenizer, load_config(DEMO_CHECKPOINT), is_multi_turn=True)
    assert set(report.limits) == {"tools_ignored"}


def test_it_knows_every_character_of_the_task():
    tokenizer = load_tokenizer(DEMO_CHECKPOINT)
    for prompt, answer in map(FormatTask().demonstration, range(200)):
        ids = tokenizer.encode_chat(prompt.messages) + tokenizer.encode(answer)
        assert tokenizer.backend.unk_token_id not in ids
        assert tokenizer.decode(tokenizer.encode(answer)) == answer


def test_it_solves_heldout_prompts_sometimes_but_far_from_always():
    model, tokenizer = load_model(DEMO_CHECKPOINT), load_tokenizer(DEMO_CHECKPOINT)
    prompts = FormatTask(0, "heldout").prompts(256)
    ids = [tokenizer.encode_chat(prompt.messages) for prompt in prompts]
    width = max(map(len, ids))
    padded = torch.tensor([[tokenizer.pad_id] * (width - len(row)) + list(row) for row in ids])
    torch.manual_seed(0)
    tokens = model.generate(
        padded, attention_mask=(padded != tokenizer.pad_id).long(), do_sample=True, top_k=0, max_new_tokens=MAX_TOKENS
    )[:, width:]
    texts = [tokenizer.decode(row) for row in tokens.tolist()]
    passed = [judge(p, text_completion(text)).passed for p, text in zip(prompts, texts, strict=True)]
    assert 0.10 < sum(passed) / len(passed) < 0.26
