"""Proves, before a run starts, that tokenizer, chat template and model fit together.

Silent template mistakes (two BOS, a turn that ends in an unknown token, a history that is rewritten) cost whole runs
and raise no error by themselves. What would spoil any run raises here; what spoils only some is a named limit, to be
told where the run's data meet it.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from llamarl.core.errors import ConfigError
from llamarl.core.records import Message
from llamarl.models.tokenizer import Tokenizer

_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    },
}
_CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}


def _turns(*contents: str, system: str = "") -> tuple[Message, ...]:
    """A conversation that alternates between user and assistant, starting with the user."""
    roles = ("user", "assistant")
    turns = [{"role": roles[index % 2], "content": content} for index, content in enumerate(contents)]
    return ({"role": "system", "content": system}, *turns) if system else tuple(turns)


_CHATS: dict[str, tuple[Message, ...]] = {
    "one turn": _turns("Hello", "Good day"),
    "one turn with system": _turns("Hello", "Good day", system="Be brief"),
    "two turns": _turns("Hello", "Good day", "And now", "Goodbye"),
    "two turns with system": _turns("Hello", "Good day", "And now", "Goodbye", system="Be brief"),
    "three turns": _turns("one", "two", "three", "four", "five", "six"),
    "several lines": _turns("first\n\nsecond", "a\n- b\n- c\n", "again", "done"),
    "spaces at the edges": _turns("  Hello ", " Good day  ", " more ", "end"),
    "other scripts": _turns("Grüße, 你好, привет", "नमस्ते", "🙂", "ok"),
    "thinking": _turns("Is 7 prime", "<think>\n2 and 3 fail\n</think>\n\nYes", "And 8", "No"),
    "tools offered": _turns("Add 2 and 3", "5"),
    "tool called": (
        {"role": "user", "content": "Add 2 and 3"},
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "name": "add", "content": "5"},
        {"role": "assistant", "content": "It is 5"},
    ),
}

THINKING_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
"""The texts that open and close a block of thoughts, of each family of models."""
_THOUGHTS = re.compile("|".join(rf"{re.escape(a)}.*?(?:{re.escape(b)}\s*|\Z)" for a, b in THINKING_TAGS), re.DOTALL)
_OF_HISTORY = ("thinking_dropped", "history_rewritten")
"""Limits of conversations with more than one answer."""


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """The findings of `check_template` short of an error."""

    limits: dict[str, str] = field(default_factory=dict)
    """The limits by name: what the template can't do and what follows. Names: `no_template`, `no_bos`, `turn_end`,
    `thinking_dropped`, `history_rewritten`, `tools_ignored`."""
    refused: tuple[str, ...] = ()
    """Names of the mock chats the template refuses (a system role it doesn't know, tool messages)."""

    def limits_for(self, prompts: Iterable[tuple[Sequence[Message], Any]]) -> list[str]:
        """The limits that these prompts meet, in words.

        Args:
            prompts: messages and tools (None or empty: none) of each. Tools count for `tools_ignored`, an earlier
                answer for `thinking_dropped` and `history_rewritten`; the other limits concern every prompt.
        """
        needs_tools = needs_history = False
        for messages, tools in prompts:
            needs_tools = needs_tools or bool(tools)
            needs_history = needs_history or any(message["role"] == "assistant" for message in messages)
        unmet = {*([] if needs_tools else ["tools_ignored"]), *([] if needs_history else _OF_HISTORY)}
        return [f"{name}: {text}" for name, text in self.limits.items() if name not in unmet]


def check_template(
    tokenizer: Tokenizer, config: Any, *, is_multi_turn: bool = False, is_policy: bool = True
) -> TemplateReport:
    """Checks vocabulary, end tokens, BOS and the template's behaviour on eleven mock chats.

    Args:
        tokenizer: as loaded with the model.
        config: the model's transformers config.
        is_multi_turn: the run trains conversations of several turns; a rewritten history is then an error (a dropped
            thinking block stays a limit: train one sample per turn).
        is_policy: whether the model writes answers. One that only reads them needs no end token, and no answer has to
            follow its generation prompt.

    Raises:
        ConfigError: names the check, for a mock chat also the chat and the two texts that disagree.
    """
    _check_ids(tokenizer, config, is_policy)
    if not tokenizer.has_chat_template:
        return TemplateReport({"no_template": "prompts are continued as plain text: one user message, no tools"})
    limits: dict[str, str] = {}
    refused = []
    for name, chat in _CHATS.items():
        tools = [_TOOL] if name.startswith("tool") else None
        try:
            stages = _stages(tokenizer, chat, tools)
        except ConfigError:
            if name == "one turn":
                raise
            refused.append(name)
            continue
        if is_policy:
            _check_stages(name, stages, limits, is_multi_turn)
        _check_bos(tokenizer, name, stages[0])
    limits |= _check_single_turn(tokenizer, is_policy)
    return TemplateReport(limits, tuple(refused))


def _check_ids(tokenizer: Tokenizer, config: Any, is_policy: bool) -> None:
    text_config = config.get_text_config()
    if misfit := tokenizer.why_unfit(text_config.vocab_size):
        raise ConfigError(f"tokenizer: {misfit}")
    if not is_policy:
        return
    if not tokenizer.eos_ids:
        raise ConfigError(
            "tokenizer: neither it nor the model names an end token; set eos_token in tokenizer_config.json"
        )
    declared = text_config.eos_token_id
    model_ends = {*tokenizer.end_ids, *([declared] if isinstance(declared, int) else declared or [])}
    own = tokenizer.backend.eos_token_id
    if own is not None and model_ends and own not in model_ends:
        raise ConfigError(
            f"tokenizer: its end token {tokenizer.backend.eos_token!r} has id {own}, but the model ends at "
            f"{sorted(model_ends)}; make eos_token_id agree in tokenizer_config.json and generation_config.json"
        )


def _stages(tokenizer: Tokenizer, chat: Sequence[Message], tools: list[Any] | None) -> list[str]:
    """The text before and after each of the assistant's turns: each should start with the one before it."""
    stages = []
    for index, message in enumerate(chat):
        if message["role"] == "assistant":
            stages.append(tokenizer.render(chat[:index], tools))
            stages.append(tokenizer.render(chat[: index + 1], tools, add_generation_prompt=False))
    return stages


def _check_stages(name: str, stages: list[str], limits: dict[str, str], is_multi_turn: bool) -> None:
    for index, (before, after) in enumerate(itertools.pairwise(stages)):
        if after.startswith(before):
            continue
        texts = f"mock chat {name!r}:\n  before: {before!r}\n  after:  {after!r}"
        if _without_thinking(after).startswith(_without_thinking(before)):
            limits.setdefault("thinking_dropped", f"earlier thinking is dropped or added: one sample per turn; {texts}")
        elif index == 0:
            raise ConfigError(f"chat template: the text of an answered prompt doesn't start with the prompt; {texts}")
        elif is_multi_turn:
            raise ConfigError(
                f"chat template: a later turn rewrites earlier text, so turns can't be trained together; {texts}\n"
                "use a template that only appends, or train single turns"
            )
        else:
            limits.setdefault("history_rewritten", f"later turns rewrite earlier text: single turns only; {texts}")


def _check_bos(tokenizer: Tokenizer, name: str, text: str) -> None:
    """One BOS in front at most. Further on it may stand as often as the family wants.

    ChatML's BOS opens every turn, Llama 2's every exchange; where it is the end token too, it closes turns.
    """
    bos, ids = tokenizer.bos_id, tokenizer.encode(text)
    if bos is not None and ids[:2] == (bos, bos):
        raise ConfigError(
            f"chat template: mock chat {name!r} starts with two {tokenizer.backend.bos_token!r}: {text!r} -> "
            f"{list(ids[:8])}; let one place write it, once"
        )


def _check_single_turn(tokenizer: Tokenizer, is_policy: bool) -> dict[str, str]:
    limits = {}
    chat = _CHATS["one turn"]
    ids = tokenizer.encode_chat(chat[:1])
    adds_bos = tokenizer.bos_id is not None and tokenizer.backend.encode("a")[:1] == [tokenizer.bos_id]
    if adds_bos and ids[:1] != (tokenizer.bos_id,):
        limits["no_bos"] = f"plain text starts with {tokenizer.backend.bos_token!r}, but the chat template has none"
    answered = tokenizer.render(chat, add_generation_prompt=False)
    before, found, closing = answered.rpartition(chat[-1]["content"])
    if not found or chat[0]["content"] not in before:
        raise ConfigError(
            f"chat template: leaves out or rewrites what is said; mock chat 'one turn': {_texts(chat)} -> {answered!r}"
        )
    if is_policy and not set(tokenizer.encode(closing)) & set(tokenizer.eos_ids):
        limits["turn_end"] = (
            f"an answer ends with {closing!r}, which holds none of the end ids {list(tokenizer.eos_ids)}"
        )
    try:
        ignores_tools = tokenizer.render(chat[:1], [_TOOL]) == tokenizer.render(chat[:1])
    except ConfigError:
        ignores_tools = True
    if ignores_tools:
        limits["tools_ignored"] = "the chat template doesn't show tools to the model"
    return limits


def _texts(chat: Sequence[Message]) -> list[str]:
    return [message["content"] for message in chat]


def _without_thinking(text: str) -> str:
    return _THOUGHTS.sub("", text)
