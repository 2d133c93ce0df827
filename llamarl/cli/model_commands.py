"""generate, sft: a checkpoint by itself."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from llamarl.cli.common import print_json, say, show_progress
from llamarl.cli.options import LiveOutput, Output, Overrides, Positional
from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError
from llamarl.models.template_args import ChatTemplateArgs


class GenerateSettings(Config):
    """A checkpoint, what it completes, and how."""

    model: Positional[str]
    """Checkpoint directory in Hugging Face format, a GGUF file (extra gguf), or a Hub id."""
    prompts: Annotated[Positional[tuple[str, ...]], Metavar("PROMPT")]
    """User messages; - reads one a line from standard input."""
    system: str | None = None
    """A system message before each prompt."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the chat template, such as '{"enable_thinking": false}'."""
    samples: int = Field(default=1, ge=1)
    """Completions of each prompt."""
    max_tokens: int = Field(default=256, ge=1)
    """Token limit of a completion."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Sampling temperature; 0 is greedy."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Keep the likeliest tokens up to this probability."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Drop tokens less likely than this share of the likeliest."""
    stop: tuple[str, ...] = ()
    """A string that ends a completion."""
    seed: int = 0
    """Equal seeds give equal texts."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Number format."""
    device: str = "auto"
    """Where the model runs, such as cuda."""


def generate(settings: GenerateSettings, output: Output) -> int:
    """Complete prompts with a checkpoint, through the training generator.

    Examples:
        llamarl generate MODEL "write 3 words with moon"
        llamarl generate MODEL "2 + 2 =" --samples 4 --temperature 0.7 --json
        cat prompts.txt | llamarl generate MODEL -
    """
    from llamarl.core.records import GenerationRequest
    from llamarl.core.sampling import Sampling
    from llamarl.core.seeds import sample_seed
    from llamarl.generation.executor import GeneratorConfig, build_batcher
    from llamarl.models.checkpoint import load_model, load_tokenizer

    sampling = Sampling.parse({name: getattr(settings, name) for name in Sampling.model_fields})
    texts = _prompt_texts(settings.prompts)
    tokenizer = load_tokenizer(settings.model, settings.chat_template_args)
    slots = min(64, len(texts) * settings.samples)
    config = GeneratorConfig.parse({"precision": settings.precision, "slots": slots, "device": settings.device})
    generator = build_batcher(load_model(settings.model), config, tokenizer)
    system = [{"role": "system", "content": settings.system}] if settings.system else []
    requests = [
        GenerationRequest(
            key,
            tokenizer.encode_chat([*system, {"role": "user", "content": text}]),
            tuple(sample_seed(settings.seed, 0, text, i) for i in range(settings.samples)),
            sampling,
        )
        for key, text in enumerate(texts)
    ]
    answers = generator.generate(requests)
    if output.json:
        print_json([_record(text, done) for text, done in zip(texts, answers, strict=True)])
        return 0
    for text, done in zip(texts, answers, strict=True):
        if len(texts) > 1:
            say(f"> {text}")
        for completion in done:
            say(completion.text + (" [cut at --max-tokens]" if completion.finish_reason == "length" else ""))
    return 0


class SFTSettings(Config):
    """A checkpoint, examples, and where the result goes."""

    model: Positional[str | None] = None
    """Checkpoint directory in Hugging Face format, a GGUF file (extra gguf), or a Hub id."""
    data: Positional[str | None] = None
    """Rows of {messages, tools?} or {prompt, completion, tools?}: JSONL, Parquet, CSV, a glob or a Hub id."""
    out: Positional[str | None] = None
    """Where the fine-tuned checkpoint goes: new, empty, or an earlier export."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the chat template, such as '{"enable_thinking": false}'."""
    held_out: int = Field(default=0, ge=0)
    """Rows that are kept apart to measure the loss on."""
    list_settings: bool = False
    """Print every setting with its default."""


def sft(settings: SFTSettings, output: LiveOutput, overrides: Overrides) -> int:
    """Fine-tune a checkpoint on examples.

    Examples:
        llamarl sft MODEL data.jsonl OUT --num-steps 500 --learning-rate 1e-5
        llamarl sft MODEL data.parquet OUT --num-epochs 2 --schedule linear
        llamarl sft MODEL data.jsonl OUT --lora.rank 16 --learning-rate 2e-4 --device cuda
    """
    from llamarl.controller.recipe import describe_settings, dotted_names, parse_overrides
    from llamarl.models.checkpoint import check_target, load_config, load_model, load_tokenizer, save_model
    from llamarl.models.device import describe_device, resolve_device
    from llamarl.models.template_args import parse_template_args
    from llamarl.models.template_check import check_template
    from llamarl.training.config import SFTConfig
    from llamarl.training.sft import SFTTrainer
    from llamarl.training.sft_data import encode_chats, read_chats

    if settings.list_settings:
        say(describe_settings(SFTConfig))
        return 0
    if settings.model is None or settings.data is None or settings.out is None:
        raise ConfigError("MODEL, DATA or OUT is missing: use llamarl sft model/ data.jsonl out/")
    values = parse_overrides(overrides)
    template_args = parse_template_args(values.pop("chat_template_args", settings.chat_template_args))
    config = SFTConfig.parse(values, overrides=dotted_names(values))
    check_target(settings.out, settings.model)
    device = resolve_device(config.device)
    if not output.json:
        say(f"device: {describe_device(device)}", sys.stderr)
    tokenizer, model_config = load_tokenizer(settings.model, template_args), load_config(settings.model)
    template, chats = check_template(tokenizer, model_config), read_chats(settings.data)
    notes: list[str] = []
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    rows = encode_chats(chats, tokenizer, positions, tell=notes.append)
    limits = template.met_by((messages[:-1], tools) for _, (messages, tools) in chats)
    notes += [f"chat template: {limit}" for limit in limits]
    for note in notes:
        say(f"note: {note}", sys.stderr)
    if settings.held_out >= len(rows):
        raise ConfigError(f"--held-out {settings.held_out}: the data has {len(rows)} rows, and some must train")
    rows, held_out = rows[: len(rows) - settings.held_out], rows[len(rows) - settings.held_out :]
    model, total_steps = load_model(settings.model, device=device), config.total_steps(len(rows))
    trainer = SFTTrainer(model, config, total_steps)
    before = trainer.evaluate(held_out) if held_out else None
    with show_progress("steps", output) as update:
        loss = trainer.fit(rows, lambda n, metrics: update(n, total_steps, note=f"loss {metrics['train/loss']:.4f}"))
    after = trainer.evaluate(held_out) if held_out else None
    save_model(model, tokenizer, settings.out)
    result = {
        "rows": len(rows),
        "device": device,
        "steps": total_steps,
        "trained_parameters": trainer.num_trained,
        "loss": loss,
        "held_out_loss_before": before,
        "held_out_loss_after": after,
        "notes": notes,
        "directory": settings.out,
    }
    if output.json:
        print_json(result)
    else:
        change = "" if before is None else f", held-out loss {before:.4f} -> {after:.4f}"
        scope = "" if config.lora is None else f" with {trainer.num_trained:,} adapter parameters"
        say(f"{total_steps} steps on {len(rows)} rows{scope}{change}; written to {settings.out}")
    return 0


def _prompt_texts(prompts: Sequence[str]) -> Sequence[str]:
    if list(prompts) != ["-"]:
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
