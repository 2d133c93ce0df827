"""generate, sft: a checkpoint by itself."""

import argparse
import sys
from typing import Any

from llamarl.cli.common import Subparsers, add_command, add_template_args, print_json, say
from llamarl.core.errors import ConfigError

MODEL_HELP = "checkpoint directory in Hugging Face format, a GGUF file (extra gguf), or a Hub id"


def add_commands(commands: Subparsers) -> None:
    """Adds this module's commands."""
    generate = add_command(
        commands,
        "generate",
        run_generate,
        help="complete prompts with a checkpoint, through the training generator",
        examples="""
llamarl generate MODEL "write 3 words with moon"
llamarl generate MODEL "2 + 2 =" --samples 4 --temperature 0.7 --json
cat prompts.txt | llamarl generate MODEL -
""",
    )
    generate.add_argument("model", help=MODEL_HELP)
    generate.add_argument("prompts", nargs="+", metavar="PROMPT", help="user messages; - reads one a line from stdin")
    generate.add_argument("--system", help="a system message before each prompt")
    add_template_args(generate)
    generate.add_argument("--samples", type=int, default=1, help="completions of each prompt (default 1)")
    generate.add_argument("--max-tokens", type=int, default=256, help="token limit of a completion (default 256)")
    generate.add_argument("--temperature", type=float, default=1.0, help="0 is greedy (default 1)")
    generate.add_argument("--top-k", type=int, default=0, help="keep the k likeliest tokens (default 0: all)")
    generate.add_argument("--top-p", type=float, default=1.0, help="keep tokens up to this probability (default 1)")
    generate.add_argument("--min-p", type=float, default=0.0, help="drop tokens under this share of the likeliest")
    generate.add_argument("--stop", action="append", default=[], help="a string that ends a completion; repeatable")
    generate.add_argument("--seed", type=int, default=0, help="equal seeds give equal texts (default 0)")
    generate.add_argument("--precision", choices=["fp32", "bf16", "int8"], default="fp32", help="number format")

    generate.add_argument("--device", default="auto", help="where the model runs, such as cuda (default auto)")

    sft = add_command(
        commands,
        "sft",
        run_sft,
        help="fine-tune a checkpoint on examples",
        examples="""
llamarl sft MODEL data.jsonl OUT --num-steps 500 --learning-rate 1e-5
llamarl sft MODEL data.parquet OUT --num-epochs 2 --schedule linear
llamarl sft MODEL data.jsonl OUT --lora.rank 16 --learning-rate 2e-4 --device cuda
""",
        takes_overrides=True,
    )
    sft.add_argument("model", nargs="?", help=MODEL_HELP)
    sft.add_argument(
        "data",
        nargs="?",
        help="rows of {messages, tools?} or {prompt, completion, tools?}: JSONL, Parquet, CSV, a glob or a Hub id",
    )
    sft.add_argument("out", nargs="?", help="where the fine-tuned checkpoint goes: new, empty, or an earlier export")
    add_template_args(sft)
    sft.add_argument("--held-out", type=int, default=0, metavar="N", help="keep N rows to measure the loss on")
    sft.add_argument("--list-settings", action="store_true", help="print every setting with its default")


def run_generate(arguments: argparse.Namespace) -> int:
    """`llamarl generate`."""
    from llamarl.core.records import GenerationRequest
    from llamarl.core.sampling import Sampling
    from llamarl.core.seeds import sample_seed
    from llamarl.generation.executor import GeneratorConfig, build_batcher
    from llamarl.models.checkpoint import load_model, load_tokenizer
    from llamarl.models.template_args import parse_template_args

    names = ("max_tokens", "temperature", "top_k", "top_p", "min_p")
    sampling = Sampling.parse({name: getattr(arguments, name) for name in names} | {"stop": tuple(arguments.stop)})
    if arguments.samples < 1:
        raise ConfigError(f"--samples {arguments.samples}: give at least 1")
    texts = _prompt_texts(arguments.prompts)
    tokenizer = load_tokenizer(arguments.model, parse_template_args(arguments.chat_template_args))
    slots = min(64, len(texts) * arguments.samples)
    config = GeneratorConfig.parse({"precision": arguments.precision, "slots": slots, "device": arguments.device})
    generator = build_batcher(load_model(arguments.model), config, tokenizer)
    system = [{"role": "system", "content": arguments.system}] if arguments.system else []
    requests = [
        GenerationRequest(
            key,
            tokenizer.encode_chat([*system, {"role": "user", "content": text}]),
            tuple(sample_seed(arguments.seed, 0, text, i) for i in range(arguments.samples)),
            sampling,
        )
        for key, text in enumerate(texts)
    ]
    answers = generator.generate(requests)
    if arguments.json:
        print_json([_record(text, done) for text, done in zip(texts, answers, strict=True)])
        return 0
    for text, done in zip(texts, answers, strict=True):
        if len(texts) > 1:
            say(f"> {text}")
        for completion in done:
            say(completion.text + (" [cut at --max-tokens]" if completion.finish_reason == "length" else ""))
    return 0


