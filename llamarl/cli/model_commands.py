"""generate: a checkpoint by itself."""

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
