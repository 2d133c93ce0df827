"""generate: a checkpoint by itself."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from llamarl.cli.common import print_json, say
from llamarl.cli.options import Output, Positional
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
    """Device of the model, such as cuda."""


def generate(settings: GenerateSettings, output: Output) -> int:
    """Complete prompts with a checkpoint, through the training generator.

    Examples:
        llamarl generate MODEL "write 3 words with moon"
        llamarl generate MODEL "2 + 2 =" --samples 4 --temperature 0.7 --json
        cat prompts.txt | llamarl generate MODEL -
    """
    from llamarl.core.sampling import Sampling
    from llamarl.generation.executor import GeneratorConfig
    from llamarl.generation.texts import complete
    from llamarl.models.checkpoint import load_model, load_tokenizer

    texts = _prompt_texts(settings.prompts)
    tokenizer = load_tokenizer(settings.model, settings.chat_template_args)
    answers = complete(
        load_model(settings.model),
        tokenizer,
        texts,
        Sampling.parse({name: getattr(settings, name) for name in Sampling.model_fields}),
        GeneratorConfig(precision=settings.precision, device=settings.device),
        samples=settings.samples,
        seed=settings.seed,
        system=settings.system,
    )
    if output.json:
        print_json([_record(text, done) for text, done in zip(texts, answers, strict=True)])
        return 0
    for text, done in zip(texts, answers, strict=True):
        if len(texts) > 1:
            say(f"> {text}")
        for completion in done:
            say(completion.text + (" [cut at --max-tokens]" if completion.finish_reason == "length" else ""))
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
