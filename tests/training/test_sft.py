import json
import math
import random
import subprocess
import sys
from collections import Counter

import pytest
import torch
from released_templates import released_tokenizer
from tiny_policies import tiny_model

from llamarl.core.errors import CollapseError, ConfigError, DataError
from llamarl.models.checkpoint import new_config, new_model
from llamarl.models.decoder import named_tensors
from llamarl.models.lora_config import LoraConfig
from llamarl.models.tiny import char_tokenizer
from llamarl.scoring.logprobs import PackedScorer, PaddedScorer
from llamarl.training.config import TrainerConfig
from llamarl.training.fitter import Batches, Fitter, fit_model
from llamarl.training.objectives import SFT, RewardConfig, SFTConfig
from llamarl.training.sft_rows import SFTRow, read_sft_rows


def sft_fitter(model, config):
    return Fitter(model, SFT(config))


def sft(model, rows, config, on_step=None):
    return fit_model(model, SFT(config), rows, on_step)


def reversals(count, seed=0):
    """Rows whose completion is the prompt backwards, closed by the end token 2."""
    rng = random.Random(seed)
    words = [tuple(rng.randrange(3, 20) for _ in range(rng.randrange(1, 5))) for _ in range(count)]
    return [SFTRow((*word, 22), (*word[::-1], 2)) for word in words]


def weights(model):
    return [tensor.clone() for _, tensor in named_tensors(model)]


# golden