def run_sft(arguments: argparse.Namespace) -> int:
    """`llamarl sft`."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from llamarl.controller.recipe import describe_settings, dotted_names, parse_overrides
    from llamarl.models.checkpoint import check_target, load_config, load_model, load_tokenizer, save_model
    from llamarl.models.device import describe_device, resolve_device
    from llamarl.models.template_args import parse_template_args
    from llamarl.models.template_check import check_template
    from llamarl.report.console import SafeConsole
    from llamarl.training.config import SFTConfig
    from llamarl.training.sft import SFTTrainer
    from llamarl.training.sft_data import encode_chats, read_chats

    if arguments.list_settings:
        say(describe_settings(SFTConfig))
        return 0
    if arguments.out is None:
        raise ConfigError("give MODEL DATA OUT: llamarl sft model/ data.jsonl out/")
    settings = parse_overrides(arguments.overrides)
    template_args = parse_template_args(settings.pop("chat_template_args", arguments.chat_template_args))
    config = SFTConfig.parse(settings, overrides=dotted_names(settings))
    check_target(arguments.out, arguments.model)
    device = resolve_device(config.device)
    if not arguments.json:
        say(f"device: {describe_device(device)}", sys.stderr)
    tokenizer, model_config = load_tokenizer(arguments.model, template_args), load_config(arguments.model)
    template, chats = check_template(tokenizer, model_config), read_chats(arguments.data)
    notes: list[str] = []
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    rows = encode_chats(chats, tokenizer, positions, tell=notes.append)
    limits = template.met_by((messages[:-1], tools) for _, (messages, tools) in chats)
    notes += [f"chat template: {limit}" for limit in limits]
    for note in notes:
        say(f"note: {note}", sys.stderr)
    if not 0 <= arguments.held_out < len(rows):
        raise ConfigError(f"--held-out {arguments.held_out}: the data has {len(rows)} rows, and some must train")
    rows, held_out = rows[: len(rows) - arguments.held_out], rows[len(rows) - arguments.held_out :]
    model, total_steps = load_model(arguments.model, device=device), config.total_steps(len(rows))
    trainer = SFTTrainer(model, config, total_steps)
    before = trainer.evaluate(held_out) if held_out else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=SafeConsole(stderr=True), disable=arguments.json) as progress:
        bar = progress.add_task("sft", total=total_steps, loss=float("nan"))
        loss = trainer.fit(rows, lambda n, metrics: progress.update(bar, completed=n, loss=metrics["train/loss"]))
    after = trainer.evaluate(held_out) if held_out else None
    save_model(model, tokenizer, arguments.out)
    result = {
        "rows": len(rows),
        "device": device,
        "steps": total_steps,
        "trained_parameters": trainer.num_trained,
        "loss": loss,
        "held_out_loss_before": before,
        "held_out_loss_after": after,
        "notes": notes,
        "directory": arguments.out,
    }
    if arguments.json:
        print_json(result)
    else:
        change = "" if before is None else f", held-out loss {before:.4f} -> {after:.4f}"
        scope = "" if config.lora is None else f" with {trainer.num_trained:,} adapter parameters"
        say(f"{total_steps} steps on {len(rows)} rows{scope}{change}; written to {arguments.out}")
    return 0


def _prompt_texts(prompts: list[str]) -> list[str]:
    if prompts != ["-"]:
        return prompts
    texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise ConfigError("-: standard input holds no prompts; give one a line")
    return texts


def _record(prompt: str, completions: Any) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "completions": [
            {"text": c.text, "finish_reason": c.finish_reason, "tokens": len(c.token_ids), "logprob": sum(c.logprobs)}
            for c in completions
        ],
    }
