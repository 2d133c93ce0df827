"""Row formats: one raw row in, one checked `Prompt` out, or a `RowError` that names field, value and remedy.

    llamarl     {id?, prompt: text | [messages], answer?, task?, judges?, info?, tools?}; other columns are refused
    trl         the same fields; every other column goes into `info`, where reward functions find it by name
    verifiers   like trl (prompt, answer, info)
    verl        {data_source, prompt, ability, reward_model{style, ground_truth}, extra_info}

A prompt that is plain text becomes one user message, and `info[TEXT_PROMPT]` remembers it, so that a TRL-style reward
function gets text where TRL would give it text. `info` and `tools` may be JSON text, since tables hold nothing nested.
"""

import datetime
import decimal
import hashlib
import json
import math
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llamarl.core.config import suggest
from llamarl.core.records import Message, Prompt

RowFormat = Literal["auto", "llamarl", "trl", "verifiers", "verl"]
FORMATS = ("auto", "llamarl", "trl", "verifiers", "verl")
FIELDS = ("id", "prompt", "answer", "task", "judges", "info", "tools")
ROLES = ("system", "developer", "user", "assistant", "tool")
TEXT_PROMPT = "is_text_prompt"
"""Key in `Prompt.info`, True where the row's prompt was text instead of messages."""

EXCERPT_CHARACTERS = 60
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is not a prompt, and why."""

    source: str
    """File or data set."""
    line: int
    """Line of a text file, row of a table; from 1."""
    reason: str
    """Short name of the kind of defect, for counting."""
    field: str
    """The place in the row, such as `prompt[1].role`; empty for the row as a whole."""
    problem: str
    remedy: str

    def __str__(self) -> str:
        where = f", field '{self.field}'" if self.field else ""
        return f"{self.source}, line {self.line}{where}: {self.problem}; {self.remedy}"


class RowError(Exception):
    """Raised while one row is read; `at` turns it into a `BadRow`."""

    def __init__(self, reason: str, field: str, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.reason, self.field, self.problem, self.remedy = reason, field, problem, remedy

    def at(self, source: str, line: int) -> BadRow:
        """The defect with its place."""
        return BadRow(source, line, self.reason, self.field, self.problem, self.remedy)


def excerpt(value: Any) -> str:
    """Returns at most 60 characters of `repr(value)`."""
    text = repr(value[: 2 * EXCERPT_CHARACTERS] if isinstance(value, str | bytes) else value)
    return text if len(text) <= EXCERPT_CHARACTERS else text[:EXCERPT_CHARACTERS] + "…"


def row_to_prompt(
    row: Mapping[str, Any], format: RowFormat = "auto", mapping: Mapping[str, str] | None = None
) -> Prompt:
    """One row as a `Prompt`.

    Args:
        row: column name -> plain JSON value (`plain_row`). Null columns count as absent, except `prompt`.
        format: one of `FORMATS`; `auto` decides by the row's columns.
        mapping: our field -> the row's column, for columns with other names.

    Raises:
        RowError: the row is no prompt.
    """
    canonical = _canonical(row)
    if mapping:
        row = _rename_columns(row, mapping)
    if format == "auto":
        format = "verl" if "reward_model" in row else "trl"
    messages, is_text = _messages(row)
    rest = {name: value for name, value in row.items() if name != "prompt" and value is not None}
    identifier = _identifier(rest.pop("id", None), canonical)
    task = _task(rest.pop("task", None))
    tools = read_tools(rest.pop("tools", None))
    if format == "verl":
        answer, info = _verl_fields(rest)
        task = rest.get("data_source", task) if task == "default" else task
    else:
        answer, info = rest.pop("answer", None), _info(rest, is_strict=format == "llamarl")
    if is_text:
        info[TEXT_PROMPT] = True
    return Prompt(identifier, messages, answer, task, info, tools)


def prompt_to_row(prompt: Prompt) -> dict[str, Any]:
    """The `llamarl` row of a prompt; `row_to_prompt` gives back an equal one."""
    info = dict(prompt.info)
    is_text = bool(info.pop(TEXT_PROMPT, False)) and len(prompt.messages) == 1
    content = prompt.messages[0]["content"] if is_text else [dict(message) for message in prompt.messages]
    row: dict[str, Any] = {"id": prompt.id, "prompt": content}
    if prompt.answer is not None:
        row["answer"] = prompt.answer
    if prompt.task != "default":
        row["task"] = prompt.task
    if info:
        row["info"] = info
    if prompt.tools is not None:
        row["tools"] = [dict(tool) for tool in prompt.tools]
    return row


# ---- values ---------------------------------------------------------------------------------------------------------


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a table's or program's row in plain JSON values; dates become text, decimals numbers.

    Raises:
        RowError: a value that has no plain form, such as bytes.
    """
    try:
        plain: dict[str, Any] = json.loads(json.dumps(row, default=_plain))
    except RecursionError:
        raise _nested_too_deep() from None
    except (ValueError, TypeError):
        raise _unplain_value(row) from None
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, uuid.UUID | datetime.timedelta):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value))