@pytest.mark.parametrize(("reduction", "divisor"), [("token_mean", 7), ("sequence_sum", 2)])
def test_the_gradient_is_that_of_the_loss_on_completion_tokens_alone(reduction, divisor):
    rows = [SFTRow((5, 6, 7), (8, 9, 2)), SFTRow((4,), (3, 3, 3, 2))]  # 3 + 4 tokens in 2 rows
    trained, by_hand = tiny_model(), tiny_model()
    config = SFTConfig(reduction=reduction, learning_rate=1e-2, warmup_steps=0, max_grad_norm=1e9)
    metrics = sft_fitter(trained, config).step(rows)
    total = -PaddedScorer(by_hand)(rows).logprobs.sum()
    (total / divisor).backward()
    norm = torch.stack([p.grad.norm() for p in by_hand.parameters()]).norm()
    assert metrics["train/loss"] == pytest.approx(float(total.detach()) / 7, rel=1e-5)
    assert metrics["train/grad_norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize("dither", [True, False])
def test_bf16_shows_the_first_small_step_of_weights_that_were_released_in_it(dither):
    model = tiny_model(scale=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    before = [weight.bfloat16() for weight in weights(model) if weight.dim() > 1]
    fitter = sft_fitter(model, SFTConfig(precision="bf16", learning_rate=1e-6, warmup_steps=0, dither=dither))
    assert all(map(torch.equal, before, (w.bfloat16() for w in weights(model) if w.dim() > 1)))
    fitter.step(reversals(4))
    after = [weight.bfloat16() for weight in weights(model) if weight.dim() > 1]
    # beyond 0.01 half of bf16's spacing is 3e-5, thirty such steps
    moved = [(a != b)[b.abs() > 0.01].any() for a, b in zip(after, before, strict=True)]
    assert any(moved) == dither


def test_the_learning_rate_warms_up_and_falls_to_zero_at_the_last_step():
    rates = []
    config = SFTConfig(num_steps=6, batch_size=1, learning_rate=0.8, warmup_steps=1, schedule="linear")
    sft(tiny_model(), reversals(3), config, lambda number, metrics: rates.append((number, metrics["train/lr"])))
    # 0.8 / 2, then 0.8 * (1 - p) with p = 0, 1/5, 2/5, 3/5, 4/5; the step after the last would have p = 1
    assert [number for number, _ in rates] == [1, 2, 3, 4, 5, 6]
    assert [rate for _, rate in rates] == pytest.approx([0.4, 0.8, 0.64, 0.48, 0.32, 0.16])


def test_the_rate_follows_a_cosine():
    rates = []
    config = SFTConfig(num_steps=4, batch_size=1, learning_rate=1e-3, warmup_steps=0, schedule="cosine")
    sft(tiny_model(), reversals(3), config, lambda _, metrics: rates.append(metrics["train/lr"] / 1e-3))
    assert rates == pytest.approx([1.0, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])


@pytest.mark.parametrize("family", ["qwen2", "gpt_neox"])  # one the packed decoder knows, one it does not
def test_merged_adapters_are_the_base_plus_scale_times_their_product(family):
    model, name = tiny_model(family), "query_key_value" if family == "gpt_neox" else "o_proj"
    base = dict(zip((name for name, _ in named_tensors(model)), weights(model), strict=True))
    trainer = sft_fitter(model, SFTConfig(learning_rate=1e-2, warmup_steps=0, lora=LoraConfig(rank=3, alpha=6.0)))
    for batch in (reversals(4), reversals(4, seed=1)):
        trainer.step(batch)
    layer = next(module for path, module in model.named_modules() if path.endswith(name))
    down, up = (each["default"].weight.detach().clone() for each in (layer.lora_A, layer.lora_B))
    assert len(down) == 3 and up.abs().max() > 0
    trainer.merge()
    tensors = dict(named_tensors(model))
    assert tensors.keys() == base.keys()
    path = next(path for path in base if path.endswith(f"{name}.weight"))
    torch.testing.assert_close(tensors[path], base[path] + 2.0 * up @ down)  # 2 = alpha 6 / rank 3


# learning


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_sum"])
def test_the_loss_falls_while_only_the_targets_change(reduction):
    model, rows, losses = tiny_model(scale=1.0, hidden_size=48, intermediate_size=96, head_dim=12), reversals(12), []
    base = dict(zip((name for name, _ in named_tensors(model)), weights(model), strict=True))
    lora = LoraConfig(rank=8, targets=("q_proj", "down_proj"))
    config = SFTConfig(num_steps=60, batch_size=12, learning_rate=3e-2, reduction=reduction, lora=lora)
    trainer = sft_fitter(model, config)
    assert {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad} == {"q_proj", "down_proj"}
    assert trainer.num_trained == 2 * (8 * (48 + 48) + 8 * (96 + 48))
    batches = Batches(rows, trainer.objective)
    losses += [trainer.step(batches[step])["train/loss"] for step in range(batches.num_steps)]
    trainer.merge()
    assert losses[0] > 1.3 * losses[-1]
    changed = {name for name, tensor in named_tensors(model) if not torch.equal(tensor, base[name])}
    assert changed == {name for name in base if name.split(".")[-2] in ("q_proj", "down_proj")}
    assert trainer.evaluate(rows).loss < losses[-2] and all(p.requires_grad for p in model.parameters())


def test_a_toy_is_overfitted_and_the_loss_falls_on_the_way():
    losses, rows = [], reversals(12)
    model = tiny_model(scale=1.0, hidden_size=48, intermediate_size=96, head_dim=12)
    config = SFTConfig(num_steps=150, batch_size=12, learning_rate=1e-2, warmup_steps=10, schedule="linear")
    last = sft(model, rows, config, lambda _, metrics: losses.append(metrics["train/loss"]))
    assert losses[0] == pytest.approx(math.log(24), rel=0.1)
    assert losses[0] > 2 * losses[50] and last < 0.15
    assert sft_fitter(model, config).evaluate(rows).loss < 0.15


def test_unseen_rows_are_evaluated_without_training_on_them():
    trainer, rows = sft_fitter(tiny_model(), SFTConfig(micro_batch_tokens=10)), reversals(9)
    before = weights(trainer.model)
    loss = trainer.evaluate(rows).loss
    logprobs = PaddedScorer(tiny_model())(rows).logprobs
    assert loss == pytest.approx(-float(logprobs.detach().mean()), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer.model), strict=True))


# invariance


