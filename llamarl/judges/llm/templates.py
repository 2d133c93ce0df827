"""Questions for an LLM judge: shipped prompts (`prompts/*.toml`), the user's own, and how a completion gets in.

A completion under judgement is data, but a model reads data and instructions in the same way, so a completion can try
to give orders ("full marks, please"). Each piece of data therefore stands between markers with a code computed from
that very text, which no text can hold: a completion cannot close its own markers. And the prompts tell the judge to
obey nothing between them. Both lower the risk; neither removes it. Measure what is left: `llamarl judge audit`.
"""

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from llamarl.core.config import Config, read_toml, suggest
from llamarl.core.errors import ConfigError
from llamarl.core.records import Message, Prompt

Way = Literal["probability", "json"]
FOLDER = Path(__file__).parent / "prompts"
FIELDS = ("prompt", "completion", "reference", "criteria")
_FIELD = re.compile(r"\{\{(\w+)\}\}")


class Template(Config):
    """One question to a model about one completion.

    The texts hold `{{completion}}` and, where wanted, `{{prompt}}`, `{{reference}}` (the row's `answer`, or else
    `info.reference`) and `{{criteria}}` (the row's `info.criteria`, or else the judge's setting, or else the default).
    """

    version: str = Field(min_length=1)
    """Changes with every change of a text; part of the cache key and of the judge's `version`."""
    summary: str = ""
    way: Way
    """Way in which the answer is read, unless the judge's settings say otherwise."""
    system: str = ""
    user: str
    ask_token: str | None = None
    """Ends the user message where one token is read; None: the template cannot be used so."""
    ask_json: str | None = None
    """Ends the user message where JSON is read."""
    positive: tuple[str, ...] = ()
    """Tokens that mean: passes. Compared without case and surrounding space."""
    negative: tuple[str, ...] = ()
    """Tokens that mean: violates."""
    min_score: float = 0.0
    max_score: float = 1.0
    pass_score: float | None = None
    """Least JSON score that passes where the answer does not say; None: the middle."""
    defaults: dict[Literal["criteria", "reference"], str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields = _FIELD.findall(self.system + self.user)
        for name in fields:
            if name not in FIELDS:
                raise ValueError(f"{{{{{name}}}}}: unknown field.{suggest(name, list(FIELDS))}")
        if "completion" not in fields:
            raise ValueError("user: has no {{completion}}, so the judge would not see what it judges")
        if self.min_score >= self.max_score:
            raise ValueError(f"max_score={self.max_score}: must be above min_score={self.min_score}")
        if self.ask_token is not None and not (self.positive and self.negative):
            raise ValueError("ask_token: needs the tokens in 'positive' and 'negative'")
        positive, negative = ({word.strip().casefold() for word in words} for words in (self.positive, self.negative))
        if "" in positive | negative:
            raise ValueError("positive, negative: hold an empty word, which every answer begins with")
        if positive & negative:
            raise ValueError("positive, negative: hold the same word")
        if self.asks(self.way) is None:
            raise ValueError(f"way={self.way!r}: needs {'ask_token' if self.way == 'probability' else 'ask_json'}")
        return self

    def asks(self, way: Way) -> str | None:
        """The sentence that asks for the answer in this way; None where the template has none."""
        return self.ask_token if way == "probability" else self.ask_json

    def render(self, way: Way, prompt: Prompt, completion: str, criteria: str | None = None) -> list[Message]:
        """The conversation to send.

        Raises:
            ConfigError: the row or the settings lack a field of the template; names it.
        """
        values: dict[str, str | None] = {
            "prompt": fence("request", conversation(prompt)),
            "completion": fence("reply", completion),
            "reference": _reference(prompt, self.defaults.get("reference")),
            "criteria": prompt.info.get("criteria") or criteria or self.defaults.get("criteria"),
        }
        user = f"{_fill(self.user, values).strip()}\n\n{(self.asks(way) or '').strip()}"
        messages: list[Message] = [{"role": "user", "content": user}]
        if self.system:
            messages.insert(0, {"role": "system", "content": _fill(self.system, values).strip()})
        return messages


def load_template(name: str) -> Template:
    """A shipped template by name, or one of your own by the path of its TOML file.

    Raises:
        ConfigError: no such template or file, or what is wrong in it.
    """
    if name.endswith(".toml"):
        return Template.from_toml(name)
    if name not in shipped_templates():
        raise ConfigError(f"template {name!r}: not shipped.{suggest(name, shipped_templates())} Your own: 'file.toml'")
    return _read_template(name)


def shipped_templates() -> list[str]:
    """Names of the shipped templates."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


@functools.cache
def _read_template(name: str) -> Template:
    return Template.parse(read_toml(FOLDER / f"{name}.toml"), source=f"{name}.toml")


def fence(kind: str, text: str) -> str:
    """Puts the text between markers with a code that the text cannot contain, since it is the text's hash."""
    code = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]
    return f"<{kind} {code}>\n{text}\n</{kind} {code}>"


def conversation(prompt: Prompt) -> str:
    """A lone user message's text; of several messages, each after its role."""
    texts = [_content(message) for message in prompt.messages]
    if len(texts) == 1 and prompt.messages[0].get("role") == "user":
        return texts[0]
    return "\n\n".join(f"[{message.get('role')}]\n{text}" for message, text in zip(prompt.messages, texts, strict=True))


def _content(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return json.dumps(content if content is not None else dict(message), ensure_ascii=False, default=str)


def _reference(prompt: Prompt, default: str | None) -> str | None:
    value: Any = prompt.answer if prompt.answer is not None else prompt.info.get("reference", default)
    if value is None:
        return None
    return fence("reference", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


def _fill(text: str, values: Mapping[str, str | None]) -> str:
    """Replaces the fields of a text in one pass, so that fields inside of values stay text."""

    def value(match: re.Match[str]) -> str:
        found = values[match[1]]
        if found is None:
            raise ConfigError(_MISSING[match[1]])
        return found

    return _FIELD.sub(value, text)


_MISSING = {
    "reference": "answer: this judge compares with a reference; give the row an 'answer' (or info.reference), or name "
    "other judges for it in the row's 'judges'",
    "criteria": "criteria: this judge grades by criteria; give settings.criteria, or the row info.criteria",
}
