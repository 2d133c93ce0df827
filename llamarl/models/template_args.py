"""Arguments of the chat template: what a model's own template lets one choose, such as Qwen3's `enable_thinking`.

One setting, `chat_template_args`, named alike in recipes, commands and functions. Read without torch.
"""

import difflib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, TypeAdapter, ValidationError

from llamarl.core.errors import ConfigError

OWN_VARIABLES = frozenset(
    {
        *("messages", "conversation", "tools", "documents", "chat_template", "add_generation_prompt"),
        *("continue_final_message", "tokenize", "sanitize_control_tokens", "padding", "truncation", "max_length"),
        *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
    }
)
"""Names that are given to every template anyway, or mean something to transformers."""


def _from_text(value: Any) -> Any:
    """JSON text, as the command line gives it, as the table it stands for."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError('give a JSON object, such as {"enable_thinking": false}') from None


def _without_own(value: dict[str, Any]) -> dict[str, Any]:
    if taken := sorted(OWN_VARIABLES & set(value)):
        raise ValueError(f"{taken[0]} is not to be chosen: messages, tools and what is made of them are given")
    return value


ChatTemplateArgs = Annotated[dict[str, Any], BeforeValidator(_from_text), AfterValidator(_without_own)]
"""Type of the setting: a table, or its JSON text."""


_SETTING: TypeAdapter[dict[str, Any]] = TypeAdapter(ChatTemplateArgs)


def parse_template_args(value: Any) -> dict[str, Any]:
    """The setting's value, from a table or JSON text; None: no arguments. Raises `ConfigError`."""
    try:
        return {} if value is None else _SETTING.validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"chat_template_args: {problem}; got {value!r}") from None


def check_template_args(template: Any, args: Mapping[str, Any]) -> None:
    """Refuses arguments that the template never reads, which would do nothing in silence.

    Args:
        template: Jinja text, several by name, or None.
        args: the arguments.

    Raises:
        ConfigError: names the argument, and the template's variable that it resembles.
    """
    words = set(re.findall(r"[A-Za-z_]\w*", str(template or "")))
    for name in args:
        if name not in words:
            close = difflib.get_close_matches(name, sorted(words), n=1, cutoff=0.8)
            hint = f"did you mean {close[0]!r}?" if close else "leave it out, or use a template that reads it"
            raise ConfigError(f"chat_template_args.{name}: the model's chat template has no such variable; {hint}")


def with_defaults(template: Any, args: Mapping[str, Any]) -> Any:
    """The template with `args` written into it, for whoever renders it without giving them.

    Args:
        template: Jinja text, or several by name.
        args: the arguments.
    """
    if not isinstance(template, str):
        return {name: with_defaults(text, args) for name, text in template.items()}
    lines = [
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}\n"
        for name, value in args.items()
    ]
    return "".join(lines) + template  # the template engine drops a line break behind a block


def _literal(value: Any) -> str:
    """A plain value as Jinja writes it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