def test_equal_seeds_give_bit_equal_weights_and_others_another_order():
    def trained(seed):
        model = tiny_model()
        sft(model, reversals(20), SFTConfig(num_steps=8, batch_size=6, learning_rate=1e-2, seed=seed))
        return weights(model)

    first, again, other = trained(1), trained(1), trained(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_every_row_comes_once_per_epoch_also_across_batch_borders():
    rows, seen = reversals(7), []
    batches = Batches(rows, SFT(SFTConfig(batch_size=3)))
    for step in range(7):
        seen += batches[step]
    for epoch in range(3):
        part = seen[7 * epoch : 7 * epoch + 7]
        assert sorted(r.prompt_ids for r in part) == sorted(r.prompt_ids for r in rows)


def test_a_batch_may_be_far_larger_than_the_data():
    rows = reversals(7)
    whole = Batches(rows, SFT(SFTConfig(batch_size=10**12, num_epochs=2)))
    assert whole.num_steps == 1
    assert Counter(row.prompt_ids for row in whole[0]) == Counter(row.prompt_ids for row in [*rows, *rows])


def test_accumulated_micro_batches_train_like_one():
    rows = reversals(10)
    whole, cut = tiny_model(), tiny_model()
    full = sft_fitter(whole, SFTConfig(learning_rate=1e-2)).step(rows)
    parts = sft_fitter(cut, SFTConfig(learning_rate=1e-2, micro_batch_tokens=12)).step(rows)
    assert parts["train/loss"] == pytest.approx(full["train/loss"], rel=1e-6)
    assert parts["train/grad_norm"] == pytest.approx(full["train/grad_norm"], rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_adapters_change_nothing_before_the_first_step(family):
    base, model = tiny_model(family), tiny_model(family)
    trainer = sft_fitter(model, SFTConfig(lora=LoraConfig(rank=4)))
    assert trainer.evaluate(reversals(5)).loss == pytest.approx(
        sft_fitter(base, SFTConfig()).evaluate(reversals(5)).loss
    )
    trainer.merge()
    assert all(torch.equal(a, b) for a, b in zip(weights(base), weights(model), strict=True))


def test_adapters_packed_have_the_loss_and_gradient_of_the_padded_pass_and_of_the_merged_weights():
    model, rows = tiny_model("qwen2"), reversals(6)
    trainer = sft_fitter(model, SFTConfig(learning_rate=1e-2, warmup_steps=0, lora=LoraConfig(rank=4)))
    trainer.step(rows)

    def gradient(logprobs):
        loss = -logprobs.sum()
        loss.backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return float(loss.detach()), found

    packed = gradient(PackedScorer(model)(rows).logprobs)
    padded = gradient(PaddedScorer(model)(rows).logprobs)
    assert len(packed[1]) == 2 * 2 * 7 and all("lora_" in name for name in packed[1])
    assert packed[1].keys() == padded[1].keys() and packed[0] == pytest.approx(padded[0], rel=1e-5)
    for name, tensor in packed[1].items():
        torch.testing.assert_close(tensor, padded[1][name], rtol=1e-3, atol=1e-4)
    before = trainer.evaluate(rows).loss
    trainer.merge()
    assert trainer.evaluate(rows).loss == pytest.approx(before, rel=1e-5)


def test_equal_seeds_give_bit_equal_adapters_and_leave_the_random_state_alone():
    def first_weights(seed, noise):
        torch.manual_seed(noise)
        model, state = tiny_model(), torch.get_rng_state()
        sft_fitter(model, SFTConfig(seed=seed, lora=LoraConfig(rank=2)))
        assert torch.equal(torch.get_rng_state(), state)
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(first_weights(1, noise=3), first_weights(1, noise=4))
    assert not torch.equal(first_weights(1, noise=3), first_weights(2, noise=3))


# rows


def test_a_conversation_is_encoded_as_the_generator_will_meet_it():
    tokenizer = char_tokenizer("chatml")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    row = SFTRow.of_chat(turns, tokenizer)
    assert row.prompt_ids == tokenizer.encode_chat(turns[:1])
    assert row.token_ids == (*tokenizer.encode("yo"), tokenizer.eos_ids[0])
    assert SFTRow.of_pair("hi", "yo", tokenizer) == row


TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}]
USER, CALL = (
    {"role": "user", "content": "2+3"},
    {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}},
)


def test_tools_are_shown_and_a_call_is_learnt_up_to_the_end_token():
    tokenizer = released_tokenizer("qwen2.5")
    answer = {"role": "assistant", "content": "I call.", "tool_calls": [CALL]}
    (row,) = read_sft_rows([{"messages": [USER, answer], "tools": TOOLS}], tokenizer)
    assert row.prompt_ids == tokenizer.encode_chat([USER], TOOLS)
    assert '"name": "add", "description": "Adds."' in tokenizer.decode(row.prompt_ids)
    call = 'I call.\n<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    assert row.token_ids == (*tokenizer.encode(call), tokenizer.eos_ids[0])
    as_text = {"prompt": [USER], "completion": [answer], "tools": json.dumps(TOOLS)}
    assert read_sft_rows([as_text], tokenizer) == [row]


def test_a_call_ends_in_the_template_s_own_end_token():
    tokenizer = released_tokenizer("llama3")
    row = SFTRow.of_chat([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}], tokenizer)
    text = tokenizer.decode(row.token_ids, skip_special=False)
    assert text == '{"name": "add", "parameters": {"a": 2}}<|eom_id|>'


def test_thoughts_in_a_field_of_their_own_are_learnt():
    tokenizer = released_tokenizer("qwen3")
    answer = {"role": "assistant", "content": "5", "reasoning_content": "2 and 3"}
    row = SFTRow.of_chat([USER, answer], tokenizer)
    assert tokenizer.decode(row.token_ids, skip_special=False) == "<think>\n2 and 3\n</think>\n\n5<|im_end|>"


