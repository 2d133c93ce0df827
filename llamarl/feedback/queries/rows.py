"""Queries over the rows of one chunk: raw values -> checked, canonical ones, each row by itself."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llamarl.feedback.queries import quote, text_literal
from llamarl.feedback.queries.functions import REDACTED
from llamarl.feedback.queries.selection import IS_EARLY
from llamarl.feedback.readers import BROKEN, LINE, TEXT

TEXTS = ("response", "surface", "language", "model_version")
IDS = ("user", "message_id", "conversation_id")
TIMES = ("ts", "reaction_ts", "edited_ts")
NUMBERS = ("next_sentiment", "outcome")
FIELDS = (*IDS, *TIMES, "prompt", *TEXTS, "reaction", "messages", *NUMBERS)
"""Fields that a log may have of a message."""
ONLY_OF_ONE_MESSAGE = ("message_id", "reaction", "reaction_ts", "edited_ts", "next_sentiment")
ALSO_OF_ONE_MESSAGE = ("ts", "model_version")
"""Fields that a message inside a conversation has for itself; where it lacks one of these, its conversation's holds."""

KEPT = "keep:"
"""The beginning of further columns' names inside the queries, since a log may call them like anything else."""

FILE_SHIFT, LINE_SHIFT = 44, 14
"""A row's number is its file, line and turn, so that it grows with them and doesn't depend on how chunks were cut."""
MOST_TURNS = (1 << LINE_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class Columns:
    """Names under which a log keeps each field."""

    names: Mapping[str, str]
    """Field -> column; a dot goes into an object of a JSON line."""
    extra: tuple[str, ...] = ()
    """Further columns of numbers that are kept, under their own names."""

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that are read, the further columns behind."""
        return (*FIELDS, *(KEPT + name for name in self.extra))

    @property
    def numbers(self) -> tuple[str, ...]:
        """The fields of numbers."""
        return self.fields[self.fields.index(NUMBERS[0]) :]

    def column(self, field: str) -> str:
        """The column that holds a field."""
        return self.names.get(field, field.removeprefix(KEPT))


def json_path(column: str) -> str:
    """The path of a column in a JSON line."""
    return "$" + "".join('."' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in column.split("."))


def select_raw_json(columns: Columns, *, is_valid: bool = False) -> str:
    """JSON lines (`chunk`) -> a column of text for each field, and `problem`, `field:reason` or null.

    With `is_valid` the query is quicker, and fails on the first line that is no JSON.

    A line is parsed once. Values that are no texts and no numbers begin with a letter or a bracket behind a colon: only
    lines with one are looked at for values of a wrong type.
    """
    fields = columns.fields
    paths = [text_literal(json_path(columns.column(field))) for field in fields]
    values = ", ".join(f"v[{place}] AS {quote(field)}" for place, field in enumerate(fields, 1))
    wrong = " ".join(
        _when_wrong_type(field, f"v[{place}]", f"json_type(text, {path})")
        for place, (field, path) in enumerate(zip(fields, paths, strict=True), 1)
    )
    extracted = f"json_extract_string({TEXT}, [{', '.join(paths)}])"
    response = f"v[{fields.index('response') + 1}]"  # a number of JSON begins with a digit or a minus, below any letter
    return f"""
        SELECT line, {values},
            CASE WHEN broken IS NOT NULL THEN ':' || broken
                 WHEN v IS NULL THEN ':invalid_json'
                 WHEN NOT starts_with(text, '{{') AND NOT starts_with(ltrim(text), '{{') THEN ':not_an_object'
                 WHEN ({response} IS NULL OR {response} >= 'A') AND NOT regexp_matches(text, ':\\s*[\\[{{tf]') THEN NULL
                 {wrong} END AS problem
        FROM (
            SELECT {LINE} AS line, {TEXT} AS text, {BROKEN} AS broken,
                {extracted if is_valid else f"TRY({extracted})"} AS v
            FROM chunk
            WHERE {BROKEN} IS NOT NULL OR starts_with({TEXT}, '{{') OR regexp_matches({TEXT}, '\\S'))"""


def _is_number(value: str) -> str:
    return f"TRY_CAST({value} AS DOUBLE) IS NOT NULL"


def _when_wrong_type(field: str, value: str, json_type: str) -> str:
    """A branch of CASE for a value of JSON that is not what a field can be.

    The type is looked up only where the text may be of another one: a second look at every value would cost as much as
    reading them.
    """
    looks = f"left({value}, 1) IN ('{{', '[') OR {value} IN ('true', 'false')"
    allowed: tuple[str, ...] = ("VARCHAR",)
    if field == "response":
        looks += f" OR {_is_number(value)}"
    elif field in ("prompt", "messages"):
        allowed += ("ARRAY",)
    elif field == "reaction":
        allowed += ("ARRAY", "BOOLEAN")
    elif field not in (*IDS, *TIMES, *TEXTS):
        allowed += ("BOOLEAN",)
    return f"WHEN ({looks}) AND {json_type} NOT IN ({_list(allowed)}) THEN {_problem(field, 'wrong_type')}"


def find_clocks(columns: Columns, types: Mapping[str, str]) -> frozenset[str]:
    """The fields of time that a table has as times, not as text."""
    return frozenset(field for field in TIMES if types.get(columns.column(field)) == "time")


def select_raw_table(columns: Columns, types: Mapping[str, str], clocks: Collection[str] = ()) -> str:
    """A table's rows (`chunk`) -> the same.

    Args:
        columns: where the fields are.
        types: "text", "time", "plain" or "nested" for each column of the table.
        clocks: the fields of time that become microseconds since 1970 instead of text.
    """
    values, wrong = [], []
    for field in columns.fields:
        column = columns.column(field)
        kind = types.get(column)
        value = f"CAST({quote(column)} AS VARCHAR)"
        first, _, inside = column.partition(".")
        if kind is None and inside and types.get(first) == "nested":
            value = f"(to_json({quote(first)}) ->> {text_literal(json_path(inside))})"
        elif kind is None:
            value = "CAST(NULL AS VARCHAR)"
        elif kind == "nested":
            value = f"CAST(to_json({quote(column)}) AS VARCHAR)"
            if field not in ("prompt", "messages", "reaction"):
                wrong.append(f"WHEN {quote(column)} IS NOT NULL THEN {_problem(field, 'wrong_type')}")
        elif field == "response" and kind != "text":
            wrong.append(f"WHEN {quote(column)} IS NOT NULL THEN {_problem(field, 'wrong_type')}")
        if field in clocks:
            values.append(f"epoch_us(CAST({quote(column)} AS TIMESTAMPTZ)) AS {quote(field)}")
        else:
            values.append(f"nullif({value}, '') AS {quote(field)}")
    return f"""
        SELECT {LINE} AS line, {", ".join(values)},
            CASE WHEN {BROKEN} IS NOT NULL THEN ':' || {BROKEN} {" ".join(wrong)} END AS problem
        FROM chunk"""


SELECT_TALKS = """
    SELECT *, CASE WHEN json_valid(messages) THEN TRY_CAST(messages AS JSON[]) END AS items
    FROM raw WHERE messages IS NOT NULL AND problem IS NULL"""


def select_flat(columns: Columns, context_messages: int, *, is_talk: bool) -> str:
    """Raw rows (`raw`) of one message each -> rows with `turn` and `context`, the conversation before it as JSON.

    The query fails on a conversation unless `is_talk`.
    """
    is_list = """
        CASE WHEN NOT starts_with(prompt, '[{') AND NOT starts_with(prompt, ' ') THEN false
             WHEN starts_with(ltrim(prompt), '[{') THEN json_valid(prompt) ELSE false END"""  # AND asks both
    items = "TRY_CAST(prompt AS JSON[])"
    where = "messages IS NULL OR problem IS NOT NULL"
    if not is_talk:  # AND and OR may ask in any order
        where = f"CASE WHEN {where} THEN true ELSE error(messages) END"
    return f"""
        SELECT line, 0::BIGINT AS turn, {", ".join(map(quote, _of_message(columns)))},
            CASE WHEN prompt IS NULL THEN NULL
                 WHEN {is_list} THEN
                    CASE WHEN is_dialogue({items}) THEN roles_and_texts({items}[-{context_messages}:]) END
                 ELSE one_message(prompt) END AS context,
            CASE WHEN problem IS NULL AND {is_list} AND NOT is_dialogue({items}) THEN 'prompt:bad_messages'
                 ELSE problem END AS problem
        FROM raw WHERE {where}"""


def select_replies(columns: Columns, context_messages: int) -> str:
    """Raw rows that are conversations (`talks`) -> the same for each message of the assistant.

    A conversation with an unreadable message is one bad row, and so is a reaction to another role.
    """
    own = []
    for field in _of_message(columns):
        inside = f"item ->> {text_literal(json_path(columns.column(field)))}"
        if field == "response":
            own.append("item ->> '$.content' AS response")
        elif field in ONLY_OF_ONE_MESSAGE:
            own.append(f"{inside} AS {quote(field)}")
        elif field in ALSO_OF_ONE_MESSAGE:
            own.append(f"coalesce({inside}, {quote(field)}) AS {quote(field)}")
        else:
            own.append(quote(field))
    reaction = f"item ->> {text_literal(json_path(columns.column('reaction')))}"
    return f"""
        SELECT line, 0::BIGINT AS turn, {", ".join(map(quote, _of_message(columns)))}, NULL AS context,
            'messages:bad_messages' AS problem
        FROM talks WHERE NOT coalesce(is_dialogue(items), false) OR len(items) > {MOST_TURNS}
        UNION ALL
        SELECT line, turn, {", ".join(own)},
            roles_and_texts(items[greatest(1, turn - {context_messages}):turn - 1]) AS context,
            CASE WHEN item ->> '$.role' <> 'assistant' THEN 'messages.reaction:reaction_to_other_role' END AS problem
        FROM (
            SELECT *, unnest(items) AS item, generate_subscripts(items, 1) AS turn
            FROM talks WHERE coalesce(is_dialogue(items), false) AND len(items) <= {MOST_TURNS})
        WHERE item ->> '$.role' = 'assistant' OR {reaction} IS NOT NULL"""


def _of_message(columns: Columns) -> list[str]:
    return [field for field in columns.fields if field not in ("prompt", "messages")]


def select_turns(raw: str, columns: Columns, context_messages: int, *, is_talk: bool) -> str:
    """Raw rows (a query) -> one row for each message; the query fails on a conversation unless `is_talk`."""
    flat = select_flat(columns, context_messages, is_talk=is_talk)
    if not is_talk:
        return f"WITH raw AS ({raw}) {flat}"
    replies = select_replies(columns, context_messages)
    return f"WITH raw AS MATERIALIZED ({raw}), talks AS ({SELECT_TALKS}) {flat} UNION ALL {replies}"


def select_and_check(turns: str, columns: Columns, file: int, clocks: Collection[str] = ()) -> str:
    """Turns (a query) of one file -> canonical values, and `problem`; `clocks` are microseconds already.

    `reaction_names` holds the meaning of each spelling; the query fails where it lacks one. A row without a
    response whose reaction names a message is an event: a reaction that the log tells later.
    """
    number_problems = " ".join(
        f"WHEN {quote(name)} IS NOT NULL AND {quote('n_' + name)} IS NULL THEN {_problem(name, 'not_a_number')}"
        f" WHEN NOT isfinite({quote('n_' + name)}) THEN {_problem(name, 'not_finite')}"
        for name in columns.numbers
    )
    parsed = ", ".join(
        f"CASE lower({quote(name)}) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0"
        f" ELSE TRY_CAST({quote(name)} AS DOUBLE) END AS {quote('n_' + name)}"
        for name in columns.numbers
    )
    time = {field: field if field in clocks else f"parse_time({field})" for field in TIMES}
    kept = ", ".join(f"{quote('n_' + name)} AS {quote(name)}" for name in columns.numbers)
    return f"""
        WITH turns AS ({turns})
        SELECT {file} AS file, {(file << FILE_SHIFT)} + line * {1 << LINE_SHIFT} + turn AS row, line, turn,
            CASE WHEN "user" IS NOT NULL THEN hash_id('user:', name) END AS user_hash,
            CASE WHEN message_id IS NOT NULL THEN hash_id('message:', message_id)
                 WHEN is_event THEN NULL
                 ELSE hash_id('content:', concat_ws('|', "user", conversation_id, turn, time, context, response))
                 END AS message_hash,
            CASE WHEN conversation_id IS NOT NULL THEN hash_id('conversation:', conversation_id)
                 END AS conversation_hash,
            make_timestamp(time) AS ts, make_timestamp(reaction_time) AS reaction_ts,
            make_timestamp(edited_time) AS edited_ts,
            CASE WHEN length(name) >= 6 THEN hide(context, name) ELSE context END AS context,
            CASE WHEN length(name) >= 6 THEN hide(safe_response, name) ELSE safe_response END AS response,
            response <> safe_response OR contains(context, '{REDACTED}') AS is_redacted,
            reaction_name AS reaction, is_event, fingerprint(concat_ws('|', name, context, response)) AS text_key,
            label(surface) AS surface, lower(label(language)) AS language,
            label(model_version) AS model_version, {kept},
            CASE WHEN problem IS NOT NULL THEN problem
                 WHEN is_event AND reaction_name IS NULL THEN 'reaction:unknown_reaction'
                 WHEN is_event AND message_id IS NULL THEN 'message_id:missing_message_id'
                 WHEN NOT is_event AND (name = '' OR name IS NULL) THEN 'user:missing_user'
                 WHEN NOT is_event AND ts IS NULL THEN 'ts:missing_time'
                 WHEN ts IS NOT NULL AND time IS NULL THEN 'ts:bad_time'
                 WHEN time NOT BETWEEN earliest() AND latest() THEN 'ts:impossible_time'
                 WHEN NOT is_event AND response IS NULL THEN 'response:missing_response'
                 WHEN NOT is_event AND is_blank(response) THEN 'response:empty_response'
                 WHEN NOT is_event AND context IS NULL THEN 'prompt:missing_prompt'
                 WHEN reaction_name IS NULL THEN 'reaction:unknown_reaction'
                 WHEN reaction_ts IS NOT NULL AND reaction_time IS NULL THEN 'reaction_ts:bad_time'
                 WHEN reaction_time NOT BETWEEN earliest() AND latest() THEN 'reaction_ts:impossible_time'
                 WHEN edited_ts IS NOT NULL AND edited_time IS NULL THEN 'edited_ts:bad_time'
                 WHEN {IS_EARLY.format(reacted="reaction_time", shown="time")} AND NOT is_event
                    THEN 'reaction_ts:reaction_before_message'
                 WHEN reaction_name <> '' AND edited_time > coalesce(reaction_time, time)
                    THEN 'edited_ts:edited_after_reaction'
                 {number_problems} END AS problem
        FROM (
            SELECT *, redact(response) AS safe_response, {parsed},
                response IS NULL AND reaction_name IS DISTINCT FROM '' AS is_event,
                {time["ts"]} AS time,
                CASE WHEN response IS NULL AND reaction_ts IS NULL THEN {time["ts"]}
                     ELSE {time["reaction_ts"]} END AS reaction_time,
                {time["edited_ts"]} AS edited_time
            FROM (
                SELECT turns.*, bare("user") AS name,
                    CASE WHEN reaction IS NULL THEN '' WHEN spelling IS NULL THEN error(reaction) ELSE meaning
                        END AS reaction_name
                FROM turns LEFT JOIN reaction_names ON reaction = spelling))"""


def _problem(field: str, reason: str) -> str:
    return text_literal(f"{field.removeprefix(KEPT)}:{reason}")


def _list(values: Sequence[str]) -> str:
    return ", ".join(text_literal(value) for value in values)
