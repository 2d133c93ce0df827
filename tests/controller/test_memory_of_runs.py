"""What a run must hold in any case, and the refusal of one that can't."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from llamarl.cli.main import main
from llamarl.controller.memory import describe_memory, least_memory, plan_memory, refuse_misfit
from llamarl.controller.prepare import prepare
from llamarl.controller.recipe import Recipe
from llamarl.core.errors import ConfigError
from llamarl.models.checkpoint import count_parameters, load_config
from llamarl.recipes import recipe_path
from llamarl.tasks.demo import DEMO_CHECKPOINT

DEMO = recipe_path("demo")


def held(devices: dict[str, str], *overrides: str, needs_reference: bool = False) -> dict[str, dict[str, int]]:
    recipe = Recipe.load(DEMO, overrides)
    return least_memory(recipe, load_config(DEMO_CHECKPOINT), devices, needs_reference)


def test_weights_gradients_moments_and_each_generators_copy() -> None:
    count = count_parameters(load_config(DEMO_CHECKPOINT))
    together = held({"trainer": "cpu", "generators": "cpu"}, "--num-generators", "2", needs_reference=True)
    assert together == {
        "cpu": {
            "trainer weights": 4 * count,
            "trainer gradients": 4 * count,
            "trainer moments": 8 * count,
            "reference weights": 4 * count,
            "generator weights": 8 * count,
        }
    }


def test_devices_are_counted_apart() -> None:
    apart = held({"trainer": "cuda", "generators": "cuda:1"})
    assert apart.keys() == {"cuda:0", "cuda:1"} and apart["cuda:1"].keys() == {"generator weights"}
    assert held({"trainer": "cuda", "generators": "cuda:0"}).keys() == {"cuda:0"}


def test_offloaded_moments_are_the_machine_s_and_gradients_summed_once_are_everyone_s() -> None:
    count = count_parameters(load_config(DEMO_CHECKPOINT))
    where = {"trainer": "cuda", "generators": "cuda"}
    parts = held(where, "--trainer.offload", "optimizer")
    assert parts["cpu"] == {"trainer moments": 8 * count, "trainer copied weights": 4 * count}
    assert parts["cuda:0"].keys() == {"trainer weights", "trainer gradients", "generator weights"}
    two = ("--engine", "monarch", "--placement.trainer.fsdp", "2", "--placement.trainer.gradient-sync")
    sizes = [held(where, *two, how)["cuda:0"]["trainer gradients"] for how in ("each", "last")]
    assert sizes[1] == 2 * sizes[0]


def test_what_is_just_enough_is_let_through() -> None:
    parts = {"cpu": {"trainer weights": 60, "generator weights": 40}}
    refuse_misfit(parts, {"cpu": 100})
    with pytest.raises(ConfigError, match=r"can't fit cpu.*trainer weights.*before any activation or cache; take a"):
        refuse_misfit(parts, {"cpu": 99})


def test_sizes_are_in_the_unit_of_the_planner() -> None:
    assert describe_memory({"weights": 2**30, "cache": 3 * 2**29}, 2**32) == {
        "cache": "1.50 GiB",
        "weights": "1.00 GiB",
        "together": "2.50 GiB of 4.0 GiB: fits",
    }
    with pytest.raises(ConfigError, match=r"cpu, which has 1\.0 GiB: weights 2\.0 GiB, together 2\.0 GiB"):
        refuse_misfit({"cpu": {"weights": 2**31}}, {"cpu": 2**30})


def test_a_run_that_cannot_fit_is_refused_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(DEMO_CHECKPOINT, model)
    (model / "model.safetensors").unlink()  # nothing of it would be read
    config: dict[str, Any] = json.loads((model / "config.json").read_text())
    sizes = {"hidden_size": 65536, "intermediate_size": 262144, "num_hidden_layers": 10, "num_attention_heads": 512}
    config |= {**sizes, "num_key_value_heads": 512, "head_dim": 128}
    (model / "config.json").write_text(json.dumps(config))
    run = tmp_path / "run"
    for words in (["--dry-run"], ["--run-dir", str(run), "--quiet"]):
        assert main(["train", str(DEMO), "--model", str(model), *words]) == 2
        assert "the run can't fit cpu" in capsys.readouterr().err
    assert not run.exists()


def test_a_dry_run_shows_the_planners_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(DEMO), "--dry-run", "--threads", "1", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    estimate = plan["estimate"]
    assert estimate["step_seconds"] >= max(estimate["train_seconds"], estimate["generate_seconds"]) > 0
    assert estimate["run_seconds"] == pytest.approx(300 * estimate["step_seconds"])
    lengths = prepare(Recipe.load(DEMO)).measure_prompts()
    assert f"{sum(lengths) / len(lengths):.0f} a prompt" in estimate["assumed"]
    assert "no calibration" in estimate["assumed"] and plan["memory"]["together"].endswith("fits")


@pytest.mark.parametrize(("precision", "number", "block"), [("fp32", 4, 16), ("bf16", 2, 32)])
def test_the_planned_cache_holds_the_prompt_of_a_group_once(precision: str, number: int, block: int) -> None:
    config = load_config(DEMO_CHECKPOINT)
    settings = ("--generator.slots", "16", "--sampling.max-tokens", "40", "--generator.precision", precision)
    recipe = Recipe.load(DEMO, [*settings, "--schedule.samples-per-prompt", "8"])
    per_token = 2 * number * config.num_hidden_layers * config.hidden_size  # as many key/value heads as query heads
    parts = plan_memory(recipe, config, longest_prompt=33, needs_reference=False)
    prompts = 3 * -(-33 // block)  # two whole groups, or one and two parts
    assert parts["generator cache"] == (prompts + 16 * -(-40 // block)) * block * per_token