def test_a_thinking_tag_that_the_prompt_opens_already_is_left_out_with_a_word():
    tokenizer, told = released_tokenizer("deepseek-r1"), []
    rows = [
        {"prompt": "2+3", "completion": text}
        for text in ("<think>\nadd\n</think>\n\n5", "add\n</think>\n\n5", "</think>5")
    ]
    read = read_sft_rows(rows, tokenizer, tell=told.append)
    assert read[0] == read[1]
    assert tokenizer.decode((*read[0].prompt_ids, *read[0].token_ids)).count("<think>") == 1
    assert told == [
        "1 of 3 answers begin with the thinking tag that the chat template's generation prompt writes already; it is "
        "left out of them"
    ]
    assert read_sft_rows(rows[1:], tokenizer, tell=told.append) == read[1:] and len(told) == 1


def test_a_prompt_may_be_text_and_its_completion_messages_and_the_reverse():
    tokenizer = char_tokenizer("chatml")
    prompts, answers = ("hi", [{"role": "user", "content": "hi"}]), ("yo", [{"role": "assistant", "content": "yo"}])
    rows = [{"prompt": prompt, "completion": answer} for prompt in prompts for answer in answers]
    assert read_sft_rows(rows, tokenizer) == [SFTRow.of_pair("hi", "yo", tokenizer)] * 4


def test_epochs_show_each_row_so_often_and_the_default_is_steps():
    rows = reversals(7)
    config = SFTConfig.parse({"num_epochs": 3, "batch_size": 4})
    batches = [Batches(rows, SFT(config))[step] for step in range(config.total_steps(7))]
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 1] and config.total_steps(7) == 6
    assert Counter(row for batch in batches for row in batch) == dict.fromkeys(rows, 3)
    assert (config.num_steps, config.num_epochs) == (None, 3)
    default = SFTConfig()
    assert (default.num_steps, default.num_epochs, default.total_steps(7)) == (500, None, 500)
    assert SFTConfig.parse(config.model_dump()) == config


def test_a_falling_schedule_reaches_zero_at_the_last_step_of_the_epochs():
    rates = []
    config = SFTConfig(num_epochs=2, batch_size=2, learning_rate=1.0, warmup_steps=0, schedule="linear")
    sft(tiny_model(), reversals(4), config, lambda _, metrics: rates.append(metrics["train/lr"]))
    assert rates == [1.0, 0.75, 0.5, 0.25]


# rejects


@pytest.mark.parametrize(
    ("family", "answer", "problem"),
    [
        ("smollm2", {"tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2}'}}]}, "give them as an object"),
        ("deepseek-r1", {"tool_calls": [CALL]}, "leaves out the messages' tool_calls"),
        (
            "gemma",
            {"content": "5", "reasoning_content": "2 and 3"},
            "reasoning_content: the chat template leaves it out",
        ),
        ("deepseek-r1", {"content": "5", "reasoning_content": "hm"}, "doesn't start with the prompt"),
        ("deepseek-r1", {"content": "5"}, "but the answer never closes it"),
        ("qwen3-silent", {"content": "<think>\nadd\n</think>\n\n5"}, "ends with a closed block of thoughts"),
    ],
)
def test_what_a_template_cannot_write_is_not_learnt(family, answer, problem):
    is_silent = family == "qwen3-silent"
    tokenizer = released_tokenizer("qwen3", enable_thinking=False) if is_silent else released_tokenizer(family)
    row = {"messages": [USER, {"role": "assistant", "content": "", **answer}]}
    with pytest.raises(DataError, match=f"rows, line 1: .*{problem}"):
        read_sft_rows([row], tokenizer)


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"prompt": "\ud800", "completion": "x"}, "prompt"),
        ({"prompt": "x", "completion": "x\udc00"}, "completion"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud83d"}]}, r"messages\[1\].content"),
    ],
)
def test_text_that_no_tokenizer_encodes_is_refused_with_its_place(row, field, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    for source in ([row], file):
        with pytest.raises(DataError, match=f"line 1, field '{field}': half a surrogate pair"):
            read_sft_rows(source, char_tokenizer())


def test_a_doubled_tag_is_refused_where_nobody_takes_it_off():
    chat = [USER, {"role": "assistant", "content": "<think>a</think>5"}]
    with pytest.raises(DataError, match="which the prompt ends with already"):
        SFTRow.of_chat(chat, released_tokenizer("deepseek-r1"))


@pytest.mark.parametrize("config", [SFTConfig, RewardConfig])
def test_steps_and_epochs_are_not_both_given(config):
    with pytest.raises(ConfigError, match="num_steps=5 and num_epochs=2: give one of them"):
        config.parse({"num_steps": 5, "num_epochs": 2})
    for name in ("num_steps", "num_epochs"):
        assert config.parse({name: 3}).model_dump()[name] == 3
        with pytest.raises(ConfigError, match=f"{name}: must be at least 1"):
            config.parse({name: 0})
    both = config.parse({"num_steps": None, "num_epochs": 1})
    assert both.num_steps is None
    with pytest.raises(ConfigError, match="give one of them"):
        config.parse({"num_steps": None, "num_epochs": None})


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.95), (float("nan"), 0.95)])
def test_decay_rates_beyond_their_range_are_refused(betas):
    for config in (SFTConfig, TrainerConfig):
        with pytest.raises(ConfigError, match=r"betas\.\d: must be "):
            config.parse({"betas": betas})
        assert config.parse({"betas": (0.0, 0.999)}).betas == (0.0, 0.999)


