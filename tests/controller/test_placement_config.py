"""The record of who runs where, as a recipe holds it and as `llamarl plan` writes it."""

from pathlib import Path

import pytest

from llamarl.cli.main import main
from llamarl.controller.recipe import Recipe
from llamarl.core.errors import ConfigError
from llamarl.models.tiny import build_tiny

RECIPE = 'model = "m"\ndata = {source = "x.jsonl"}\njudges = [{function = "format"}]\n'


def recipe(tmp_path: Path, text: str = "", arguments: str = "") -> Recipe:
    (tmp_path / "recipe.toml").write_text(RECIPE + text)
    return Recipe.load(tmp_path / "recipe.toml", arguments.split())


def test_ranks_are_fsdp_times_tp(tmp_path: Path) -> None:
    assert recipe(tmp_path).placement.trainer.num_ranks == 1
    both = recipe(tmp_path, arguments="--engine monarch --placement.trainer.fsdp 2 --placement.trainer.tp 3")
    assert both.placement.trainer.num_ranks == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--placement.trainer.fsdp 2", "fsdp=2 x tp=1 is 2 processes, and engine='inprocess' has only this one"),
        ("--placement.trainer.tp 0", "--placement.trainer.tp: must be at least 1; got 0"),
        ("--placement.trainer.ranks 3", "placement.trainer: ranks=3, but fsdp=1 x tp=1 is 1"),
        ("--placement.trainer.ep 2", "--placement.trainer.ep: unknown key"),
        ("--placement.weight_deltas true", "placement: weight_deltas: generators read the trainer's memory in place"),
        (
            "--placement.trainer.precision bf16 --trainer.precision fp32",
            "trainer.precision='fp32', but placement says 'bf16'",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path: Path, arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, arguments=arguments)
    assert message in str(caught.value)


def test_devices_precision_and_slots_hold_for_the_executors(tmp_path: Path) -> None:
    text = '[placement.trainer]\nprecision = "bf16"\n[[placement.generators]]\nreplicas = 2\nslots = 8\n'
    placed = recipe(tmp_path, text)
    assert (placed.trainer.precision, placed.num_generators, placed.generator.slots) == ("bf16", 2, 8)
    assert placed.generator.precision == "fp32"
    assert Recipe.parse(placed.record()) == placed


def test_weights_travel_in_bf16_to_generators_that_round_them_anyway(tmp_path: Path) -> None:
    assert recipe(tmp_path, arguments="--generator.precision bf16").publishes_bf16
    assert not recipe(tmp_path, arguments="--generator.precision int8").publishes_bf16
    assert not recipe(tmp_path, arguments="--generator.precision bf16 --trainer.lora.rank 4").publishes_bf16


def test_what_a_plan_writes_is_understood(tmp_path: Path) -> None:
    out, model = tmp_path / "placement.toml", build_tiny("llama", tmp_path / "tiny")
    assert main(["plan", "--model", str(model), "--gpus", "2", "--gpu", "cpu", "--out", str(out)]) == 0
    placed = recipe(tmp_path, out.read_text(), "--engine monarch")
    assert placed.placement.trainer.device == placed.trainer.device == "cpu"
    assert placed.generator.slots == placed.placement.generators[0].slots


def test_what_is_not_understood_of_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"placement\.generators\.0\.precision: 'fp8' is unknown"):
        recipe(tmp_path, '[[placement.generators]]\nkind = "vllm"\ntp = 4\nprecision = "fp8"\n')


def test_vllm_servers_are_generators(tmp_path: Path) -> None:
    text = '[[placement.generators]]\nkind = "vllm"\nurl = ["http://127.0.0.1:1", "http://127.0.0.1:2"]\nreplicas = 2\n'
    placed = recipe(tmp_path, text)
    assert placed.num_generators == 2 and placed.placement.generators[0].server.url == (
        "http://127.0.0.1:1",
        "http://127.0.0.1:2",
    )
    assert Recipe.parse(placed.record()) == placed


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('kind = "vllm"', "environment: give the folder of the virtual environment that holds the server"),
        ('kind = "vllm"\nenvironment = "v"\nprecision = "int8"', "int8 is the native generator's"),
        ('kind = "vllm"\nurl = "http://127.0.0.1:1"\nreplicas = 2', "1 addresses for replicas=2"),
        (
            'kind = "vllm"\nenvironment = "v"\n[generator]\non_update = "keep"',
            "generator.on_update='keep' is the native",
        ),
        ("tp = 2", "tp=2: a native generator is one rank"),
        ('environment = "v"', "environment: is of kind='vllm' and 'sglang'"),
        ('kind = "tgi"', "'tgi' is unknown"),
    ],
)
def test_what_a_kind_of_generator_has_not_is_refused(tmp_path: Path, table: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        recipe(tmp_path, f"[[placement.generators]]\n{table}\n")
    assert message in str(caught.value)
