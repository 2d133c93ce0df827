"""The conversations of an instruction-following benchmark, read from any form they come in.

    read_conversations("multiIF_20241018.csv", languages=["en", "fr"])     # also Parquet, JSON lines, a Hub id
    read_conversations("builtin")                                          # the set this package ships

Rows may have three forms, told apart by their columns:

    Multi-IF   turn_1_prompt, turn_1_instruction_id_list, turn_1_kwargs (JSON inside JSON), ... 2, 3; key; language
    ours       key, language, turns [{prompt, instructions [{id, kwargs}]}]
    IFEval     key, prompt, instruction_id_list, kwargs [{...}]: one turn, in English

The instructions of a turn are cumulative: they begin with those of the turn before. An id may occur twice, so an
instruction is known by its position.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, overload

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError, DataError
from llamarl.data.prompts import BadRowPolicy, raw_rows
from llamarl.data.rows import BadRow, RowError, excerpt
from llamarl.judges.rules import RULES, Instruction

BUILTIN = "builtin"
"""Source name of the set that this package ships."""

MAX_TURNS = 3

LANGUAGES: Mapping[str, str] = MappingProxyType(
    {
        "en": "English",
        "fr": "French",
        "ru": "Russian",
        "hi": "Hindi",
        "it": "Italian",
        "pt": "Portuguese",
        "es": "Spanish",
        "zh": "Chinese",
        "de": "German",
        "th": "Thai",
        "vi": "Vietnamese",
    }
)
"""Code -> the name that the released data uses: the eight of Multi-IF, and three more that its grader knows."""

_CODES = {name.lower(): code for code, name in LANGUAGES.items()} | {code: code for code in LANGUAGES}


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the user, and what the reply to it must follow."""

    prompt: str
    instructions: tuple[Instruction, ...]
    """The instructions that hold at this turn, those of earlier turns first: `{"id": ..., "kwargs": {...}}`."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row of a benchmark."""

    key: str
    """Unique in its data."""
    language: str
    """Two-letter code, one of `LANGUAGES`."""
    turns: tuple[Turn, ...]
    """One to three."""


class Conversations(Sequence[Conversation]):
    """Conversations with unique keys, in file order; where they came from; the rows that were skipped."""

    def __init__(
        self,
        conversations: Iterable[Conversation],
        source: str = "rows",
        revision: str = "",
        skipped: Iterable[BadRow] = (),
    ) -> None:
        self._conversations = tuple(conversations)
        self.source, self.revision, self.skipped = source, revision, tuple(skipped)

    @overload
    def __getitem__(self, index: int) -> Conversation: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Conversation, ...]: ...
    def __getitem__(self, index: int | slice) -> Conversation | tuple[Conversation, ...]:
        return self._conversations[index]

    def __len__(self) -> int:
        return len(self._conversations)


def read_conversations(
    source: str | Path | Iterable[Mapping[str, Any]],
    *,
    languages: Sequence[str] | None = None,
    turns: int = MAX_TURNS,
    limit: int | None = None,
    on_bad_row: BadRowPolicy = "error",
) -> Conversations:
    """Reads a benchmark.

    Args:
        source: `builtin`; a path or glob of `.csv`, `.parquet`, `.jsonl`; a Hub id; or rows.
        languages: codes or English names to keep; None keeps all.
        turns: keep at most this many turns of each conversation, 1 to 3.
        limit: stop after this many conversations.
        on_bad_row: `error` raises at the first bad row, `skip` lists it in the result.

    Raises:
        DataError: a bad row (names source, line, field and remedy), an unreadable source, or nothing that is asked for.
        ConfigError: a wrong argument.
    """
    wanted = _select_languages(languages, turns, limit, on_bad_row)
    found: list[Conversation] = []
    skipped: list[BadRow] = []
    seen: dict[str, int] = {}
    for name, line, row in _rows(source):
        try:
            conversation = _conversation(row, turns)
            if conversation.key in seen:
                problem = f"{conversation.key!r} is also the key of line {seen[conversation.key]}"
                raise RowError("duplicate_key", "key", problem, "make keys unique")
        except RowError as error:
            skipped.append(error.at(name, line))
            if on_bad_row == "error":
                raise DataError(str(skipped[-1])) from None
            continue
        seen[conversation.key] = line
        if conversation.language in wanted:
            found.append(conversation)
        if len(found) == limit:
            break
    label = str(source) if isinstance(source, str | Path) else "rows"
    if not found:
        asked = f" in {', '.join(sorted(wanted))}" if languages is not None else ""
        first = f"; the first bad row: {skipped[0]}" if skipped else ""
        raise DataError(f"{label}: no conversation{asked} among {len(seen)} good rows{first}")
    return Conversations(found, label, _revision(source, found), skipped)


