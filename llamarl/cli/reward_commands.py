"""reward train, reward baselines: reward models and what calibrates them."""

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llamarl.cli.common import Subparsers, add_command, add_template_args, print_json, say
from llamarl.cli.fit_commands import describe_pairs, describe_share, describe_skipped, show_progress
from llamarl.core.errors import ConfigError

if TYPE_CHECKING:
    from llamarl.core.records import Completion, Prompt


def add_commands(commands: Subparsers) -> None:
    """Adds this module's commands."""
    reward = commands.add_parser(
        "reward",
        help="train reward models and classifiers; make baselines",
        description="Reward models and classifiers: train them, and make what calibrates them.",
        allow_abbrev=False,
    )
    actions = reward.add_subparsers(metavar="ACTION", required=True)
    _add_train(actions)
    _add_baselines(actions)


def _add_train(actions: Subparsers) -> None:
    train = add_command(
        actions,
        "train",
        run_train,
        help="train a reward model on preference pairs, or a classifier on labelled completions",
        examples="""
llamarl reward train pairs.jsonl --model MODEL --out rewards/helpful --learning-rate 1e-5
llamarl reward train owner/name --model MODEL --out OUT --eval-data held-out.parquet --on-bad-row skip
llamarl reward train labelled.jsonl --labels --model MODEL --out OUT --num-steps 200
llamarl reward train --list-settings
""",
        takes_overrides=True,
    )
    train.add_argument(
        "data",
        nargs="?",
        help="rows of {chosen, rejected, prompt?, margin?}, or with --labels {prompt, completion, label}: JSONL, "
        "Parquet, CSV, a glob or a Hub id",
    )
    train.add_argument(
        "--model", help="causal language model to start from (a directory, GGUF file or Hub id), or a reward model"
    )
    train.add_argument("--out", help="directory of the training: new, empty, or one that was killed")
    train.add_argument("--eval-data", metavar="DATA", help="held-out rows (default: a share of the prompts of DATA)")
    train.add_argument("--labels", action="store_true", help="rows carry labels: train a classifier of two labels")
    train.add_argument("--split", help="split of a Hub data set (default train)")
    train.add_argument("--list-settings", action="store_true", help="print every setting with its default")
    train.add_argument("--quiet", action="store_true", help="no progress")


def _add_baselines(actions: Subparsers) -> None:
    baselines = add_command(
        actions,
        "baselines",
        run_baselines,
        help="sample one response to each prompt from a fixed policy, for calibrated rewards",
        examples="""
llamarl reward baselines --model MODEL --data prompts.jsonl --out prompts-with-baselines.jsonl
llamarl reward baselines --model MODEL --data prompts.jsonl --out OUT.jsonl --max-tokens 512 --temperature 0.7
""",
    )
    baselines.add_argument("--model", required=True, help="the policy that reinforcement learning starts from")
    baselines.add_argument("--data", required=True, help="prompts: JSONL, Parquet, CSV, a glob or a Hub id")
    baselines.add_argument("--out", required=True, help="JSONL file: the same rows with info.baseline")
    baselines.add_argument("--split", help="split of a Hub data set (default train)")
    add_template_args(baselines)
    baselines.add_argument("--max-tokens", type=int, default=256, help="token limit of a response (default 256)")
    baselines.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default 1)")
    baselines.add_argument("--seed", type=int, default=0, help="equal seeds give equal responses (default 0)")
    baselines.add_argument("--slots", type=int, default=64, help="responses generated together (default 64)")
    baselines.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="fp32", help="number format")
    baselines.add_argument("--device", default="auto", help="where the policy runs, such as cuda (default auto)")
    baselines.add_argument("--quiet", action="store_true", help="no progress")


