"""Queries over the messages of a store, `stored`."""

SEGMENTS = {
    "day": "CAST(CAST(ts AS DATE) AS VARCHAR)",
    "surface": "surface",
    "language": "language",
    "model_version": "model_version",
}
"""The expression that finds a message's segment."""

SELECT_SEGMENT_RATES = """
    WITH by_user AS (
        SELECT {segment} AS segment, user_hash, CAST(count(*) AS DOUBLE) AS shown,
            CAST(sum(CASE WHEN loved THEN 1 ELSE 0 END) AS DOUBLE) AS loves
        FROM stored GROUP BY {segment}, user_hash)
    SELECT segment, sum(loves), sum(shown), count(*), sum(loves * loves), sum(loves * shown), sum(shown * shown)
    FROM by_user GROUP BY segment ORDER BY segment"""

SELECT_SIGNALS = """
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
"""A query: how often a signal is known and good, how users' means go with the outcome, how often another objects."""
