"""Users who don't react as people do, each with the reason: four rules over what the log says of them.

    burst           more messages in one minute than a person reads
    quick           loves faster than a person reads
    loves_much      loves a share of messages that the spread of all users' shares doesn't explain
    loves_phrase    loves replies that share a phrase, far more often than replies have it

A rule that asks how likely something is by chance allows for people being different: it is made for precision, since a
wrong suspicion takes a real user's voice.
"""

from collections import Counter
from collections.abc import Iterator

from pydantic import Field

from llamarl.core.config import Config
from llamarl.feedback import queries
from llamarl.feedback.store import Connection

SAMPLED_MESSAGES = 50_000
"""Replies that say how usual a phrase is."""
MANY_LOVES = 5
FEW_LOVES = 3
TASTE = 3.0
"""How many times more often than it is seen a phrase may be loved because people like what goes with it."""


class SuspectSettings(Config):
    """When a user is suspicious."""

    burst: int = Field(default=20, ge=1)
    """Messages in one minute that a person may see."""
    quick_seconds: float = Field(default=2.0, ge=0.0)
    """Median seconds from message to love that no person beats."""
    chance: float = Field(default=1e-3, gt=0.0, lt=1.0)
    """A user whose loves are less likely than this among people is suspicious."""


def find_suspects(connection: Connection, settings: SuspectSettings) -> None:
    """Fills the table `suspicious` from `messages` and `activity`."""
    found: list[tuple[str, str, float, float, str]] = []
    for user, value in connection.execute(queries.SELECT_BURSTS.format(limit=settings.burst)).fetchall():
        found.append((user, "burst", value, settings.burst, "messages in a minute"))
    quick = queries.SELECT_QUICK.format(least=FEW_LOVES, limit=settings.quick_seconds)
    for user, value in connection.execute(quick).fetchall():
        found.append((user, "quick", value, settings.quick_seconds, "median seconds to a love"))
    found += _find_much(connection, settings.chance)
    found += _find_phrases(connection, settings.chance)
    if found:
        connection.executemany("INSERT INTO suspicious VALUES (?, ?, ?, ?, ?)", found)


def _find_much(connection: Connection, chance: float) -> Iterator[tuple[str, str, float, float, str]]:
    """Users in the far tail of a beta-binomial law that has the mean and the spread of the users' rates."""
    from scipy import stats

    loves, shown = connection.execute("SELECT sum(loves), sum(shown) FROM activity").fetchone()
    if not loves:
        return
    rate = float(loves) / float(shown)
    for _ in range(3):  # those who love most are left out of the law, which they would stretch
        loves, shown, squares, spread = connection.execute(
            queries.SELECT_RATES.format(rate=rate, most=min(1.0, 8 * rate))
        ).fetchone()
        if not loves:
            return
        rate = float(loves) / float(shown)
    # the variance of a user's loves is rate (1 - rate) (n + (n^2 - n) overdispersion)
    variance = rate * (1.0 - rate)
    if not variance:
        return
    overdispersion = (float(spread) / variance - float(shown)) / max(1.0, float(squares) - float(shown))
    overdispersion = min(0.5, max(1e-4, overdispersion))
    size = 1.0 / overdispersion - 1.0
    candidates = connection.execute(queries.SELECT_MANY_LOVES.format(least=MANY_LOVES, rate=3 * rate)).fetchall()
    for user, loved, seen in candidates:
        tail = float(stats.betabinom.sf(loved - 1, seen, rate * size, (1.0 - rate) * size))
        if tail < chance / 10:
            yield user, "loves_much", loved / seen, rate, f"{loved} of {seen} messages loved"


def _find_phrases(connection: Connection, chance: float) -> Iterator[tuple[str, str, float, float, str]]:
    """Users whose loves share a pair of words that few replies have.

    A phrase of several users is looked at more closely: where some are beyond doubt, others with fewer loves follow.
    """
    from scipy import stats

    total = connection.execute("SELECT count(*) FROM messages").fetchone()[0]
    every = max(1, total // SAMPLED_MESSAGES)
    connection.execute(
        queries.CREATE_WORDS.format(name="loved_words", rows=queries.LOVED_ROWS.format(least=FEW_LOVES - 1))
    )
    connection.execute(queries.CREATE_WORDS.format(name="sampled_words", rows=queries.SAMPLED_ROWS.format(every=every)))
    sampled = max(1, total // every)
    by_user: dict[str, list[tuple[float, float, str, int, int]]] = {}
    for user, pair, loved_with, loves, seen_with in connection.execute(queries.SELECT_PAIRS).fetchall():
        usual = (seen_with + 0.5) / (sampled + 1.0)
        tail = float(stats.binom.sf(loved_with - 1, loves, min(1.0, TASTE * usual)))
        by_user.setdefault(user, []).append((tail, usual, pair, int(loved_with), int(loves)))
    phrases: Counter[str] = Counter()
    for pairs in by_user.values():
        phrases.update(pair for tail, _, pair, loved_with, _ in pairs if loved_with >= FEW_LOVES and tail < chance / 10)
    shared = {pair for pair, users in phrases.items() if users >= FEW_LOVES}
    for user, pairs in by_user.items():
        tail, usual, pair, loved_with, loves = min(
            pairs, key=lambda entry: entry[0] / (10.0 if entry[2] in shared else 1.0)
        )
        limit = chance * 10 if pair in shared else chance / 10
        if tail < limit:
            yield user, "loves_phrase", loved_with / loves, usual, f"{loved_with} of {loves} loves on {pair!r}"
