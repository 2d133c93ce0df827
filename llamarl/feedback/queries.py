"""Every query of ingesting and describing, in one place.

The queries are standard SQL over a few functions whose spelling differs between engines (`FUNCTIONS`: hashing, times,
JSON). They run on DuckDB. Another engine needs those functions, a reader of chunks, and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llamarl.feedback.readers import BROKEN, LINE, TEXT

TEXTS = ("response", "surface", "language", "model_version")
IDS = ("user", "message_id", "conversation_id")
TIMES = ("ts", "reaction_ts", "edited_ts")
NUMBERS = ("next_sentiment", "outcome")
FIELDS = (*IDS, *TIMES, "prompt", *TEXTS, "reaction", "messages", *NUMBERS)
"""What a log may say of a message."""
ONLY_OF_ONE_MESSAGE = ("message_id", "reaction", "reaction_ts", "edited_ts", "next_sentiment")
ALSO_OF_ONE_MESSAGE = ("ts", "model_version")
"""Fields that a message inside a conversation has for itself; where it lacks one of these, its conversation's holds."""

SECRETS = (
    r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+\.[A-Za-z0-9.-]+",  # e-mail
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----[^-]*(?:-----END [A-Z ]*PRIVATE KEY-----)?",
    r"\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}",
    r"\bAKIA[0-9A-Z]{16}\b",
    r"\bAIza[0-9A-Za-z_-]{30,}",
    r"\b(?:gh[pousr]|github_pat|hf|glpat)[-_][A-Za-z0-9_]{20,}",
    r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",  # JSON web token
    r"(?i:bearer)\s+[A-Za-z0-9._~+/-]{16,}=*",
    r"(?i:\b(?:password|passwd|pwd|passphrase|api[_ -]?key|secret|access[_ -]?token)\s*(?:is|[:=])\s*)[^\s,;]{4,}",
    r"\b\d(?:[ -]?\d){12,18}\b",  # card and account numbers
    r"\b\d{3}-\d{2}-\d{4}\b",
    r"\+\d[\d ()-]{7,}\d",  # telephone
)
"""What is taken out of texts. A pattern finds what looks like a secret, not every secret."""
REDACTED = "[redacted]"

_NUMERIC = r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?"
FUNCTIONS = {
    "redact(x)": f"regexp_replace(x, '{'|'.join(SECRETS)}', '{REDACTED}', 'g')",
    # 72 bits of SHA-256 over the key and the id, as 12 characters. The connection holds the key as a variable, so that
    # no text of a query has it
    "hash_id(x)": """
        substr(to_base64(unhex(substr(sha256(getvariable('hash_key') || encode(x)), 1, 18))), 1, 12)""",
    "fingerprint(x)": "hash(x)",
    # microseconds since 1970, from seconds, milliseconds, microseconds or nanoseconds by their size, or from ISO 8601
    "parse_time(x)": rf"""
        CASE WHEN regexp_full_match(x, '{_NUMERIC}') THEN
            CASE WHEN abs(TRY_CAST(x AS DOUBLE)) < 1e11 THEN TRY_CAST(TRY_CAST(x AS DOUBLE) * 1e6 AS BIGINT)
                 WHEN abs(TRY_CAST(x AS DOUBLE)) < 1e14 THEN TRY_CAST(TRY_CAST(x AS DOUBLE) * 1e3 AS BIGINT)
                 WHEN abs(TRY_CAST(x AS DOUBLE)) < 1e17 THEN TRY_CAST(TRY_CAST(x AS DOUBLE) AS BIGINT)
                 ELSE TRY_CAST(TRY_CAST(x AS DOUBLE) / 1e3 AS BIGINT) END
             WHEN regexp_matches(x, ':[0-9.]+ *[+-](1[5-9]|[2-9][0-9])') OR NOT regexp_matches(x, '^[0-9]') THEN NULL
             ELSE epoch_us(TRY_CAST(x AS TIMESTAMPTZ)) END""",
    "one_message(x)": "CAST(to_json([{'role': 'user', 'content': redact(x)}]) AS VARCHAR)",
    "roles_and_texts(items)": """
        CAST(to_json([{'role': m ->> '$.role', 'content': redact(m ->> '$.content')} for m in items]) AS VARCHAR)""",
    "is_dialogue(items)": """
        len(items) > 0 AND len([m for m in items
            if coalesce(m ->> '$.role', '') NOT IN ('system', 'developer', 'user', 'assistant', 'tool')
            OR coalesce(json_type(m, '$.content'), '') <> 'VARCHAR']) = 0""",
}
"""Name and arguments, and the definition for DuckDB."""


