"""Functions of the queries, as macros of DuckDB: taking out secrets, hashing, times, JSON."""

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
"""Patterns of what is taken out of texts. A pattern finds what looks like a secret, not every secret."""
REDACTED = "[redacted]"
_SECRET = "|".join(SECRETS)

_NUMERIC = r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?"
FUNCTIONS = {
    # replacing copies every text and costs more than looking, and few texts hold a secret
    "redact(x)": f"""
        CASE WHEN regexp_matches(x, '{_SECRET}') THEN regexp_replace(x, '{_SECRET}', '{REDACTED}', 'g') ELSE x END""",
    # 72 bits of SHA-256 over the key and the id, as 12 characters. The connection holds the key as a variable, so that
    # no text of a query has it
    "hash_id(kind, x)": """
        to_base64(unhex(substr(sha256((getvariable('hash_key') || encode(kind)) || encode(x)), 1, 18)))""",
    # DuckDB's hash() takes eight bytes at a time, and what differs in the last ones of two such blocks may cancel. Four
    # characters on, these bytes are in the middle of a block, and spread: two texts don't agree in both by that. MD5
    # takes three times as long
    "fingerprint(x)": "CAST(hash(hash(x), hash('1234' || x)) >> 1 AS BIGINT)",
    # microseconds since 1970, from seconds, milliseconds, microseconds or nanoseconds by their size, or from ISO 8601.
    # The first branch is one that the third holds too: most times look like it, and patterns are slow
    "parse_time(x)": rf"""
        CASE WHEN contains(x, ':') AND ends_with(x, 'Z') AND x BETWEEN '0' AND ':'
                THEN epoch_us(TRY_CAST(x AS TIMESTAMPTZ))
             WHEN regexp_full_match(x, '{_NUMERIC}') THEN
            CASE WHEN abs(TRY_CAST(x AS DOUBLE)) < 1e11 THEN TRY_CAST(TRY_CAST(x AS DOUBLE) * 1e6 AS BIGINT)
                 WHEN abs(TRY_CAST(x AS DOUBLE)) < 1e14 THEN TRY_CAST(TRY_CAST(x AS DOUBLE) * 1e3 AS BIGINT)
                 WHEN abs(TRY_CAST(x AS DOUBLE)) < 1e17 THEN TRY_CAST(TRY_CAST(x AS DOUBLE) AS BIGINT)
                 ELSE TRY_CAST(TRY_CAST(x AS DOUBLE) / 1e3 AS BIGINT) END
             WHEN regexp_matches(x, ':[0-9.]+ *[+-](1[5-9]|[2-9][0-9])') OR NOT regexp_matches(x, '^[0-9]') THEN NULL
             ELSE epoch_us(TRY_CAST(x AS TIMESTAMPTZ)) END""",
    # quicker than to_json() of a list, with the same text
    "one_message(x)": """'[{"role":"user","content":' || CAST(to_json(redact(x)) AS VARCHAR) || '}]'""",
    "roles_and_texts(items)": """
        CAST(to_json([{'role': m ->> '$.role', 'content': redact(m ->> '$.content')} for m in items]) AS VARCHAR)""",
    "is_dialogue(items)": """
        len(items) > 0 AND len([m for m in items
            if coalesce(m ->> '$.role', '') NOT IN ('system', 'developer', 'user', 'assistant', 'tool')
            OR coalesce(json_type(m, '$.content'), '') <> 'VARCHAR']) = 0""",
    # replace() copies every text, and few hold what is looked for
    "hide(x, name)": f"CASE WHEN contains(x, name) THEN replace(x, name, '{REDACTED}') ELSE x END",
    # trim() copies every text, and few begin with a character below or above these; AND would ask both
    "is_blank(x)": "CASE WHEN x BETWEEN '!' AND '~' THEN false ELSE trim(x) = '' END",
    # trim() and left() copy every text
    "bare(x)": "CASE WHEN starts_with(x, ' ') OR ends_with(x, ' ') THEN trim(x) ELSE x END",
    "label(x)": "CASE WHEN strlen(x) <= 64 THEN x ELSE left(x, 64) END",
    # left() counts characters, from the first
    "opening(x)": "CASE WHEN strlen(x) <= 4000 THEN x ELSE left(x, 4000) END",
    "nth(words, place)": "words[place]",
}
"""Name and arguments, and the definition for DuckDB."""
