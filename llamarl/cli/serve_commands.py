"""serve: a model behind OpenAI's protocol."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

from pydantic import model_validator

from llamarl.cli.common import say
from llamarl.cli.options import Output, Positional
from llamarl.core.config import Metavar
from llamarl.core.errors import ConfigError
from llamarl.inference.settings import ModelServing

if TYPE_CHECKING:
    from llamarl.inference.service import NewerWeights, Served


class ServeSettings(ModelServing):
    """The model, and how it is served."""

    model: Positional[str]
    """Checkpoint directory in Hugging Face format, a GGUF file, a Hub id, or the directory of a run."""
    step: Annotated[str, Metavar("STEP")] = "latest"
    """The checkpoint of a run that is served: latest, best, or a step number."""
    follow: bool = False
    """Serve each newer checkpoint of a run as it comes."""

    @model_validator(mode="after")
    def _check_step(self) -> Self:
        if self.follow and self.step != "latest":
            raise ValueError(f"--follow: takes whatever is newest, which --step {self.step} is not; leave one out")
        return self


def serve(settings: ServeSettings, output: Output) -> int:
    """Serve a model over HTTP as OpenAI does: POST /v1/completions, POST /v1/chat/completions, GET /v1/models.

    All requests are decoded in one continuous batch, by the generator that training uses. A run's newest checkpoint
    can be served while the run goes on: with --follow, newer ones are taken as they come, and completions under way
    go on with them. GET /health and GET /metrics tell how it is. SIGTERM lets accepted requests finish and refuses new
    ones; the exit status is then 0, or 1 if some were cut off.

    Examples:
        llamarl serve MODEL --port 8000
        curl -s http://127.0.0.1:8000/v1/completions -d '{"prompt": "The sun rises in", "max_tokens": 8}'
        llamarl serve runs/NAME --follow
        MODEL_TOKEN=... llamarl serve MODEL --host 0.0.0.0 --token-env MODEL_TOKEN
    """
    import asyncio

    from llamarl.inference.service import ModelService

    served, source = _load(settings)

    def tell(**values: object) -> None:
        if output.json:
            print(json.dumps(values), flush=True)

    async def run() -> int:
        service = ModelService(served, settings, source)

        def on_start(url: str) -> None:
            tell(url=f"{url}/v1", model=served.name, version=served.version)
            if not output.json:
                say(f"{served.name} at {url}/v1; Ctrl-C ends it")

        num_cut = await service.run(on_start)
        tell(answered=service.http.num_finished, cut_off=num_cut)
        if not output.json:
            say(f"answered {service.http.num_finished:,} requests{f', cut off {num_cut:,}' if num_cut else ''}")
        return int(num_cut > 0)

    return asyncio.run(run())


def _load(settings: ServeSettings) -> "tuple[Served, NewerWeights | None]":
    """The model, and where newer weights of it come from."""
    from llamarl.controller.directory import RECIPE_FILE
    from llamarl.generation.chats import set_template
    from llamarl.inference.service import Served
    from llamarl.models.checkpoint import load_model, load_tokenizer
    from llamarl.models.template_args import check_template_args

    is_run = (Path(settings.model) / RECIPE_FILE).is_file()
    if not is_run and (settings.follow or settings.step != "latest"):
        raise ConfigError(
            f"{settings.model}: no {RECIPE_FILE}, so it is no run; --follow and --step are for the directory of a run"
        )
    source: NewerWeights | None = None
    version = 0
    if is_run:
        from llamarl.controller.export import load_trained
        from llamarl.controller.following import RunWeights, load_newest

        def tell(text: str) -> None:
            say(text, sys.stderr)

        load = (
            load_newest(settings.model, tell) if settings.follow else load_trained(settings.model, settings.step, tell)
        )
        module, tokenizer, version = load
        source = RunWeights(settings.model, version) if settings.follow else None
    else:
        module, tokenizer = load_model(settings.model), load_tokenizer(settings.model)
    if settings.chat_template is not None:
        set_template(tokenizer, settings.chat_template, settings.model)
    check_template_args(tokenizer.backend.chat_template, settings.chat_template_args)
    tokenizer.chat_template_args = {**tokenizer.chat_template_args, **settings.chat_template_args}
    name = settings.name or Path(settings.model).resolve().name.removesuffix(".gguf")
    return Served(module, tokenizer, name, version), source