FILE_SHIFT, LINE_SHIFT = 44, 14
"""A row's number is its file, line and turn, so that it grows with them and doesn't depend on how chunks were cut."""
MOST_TURNS = (1 << LINE_SHIFT) - 1

IS_EARLY = "({reacted} < {shown} - 60000000)"
"""A reaction a minute before its message: clocks differ by less."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a log keeps each field."""

    names: Mapping[str, str]
    """Field -> column; a dot goes into an object of a JSON line."""
    extra: tuple[str, ...] = ()
    """Further columns of numbers that are kept, under their own names."""

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields that are read, the further columns behind."""
        return (*FIELDS, *self.extra)

    def column(self, field: str) -> str:
        """The column that holds a field."""
        return self.names.get(field, field)


def quote(name: str) -> str:
    """An identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(value: str) -> str:
    """A text of SQL."""
    return "'" + value.replace("'", "''") + "'"


def json_path(column: str) -> str:
    """The path of a column in a JSON line."""
    return "$" + "".join('."' + part.replace("\\", "\\\\").replace('"', '\\"') + '"' for part in column.split("."))


def select_raw_json(columns: Columns) -> str:
    """JSON lines (`chunk`) -> a column of text for each field, and `problem`, `field:reason` or null."""
    fields = columns.fields
    paths = [text_literal(json_path(columns.column(field))) for field in fields]
    values = ", ".join(f"v[{place}] AS {quote(field)}" for place, field in enumerate(fields, 1))
    wrong = " ".join(
        _when_wrong_type(field, f"v[{place}]", f"json_type(text, {path})")
        for place, (field, path) in enumerate(zip(fields, paths, strict=True), 1)
    )
    return f"""
        SELECT line, {values}, CASE WHEN problem IS NOT NULL THEN problem {wrong} END AS problem
        FROM (
            SELECT *, CASE WHEN problem IS NULL THEN json_extract_string(text, [{", ".join(paths)}]) END AS v
            FROM (
                SELECT {LINE} AS line, {TEXT} AS text,
                    CASE WHEN {BROKEN} IS NOT NULL THEN ':' || {BROKEN}
                         WHEN NOT json_valid({TEXT}) THEN ':invalid_json'
                         WHEN json_type({TEXT}) <> 'OBJECT' THEN ':not_an_object' END AS problem
                FROM chunk WHERE {BROKEN} IS NOT NULL OR regexp_matches({TEXT}, '\\S')))"""


def _when_wrong_type(field: str, value: str, json_type: str) -> str:
    """A branch of CASE for a value of JSON that is not what a field can be.

    The type is looked up only where the text may be of another one: a second look at every value would cost as much as
    reading them.
    """
    looks = f"left({value}, 1) IN ('{{', '[') OR {value} IN ('true', 'false')"
    allowed: tuple[str, ...] = ("VARCHAR",)
    if field == "response":
        looks += f" OR TRY_CAST({value} AS DOUBLE) IS NOT NULL"
    elif field in ("prompt", "messages"):
        allowed += ("ARRAY",)
    elif field == "reaction":
        allowed += ("ARRAY", "BOOLEAN")
    elif field not in (*IDS, *TIMES, *TEXTS):
        allowed += ("BOOLEAN",)
    return f"WHEN ({looks}) AND {json_type} NOT IN ({_list(allowed)}) THEN '{field}:wrong_type'"


def select_raw_table(columns: Columns, types: Mapping[str, str]) -> str:
    """A table's rows (`chunk`) -> the same.

    Args:
        columns: where the fields are.
        types: "text", "plain" or "nested" for each column of the table.
    """
    values, wrong = [], []
    for field in columns.fields:
        column = columns.column(field)
        kind = types.get(column)
        value = f"CAST({quote(column)} AS VARCHAR)"
        if kind is None:
            value = "CAST(NULL AS VARCHAR)"
        elif kind == "nested":
            value = f"CAST(to_json({quote(column)}) AS VARCHAR)"
            if field not in ("prompt", "messages", "reaction"):
                wrong.append(f"WHEN {quote(column)} IS NOT NULL THEN '{field}:wrong_type'")
        elif field == "response" and kind != "text":
            wrong.append(f"WHEN {quote(column)} IS NOT NULL THEN '{field}:wrong_type'")
        values.append(f"nullif({value}, '') AS {quote(field)}")
    return f"""
        SELECT {LINE} AS line, {", ".join(values)},
            CASE WHEN {BROKEN} IS NOT NULL THEN ':' || {BROKEN} {" ".join(wrong)} END AS problem
        FROM chunk"""


