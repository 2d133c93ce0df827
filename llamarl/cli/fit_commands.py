"""sft, dpo: train a checkpoint on rows. Reward models have a command of their own."""

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from llamarl.cli.common import print_json, say, show_progress
from llamarl.cli.options import LiveOutput, Overrides, Positional
from llamarl.core.config import Config
from llamarl.core.errors import ConfigError

if TYPE_CHECKING:
    from llamarl.training.config import FitConfig


class FitSettings(Config):
    """A checkpoint, the rows it is trained on, and where the result goes."""

    model: Positional[str | None] = None
    """Checkpoint directory in Hugging Face format, a GGUF file (extra gguf), or a Hub id."""
    data: Positional[str | None] = None
    """Rows: JSONL, Parquet, CSV, a glob or a Hub id."""
    out: Positional[str | None] = None
    """Directory for the trained checkpoint: new, empty, or an earlier result."""
    eval_data: str | None = None
    """Rows to measure on (default: those that held_out keeps)."""
    split: str | None = None
    """Split of a Hub data set (default train)."""
    list_settings: bool = False
    """Print every setting with its default."""


class SFTSettings(FitSettings):
    """A checkpoint, the examples it is trained on, and where the result goes."""

    data: Positional[str | None] = None
    """Rows of {messages, tools?} or {prompt, completion, tools?}: JSONL, Parquet, CSV, a glob or a Hub id."""


class DPOSettings(FitSettings):
    """A checkpoint, the pairs it is trained on, and where the result goes."""

    data: Positional[str | None] = None
    """Rows of {chosen, rejected, prompt?, tools?}: JSONL, Parquet, CSV, a glob or a Hub id."""


def sft(settings: SFTSettings, output: LiveOutput, overrides: Overrides) -> int:
    """Fine-tune a checkpoint on examples.

    Examples:
        llamarl sft MODEL data.jsonl OUT --num-steps 500 --learning-rate 1e-5
        llamarl sft MODEL data.parquet OUT --num-epochs 2 --schedule linear --held-out 50 --keep loss
        llamarl sft MODEL data.jsonl OUT --lora.rank 16 --learning-rate 2e-4 --device cuda
        llamarl sft MODEL data.jsonl OUT --num-epochs 2 --fsdp 4
    """
    from llamarl.training.objectives import SFT, SFTConfig

    return _fit("sft", SFTConfig, SFT, settings, output, overrides)


def dpo(settings: DPOSettings, output: LiveOutput, overrides: Overrides) -> int:
    """Train a checkpoint to prefer the chosen answers of pairs.

    Examples:
        llamarl dpo MODEL pairs.jsonl OUT --learning-rate 1e-6 --beta 0.1
        llamarl dpo MODEL pairs.jsonl OUT --lora.rank 16 --learning-rate 1e-5 --device cuda
        llamarl dpo MODEL pairs.jsonl OUT --loss ipo --is-length-normalized true
        llamarl dpo MODEL owner/name OUT --eval-data held-out.parquet --on-bad-row skip
    """
    from llamarl.training.objectives import DPO, DPOConfig

    return _fit("dpo", DPOConfig, DPO, settings, output, overrides)


def _fit(
    name: str,
    config_type: "type[FitConfig]",
    build: Any,
    settings: FitSettings,
    output: LiveOutput,
    overrides: Overrides,
) -> int:
    from llamarl.controller.overrides import describe_settings, dotted_names, parse_overrides

    if settings.list_settings:
        say(describe_settings(config_type))
        return 0
    if settings.model is None or settings.data is None or settings.out is None:
        raise ConfigError(f"MODEL, DATA or OUT is missing: use llamarl {name} model/ data.jsonl out/")
    values = parse_overrides(overrides)
    config = config_type.parse(values, overrides=dotted_names(values))
    files = (settings.model, settings.data, settings.out, settings.eval_data, settings.split)
    summary = run_fit(build(config), config.device, files, output)
    if output.json:
        print_json(summary)
    else:
        say("\n".join(_describe(summary, has_adapters=config.lora is not None)))
    return 0


def run_fit(
    objective: Any, device: str, files: tuple[str, str, str, str | None, str | None], output: LiveOutput
) -> dict[str, Any]:
    """Trains with progress, the device said first; returns the summary.

    Args:
        objective: what is trained (`training.objective.Objective`).
        device: the setting; `auto` is resolved.
        files: model, data, out, data to measure on, split of a Hub data set.
        output: where progress goes.
    """
    from llamarl.models.device import describe_device, resolve_device
    from llamarl.training.fit import fit

    model, data, out, eval_data, split = files
    if not output.json:
        ranks = "" if (count := objective.config.num_ranks) == 1 else f", {count} ranks"
        say(f"device: {describe_device(resolve_device(device))}{ranks}", sys.stderr)
    with show_progress("steps", output) as update:
        return fit(
            objective,
            model,
            data,
            out,
            eval_data=eval_data,
            split=split,
            on_step=lambda step, total, metrics: update(step, total, note=f"loss {metrics['train/loss']:.4f}"),
            tell=lambda note: say(f"note: {note}", sys.stderr),
        )


def describe_pairs(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields what a report on held-out pairs says, a line each."""
    error = report["calibration_error"]
    yield f"held out       accuracy {describe_share(report['accuracy'])}, calibration error {error:.3f}"
    correlation = report["length_correlation"]
    yield (
        f"length         correlation {'-' if correlation is None else f'{correlation:+.2f}'}; accuracy where the "
        f"chosen is shorter {describe_share(report['accuracy_where_chosen_is_shorter'])}, longer "
        f"{describe_share(report['accuracy_where_chosen_is_longer'])}"
    )


def describe_share(share: Mapping[str, Any]) -> str:
    """Writes a proportion with its interval."""
    if share["value"] is None:
        return "- (no pairs)"
    return f"{share['value']:.3f} [{share['low']:.3f}, {share['high']:.3f}] of {share['count']}"


def describe_skips(rows: Mapping[str, Any]) -> Iterator[str]:
    """Yields how many rows were left out, where some were."""
    if rows["skipped"]:
        yield "left out       " + ", ".join(f"{count} {reason}" for reason, count in rows["skipped"].items())


def _describe(summary: Mapping[str, Any], has_adapters: bool) -> Iterator[str]:
    """Yields what a user wants to know of a finished training."""
    before, after = summary["held_out_before"], summary["held_out"]
    yield from describe_skips(summary["rows"])
    scope = f" with {summary['trained_parameters']:,} adapter parameters" if has_adapters else ""
    change = "" if after is None else f", held-out loss {before['loss']:.4f} -> {after['loss']:.4f}"
    yield (
        f"{summary['steps']} steps on {summary['rows']['train']} rows{scope}{change}; weights of step "
        f"{summary['model_step']} written to {summary['model']}"
    )
    if after is not None and "accuracy" in after:
        yield from describe_pairs(after)