def run_train(arguments: argparse.Namespace) -> int:
    """`llamarl reward train`."""
    from llamarl.controller.recipe import describe_settings, dotted_names, parse_overrides
    from llamarl.training.objectives import RewardConfig, reward_objective

    if arguments.list_settings:
        say(describe_settings(RewardConfig))
        return 0
    if not (arguments.data and arguments.model and arguments.out):
        raise ConfigError(
            "give DATA, --model and --out: llamarl reward train pairs.jsonl --model model/ --out rewards/"
        )
    settings = parse_overrides(arguments.overrides)
    config = RewardConfig.parse(settings, overrides=dotted_names(settings))
    from llamarl.training.fit import fit

    with show_progress(arguments, "reward model") as advance:
        summary = fit(
            reward_objective("labels" if arguments.labels else "pairs", config),
            arguments.model,
            arguments.data,
            arguments.out,
            eval_data=arguments.eval_data,
            split=arguments.split,
            on_step=lambda step, total, metrics: advance(step, total, f"loss {metrics['train/loss']:.4f}"),
            tell=lambda note: say(f"note: {note}", sys.stderr),
        )
    if arguments.json:
        print_json(summary)
    else:
        say("\n".join(_describe(summary, arguments.out)))
    return 0


def run_baselines(arguments: argparse.Namespace) -> int:
    """`llamarl reward baselines`."""
    from llamarl.core.sampling import Sampling
    from llamarl.data import read_prompts, write_jsonl

    sampling = Sampling.parse({"max_tokens": arguments.max_tokens, "temperature": arguments.temperature})
    prompts = read_prompts(arguments.data, split=arguments.split)
    missing = [prompt for prompt in prompts if "baseline" not in prompt.info]
    made = dict(zip([prompt.id for prompt in missing], _respond(arguments, missing, sampling), strict=True))
    write_jsonl(arguments.out, (_with_baseline(prompt, made.get(prompt.id)) for prompt in prompts))
    result = {
        "prompts": len(prompts),
        "made": len(made),
        "kept": len(prompts) - len(made),
        "cut": sum(completion.finish_reason == "length" for completion in made.values()),
        "file": arguments.out,
    }
    if arguments.json:
        print_json(result)
    else:
        kept = f", {result['kept']} kept theirs" if result["kept"] else ""
        cut = f" ({result['cut']} cut at --max-tokens)" if result["cut"] else ""
        say(f"{len(made)} baselines{cut}{kept}; written to {arguments.out}")
    return 0


def _respond(arguments: argparse.Namespace, prompts: "Sequence[Prompt]", sampling: Any) -> "list[Completion]":
    """One completion of each prompt, from the native generator."""
    from llamarl.core.records import GenerationRequest
    from llamarl.core.seeds import sample_seed
    from llamarl.generation.executor import GeneratorConfig, build_batcher
    from llamarl.models.checkpoint import load_model, load_tokenizer
    from llamarl.models.template_args import parse_template_args

    if not prompts:
        return []
    names = ("precision", "slots", "device")
    config = GeneratorConfig.parse({name: getattr(arguments, name) for name in names})
    tokenizer = load_tokenizer(arguments.model, parse_template_args(arguments.chat_template_args))
    batcher = build_batcher(load_model(arguments.model), config, tokenizer)
    seeds = [sample_seed(arguments.seed, 0, prompt.id, 0) for prompt in prompts]
    batcher.add(
        [
            GenerationRequest(key, tokenizer.encode_chat(prompt.messages, prompt.tools), (seed,), sampling)
            for key, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
        ]
    )
    done: dict[int, Completion] = {}
    with show_progress(arguments, "baselines") as advance:
        while batcher.has_work:
            done |= {key: completions[0] for key, completions in batcher.step()}
            advance(len(done), len(prompts))
    return [done[key] for key in range(len(prompts))]


def _with_baseline(prompt: "Prompt", completion: "Completion | None") -> "Prompt":
    if completion is None:
        return prompt
    made = {"baseline": completion.text, "baseline_finish_reason": completion.finish_reason}
    return dataclasses.replace(prompt, info={**prompt.info, **made})


def _describe(summary: Mapping[str, Any], out: str) -> Iterator[str]:
    """Yields what a user wants to know of a finished training."""
    rows, report = summary["rows"], summary["held_out"]
    yield from describe_skipped(rows)
    yield f"trained        {summary['steps']} steps on {rows['train']} rows in {summary['seconds']:.0f} s"
    if report is not None and "length_correlation" in report:
        yield from describe_pairs(report)
    elif report is not None:
        error = report["calibration_error"]
        yield f"held out       accuracy {describe_share(report['accuracy'])}, calibration error {error:.3f}"
    yield f"model          {summary['model']} (weights of step {summary['model_step']})"
    yield f"figure         {out}/reward.png"
