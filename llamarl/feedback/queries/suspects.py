"""Queries over what users did: `messages` holds what may stay, `activity` the sums of each user.

A median needs all of a user's values in memory at once, so that `DELAYS` and `GAPS` are of some users only: those for
whom the condition `users` holds.
"""

HASH_CHARACTERS = "+/0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The characters of a hash in their order, each as likely as any other."""
USERS = "user_hash >= '{first}' AND user_hash < '{last}~'"
"""Users whose hash begins with one of two characters, or one between."""

SELECT_ACTIVITY = """
    SELECT user_hash, count(*) AS shown, sum(CASE WHEN reaction = 'love' THEN 1 ELSE 0 END) AS loves
    FROM messages GROUP BY user_hash"""

SELECT_BURSTS = """
    SELECT user_hash, max(shown) AS value FROM (
        SELECT user_hash, date_trunc('minute', ts) AS minute, count(*) AS shown FROM messages
        GROUP BY user_hash, date_trunc('minute', ts)) AS minutes
    GROUP BY user_hash HAVING max(shown) > {limit} ORDER BY user_hash"""

DELAYS = """
    SELECT user_hash, epoch_us(reaction_ts) - epoch_us(ts) AS passed
    FROM messages WHERE reaction = 'love' AND reaction_ts >= ts AND {users}"""
"""Seconds from message to love. A love before its message says that clocks differ, not how quick the user was."""

GAPS = """
    SELECT user_hash, passed FROM (
        SELECT user_hash, epoch_us(ts) - lag(epoch_us(ts)) OVER (PARTITION BY user_hash ORDER BY ts, row) AS passed
        FROM messages JOIN (SELECT user_hash FROM activity WHERE loves > 0) AS lovers USING (user_hash)
        WHERE {users}) AS all_gaps
    WHERE passed IS NOT NULL"""
"""Seconds from one message of a user to the next; only of users who love any, since others teach nothing."""

SELECT_MEDIANS = """
    SELECT user_hash, median(passed) / 1e6 AS seconds, count(*) AS times FROM ({passed}) AS times
    GROUP BY user_hash ORDER BY user_hash"""

SELECT_ALIKE = """
    WITH times AS ({passed}),
    middles AS (SELECT user_hash, median(passed) AS middle FROM times GROUP BY user_hash HAVING count(*) > 1)
    SELECT user_hash, count(*) AS count, middle / 1e6 AS seconds,
        avg(CASE WHEN abs(passed - middle) <= 1000000 THEN 1 ELSE 0 END) AS alike
    FROM times JOIN middles USING (user_hash) GROUP BY user_hash, middle ORDER BY user_hash"""
"""The median of a user's times, and which share of them lies within a second of it."""

SELECT_LOVE_COUNTS = """
    SELECT CAST(loves AS BIGINT) AS loves, shown, count(*) AS users FROM activity
    WHERE user_hash NOT IN (SELECT user_hash FROM suspicious)
    GROUP BY loves, shown ORDER BY loves, shown"""
"""The number of users who love so many of so many messages, but for those whom other rules found."""

SELECT_LOVERS = """
    SELECT user_hash, CAST(loves AS BIGINT) AS loves, shown FROM activity WHERE loves >= {least} ORDER BY user_hash"""

TERM = r"[\x{0E00}-\x{0EFF}\x{1780}-\x{17FF}\x{3040}-\x{30FF}\x{3400}-\x{9FFF}\p{So}]|[\p{L}\p{M}\p{N}]+"
"""A word, an emoji, or a letter of a script that is written without spaces."""

WORDS = f"regexp_extract_all(lower(opening(response)), '{TERM}')"

SELECT_LOVED = """
    SELECT row, user_hash, response FROM messages
    JOIN (SELECT user_hash FROM activity WHERE loves >= {least}) AS lovers USING (user_hash) WHERE reaction = 'love'"""
"""What users love who love any more, `loved_replies`."""
SAMPLED_ROWS = "messages WHERE place % {every} = 0"


def select_terms(rows: str) -> str:
    """Each word and each pair of neighbouring words of some replies (what follows FROM), once a reply."""
    return f"""
    WITH texts AS (SELECT row, user_hash, {WORDS} AS words FROM {rows}),
    places AS (SELECT row, user_hash, words, unnest(range(1, array_length(words) + 1)) AS place FROM texts)
    SELECT DISTINCT row, user_hash, nth(words, place) AS term FROM places
    UNION ALL
    SELECT DISTINCT row, user_hash, nth(words, place) || ' ' || nth(words, place + 1) AS term FROM places
    WHERE place < array_length(words)"""


SELECT_USUAL = "SELECT term, count(*) AS seen_with FROM ({terms}) GROUP BY term"
"""The query that counts, as `usual`, the replies which hold a term; `terms` is a query of `select_terms`."""

SELECT_LOVED_TERMS = """
    WITH loved AS (SELECT user_hash, term, count(*) AS loved_with FROM loved_terms GROUP BY user_hash, term),
    often AS (
        SELECT loved.user_hash, term, loved_with, loves, shown FROM loved JOIN activity
        ON loved.user_hash = activity.user_hash WHERE loved_with >= 2 AND 2 * loved_with >= loves),
    ranked AS (
        SELECT user_hash, often.term AS term, loved_with, loves, shown, coalesce(seen_with, 0) AS seen_with,
            count(*) OVER (PARTITION BY user_hash) AS tried,
            row_number() OVER (PARTITION BY user_hash
                ORDER BY loved_with * ln((CAST(coalesce(seen_with, 0) AS DOUBLE) + 0.5) / ({sampled} + 1)),
                length(often.term) DESC, often.term) AS place
        FROM often LEFT JOIN usual ON often.term = usual.term)
    SELECT user_hash, term, loved_with, CAST(loves AS BIGINT) AS loves, shown, seen_with, tried
    FROM ranked WHERE place <= {most} ORDER BY user_hash, place"""
"""The rarest terms that are in at least half of what a user loves (`loved_terms`), and in how many sampled replies."""

SELECT_HOLDING = f"""
    WITH texts AS (
        SELECT user_hash, lower(opening(response)) AS text FROM messages
        WHERE user_hash IN (SELECT user_hash FROM candidates)),
    likely AS (
        SELECT texts.user_hash, term, ' ' || term || ' ' AS words, text
        FROM texts JOIN candidates ON texts.user_hash = candidates.user_hash
        WHERE contains(text, split_part(term, ' ', 1)) AND contains(text, split_part(term, ' ', 2)))
    SELECT user_hash, term, count(*) AS holding FROM likely
    WHERE CASE WHEN contains(' ' || text || ' ', words) THEN true
        ELSE contains(' ' || array_to_string(regexp_extract_all(text, '{TERM}'), ' ') || ' ', words) END
    GROUP BY user_hash, term ORDER BY user_hash, term"""
"""The number of a user's replies that hold a term (`candidates`: user_hash, term).

A text is cut into words only where it may hold the term, and not between spaces, where it surely is.
"""

SELECT_COUNTS = """
    SELECT CAST(coalesce(sum(shown), 0) AS BIGINT), coalesce(sum(CASE WHEN loves >= {few} THEN 1 ELSE 0 END), 0),
        coalesce(sum(CASE WHEN loves >= {many} THEN 1 ELSE 0 END), 0) FROM activity"""
"""All messages, and how many users love at least so many."""