def language_code(name: str) -> str:
    """The code of a language given by code or English name. Raises `ConfigError` for an unknown one."""
    code = _CODES.get(str(name).strip().lower())
    if code is None:
        raise ConfigError(f"language {name!r} is unknown.{suggest(str(name), [*LANGUAGES, *LANGUAGES.values()])}")
    return code


def _select_languages(languages: Sequence[str] | None, turns: int, limit: int | None, on_bad_row: str) -> set[str]:
    if not 1 <= turns <= MAX_TURNS:
        raise ConfigError(f"turns={turns}; give 1 to {MAX_TURNS}")
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}; give a positive number, or leave it out for all rows")
    if on_bad_row not in ("error", "skip"):
        raise ConfigError(f"on_bad_row={on_bad_row!r}; use 'error' or 'skip'")
    return set(LANGUAGES) if languages is None else {language_code(name) for name in languages}


# ---- sources --------------------------------------------------------------------------------------------------------


def _rows(source: str | Path | Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, int, dict[str, Any] | RowError]]:
    if source != BUILTIN:
        yield from raw_rows(source)
        return
    with resources.as_file(_builtin_file()) as path:
        yield from raw_rows(path)


def _builtin_file() -> Any:
    return resources.files("llamarl.evals") / "assets" / "conversations.jsonl"


def _revision(source: Any, conversations: Iterable[Conversation]) -> str:
    """SHA-256 of the file; of the conversations, as JSON, where they come from elsewhere."""
    if source == BUILTIN:
        content = _builtin_file().read_bytes()
    elif isinstance(source, str | Path) and Path(source).is_file():
        content = Path(source).read_bytes()
    else:
        content = json.dumps([_plain(each) for each in conversations], sort_keys=True).encode()
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _plain(conversation: Conversation) -> list[Any]:
    turns = [[turn.prompt, [dict(instruction) for instruction in turn.instructions]] for turn in conversation.turns]
    return [conversation.key, conversation.language, turns]


# ---- rows -----------------------------------------------------------------------------------------------------------


def _conversation(row: dict[str, Any] | RowError, max_turns: int) -> Conversation:
    if isinstance(row, RowError):
        raise row
    if "turn_1_prompt" in row or "turn_1_instruction_id_list" in row:
        turns = _released_turns(row)
    elif "instruction_id_list" in row:
        turns = [_turn(_text(row.get("prompt"), "prompt"), row, "instruction_id_list", "kwargs")]
    else:
        turns = _our_turns(row)
    for number, (earlier, later) in enumerate(pairwise(turns), start=2):
        if later.instructions[: len(earlier.instructions)] != earlier.instructions:
            problem = f"the instructions of turn {number} do not begin with those of turn {number - 1}"
            raise RowError("not_cumulative", f"turn {number}", problem, "repeat earlier instructions first, in order")
    return Conversation(_key(row), _language(row), tuple(turns[:max_turns]))


def _key(row: Mapping[str, Any]) -> str:
    key = row.get("key")
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        raise RowError("no_key", "key", f"no usable key: {excerpt(key)}", "give each row a unique text or number")
    return str(key)


def _language(row: Mapping[str, Any]) -> str:
    name = row.get("language", "en" if "instruction_id_list" in row else None)
    try:
        return language_code(name) if isinstance(name, str) else language_code(repr(name))
    except ConfigError as error:
        raise RowError("unknown_language", "language", str(error), "or leave the row out") from None


