import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
from gguf_writer import SCALED, build_checkpoint, write_gguf

from llamarl.cli.main import main
from llamarl.core.errors import CheckpointError
from llamarl.models.checkpoint import load_classifier, load_config, load_model, load_tokenizer, save_model
from llamarl.models.export import check_target

CHAT = [{"role": "user", "content": "say the word 12345 é"}]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp("gguf") / "model")


@pytest.fixture(scope="module")
def file(checkpoint):
    return write_gguf(checkpoint, checkpoint.parent / "model.gguf")


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits


def test_model_tokenizer_and_template_are_those_of_the_checkpoint(checkpoint, file):
    ids = load_tokenizer(checkpoint).encode_chat(CHAT)
    tokenizer = load_tokenizer(file)
    assert tokenizer.encode_chat(CHAT) == ids
    assert "<|endoftext|>" not in tokenizer.backend.get_vocab()  # the library would add it
    assert tokenizer.eos_ids == load_tokenizer(checkpoint).eos_ids
    assert torch.equal(logits(load_model(file), ids), logits(load_model(checkpoint), ids))
    assert load_config(file).max_position_embeddings == 256


def test_what_is_made_of_it_is_an_ordinary_checkpoint(checkpoint, file, tmp_path):
    from transformers import AutoModelForCausalLM

    model = load_model(file)
    saved = save_model(model, load_tokenizer(file), tmp_path / "out")
    assert "quantization_config" not in json.loads((saved / "config.json").read_text())
    plain, ids = AutoModelForCausalLM.from_pretrained(saved), load_tokenizer(saved).encode_chat(CHAT)
    assert torch.equal(logits(plain, ids), logits(load_model(checkpoint), ids))


def test_packed_weights_are_unpacked(checkpoint, tmp_path):
    file = write_gguf(checkpoint, tmp_path / "q8.gguf", quantize=True)
    ids = load_tokenizer(checkpoint).encode_chat(CHAT)
    model = load_model(file, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    difference = logits(load_model(file), ids) - logits(load_model(checkpoint), ids)
    assert 0 < difference.abs().max() < 0.01
    save_model(model, load_tokenizer(file), tmp_path / "out")


def test_scaled_frequencies_are_read_from_their_tensor(tmp_path):
    checkpoint = build_checkpoint(tmp_path / "scaled", rope_parameters=SCALED, max_position_embeddings=131072)
    file = write_gguf(checkpoint, tmp_path / "scaled.gguf")
    found = load_config(file).rope_parameters
    assert found.pop("rope_type") == "llama3"
    assert found == pytest.approx({name: value for name, value in SCALED.items() if name != "rope_type"})
    ids = load_tokenizer(checkpoint).encode_chat(CHAT)
    assert torch.equal(logits(load_model(file), ids), logits(load_model(checkpoint), ids))


def test_a_body_gives_a_reward_model(file):
    model = load_classifier(file, new_labels=1)
    assert not model.score.weight.any() and model.config.num_labels == 1
    with pytest.raises(CheckpointError, match="a language model without a trained head"):
        load_classifier(file)


def test_commands_take_it(file, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "say", "completion": "word"}\n')
    assert main(["generate", str(file), "say", "--max-tokens", "2"]) == 0
    words = ["--num-steps", "1", "--warmup-steps", "0", "--batch-size", "1"]
    assert main(["sft", str(file), str(tmp_path / "rows.jsonl"), str(tmp_path / "out"), *words]) == 0
    assert main(["generate", str(tmp_path / "out"), "say", "--max-tokens", "2"]) == 0


# rejects


def test_rejects_a_scaling_that_would_be_forgotten(checkpoint, tmp_path):
    file = write_gguf(checkpoint, tmp_path / "yarn.gguf", llama__rope__scaling__type="yarn")
    with pytest.raises(CheckpointError, match=r"scales its rotary embedding \(yarn\)"):
        load_model(file)


def test_rejects_a_file_that_lacks_a_tensor(checkpoint, tmp_path):
    file = write_gguf(checkpoint, tmp_path / "part.gguf", skip="layers.1.mlp.up_proj")
    with pytest.raises(CheckpointError, match=r"1 missing keys, first model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(file)


@pytest.mark.parametrize("load", [load_model, load_config, load_tokenizer, load_classifier])
@pytest.mark.parametrize("keep", [0, 3, 30, 3000])
def test_rejects_a_torn_file(load, keep, file, tmp_path):
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"torn\.gguf: can't load its config"):
        load(torn)


def test_rejects_the_file_as_target_and_names_it_in_its_directory(file, tmp_path):
    for target in (file, file / "below", file.parent):
        with pytest.raises(CheckpointError, match="the model that the result is made from"):
            check_target(target, file)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "own.gguf").write_bytes(b"GGUF")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"to load a GGUF file, name it: own\.gguf"):
        load_model(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="is a file that is no GGUF file"):
        load_model(tmp_path / "weights.bin")


@pytest.mark.parametrize("package", ["gguf", "accelerate"])
def test_without_the_packages_the_extra_is_named(package, file):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from llamarl.core.errors import MissingDependencyError\n"
        "from llamarl.models.checkpoint import load_config\n"
        f"try: load_config({str(file)!r})\n"
        "except MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout == f"{package} is not installed; run: pip install 'llamarl[gguf]'\n", done.stderr