def _canonical(row: Mapping[str, Any]) -> bytes:
    """A plain row as sorted JSON without its null columns: what its hash is taken of. Refuses NaN and broken text."""
    present = {name: value for name, value in row.items() if value is not None}
    try:
        return json.dumps(present, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()
    except RecursionError:
        raise _nested_too_deep() from None
    except ValueError:  # UnicodeEncodeError among them
        raise _unplain_value(present) from None


def _nested_too_deep() -> RowError:
    return RowError("nested_too_deep", "", "lists or objects nested too deeply", "flatten the row")


def _unplain_value(row: Mapping[str, Any]) -> RowError:
    """The error for the first value in the row that is not plain JSON."""
    for field, value in _leaves(row, ""):
        if isinstance(value, float) and not math.isfinite(value):
            return RowError("not_finite", field, f"{value} is not a finite number", "write null or leave it out")
        if isinstance(value, str) and _SURROGATE.search(value):
            return _broken_text(field, value)
        if not isinstance(value, str | int | float | None):
            problem = f"a value of type {type(value).__name__}: {excerpt(value)}"
            return RowError("not_plain", field, problem, "rows hold text, numbers, booleans, lists and objects only")
    return RowError("not_plain", "", "not every key is text", "name columns and keys by text")


def check_text(value: Any, field: str) -> None:
    """Raises `RowError` for the first text in `value` that holds half a surrogate pair: no tokenizer encodes it.

    Args:
        value: text, or lists and objects that hold texts.
        field: where the value stands in its row.
    """
    for place, text in _leaves(value, field):
        if isinstance(text, str) and _SURROGATE.search(text):
            raise _broken_text(place, text)


def _broken_text(field: str, text: str) -> RowError:
    problem = f"half a surrogate pair: {excerpt(text)}"
    return RowError("lone_surrogate", field, problem, "repair the text where it was cut or escaped")


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every key and every innermost value, with its path."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield path, key
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    else:
        yield path, value


# ---- fields ---------------------------------------------------------------------------------------------------------


def _rename_columns(row: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
    for column in mapping.values():
        if column not in row:
            remedy = f"mapping names it;{suggest(column, list(row))}"
            raise RowError("missing_column", column, f"no column '{column}'", remedy)
    used = set(mapping.values())
    kept = {name: value for name, value in row.items() if name not in used and name not in mapping}
    return kept | {field: row[column] for field, column in mapping.items()}


def _messages(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], bool]:
    """The prompt's messages, and whether they came as text."""
    if "prompt" not in row:
        raise _missing_prompt(row)
    value = row["prompt"]
    if value is None:
        raise RowError("null_prompt", "prompt", "null", "give it a text or drop the row")
    if isinstance(value, str):
        if not value.strip():
            raise RowError("empty_prompt", "prompt", f"empty: {excerpt(value)}", "give it a text or drop the row")
        return ({"role": "user", "content": value},), True
    if not isinstance(value, list | tuple):
        problem = f"a {type(value).__name__}: {excerpt(value)}"
        raise RowError("wrong_type", "prompt", problem, "write text or a list of {role, content} messages")
    if not value:
        raise RowError("empty_prompt", "prompt", "no messages", "give at least one user message or drop the row")
    messages = tuple(read_message(item, f"prompt[{index}]") for index, item in enumerate(value))
    _check_order(messages)
    return messages, False


def read_turns(value: Any, field: str, role: str) -> list[Message]:
    """Messages of a row for supervised training: text is one message of `role`, anything else a list of messages.

    Args:
        value: of the row.
        field: its name.
        role: who says the text: the user for prompts, the assistant for completions.

    Raises:
        RowError: neither text nor messages, or text that cannot be encoded.
    """
    check_text(value, field)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if not isinstance(value, list | tuple) or not value:
        problem = f"{excerpt(value)} is no list of messages"
        raise RowError("bad_messages", field, problem, "give text or a list of {role, content} messages")
    return [read_message(item, f"{field}[{index}]") for index, item in enumerate(value)]


def _missing_prompt(row: Mapping[str, Any]) -> RowError:
    columns = ", ".join(list(row)[:8]) or "none"
    if "messages" in row:
        problem = "no 'prompt'; 'messages' holds a whole chat, its answer included"
        remedy = "write the turns before the answer into 'prompt' (and the answer into 'answer')"
        return RowError("whole_chat", "messages", problem, remedy)
    problem = f"no column 'prompt' (columns: {columns})"
    if "question" in row:
        return RowError("missing_prompt", "prompt", problem, "to read 'question' pass mapping={'prompt': 'question'}")
    remedy = "name the right column with mapping={'prompt': COLUMN}"
    return RowError("missing_prompt", "prompt", problem, remedy)


def read_message(item: Any, path: str) -> Message:
    """One checked message, without its null fields. Raises `RowError`."""
    if not isinstance(item, Mapping):
        problem = f"a {type(item).__name__}: {excerpt(item)}"
        raise RowError("bad_message", path, problem, "each message is an object with role and content")
    message = {name: value for name, value in item.items() if value is not None}  # tables fill absent keys with null
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise RowError("bad_role", f"{path}.role", f"{excerpt(role)} is no role", f"use one of {', '.join(ROLES)}")
    content = message.get("content")
    if content is None:
        if role == "assistant" and message.get("tool_calls"):
            return message
        raise RowError("missing_content", f"{path}.content", "no content", "give the message a text")
    if not isinstance(content, str):
        problem = f"a {type(content).__name__}: {excerpt(content)}"
        raise RowError("bad_content", f"{path}.content", problem, "content is text; join the parts into one string")
    if role == "user" and not content.strip():
        raise RowError(
            "empty_prompt", f"{path}.content", f"empty: {excerpt(content)}", "give it a text or drop the row"
        )
    return message


def _check_order(messages: tuple[Message, ...]) -> None:
    roles = [message["role"] for message in messages]
    for index, role in enumerate(roles):
        field, before = f"prompt[{index}].role", roles[index - 1] if index else None
        if role in ("system", "developer") and any(r not in ("system", "developer") for r in roles[:index]):
            raise RowError("role_order", field, f"'{role}' after '{before}'", "put it before the first user message")
        if role == "tool" and before not in ("assistant", "tool"):
            problem = f"'tool' after {excerpt(before)}" if before else "'tool' comes first"
            raise RowError("role_order", field, problem, "a tool message answers the assistant message before it")
    if roles[-1] not in ("user", "tool"):
        remedy = "end with a user or tool message: the model writes the next turn (a reference goes into 'answer')"
        raise RowError("role_order", f"prompt[{len(roles) - 1}].role", f"the last message is '{roles[-1]}'", remedy)


def _identifier(value: Any, canonical: bytes) -> str:
    if value is None:
        return hashlib.blake2b(canonical, digest_size=8).hexdigest()
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise RowError("bad_id", "id", f"{excerpt(value)} is no id", "use text or an integer, or leave it out")
    return str(value)


def _task(value: Any) -> str:
    if value is None:
        return "default"
    if not isinstance(value, str) or not value.strip():
        raise RowError("bad_task", "task", f"{excerpt(value)} is no name", "use text, or leave it out")
    return value


def read_tools(value: Any) -> tuple[Mapping[str, Any], ...] | None:
    """A row's tools: a list of JSON schemas, or its JSON text. Raises `RowError`."""
    if value is None:
        return None
    value = _from_json_text(value)
    check_text(value, "tools")
    if not isinstance(value, list | tuple):
        raise RowError("bad_tools", "tools", f"{excerpt(value)} is no list", "give a list of JSON schemas")
    for index, tool in enumerate(value):
        if not isinstance(tool, Mapping):
            raise RowError("bad_tools", f"tools[{index}]", f"{excerpt(tool)} is no object", "give a JSON schema")
    return tuple(value)


def _info(rest: dict[str, Any], is_strict: bool) -> dict[str, Any]:
    """`info`, `judges` and the other columns as one mapping."""
    info = _object(rest.pop("info", {}), "info")
    judges = rest.get("judges", [])
    if not isinstance(judges, list) or not all(isinstance(judge, str) for judge in judges):
        raise RowError("bad_judges", "judges", f"{excerpt(judges)} is no list of names", "give a list of judge names")
    for column in rest:
        if is_strict and column != "judges":
            raise RowError(
                "unknown_column", column, f"unknown column '{column}'", f"{suggest(column, list(FIELDS))}".strip()
            )
        if column in info:
            raise RowError("column_clash", column, f"column '{column}' is also a key of 'info'", "rename one of them")
    return {**info, **rest}


def _verl_fields(rest: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """`ground_truth` as the answer; the columns stay in `info` as they are, for `judges.VerlJudge`."""
    reward_model = _object(rest.get("reward_model"), "reward_model")
    extra_info = _object(rest.get("extra_info", {}), "extra_info")
    if "ground_truth" not in reward_model:
        remedy = "add it (null where the judge needs no reference)"
        raise RowError("missing_answer", "reward_model.ground_truth", "no ground_truth", remedy)
    source = rest.get("data_source", "default")
    if not isinstance(source, str) or not source:
        raise RowError("bad_task", "data_source", f"{excerpt(source)} is no name", "use text")
    return reward_model["ground_truth"], {**rest, "reward_model": reward_model, "extra_info": extra_info}


def _object(value: Any, field: str) -> dict[str, Any]:
    value = _from_json_text(value)
    if not isinstance(value, Mapping):
        raise RowError(
            f"bad_{field}", field, f"{excerpt(value)} is no object", "give an object (a JSON object as text will do)"
        )
    return dict(value)


def _from_json_text(value: Any) -> Any:
    """Parses JSON text; text that is no JSON stays as it is, for the caller to refuse."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
