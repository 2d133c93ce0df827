"""Whatever a checkpoint's JSON files hold ends in the package's own errors, or loads."""

import json
import random
import shutil

import pytest

from llamarl.core.errors import CheckpointError, LlamaRLError
from llamarl.models.checkpoint import load_classifier, load_config, load_model, load_tokenizer
from llamarl.models.decoder import why_unsupported
from llamarl.models.export import EXPORT_FILE
from llamarl.models.template_check import check_template
from llamarl.models.tiny import build_tiny

VALUES = [None, "x", "", -1, 0, 3, 2.5, 10**9, 10**30, True, [], [1], {}, {"a": 1}, [[1] * 3], 1e308]
EXTRA = {
    "config.json": ("rope_scaling", "layer_types", "sliding_window", "auto_map", "num_labels", "id2label"),
    "tokenizer_config.json": ("chat_template", "model_max_length", "added_tokens_decoder", "auto_map", "add_bos_token"),
    "generation_config.json": ("temperature", "max_length"),
    "tokenizer.json": (),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny("llama", tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture
def copy(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "copy")


def edit(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.filterwarnings("ignore")  # transformers warns of some values
@pytest.mark.parametrize("name", EXTRA)
def test_no_value_of_a_field_ends_in_a_raw_error(name, copy):
    file = copy / name
    fields = json.loads(file.read_text())
    pairs = [(field, value) for field in (*fields, *EXTRA[name]) for value in VALUES]
    outcomes = set()
    for field, value in random.Random(0).sample(pairs, min(120, len(pairs))):
        file.write_text(json.dumps({**fields, field: value}))
        try:
            config, tokenizer = load_config(copy), load_tokenizer(copy)
            why_unsupported(load_model(copy).config)
            check_template(tokenizer, config)
            outcomes.add("loads")
        except LlamaRLError:
            outcomes.add("refused")
        except Exception as error:
            pytest.fail(f"{name}: {field}={value!r}: {error!r}")
    assert outcomes == {"loads", "refused"}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000 is not between 0 and 100000"),
        ({"text_config": {"num_labels": 10**12}}, "num_labels=1000000000000 is not between"),
        ({"hidden_size": 10**9}, r"describes [\d,]{13,} numbers; the files have"),
        ({"sliding_window": "wide"}, "sliding_window='wide' is no positive integer|sliding_window"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quantized \(awq\).*take the original model"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantized \(gptq\)"),
        ({"quantization_config": {"load_in_4bit": True}}, r"quantized \(of unknown method\)"),
        ({"quantization_config": [1]}, r"quantized \(of unknown method\)"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, r"quantized \(fp8\)"),
    ],
)
@pytest.mark.parametrize("load", [load_model, lambda path: load_classifier(path, new_labels=1)])
def test_what_cannot_be_loaded_is_named_before_memory_is_taken(load, fields, problem, copy):
    edit(copy / "config.json", **fields)
    with pytest.raises(CheckpointError, match=problem):
        load(copy)


def test_json_nested_too_deeply_is_refused(copy):
    (copy / EXPORT_FILE).unlink()
    (copy / "config.json").write_text('{"a":' * 100_000 + "1" + "}" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json: not readable as JSON"):
        load_model(copy)
