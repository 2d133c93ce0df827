import json
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.models.checkpoint import (
    load_config,
    load_model,
    load_tokenizer,
    new_model,
    save_model,
)
from llamarl.models.export import EXPORT_FILE, check_target
from llamarl.models.tiny import FAMILIES, build_tiny, char_tokenizer, tiny_config

CHAT = ({"role": "user", "content": "Hi"},)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_reloads_bit_equal_and_generates(family, tmp_path):
    first = build_tiny(family, tmp_path / "first", seed=3)
    model, tokenizer = load_model(first), load_tokenizer(first)
    second = load_model(save_model(model, tokenizer, tmp_path / "second"))
    assert_bit_equal(model, second)
    assert (first / "model.safetensors").read_bytes() == (tmp_path / "second/model.safetensors").read_bytes()
    assert load_tokenizer(tmp_path / "second").fingerprint == tokenizer.fingerprint
    ids = torch.tensor([tokenizer.encode_chat(CHAT)])
    generated = second.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
    assert ids.shape[1] < generated.shape[1] <= ids.shape[1] + 4
    logits = model(input_ids=ids).logits[0, -1]
    assert int(generated[0, ids.shape[1]]) == int(logits.argmax())


def assert_bit_equal(one, two):
    left, right = one.state_dict(), two.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def test_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    tokenizer = char_tokenizer()
    config = tiny_config("llama", tokenizer)
    before = torch.random.get_rng_state()
    one, same, other = (new_model(config, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert_bit_equal(one, same)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_tied_weights_are_stored_once_and_stay_tied(tiny, tmp_path):
    from safetensors import safe_open

    with safe_open(tiny / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 (safe_open is no mapping)
    model = load_model(tiny)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_untied_weights_stay_apart(tmp_path):
    model = load_model(build_tiny("llama", tmp_path / "untied", tie_word_embeddings=False))
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_trained_weights_are_saved_not_the_loaded_ones(tiny, tmp_path):
    model = load_model(tiny)
    with torch.no_grad():
        model.model.norm.weight.add_(0.5)
    saved = load_model(save_model(model, load_tokenizer(tiny), tmp_path / "new"))
    assert torch.equal(saved.model.norm.weight, model.model.norm.weight)
    assert not torch.equal(saved.model.norm.weight, load_model(tiny).model.norm.weight)


def test_loads_in_evaluation_mode_and_in_the_format_asked_for(tiny):
    model = load_model(tiny, dtype="bfloat16")
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_model(tiny).parameters()} == {torch.float32}


def test_bfloat16_reloads_bit_equal(tiny, tmp_path):
    model = load_model(tiny, dtype="bfloat16")
    save_model(model, load_tokenizer(tiny), tmp_path / "half")
    assert_bit_equal(model, load_model(tmp_path / "half", dtype="bfloat16"))


def test_end_ids_come_from_the_generation_config_or_else_the_model_config(copy):
    own = load_tokenizer(copy).backend.eos_token_id
    edit(copy / "generation_config.json", eos_token_id=[own, 7])
    assert load_tokenizer(copy).eos_ids == (own, 7)
    (copy / "generation_config.json").unlink()
    edit(copy / "config.json", eos_token_id=9)
    assert load_tokenizer(copy).eos_ids == (own, 9)


def test_several_end_ids_and_sampling_defaults_survive_an_export(copy, tmp_path):
    edit(copy / "generation_config.json", eos_token_id=[3, 7], temperature=0.6)  # released so, without do_sample
    save_model(load_model(copy), load_tokenizer(copy), tmp_path / "out")
    values = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (values["eos_token_id"], values["temperature"]) == ([3, 7], 0.6)
    assert load_tokenizer(tmp_path / "out").eos_ids == (3, 7)


def edit(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_an_export_may_be_replaced_and_leaves_nothing_else_behind(tiny, tmp_path):
    model, tokenizer = load_model(tiny), load_tokenizer(tiny)
    save_model(model, tokenizer, tmp_path / "out")
    with torch.no_grad():
        model.model.norm.weight.zero_()
    save_model(model, tokenizer, tmp_path / "out")
    assert not load_model(tmp_path / "out").model.norm.weight.any()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_failed_save_leaves_the_old_checkpoint_and_no_draft(tiny, tmp_path):
    save_model(load_model(tiny), load_tokenizer(tiny), tmp_path / "out")
    before = (tmp_path / "out/model.safetensors").read_bytes()
    model = load_model(tiny)
    model.model.norm.weight = torch.nn.Parameter(torch.empty(32, device="meta"))
    with pytest.raises((RuntimeError, NotImplementedError, KeyError)):
        save_model(model, load_tokenizer(tiny), tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_transformers_is_not_imported_with_the_package():
    import subprocess
    import sys

    modules = "llamarl.models.checkpoint, llamarl.models.template_check, llamarl.models.tiny, llamarl.tasks.format"
    code = f"import sys, {modules}; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


# rejects


def test_rejects_a_directory_with_foreign_files(tiny, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        save_model(load_model(tiny), load_tokenizer(tiny), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_rejects_an_export_to_which_somebody_added_a_file(copy, tiny):
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"notes\.txt"):
        save_model(load_model(tiny), load_tokenizer(tiny), copy)


def test_rejects_somebody_elses_checkpoint_as_target(copy, tiny):
    (copy / EXPORT_FILE).unlink()
    with pytest.raises(CheckpointError, match="not an earlier export"):
        save_model(load_model(tiny), load_tokenizer(tiny), copy)


def test_rejects_a_file_as_target(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        save_model(load_model(tiny), load_tokenizer(tiny), tmp_path / "file")


def test_rejects_the_model_itself_and_what_lies_around_it_as_target(copy, tmp_path):
    assert (copy / EXPORT_FILE).exists()  # it would pass as an earlier export
    (tmp_path / "link").symlink_to(copy)
    for target in (copy, tmp_path / "link", copy / "inside", copy.parent):
        with pytest.raises(CheckpointError, match=r"the result is made from .*; choose another directory"):
            check_target(target, copy)
    check_target(copy, "owner/name")
    check_target(copy.with_name(copy.name + "-2"), copy)


def test_rejects_a_target_below_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="file is a file; give a directory"):
        check_target(tmp_path / "file/out")


def test_rejects_a_tokenizer_of_another_model(tiny, tmp_path, copy):
    small = new_model(tiny_config("llama", char_tokenizer("plain", "abc")), 0)
    with pytest.raises(CheckpointError, match="not of the same model"):
        save_model(small, load_tokenizer(tiny), tmp_path / "out")
    edit(copy / "config.json", vocab_size=5)
    with pytest.raises(CheckpointError, match="not of the same model"):
        load_tokenizer(copy)


def test_rejects_a_model_that_is_no_transformers_model(tmp_path):
    with pytest.raises(ConfigError, match="Linear is not a transformers model"):
        save_model(torch.nn.Linear(1, 1), char_tokenizer(), tmp_path / "out")


@pytest.mark.parametrize("load", [load_model, load_config, load_tokenizer])
def test_rejects_a_missing_directory(load, tmp_path):
    with pytest.raises(CheckpointError, match="no such directory"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("load", [load_model, load_config, load_tokenizer])
@pytest.mark.parametrize("name", ["../nowhere", "one", "a/b/c", "~/no-such-place", "no spaces in/hub ids"])
def test_rejects_what_is_neither_a_directory_nor_a_hub_id(load, name):
    with pytest.raises(CheckpointError, match="no such directory"):
        load(name)


def test_rejects_end_ids_that_are_no_ids(copy):
    edit(copy / "generation_config.json", eos_token_id=["<eos>"])
    with pytest.raises(CheckpointError, match="eos_token_id holds '<eos>'"):
        load_tokenizer(copy)


@pytest.mark.parametrize("load", [load_model, load_config, load_tokenizer])
def test_rejects_an_empty_directory(load, tmp_path):
    with pytest.raises(CheckpointError, match=r"no (config|tokenizer)\.json"):
        load(tmp_path)


@pytest.mark.parametrize("load", [load_model, load_config, load_tokenizer])
@pytest.mark.parametrize("content", ["", "{", "[1]", "\x00\xff"])
def test_rejects_a_broken_config(load, content, copy):
    (copy / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load(copy)


@pytest.mark.parametrize("load", [load_model, load_config])
def test_rejects_an_unknown_model_type(load, copy):
    edit(copy / "config.json", model_type="nonesuch")
    with pytest.raises(CheckpointError, match="nonesuch"):
        load(copy)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_rejects_a_broken_tokenizer(content, copy):
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(copy)


@pytest.mark.parametrize("keep", [0, 4, 100, 9000])
def test_rejects_torn_weights(keep, copy):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="torn"):
        load_model(copy)
    (copy / EXPORT_FILE).unlink()  # a checkpoint of other origin has no list of sizes
    with pytest.raises(CheckpointError, match="weights"):
        load_model(copy)


def test_rejects_weights_that_lack_a_tensor_rather_than_making_one_up(copy):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "model.safetensors")
    removed = weights.pop("model.norm.weight")
    (copy / EXPORT_FILE).unlink()
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing keys, first model\.norm\.weight"):
        load_model(copy)
    save_file(
        {**weights, "model.norm.weight": removed, "value_head.weight": removed.clone()}, copy / "model.safetensors"
    )
    with pytest.raises(CheckpointError, match=r"1 unexpected keys, first value_head\.weight"):
        load_model(copy)
    save_file({**weights, "model.norm.weight": removed[:5].clone()}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_model(copy)


class Bomb:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_rejects_pickled_weights_without_reading_them(name, copy, tmp_path):
    (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    with pytest.raises(CheckpointError, match=f"{name} is a pickle"):
        load_model(copy)
    assert not (tmp_path / "trace").exists()


def test_ignores_a_pickle_beside_safetensors(copy, tmp_path):
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    load_model(copy)
    assert not (tmp_path / "trace").exists()


def test_never_runs_code_of_a_checkpoint(copy, tmp_path):
    trace = tmp_path / "trace"
    (copy / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    edit(
        copy / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
    )
    for load in (load_config, load_model):
        with pytest.raises(CheckpointError):
            load(copy)
    assert not trace.exists()


def test_rejects_missing_weights(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="weights are missing"):
        load_model(copy)


def test_rejects_an_unknown_number_format(tiny):
    with pytest.raises(ConfigError, match="'fp8'"):
        load_model(tiny, dtype="fp8")


def test_rejects_an_unknown_family(tmp_path):
    with pytest.raises(ConfigError, match="'lama'"):
        build_tiny("lama", tmp_path / "x")


def test_threads_may_load_at_the_same_time(tiny):
    with ThreadPoolExecutor(4) as pool:
        models = [future.result() for future in [pool.submit(load_model, tiny) for _ in range(8)]]
    for model in models[1:]:
        assert_bit_equal(models[0], model)