SELECT_TALKS = """
    SELECT *, CASE WHEN json_valid(messages) THEN TRY_CAST(messages AS JSON[]) END AS items
    FROM raw WHERE messages IS NOT NULL AND problem IS NULL"""


def select_flat(columns: Columns, context_messages: int) -> str:
    """Raw rows (`raw`) of one message each -> rows with `turn` and `context`, the conversation before it as JSON."""
    is_list = "starts_with(trim(prompt), '[{') AND json_valid(prompt)"
    items = "TRY_CAST(prompt AS JSON[])"
    return f"""
        SELECT line, 0 AS turn, {", ".join(map(quote, _of_message(columns)))},
            CASE WHEN prompt IS NULL THEN NULL
                 WHEN {is_list} THEN
                    CASE WHEN is_dialogue({items}) THEN roles_and_texts({items}[-{context_messages}:]) END
                 ELSE one_message(prompt) END AS context,
            CASE WHEN problem IS NULL AND {is_list} AND NOT is_dialogue({items}) THEN 'prompt:bad_messages'
                 ELSE problem END AS problem
        FROM raw WHERE messages IS NULL OR problem IS NOT NULL"""


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
        SELECT line, 0 AS turn, {", ".join(map(quote, _of_message(columns)))}, NULL AS context,
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


def select_checked(columns: Columns, file: int) -> str:
    """Turns (`turns`) of one file -> canonical values, and `problem`.

    `reaction_names` holds the name of each spelling. A row without a response whose reaction names a message is an
    event: a reaction that the log tells later.
    """
    numbers = (*NUMBERS, *columns.extra)
    number_problems = " ".join(
        f"WHEN {quote(name)} IS NOT NULL AND {quote('n_' + name)} IS NULL THEN '{name}:not_a_number'"
        f" WHEN NOT isfinite({quote('n_' + name)}) THEN '{name}:not_finite'"
        for name in numbers
    )
    parsed = ", ".join(
        f"CASE lower({quote(name)}) WHEN 'true' THEN 1.0 WHEN 'false' THEN 0.0"
        f" ELSE TRY_CAST({quote(name)} AS DOUBLE) END AS {quote('n_' + name)}"
        for name in numbers
    )
    kept = ", ".join(f"{quote('n_' + name)} AS {quote(name)}" for name in numbers)
    return f"""
        SELECT {file} AS file, {(file << FILE_SHIFT)} + line * {1 << LINE_SHIFT} + turn AS row, line, turn,
            CASE WHEN "user" IS NOT NULL THEN hash_id('user:' || trim("user")) END AS user_hash,
            CASE WHEN message_id IS NOT NULL THEN hash_id('message:' || message_id)
                 WHEN is_event THEN NULL
                 ELSE hash_id('content:' || concat_ws('|', "user", conversation_id, turn, time, context, response))
                 END AS message_hash,
            CASE WHEN conversation_id IS NOT NULL THEN hash_id('conversation:' || conversation_id)
                 END AS conversation_hash,
            make_timestamp(time) AS ts, make_timestamp(reaction_time) AS reaction_ts,
            make_timestamp(edited_time) AS edited_ts,
            CASE WHEN length(trim("user")) >= 6 THEN replace(context, trim("user"), '{REDACTED}')
                 ELSE context END AS context,
            CASE WHEN length(trim("user")) >= 6 THEN replace(safe_response, trim("user"), '{REDACTED}')
                 ELSE safe_response END AS response,
            response <> safe_response OR contains(context, '{REDACTED}') AS is_redacted,
            reaction_name AS reaction, is_event, fingerprint(concat_ws('|', context, response)) AS text_key,
            left(surface, 64) AS surface, lower(left(language, 64)) AS language,
            left(model_version, 64) AS model_version, {kept},
            CASE WHEN problem IS NOT NULL THEN problem
                 WHEN is_event AND reaction_name IS NULL THEN 'reaction:unknown_reaction'
                 WHEN is_event AND message_id IS NULL THEN 'message_id:missing_message_id'
                 WHEN NOT is_event AND (trim("user") = '' OR "user" IS NULL) THEN 'user:missing_user'
                 WHEN NOT is_event AND ts IS NULL THEN 'ts:missing_time'
                 WHEN ts IS NOT NULL AND time IS NULL THEN 'ts:bad_time'
                 WHEN time NOT BETWEEN earliest() AND latest() THEN 'ts:impossible_time'
                 WHEN NOT is_event AND response IS NULL THEN 'response:missing_response'
                 WHEN NOT is_event AND trim(response) = '' THEN 'response:empty_response'
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
                parse_time(ts) AS time,
                CASE WHEN response IS NULL THEN parse_time(coalesce(reaction_ts, ts))
                     ELSE parse_time(reaction_ts) END AS reaction_time,
                parse_time(edited_ts) AS edited_time
            FROM (
                SELECT turns.*, CASE WHEN reaction IS NULL THEN '' ELSE name END AS reaction_name
                FROM turns LEFT JOIN reaction_names ON reaction = spelling))"""


