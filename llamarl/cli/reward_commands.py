"""reward train, reward baselines: reward models and what calibrates them."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from llamarl.cli.common import print_json, say, show_progress
from llamarl.cli.fit_commands import describe_pairs, describe_share, describe_skips, run_fit
from llamarl.cli.options import LiveOutput, Overrides, Positional
from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError
from llamarl.models.template_args import ChatTemplateArgs

if TYPE_CHECKING:
    from llamarl.core.records import Completion, Prompt


class TrainSettings(Config):
    """Rows that a reward model or classifier learns from, and where it goes."""

    data: Positional[str | None] = None
    """Rows of {chosen, rejected, prompt?, margin?}, or with --labels {prompt, completion, label}: JSONL, Parquet, CSV,
    a glob or a Hub id."""
    model: str | None = None
    """Causal language model to start from (a directory, GGUF file or Hub id), or a reward model."""
    out: Annotated[str | None, Metavar("DIR")] = None
    """Directory of the training: new, empty, or one that was killed."""
    eval_data: str | None = None
    """Held-out rows (default: a share of the prompts of DATA)."""
    labels: bool = False
    """Rows carry labels: train a classifier of two labels."""
    split: str | None = None
    """Split of a Hub data set (default train)."""
    list_settings: bool = False
    """Print every setting with its default."""


def train(settings: TrainSettings, output: LiveOutput, overrides: Overrides) -> int:
    """Train a reward model on preference pairs, or a classifier on labelled completions.

    Examples:
        llamarl reward train pairs.jsonl --model MODEL --out rewards/helpful --learning-rate 1e-5
        llamarl reward train owner/name --model MODEL --out OUT --eval-data held-out.parquet --on-bad-row skip
        llamarl reward train labelled.jsonl --labels --model MODEL --out OUT --num-steps 200
        llamarl reward train pairs.jsonl --model MODEL --out OUT --fsdp 4 --precision bf16
        llamarl reward train --list-settings
    """
    from llamarl.controller.overrides import describe_settings, dotted_names, parse_overrides
    from llamarl.training.objectives import RewardConfig, reward_objective

    if settings.list_settings:
        say(describe_settings(RewardConfig))
        return 0
    if not (settings.data and settings.model and settings.out):
        raise ConfigError(
            "DATA, --model or --out is missing: use llamarl reward train pairs.jsonl --model model/ --out rewards/"
        )
    values = parse_overrides(overrides)
    config = RewardConfig.parse(values, overrides=dotted_names(values))
    objective = reward_objective("labels" if settings.labels else "pairs", config)
    files = (settings.model, settings.data, settings.out, settings.eval_data, settings.split)
    summary = run_fit(objective, config.device, files, output)
    if output.json:
        print_json(summary)
    else:
        say("\n".join(_describe(summary, settings.out)))
    return 0


class BaselineSettings(Config):
    """Prompts, the policy that answers them, and how."""

    model: str
    """The policy that reinforcement learning starts from."""
    data: str
    """Prompts: JSONL, Parquet, CSV, a glob or a Hub id."""
    out: Annotated[str, Metavar("FILE")]
    """JSONL file: the same rows with info.baseline."""
    split: str | None = None
    """Split of a Hub data set (default train)."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the chat template, such as '{"enable_thinking": false}'."""
    max_tokens: int = Field(default=256, ge=1)
    """Token limit of a response."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Sampling temperature; 0 is greedy."""
    seed: int = 0
    """Equal seeds give equal responses."""
    slots: int = Field(default=64, ge=1)
    """Responses generated together."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Number format."""
    device: str = "auto"
    """Device of the policy, such as cuda."""


def baselines(settings: BaselineSettings, output: LiveOutput) -> int:
    """Sample one response to each prompt from a fixed policy, for calibrated rewards.

    Examples:
        llamarl reward baselines --model MODEL --data prompts.jsonl --out prompts-with-baselines.jsonl
        llamarl reward baselines --model MODEL --data prompts.jsonl --out OUT.jsonl --max-tokens 512 --temperature 0.7
    """
    from llamarl.core.sampling import Sampling
    from llamarl.data import read_prompts, write_jsonl

    sampling = Sampling.parse({"max_tokens": settings.max_tokens, "temperature": settings.temperature})
    prompts = read_prompts(settings.data, split=settings.split)
    missing = [prompt for prompt in prompts if "baseline" not in prompt.info]
    made = dict(zip([prompt.id for prompt in missing], _respond(settings, output, missing, sampling), strict=True))
    write_jsonl(settings.out, (_with_baseline(prompt, made.get(prompt.id)) for prompt in prompts))
    result = {
        "prompts": len(prompts),
        "made": len(made),
        "kept": len(prompts) - len(made),
        "cut": sum(completion.finish_reason == "length" for completion in made.values()),
        "file": settings.out,
    }
    if output.json:
        print_json(result)
    else:
        kept = f", {result['kept']} kept theirs" if result["kept"] else ""
        cut = f" ({result['cut']} cut at --max-tokens)" if result["cut"] else ""
        say(f"{len(made)} baselines{cut}{kept}; written to {settings.out}")
    return 0


def _respond(
    settings: BaselineSettings, output: LiveOutput, prompts: "Sequence[Prompt]", sampling: Any
) -> "list[Completion]":
    """One completion of each prompt, from the native generator."""
    from llamarl.core.records import GenerationRequest
    from llamarl.core.seeds import sample_seed
    from llamarl.generation.executor import GeneratorConfig, build_batcher
    from llamarl.models.checkpoint import load_model, load_tokenizer

    if not prompts:
        return []
    names = ("precision", "slots", "device")
    config = GeneratorConfig.parse({name: getattr(settings, name) for name in names})
    tokenizer = load_tokenizer(settings.model, settings.chat_template_args)
    batcher = build_batcher(load_model(settings.model), config, tokenizer)
    seeds = [sample_seed(settings.seed, 0, prompt.id, 0) for prompt in prompts]
    batcher.add(
        [
            GenerationRequest(key, tokenizer.encode_chat(prompt.messages, prompt.tools), (seed,), sampling)
            for key, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
    )
    done: dict[int, Completion] = {}
    with show_progress("baselines", output) as update:
        while batcher.has_work:
            done |= {key: completions[0] for key, completions in batcher.step()}
            update(len(done), len(prompts))
    return [done[key] for key in range(len(prompts))]


def _with_baseline(prompt: "Prompt", completion: "Completion | None") -> "Prompt":
    if completion is None:
        return prompt
    made = {"baseline": completion.text, "baseline_finish_reason": completion.finish_reason}
    return dataclasses.replace(prompt, info={**prompt.info, **made})


def _describe(summary: Mapping[str, Any], out: str) -> Iterator[str]:
    """Yields what a user wants to know of a finished training."""
    rows, report = summary["rows"], summary["held_out"]
    yield from describe_skips(rows)
    yield f"trained        {summary['steps']} steps on {rows['train']} rows in {summary['seconds']:.0f} s"
    if report is not None and "length_correlation" in report:
        yield from describe_pairs(report)
    elif report is not None:
        error = report["calibration_error"]
        yield f"held out       accuracy {describe_share(report['accuracy'])}, calibration error {error:.3f}"
    yield f"model          {summary['model']} (weights of step {summary['model_step']})"
    yield f"figure         {out}/reward.png"
