"""Queries over the checked rows of all chunks: what does not stay, and what the store gets.

`parts` holds the rows of all chunks, `staged` the good ones; `drops` (row, field, reason) what does not stay; `late`
reactions that the log tells in rows of their own.
"""

IS_EARLY = "({reacted} < {shown} - 60000000)"
"""A reaction a minute before its message: clocks differ by less."""

SELECT_STAGED = "SELECT * FROM parts WHERE problem IS NULL"

SELECT_DUPLICATE_MESSAGES = """
    WITH repeated AS (SELECT message_hash FROM staged WHERE NOT is_event GROUP BY message_hash HAVING count(*) > 1),
    ranked AS (
        SELECT row, row_number() OVER (
            PARTITION BY message_hash ORDER BY CASE WHEN reaction <> '' THEN 0 ELSE 1 END, row) AS place
        FROM staged JOIN repeated USING (message_hash) WHERE NOT is_event)
    SELECT row, 'message_id' AS field, 'duplicate_message' AS reason FROM ranked WHERE place > 1"""
"""The first row with a reaction stays of those with one message id; without any reaction, the first row."""

SELECT_TOLD = "SELECT row, message_hash, reaction, reaction_ts FROM staged WHERE is_event"
"""Reactions that rows of their own tell (`told`): kept, since few, so that a join knows which side is the small one."""

SELECT_EVENTS = f"""
    SELECT event.row, event.reaction, event.reaction_ts, message.row AS message_row,
        message.reaction AS reaction_before,
        CASE WHEN message.row IS NULL THEN 'reaction_without_message'
             WHEN {IS_EARLY.format(reacted="epoch_us(event.reaction_ts)", shown="epoch_us(message.ts)")}
                THEN 'reaction_before_message'
             WHEN message.edited_ts > event.reaction_ts THEN 'edited_after_reaction' END AS problem
    FROM told AS event
    LEFT JOIN (
        SELECT * FROM staged WHERE NOT is_event AND row NOT IN (SELECT row FROM drops)
            AND message_hash IN (SELECT message_hash FROM told)) AS message
        ON event.message_hash = message.message_hash"""

SELECT_BAD_EVENTS = """
    SELECT row, CASE problem WHEN 'reaction_without_message' THEN 'message_id' WHEN 'edited_after_reaction'
        THEN 'edited_ts' ELSE 'reaction_ts' END AS field, problem AS reason
    FROM events WHERE problem IS NOT NULL"""

SELECT_LATE = """
    SELECT message_row AS row, reaction, reaction_ts FROM (
        SELECT *, row_number() OVER (
            PARTITION BY message_row ORDER BY CASE WHEN reaction = 'love' THEN 0 ELSE 1 END, row) AS place
        FROM events WHERE problem IS NULL AND reaction_before <> 'love')
    WHERE place = 1"""
"""One reaction for each message: a love before any other, whichever row tells it."""

SELECT_MESSAGES = """
    SELECT staged.row, line + turn AS place, user_hash, ts, response, text_key,
        coalesce(late.reaction, staged.reaction) AS reaction,
        coalesce(late.reaction_ts, staged.reaction_ts) AS reaction_ts
    FROM staged LEFT JOIN late ON staged.row = late.row
    WHERE NOT is_event AND staged.row NOT IN (SELECT row FROM drops)"""

SELECT_ROWS_OF_SUSPECTS = """
    SELECT row, 'user' AS field, 'suspicious_user' AS reason FROM messages
    WHERE user_hash IN (SELECT user_hash FROM suspicious)"""

SELECT_DUPLICATE_TEXTS = """
    WITH repeated AS (SELECT text_key FROM messages GROUP BY text_key HAVING count(*) > 1),
    ranked AS (
        SELECT row, row_number() OVER (
            PARTITION BY user_hash, text_key ORDER BY CASE WHEN reaction <> '' THEN 0 ELSE 1 END, row) AS place
        FROM messages JOIN repeated USING (text_key))
    SELECT row, 'response' AS field, 'duplicate_text' AS reason FROM ranked WHERE place > 1"""

SELECT_ROWS_ABOVE_CAP = """
    SELECT row, 'user' AS field, 'user_cap' AS reason FROM (
        SELECT row, row_number() OVER (PARTITION BY user_hash ORDER BY (row % 1000003) * 7919 % 1000003, row) AS place
        FROM messages JOIN (SELECT user_hash FROM activity WHERE shown > {cap}) USING (user_hash))
    WHERE place > {cap}"""
"""The messages of a user that stay are a fixed draw from all times, so that the share with a reaction stays, too."""

STORED_COLUMNS = ("message_hash", "user_hash", "conversation_hash", "context", "loved", "is_suspicious")
"""Columns of a store beside the fields of a log and those that are kept."""

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
        SELECT file, line, turn, left(problem, length(problem) - length(split_part(problem, ':', -1)) - 1),
            split_part(problem, ':', -1), row
        FROM parts WHERE problem IS NOT NULL
        UNION ALL
        SELECT file, 0, 0, '', 'unreadable_file', -1 FROM unreadable)
    ORDER BY file, row"""
"""Rows that were not kept. A file that cannot be read has no lines."""

SELECT_REASONS = "SELECT reason, count(*) FROM dropped GROUP BY reason ORDER BY reason"

SELECT_TOTALS = """
    SELECT count(*), count(DISTINCT user_hash), coalesce(sum(CASE WHEN loved THEN 1 ELSE 0 END), 0), min(ts), max(ts)
    FROM stored"""

SELECT_FIRST_BAD = """
    SELECT file, line, field, reason FROM dropped
    WHERE reason NOT IN ('duplicate_message', 'duplicate_text', 'suspicious_user', 'user_cap')
    ORDER BY file, line, turn, field, reason LIMIT {limit}"""

SELECT_LATE_AND_REDACTED = """
    SELECT (SELECT count(*) FROM late), (SELECT count(*) FROM staged WHERE is_redacted)"""