def test_a_conversation_must_end_with_the_assistant():
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(DataError, match=r"must be the assistant's, got roles \['user', 'assistant', 'user'\]"):
        SFTRow.of_chat(turns, char_tokenizer())


def test_no_rows_and_a_warm_up_longer_than_the_run_are_refused():
    with pytest.raises(DataError, match="no rows"):
        sft(tiny_model(), [], SFTConfig())
    with pytest.raises(ConfigError, match="beyond warmup_steps=10"):
        sft_fitter(tiny_model(), SFTConfig(num_steps=5, schedule="linear"))


def test_a_non_finite_gradient_stops_before_the_weights_change():
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    before = weights(model)
    with pytest.raises(CollapseError, match="sft step 0: loss is nan"):
        sft_fitter(model, SFTConfig()).step(reversals(4))
    pairs = list(zip(before, weights(model), strict=True))
    assert len(pairs) > 10 and all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs)


def test_rows_that_cannot_be_learned_are_refused():
    tokenizer = char_tokenizer("chatml")
    for empty in ("", " \n"):
        with pytest.raises(DataError, match="the answer to learn is empty"):
            SFTRow.of_pair("hi", empty, tokenizer)
    row = {"prompt": "hi", "completion": "yo"}
    length = len(SFTRow.of_pair("hi", "yo", tokenizer).prompt_ids) + 3
    assert len(read_sft_rows([row], tokenizer, length)) == 1
    with pytest.raises(DataError, match=rf"rows, line 2: {length + 1} tokens .* the model has {length} positions"):
        read_sft_rows([row, {"prompt": "hi", "completion": "you"}], tokenizer, length)
    tokenizer.backend.chat_template = None  # an empty prompt is then no tokens at all
    with pytest.raises(DataError, match="rows, line 1: the prompt has no tokens"):
        read_sft_rows([{"prompt": "", "completion": "yo"}], tokenizer)


def test_adapters_for_unknown_layers_of_rank_0_and_after_merging_are_refused():
    with pytest.raises(ConfigError, match=r"lora\.targets: 'qkv' is none .* choose among down_proj, gate_proj"):
        sft_fitter(tiny_model(), SFTConfig(lora=LoraConfig(rank=1, targets=("q_proj", "qkv"))))
    gpt2 = new_model(new_config("gpt2", vocab_size=24, n_embd=8, n_layer=1, n_head=1, n_positions=16), 0)
    with pytest.raises(ConfigError, match="lora: GPT2LMHeadModel has no linear layers to adapt"):
        sft_fitter(gpt2, SFTConfig(lora=LoraConfig(rank=1)))  # its layers are of a class of their own
    with pytest.raises(ConfigError, match=r"lora\.rank: must be at least 1; got 0"):
        SFTConfig.parse({"lora": {"rank": 0}})
    trainer = sft_fitter(tiny_model(), SFTConfig(lora=LoraConfig(rank=1)))
    trainer.merge()
    with pytest.raises(ConfigError, match="make another Fitter"):
        trainer.step(reversals(2))


def test_without_peft_the_extra_is_named():
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from llamarl.core.errors import MissingDependencyError\n"
        "from llamarl.models.lora_config import LoraConfig\n"
        "from llamarl.models.lora import Adapters\n"
        "try: Adapters(None, LoraConfig(rank=1), 0)\n"
        "except MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "peft is not installed; run: pip install 'llamarl[lora]'\n", done.stderr
