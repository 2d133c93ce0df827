import json

import pytest
import torch
from released_templates import released_tokenizer

from llamarl.cli.main import main
from llamarl.models.checkpoint import load_model, load_tokenizer, new_model, save_model
from llamarl.models.tiny import build_tiny, tiny_config


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(tmp_path):
    return build_tiny("llama", tmp_path / "model")


def run(model, rows, out, *words):
    data = model.parent / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return main(["sft", str(model), str(data), str(out), *(str(word) for word in words)])


def rows(count=8):
    return [{"prompt": f"say {n}", "completion": "#" * (n % 5 + 1)} for n in range(count)]


def test_an_earlier_result_is_replaced_and_its_numbers_are_printed(model, tmp_path, capsys):
    for _ in range(2):
        assert run(model, rows(), tmp_path / "out", "--num-steps", 2, "--held-out", 3, "--json") == 0
        result = json.loads(capsys.readouterr().out)
    assert (result["rows"]["train"], result["steps"]) == (5, 2) and result["held_out"]["loss"] > 0
    assert result["held_out_before"]["tokens"] == result["held_out"]["tokens"]


def test_adapters_from_the_command_line_give_a_checkpoint_without_them(model, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = ("--num-steps", 2, "--warmup-steps", 0, "--lora.rank", 4, "--lora.targets", "q_proj, v_proj")
    assert run(model, rows(), tmp_path / "out", *words) == 0
    # per layer q: 4 x 32 + 32 x 4 and v: 4 x 32 + 16 x 4, in two layers
    assert "with 896 adapter parameters" in capsys.readouterr().out
    tuned, base = (AutoModelForCausalLM.from_pretrained(path) for path in (tmp_path / "out", model))
    weights = base.state_dict()
    differ = {name.split(".")[-2] for name, tensor in tuned.state_dict().items() if not tensor.equal(weights[name])}
    assert differ == {"q_proj", "v_proj"}
    name = "model.layers.1.self_attn.q_proj.weight"
    assert torch.linalg.matrix_rank(tuned.state_dict()[name] - weights[name], atol=1e-6) <= 4
    load_model(tmp_path / "out")  # would refuse missing and left-over weights
    assert tuned.lm_head.weight is tuned.model.embed_tokens.weight
    before, after = (AutoTokenizer.from_pretrained(path) for path in (model, tmp_path / "out"))
    assert after.chat_template == before.chat_template and after.get_vocab() == before.get_vocab()
    files = [{file.name for file in path.iterdir()} for path in (model, tmp_path / "out")]
    records = {"metrics.jsonl", "summary.json", "recipe.json", "environment.json"}
    assert files[1] == files[0] | records and not (tmp_path / "out.partial").exists()


def test_arguments_of_the_template_in_both_spellings_and_epochs(tmp_path, capsys):
    tokenizer = released_tokenizer("qwen3")
    model = save_model(new_model(tiny_config("llama", tokenizer), 0), tokenizer, tmp_path / "model")
    for number, words in enumerate(
        (["--chat-template-args", '{"enable_thinking": false}'], ["--chat-template-args.enable-thinking", "false"])
    ):
        out = tmp_path / f"out{number}"
        assert run(model, rows(), out, *words, "--num-epochs", 2, "--batch-size", 3, "--json") == 0
        assert json.loads(capsys.readouterr().out)["steps"] == 6  # of 8 rows twice
        assert load_tokenizer(out).render([{"role": "user", "content": "a"}]).endswith("</think>\n\n")
        assert main(["generate", str(out), "a", "--max-tokens", "1"]) == 0
        capsys.readouterr()
    assert run(model, rows(), tmp_path / "out", "--chat-template-args", '{"thinking": 1}') == 2
    assert "chat_template_args.thinking: the model's chat template has no such variable" in capsys.readouterr().err


def test_what_the_rows_need_and_the_template_cannot_do_is_said(model, tmp_path, capsys):
    row = {"prompt": "say", "completion": "#", "tools": [{"type": "function"}]}
    assert run(model, [row], tmp_path / "out", "--num-steps", 1, "--warmup-steps", 0) == 0
    assert "note: chat template: tools_ignored: the chat template doesn't show tools" in capsys.readouterr().err
    assert run(model, rows(), tmp_path / "out", "--num-steps", 1, "--warmup-steps", 0) == 0
    assert "note:" not in capsys.readouterr().err


# rejects


def test_a_template_that_would_spoil_the_training_is_refused(model, tmp_path, capsys):
    (model / "chat_template.jinja").write_text("{{ bos_token }}" + (model / "chat_template.jinja").read_text())
    assert run(model, rows(), tmp_path / "out") == 2
    assert "starts with two '<|begin_of_text|>'" in capsys.readouterr().err
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    assert main(["reward", "train", str(data), "--model", str(model), "--out", str(tmp_path / "reward")]) == 2
    assert "starts with two '<|begin_of_text|>'" in capsys.readouterr().err


def test_the_model_itself_is_never_the_target(model, capsys):
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    assert run(model, rows(), model, "--num-steps", 1) == 1
    assert "choose another directory" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before


def test_a_target_that_will_not_do_is_refused_before_anything_is_read(model, tmp_path, capsys):
    (tmp_path / "busy").mkdir()
    (tmp_path / "busy/notes.txt").write_text("mine")
    assert run(model, [{"no": "row"}], tmp_path / "busy") == 1
    assert "not empty and not an earlier export (holds notes.txt)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "hi", "completion": "word " * 60}, "tokens .*, but the model has 256 positions; shorten or drop"),
        ({"prompt": "hi", "completion": ""}, "the answer to learn is empty: ''; give it a text or drop the row"),
    ],
)
def test_a_row_that_cannot_be_learned_is_named(model, row, problem, tmp_path, capsys):
    import re

    assert run(model, [*rows(2), row], tmp_path / "out") == 2
    assert re.search(rf"rows\.jsonl, line 3: .*{problem}", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_settings_of_adapters_are_checked(model, tmp_path, capsys):
    assert run(model, rows(), tmp_path / "out", "--lora.rank", 0) == 2
    assert "lora.rank: must be at least 1; got 0" in capsys.readouterr().err
    assert run(model, rows(), tmp_path / "out", "--lora.rank", 4, "--lora.targets", "q_proj,lm_head") == 2
    err = capsys.readouterr().err
    assert "lora.targets: 'lm_head'" in err and "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in err