def _released_turns(row: Mapping[str, Any]) -> list[Turn]:
    turns: list[Turn] = []
    for number in range(1, MAX_TURNS + 1):
        field = f"turn_{number}_prompt"
        if row.get(field) in (None, "", "None"):
            continue
        if len(turns) != number - 1:
            raise RowError("missing_turn", f"turn_{len(turns) + 1}_prompt", f"empty, but {field} is not", "fill it")
        message = _decode_json(row[field], field)
        if not isinstance(message, Mapping):
            raise RowError("no_message", field, f"not a chat message: {excerpt(message)}", "write {role, content}")
        prompt = _text(message.get("content"), f"{field}.content")
        turns.append(_turn(prompt, row, f"turn_{number}_instruction_id_list", f"turn_{number}_kwargs"))
    if not turns:
        raise RowError("missing_turn", "turn_1_prompt", "empty", "a conversation has at least one turn")
    return turns


def _turn(prompt: str, row: Mapping[str, Any], id_field: str, kwargs_field: str) -> Turn:
    """A turn whose ids and arguments stand in two parallel lists, either of which may be JSON text."""
    ids, kwargs = (_list(_decode_json(row.get(field), field), field) for field in (id_field, kwargs_field))
    if len(ids) != len(kwargs):
        problem = f"{len(kwargs)} entries for {len(ids)} ids"
        raise RowError("length_mismatch", kwargs_field, problem, "give each instruction its arguments, if only {}")
    if not ids:
        raise _no_instruction(id_field)
    pairs = enumerate(zip(ids, kwargs, strict=True))
    return Turn(
        prompt,
        tuple(
            _instruction(id, _decode_json(values, f"{kwargs_field}[{i}]"), f"{id_field}[{i}]", f"{kwargs_field}[{i}]")
            for i, (id, values) in pairs
        ),
    )


def _our_turns(row: Mapping[str, Any]) -> list[Turn]:
    turns = _list(row.get("turns"), "turns")
    if not 1 <= len(turns) <= MAX_TURNS:
        raise RowError("turn_count", "turns", f"{len(turns)} turns", f"give 1 to {MAX_TURNS}")
    return [_our_turn(turn, f"turns[{index}]") for index, turn in enumerate(turns)]


def _our_turn(turn: Any, field: str) -> Turn:
    if not isinstance(turn, Mapping):
        raise RowError("no_turn", field, f"not a mapping: {excerpt(turn)}", "write {prompt, instructions}")
    instructions = []
    for index, entry in enumerate(_list(turn.get("instructions"), f"{field}.instructions")):
        where = f"{field}.instructions[{index}]"
        if not isinstance(entry, Mapping):
            raise RowError("no_instruction", where, f"not a mapping: {excerpt(entry)}", "write {id, kwargs}")
        kwargs = entry.get("kwargs")
        values = {} if kwargs is None else kwargs
        instructions.append(_instruction(entry.get("id"), values, f"{where}.id", f"{where}.kwargs"))
    if not instructions:
        raise _no_instruction(f"{field}.instructions")
    return Turn(_text(turn.get("prompt"), f"{field}.prompt"), tuple(instructions))


def _no_instruction(field: str) -> RowError:
    return RowError("no_instruction", field, "an empty list", "give each turn at least one instruction")


def _instruction(id: Any, kwargs: Any, id_field: str, kwargs_field: str) -> Instruction:
    """Arguments are only brought into form here; whether they make sense, the rules say."""
    if not isinstance(id, str) or id not in RULES:
        raise RowError("unknown_instruction", id_field, f"no instruction {id!r}", suggest(str(id), list(RULES)).strip())
    if not isinstance(kwargs, Mapping):
        problem = f"not a mapping: {excerpt(kwargs)}"
        raise RowError("no_arguments", kwargs_field, problem, "give the arguments by name, or {}")
    return {"id": id, "kwargs": {name: value for name, value in kwargs.items() if value is not None}}


def _decode_json(value: Any, field: str) -> Any:
    """Reads a value that may be JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError("invalid_json", field, f"no JSON ({error}): {excerpt(value)}", "write it as JSON") from None


def _list(value: Any, field: str) -> list[Any]:
    if not isinstance(value, list):
        raise RowError("not_a_list", field, f"not a list: {excerpt(value)}", "write a JSON list")
    return value


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise RowError("no_text", field, f"not a text: {excerpt(value)}", "write the user's message")
    return value
