"""Prompts for long answers, in the forms in which people have them.

{"prompt": ..., "canary": ...}              LongFact, as released
{"input": ..., "topic": ...}                FActScore's biographies, as released
{"prompt": ..., "id"?, "subject"?}          rows of your own
names.txt                                   one name a line, as FActScore's prompt_entities.txt
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llamarl.core.errors import DataError
from llamarl.core.seeds import derive_seed
from llamarl.data.prompts import raw_rows
from llamarl.data.rows import RowError, check_text, excerpt
from llamarl.factuality.claims import Ask

CANARY_REMEDY = "give --evaluation-only, which writes no training file; or --train-on-canary, which is put on record"


def read_asks(files: Sequence[str], name_prompt: str = "Tell me a bio of {name}.") -> list[Ask]:
    """The prompts of some files, in their order.

    Args:
        files: JSONL, CSV, Parquet, globs, or `.txt` files of names.
        name_prompt: the prompt for a name; `{name}` is filled in.

    Raises:
        DataError: a row that is no prompt, two of one id or text; names file, line and field.
    """
    asks: list[Ask] = []
    places: dict[str, str] = {}
    for name, line, row in _rows(files, name_prompt):
        try:
            if isinstance(row, RowError):
                raise row
            ask = _read_ask(row)
            if ask.id in places:
                problem = f"{ask.id!r} is also the prompt of {places[ask.id]}"
                raise RowError("duplicate_prompt", "id", problem, "remove one of them, or give both an id")
        except RowError as error:
            raise DataError(str(error.at(name, line))) from None
        asks.append(ask)
        places[ask.id] = f"{name}, line {line}"
    if not asks:
        raise DataError(f"{', '.join(files)}: no prompts")
    return asks


def _rows(files: Sequence[str], name_prompt: str) -> Iterator[tuple[str, int, dict[str, Any] | RowError]]:
    for file in files:
        if not file.endswith(".txt"):
            yield from raw_rows(file)
            continue
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read as text: {error}") from None
        for number, line in enumerate(lines, start=1):
            if line.strip():
                text = name_prompt.replace("{name}", line.strip())
                yield file, number, {"prompt": text, "subject": line.strip()}


def _read_ask(row: Mapping[str, Any]) -> Ask:
    text = row.get("prompt", row.get("input"))
    if isinstance(text, list) and len(text) == 1 and isinstance(text[0], Mapping) and text[0].get("role") == "user":
        text = text[0].get("content")
    if not isinstance(text, str) or not text.strip():
        problem = f"{excerpt(text)} is no text" if text is not None else f"missing (columns: {', '.join(row)})"
        raise RowError("bad_prompt", "prompt", problem, "give a text that asks for a long answer")
    info = row.get("info")
    subject = row.get("subject", row.get("topic", info.get("subject") if isinstance(info, Mapping) else None))
    if subject is not None and not isinstance(subject, str):
        raise RowError("bad_subject", "subject", f"{excerpt(subject)} is no text", "name whom or what it asks about")
    check_text([text, subject], "prompt")
    canary = row.get("canary")
    identifier = row.get("id")
    if identifier is None:
        identifier = f"{derive_seed(text):016x}"
    if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
        raise RowError("bad_id", "id", f"{excerpt(identifier)} is no id", "use text or an integer, or leave it out")
    return Ask(str(identifier), text, subject, str(canary) if canary else None)


def refuse_canaries(asks: Sequence[Ask]) -> None:
    """Raises `DataError` where a prompt asks not to be trained on."""
    marked = [ask for ask in asks if ask.canary]
    if marked:
        raise DataError(
            f"{len(marked)} of {len(asks)} prompts hold a canary, by which their owner asks that nobody trains on them "
            f"(the first: {excerpt(marked[0].text)}); {CANARY_REMEDY}"
        )