def _list(values: Sequence[str]) -> str:
    return ", ".join(text_literal(value) for value in values)


# ---- all chunks together --------------------------------------------------------------------------------------------
# `parts` holds the rows of all chunks, `staged` the good ones; `drops` (row, field, reason) what does not stay; `late`
# reactions that the log tells in rows of their own.

CREATE_STAGED = "CREATE VIEW staged AS SELECT * FROM parts WHERE problem IS NULL"
CREATE_DROPS = "CREATE TABLE drops (row BIGINT, field VARCHAR, reason VARCHAR)"

DROP_DUPLICATE_MESSAGES = """
    INSERT INTO drops
    WITH repeated AS (SELECT message_hash FROM staged WHERE NOT is_event GROUP BY message_hash HAVING count(*) > 1),
    ranked AS (
        SELECT row, row_number() OVER (
            PARTITION BY message_hash ORDER BY CASE WHEN reaction <> '' THEN 0 ELSE 1 END, row) AS place
        FROM staged JOIN repeated USING (message_hash) WHERE NOT is_event)
    SELECT row, 'message_id', 'duplicate_message' FROM ranked WHERE place > 1"""
"""The first row with a reaction stays of those with one message id; without any reaction, the first row."""

COUNT_EVENTS = "SELECT count(*) FROM staged WHERE is_event"

CREATE_EVENTS = f"""
    CREATE TABLE events AS
    SELECT event.row, event.reaction, event.reaction_ts, message.row AS message_row,
        message.reaction AS reaction_before,
        CASE WHEN message.row IS NULL THEN 'reaction_without_message'
             WHEN {IS_EARLY.format(reacted="epoch_us(event.reaction_ts)", shown="epoch_us(message.ts)")}
                THEN 'reaction_before_message'
             WHEN message.edited_ts > event.reaction_ts THEN 'edited_after_reaction' END AS problem
    FROM staged AS event
    LEFT JOIN (SELECT * FROM staged WHERE NOT is_event AND row NOT IN (SELECT row FROM drops)) AS message
        ON event.message_hash = message.message_hash
    WHERE event.is_event"""

DROP_BAD_EVENTS = """
    INSERT INTO drops
    SELECT row, CASE problem WHEN 'reaction_without_message' THEN 'message_id' WHEN 'edited_after_reaction'
        THEN 'edited_ts' ELSE 'reaction_ts' END, problem
    FROM events WHERE problem IS NOT NULL"""

CREATE_LATE = """
    CREATE TABLE late AS
    SELECT message_row AS row, reaction, reaction_ts FROM (
        SELECT *, row_number() OVER (
            PARTITION BY message_row ORDER BY CASE WHEN reaction = 'love' THEN 0 ELSE 1 END, row) AS place
        FROM events WHERE problem IS NULL AND reaction_before <> 'love')
    WHERE place = 1"""
"""One reaction for each message: a love before any other, whichever row tells it."""

CREATE_MESSAGES = """
    CREATE VIEW messages AS
    SELECT staged.row, line + turn AS place, user_hash, ts, response, text_key,
        coalesce(late.reaction, staged.reaction) AS reaction,
        coalesce(late.reaction_ts, staged.reaction_ts) AS reaction_ts
    FROM staged LEFT JOIN late ON staged.row = late.row
    WHERE NOT is_event AND staged.row NOT IN (SELECT row FROM drops)"""

CREATE_ACTIVITY = """
    CREATE TABLE activity AS
    SELECT user_hash, count(*) AS shown, sum(CASE WHEN reaction = 'love' THEN 1 ELSE 0 END) AS loves
    FROM messages GROUP BY user_hash"""

