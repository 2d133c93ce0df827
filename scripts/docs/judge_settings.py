"""What a shipped judge may be told in `settings`, as the fields of a table: from its config or its constructor."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import ConfigDict, Field, create_model
from pydantic.fields import FieldInfo

from llamarl.core.loading import load_object
from llamarl.judges.llm.judge import LLMJudgeConfig
from llamarl.judges.resolve import SHIPPED

NOT_SET_HERE = ("name",)
"""A recipe gives it beside `settings`."""


def judge_settings(name: str) -> dict[str, FieldInfo]:
    """The settings of the shipped judge called `name`."""
    if name == "llm":
        return dict(LLMJudgeConfig.model_fields)
    constructor = load_object(SHIPPED[name]).__init__
    meanings = argument_meanings(inspect.getdoc(constructor) or "")
    fields: dict[str, Any] = {}
    for key, parameter in list(inspect.signature(constructor).parameters.items())[1:]:
        if key in NOT_SET_HERE:
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[key] = (plain(parameter.annotation), Field(default, description=meanings[key]))
    model = create_model(name, __config__=ConfigDict(arbitrary_types_allowed=True), **fields)
    return dict(model.model_fields)


def plain(annotation: Any) -> Any:
    """The annotation, or the table that stands for it in TOML."""
    tables = [choice for choice in get_args(annotation) if get_origin(choice) is Mapping]
    return dict[get_args(tables[0])] if tables else annotation


def argument_meanings(docstring: str) -> dict[str, str]:
    """Argument -> its text in the docstring's `Args:`."""
    section = re.search(r"^Args:\n((?:    .*\n?)*)", docstring, re.MULTILINE)
    pattern = re.compile(r"^    (\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
    texts = dict(pattern.findall(section[1])) if section else {}
    return {name: sentence(" ".join(text.split())) for name, text in texts.items()}


def sentence(text: str) -> str:
    """With a capital at its start, unless it starts with code."""
    return text[:1].upper() + text[1:]
