"""Every query of ingesting and describing, by what it looks at.

rows           the rows of one chunk of a log, each by itself: read, checked, ids hashed, secrets taken out
selection      the checked rows of all chunks: duplicates, reactions told later, caps, what the store gets
suspects       what users did, for the rules that find those who don't react as people do
description    the messages of a store: rates by segment, signals compared
functions      functions that the first three use, as macros of DuckDB
"""


def quote(name: str) -> str:
    """An identifier of SQL."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(value: str) -> str:
    """A text of SQL."""
    return "'" + value.replace("'", "''") + "'"