SELECT_BURSTS = """
    SELECT user_hash, max(shown) AS value FROM (
        SELECT user_hash, date_trunc('minute', ts) AS minute, count(*) AS shown FROM messages GROUP BY ALL)
    GROUP BY user_hash HAVING max(shown) > {limit}"""

SELECT_QUICK = """
    SELECT user_hash, median(epoch_us(reaction_ts) - epoch_us(ts)) / 1e6 AS value
    FROM messages WHERE reaction = 'love' AND reaction_ts IS NOT NULL
    GROUP BY user_hash
    HAVING count(*) >= {least} AND median(epoch_us(reaction_ts) - epoch_us(ts)) / 1e6 < {limit}"""

SELECT_RATES = """
    SELECT sum(loves), sum(shown), sum(shown * shown), sum(power(CAST(loves AS DOUBLE) - {rate} * shown, 2))
    FROM activity WHERE loves <= {most} * shown"""
"""What the spread of the users' rates is made of."""

SELECT_MANY_LOVES = """
    SELECT user_hash, CAST(loves AS BIGINT) AS loves, shown FROM activity
    WHERE loves >= {least} AND loves > {rate} * shown ORDER BY user_hash"""

CREATE_WORDS = """
    CREATE TABLE {name} AS
    SELECT DISTINCT row, user_hash, words[first] || ' ' || words[first + 1] AS pair FROM (
        SELECT row, user_hash, words, unnest(range(1, len(words))) AS first FROM (
            SELECT row, user_hash, string_split(trim(regexp_replace(
                lower(left(response, 4000)), '[^\\p{{L}}\\p{{N}}]+', ' ', 'g')), ' ') AS words
            FROM messages {rows}))"""
"""Each pair of neighbouring words in some replies, once a reply."""
LOVED_ROWS = "JOIN (SELECT user_hash FROM activity WHERE loves >= {least}) USING (user_hash) WHERE reaction = 'love'"
SAMPLED_ROWS = "WHERE place % {every} = 0"

SELECT_PAIRS = """
    WITH loved AS (SELECT user_hash, pair, count(*) AS loved_with FROM loved_words GROUP BY user_hash, pair),
    often AS (
        SELECT user_hash, pair, loved_with, loves FROM loved JOIN activity USING (user_hash)
        WHERE loved_with >= 2 AND 2 * loved_with >= loves),
    usual AS (SELECT pair, count(*) AS seen_with FROM sampled_words GROUP BY pair)
    SELECT user_hash, pair, loved_with, CAST(loves AS BIGINT) AS loves, coalesce(seen_with, 0) AS seen_with
    FROM often LEFT JOIN usual USING (pair) ORDER BY user_hash, pair"""
"""Pairs of words in at least half of what a user loves, and in how many of the sampled replies they are."""

DROP_SUSPICIOUS = """
    INSERT INTO drops
    SELECT row, 'user', 'suspicious_user' FROM messages
    WHERE user_hash IN (SELECT user_hash FROM suspicious)"""

DROP_DUPLICATE_TEXTS = """
    INSERT INTO drops
    WITH repeated AS (SELECT user_hash, text_key FROM messages GROUP BY user_hash, text_key HAVING count(*) > 1),
    ranked AS (
        SELECT row, row_number() OVER (
            PARTITION BY user_hash, text_key ORDER BY CASE WHEN reaction <> '' THEN 0 ELSE 1 END, row) AS place
        FROM messages JOIN repeated USING (user_hash, text_key))
    SELECT row, 'response', 'duplicate_text' FROM ranked WHERE place > 1"""

DROP_ABOVE_CAP = """
    INSERT INTO drops
    SELECT row, 'user', 'user_cap' FROM (
        SELECT row, row_number() OVER (PARTITION BY user_hash ORDER BY (row % 1000003) * 7919 % 1000003, row) AS place
        FROM messages JOIN (SELECT user_hash FROM activity WHERE shown > {cap}) USING (user_hash))
    WHERE place > {cap}"""
"""Which messages of a user stay is a fixed draw from all times, so that the share with a reaction stays, too."""

SELECT_STORED = """
    SELECT message_hash, user_hash, conversation_hash, ts, context, response,
        nullif(coalesce(late.reaction, part.reaction), '') AS reaction,
        coalesce(late.reaction, part.reaction) = 'love' AS loved,
        coalesce(late.reaction_ts, part.reaction_ts) AS reaction_ts,
        surface, language, model_version, {numbers}, 
        user_hash IN (SELECT user_hash FROM suspicious) AS is_suspicious
    FROM part LEFT JOIN late ON part.row = late.row
    WHERE problem IS NULL AND NOT is_event AND part.row NOT IN (SELECT row FROM drops)"""

