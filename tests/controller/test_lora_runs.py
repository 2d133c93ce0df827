"""Whole runs that train adapters: their checkpoints, their resumption, their reference, what is exported of them."""

import json
from pathlib import Path

import pytest
import torch

from llamarl.cli.main import main
from llamarl.controller.checkpoints import CheckpointStore
from llamarl.controller.export import export_run, load_trained
from llamarl.controller.prepare import prepare
from llamarl.controller.recipe import Recipe
from llamarl.controller.run import resume, train
from llamarl.core.errors import CheckpointError, ConfigError
from llamarl.models.checkpoint import load_config, load_model, load_tokenizer, new_skeleton
from llamarl.models.decoder import named_tensors
from llamarl.models.lora import count_adapters
from llamarl.models.lora_config import LoraConfig
from llamarl.recipes import recipe_path
from llamarl.report.metrics import read_metrics
from llamarl.scoring.logprobs import build_scorer
from llamarl.tasks.demo import DEMO_CHECKPOINT
from llamarl.training.sft_rows import SFTRow

SMALL = [
    *("--schedule.prompts-per-step", "4", "--schedule.samples-per-prompt", "4", "--evaluation.num-prompts", "4"),
    *("--schedule.checkpoint-every", "2", "--sampling.max-tokens", "16", "--generator.slots", "16", "--threads", "1"),
    *("--schedule.max-staleness", "0", "--trainer.lora.rank", "4", "--trainer.learning-rate", "2e-3"),
]


def recipe(*overrides: str) -> Recipe:
    return Recipe.load(recipe_path("demo"), [*SMALL, *overrides])


def trainer_files(run_dir: Path) -> Path:
    return CheckpointStore(run_dir / "checkpoints").load_latest().path / "trainer"


def logprobs_of(model: torch.nn.Module) -> list[float]:
    with torch.no_grad():
        found: list[float] = build_scorer(model)([SFTRow((5, 9, 3), (4, 8, 15, 16))]).logprobs.tolist()
    return found


@pytest.fixture(autouse=True)
def one_thread() -> "object":
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_a_resumed_run_of_adapters_equals_one_without_interruption_bit_for_bit(tmp_path: Path) -> None:
    train(recipe("--schedule.steps", "4"), tmp_path / "whole")
    train(recipe("--schedule.steps", "2"), tmp_path / "halves")
    resume(tmp_path / "halves", ["--schedule.steps", "4"])
    for name in ("model.safetensors", "optimizer.safetensors", "trainer.json"):
        one, other = (trainer_files(tmp_path / run) / name for run in ("whole", "halves"))
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft reads it
def test_adapters_are_what_is_saved_published_and_exported(tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    run_dir = tmp_path / "run"
    summary, _ = train(recipe("--schedule.steps", "3", "--generator.precision", "bf16"), run_dir)
    assert summary.mismatch_max is not None and summary.memory_measured is not None
    numbers = count_adapters(new_skeleton(load_config(DEMO_CHECKPOINT)), LoraConfig(rank=4))
    size = (trainer_files(run_dir) / "model.safetensors").stat().st_size
    assert 4 * numbers < size < 4 * numbers + 20_000
    published = {record.get("weights/published_bytes") for record in read_metrics(run_dir / "metrics.jsonl")}
    assert published == {None, 4 * numbers}  # none in the records of evaluations
    assert summary.memory_measured["trainer gradients"] == 4 * numbers

    assert export_run(run_dir, tmp_path / "model") == 3
    assert export_run(run_dir, tmp_path / "adapter", adapter=True) == 3
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    base = load_model(DEMO_CHECKPOINT)
    assert logprobs_of(merged) == pytest.approx(logprobs_of(load_trained(run_dir).model), abs=0.0)
    assert logprobs_of(merged) != pytest.approx(logprobs_of(base), abs=1e-3)
    adapted = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(DEMO_CHECKPOINT), tmp_path / "adapter"
    )
    ids = torch.tensor([[5, 9, 3, 4, 8, 15, 16]])
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, atol=2e-4, rtol=1e-4)
    ours = load_model(tmp_path / "adapter")  # wherever a model is taken, so is the folder of an adapter
    assert logprobs_of(ours) == pytest.approx(logprobs_of(merged), abs=1e-6)
    assert load_tokenizer(tmp_path / "adapter").encode("moon") == load_tokenizer(DEMO_CHECKPOINT).encode("moon")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 32.0, 0.0)
    assert config["base_model_name_or_path"] == str(recipe().model) and config["task_type"] == "CAUSAL_LM"
    with pytest.raises(CheckpointError, match="not empty and not an earlier export"):
        export_run(run_dir, run_dir, adapter=True)


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_where_a_reference_is_needed_no_second_model_is_loaded(tmp_path: Path, algorithm: str) -> None:
    chosen = recipe("--schedule.steps", "2", "--algorithm", algorithm, "--algorithm.kl-coef", "0.1")
    prepared = prepare(chosen)
    assert prepared.needs_reference and not prepared.needs_reference_copy
    assert "reference" not in prepared.describe()["executors"] and prepared.plan_memory()["reference weights"] == 0
    train(chosen, tmp_path / "run")
    records = read_metrics(tmp_path / "run" / "metrics.jsonl")
    first, second = (record["train/kl_ref"] for record in records if "train/kl_ref" in record)
    assert first == pytest.approx(0.0, abs=1e-6) and second > 1e-10


def test_a_dry_run_plans_the_memory_of_adapters(capsys: pytest.CaptureFixture[str]) -> None:
    demo = str(recipe_path("demo"))
    assert main(["train", demo, "--trainer.lora.rank", "4", "--dry-run", "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["plan"]["notes"]
    assert any("adapters of 21,888 numbers are trained beside 341,856 frozen ones (6.4%)" in note for note in notes)
    whole, adapters = (prepare(Recipe.load(demo, lora)).plan_memory() for lora in ([], ["--trainer.lora.rank", "4"]))
    numbers = count_adapters(new_skeleton(load_config(DEMO_CHECKPOINT)), LoraConfig(rank=4))
    assert adapters["trainer weights"] == whole["trainer weights"] + 4 * numbers
    assert adapters["trainer moments"] == 8 * numbers == adapters["weight channel"] < whole["weight channel"] / 10


def test_wrong_adapters_are_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'qkv' is none of the linear layers .* choose among down_proj"):
        train(recipe("--trainer.lora.targets", "qkv"), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"trainer\.lora\.rank: must be at least 1; got 0"):
        recipe("--trainer.lora.rank", "0")
    assert not (tmp_path / "run").exists()


def test_a_run_without_adapters_has_none_to_export(tmp_path: Path) -> None:
    whole = recipe("--schedule.steps", "1")
    train(whole.model_copy(update={"trainer": whole.trainer.model_copy(update={"lora": None})}), tmp_path / "run")
    with pytest.raises(ConfigError, match="trains the whole model and has no adapters"):
        export_run(tmp_path / "run", tmp_path / "adapter", adapter=True)
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_changed_since_is_noticed_at_the_export(tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(DEMO_CHECKPOINT, base)
    train(recipe("--schedule.steps", "1", "--model", str(base)), tmp_path / "run")
    model = load_model(base)
    with torch.no_grad():
        next(tensor for _, tensor in named_tensors(model)).add_(1e-3)
    model.save_pretrained(base)  # type: ignore[operator]
    (base / "llamarl_export.json").unlink(missing_ok=True)
    with pytest.raises(
        CheckpointError, match=r"trained beside other weights than the model has now; put the checkpoint"
    ):
        export_run(tmp_path / "run", tmp_path / "model")
