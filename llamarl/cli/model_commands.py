"""generate: a checkpoint or a served model by itself."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from llamarl.cli.common import print_json, say
from llamarl.cli.options import Output, Positional
from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError
from llamarl.core.sampling import Sampling
from llamarl.models.template_args import ChatTemplateArgs


class GenerateSettings(Config):
    """A checkpoint, what it completes, and how."""

    model: Positional[str]
    """Checkpoint directory in Hugging Face format, a GGUF file (extra gguf), or a Hub id; with --endpoint the server's
    name of the model."""
    prompts: Annotated[Positional[tuple[str, ...]], Metavar("PROMPT")]
    """User messages; - reads one a line from standard input."""
    endpoint: Annotated[str | None, Metavar("URL")] = None
    """Ask an OpenAI-compatible server instead, such as http://127.0.0.1:8000/v1."""
    api_key_env: Annotated[str | None, Metavar("VARIABLE")] = None
    """The environment variable that holds the server's key."""
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

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        ours = sorted({"precision", "device", "chat_template_args"} & self.model_fields_set)
        if self.endpoint is not None and ours:
            raise ValueError(f"--{ours[0].replace('_', '-')} does nothing with --endpoint; leave it out")
        if self.endpoint is None and self.api_key_env is not None:
            raise ValueError("--api-key-env: needs --endpoint URL")
        return self

    @property
    def sampling(self) -> Sampling:
        """The settings that the generator reads."""
        return Sampling.parse({name: getattr(self, name) for name in Sampling.model_fields})


def generate(settings: GenerateSettings, output: Output) -> int:
    """Complete prompts with a checkpoint, through the training generator, or with a served model.

    Examples:
        llamarl generate MODEL "write 3 words with moon"
        llamarl generate MODEL "2 + 2 =" --samples 4 --temperature 0.7 --json
        cat prompts.txt | llamarl generate MODEL -
        llamarl generate NAME "2 + 2 =" --endpoint http://127.0.0.1:8000/v1
    """
    texts = _prompt_texts(settings.prompts)
    answers = _complete(settings, texts) if settings.endpoint is None else _ask(settings, texts)
    if output.json:
        print_json([{"prompt": text, "completions": records} for text, records in zip(texts, answers, strict=True)])
        return 0
    for text, records in zip(texts, answers, strict=True):
        if len(texts) > 1:
            say(f"> {text}")
        for each in records:
            say(each["text"] + (" [cut at --max-tokens]" if each["finish_reason"] == "length" else ""))
    return 0


def _complete(settings: GenerateSettings, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Completions of each text by a checkpoint."""
    from llamarl.generation.executor import GeneratorConfig
    from llamarl.generation.texts import complete
    from llamarl.models.checkpoint import load_model, load_tokenizer

    tokenizer = load_tokenizer(settings.model, settings.chat_template_args)
    answers = complete(
        load_model(settings.model),
        tokenizer,
        texts,
        settings.sampling,
        GeneratorConfig(precision=settings.precision, device=settings.device),
        samples=settings.samples,
        seed=settings.seed,
        system=settings.system,
    )
    return [
        [
            {"text": c.text, "finish_reason": c.finish_reason, "tokens": len(c.token_ids), "logprob": sum(c.logprobs)}
            for c in done
        ]
        for done in answers
    ]


def _ask(settings: GenerateSettings, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
    """Completions of each text by a server, which tells no log-prob of them."""
    import asyncio

    from llamarl.core.loops import run_async
    from llamarl.core.seeds import sample_seed
    from llamarl.generation.chats import EndpointChat
    from llamarl.models.endpoint import ChatEndpoint, EndpointConfig

    server = {"base_url": settings.endpoint, "model": settings.model, "api_key_env": settings.api_key_env}
    first = [{"role": "system", "content": settings.system}] if settings.system else []

    async def ask() -> list[list[dict[str, Any]]]:
        async with ChatEndpoint(EndpointConfig.parse(server, source="--endpoint")) as endpoint:
            chat = EndpointChat(endpoint, settings.sampling)
            asked = [
                chat.reply([*first, {"role": "user", "content": text}], sample_seed(settings.seed, 0, text, sample))
                for text in texts
                for sample in range(settings.samples)
            ]
            replies = iter(await asyncio.gather(*asked))
        records = (
            {"text": r.text, "finish_reason": r.finish_reason, "tokens": r.completion_tokens, "logprob": None}
            for r in replies
        )
        return [[next(records) for _ in range(settings.samples)] for _ in texts]

    return run_async(ask())


def _prompt_texts(prompts: Sequence[str]) -> Sequence[str]:
    if list(prompts) != ["-"]:
        return prompts
    texts = [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not texts:
        raise ConfigError("-: standard input holds no prompts; give one a line")
    return texts