SELECT_DROPPED = """
    SELECT file, line, turn, field, reason FROM (
        SELECT file, line, turn, field, reason, row FROM staged JOIN drops USING (row)
        UNION ALL
        SELECT file, line, turn, split_part(problem, ':', 1), split_part(problem, ':', 2), row FROM parts
        WHERE problem IS NOT NULL
        UNION ALL
        SELECT file, 0, 0, '', 'unreadable_file', -1 FROM unreadable)
    ORDER BY file, row"""
"""What was not kept. A file that cannot be read has no lines."""

SELECT_REASONS = "SELECT reason, count(*) FROM dropped GROUP BY reason ORDER BY reason"

SELECT_TOTALS = """
    SELECT count(*), count(DISTINCT user_hash), coalesce(sum(CASE WHEN loved THEN 1 ELSE 0 END), 0), min(ts), max(ts)
    FROM stored"""

SELECT_FIRST_BAD = """
    SELECT file, line, field, reason FROM dropped
    WHERE reason NOT IN ('duplicate_message', 'duplicate_text', 'suspicious_user', 'user_cap')
    ORDER BY file, line LIMIT {limit}"""

SELECT_LATE_AND_REDACTED = """
    SELECT (SELECT count(*) FROM late), (SELECT count(*) FROM staged WHERE is_redacted)"""


# ---- what a store says: `stored` holds its messages ------------------------------------------------------------------

SEGMENTS = {
    "day": "CAST(CAST(ts AS DATE) AS VARCHAR)",
    "surface": "surface",
    "language": "language",
    "model_version": "model_version",
}
"""How a message's segment is found."""

SELECT_SEGMENT_RATES = """
    WITH by_user AS (
        SELECT {segment} AS segment, user_hash, CAST(count(*) AS DOUBLE) AS shown,
            CAST(sum(CASE WHEN loved THEN 1 ELSE 0 END) AS DOUBLE) AS loves
        FROM stored GROUP BY {segment}, user_hash)
    SELECT segment, sum(loves), sum(shown), count(*), sum(loves * loves), sum(loves * shown), sum(shown * shown)
    FROM by_user GROUP BY segment ORDER BY segment"""

CREATE_SIGNALS = """
    CREATE TABLE signals AS
    WITH days AS (SELECT DISTINCT user_hash, CAST(ts AS DATE) AS day FROM stored),
    last_day AS (SELECT max(day) AS day FROM days)
    SELECT stored.user_hash, outcome,
        CASE WHEN loved THEN 1.0 ELSE 0.0 END AS love,
        next_sentiment AS sentiment,
        CASE WHEN conversation_hash IS NULL THEN NULL
             WHEN lead(ts) OVER (PARTITION BY conversation_hash ORDER BY ts, message_hash) IS NULL THEN 0.0
             ELSE 1.0 END AS continued,
        CASE WHEN CAST(ts AS DATE) = last_day.day THEN NULL WHEN next_day.day IS NULL THEN 0.0 ELSE 1.0 END AS returned,
        {extra}
        CASE WHEN reaction IN ({negative}) THEN 1.0 WHEN reaction IS NOT NULL THEN 0.0 END AS disliked
    FROM stored CROSS JOIN last_day
    LEFT JOIN days AS next_day ON stored.user_hash = next_day.user_hash
        AND CAST(CAST(ts AS DATE) + INTERVAL 1 DAY AS DATE) = next_day.day"""
"""The value of each candidate signal of each message; null where the log cannot tell."""

SELECT_SIGNAL = """
    WITH of_user AS (
        SELECT user_hash, avg({signal}) AS mean, avg(outcome) AS outcome, max({signal}) AS most
        FROM signals WHERE {signal} IS NOT NULL GROUP BY user_hash)
    SELECT
        (SELECT count({signal}) FROM signals),
        (SELECT count(*) FROM signals WHERE {signal} > 0),
        (SELECT count(*) FROM of_user WHERE most > 0),
        (SELECT count(*) FROM of_user WHERE outcome IS NOT NULL),
        (SELECT corr(mean, outcome) FROM of_user),
        (SELECT count(*) FROM signals WHERE {signal} > 0 AND ({other_known})),
        (SELECT count(*) FROM signals WHERE {signal} > 0 AND ({other_bad}))"""
"""How often a signal is known and good, how users' means go with the outcome, and how often another signal objects."""
