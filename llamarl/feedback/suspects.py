"""Users who don't react as people do, each with the reason: four rules over what the log says of them.

    burst           more messages in one minute than a person reads
    quick           loves faster than a person reads
    loves_much      loves a share of messages that the spread of all users' shares doesn't explain
    loves_phrase    loves replies that share a phrase, far more often than replies have it

A rule that asks how likely something is by chance allows for people being different: it is made for precision, since a
wrong suspicion takes a real user's voice.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from llamarl.feedback import queries
from llamarl.feedback.settings import SuspectSettings
from llamarl.feedback.store import Connection

SAMPLED_MESSAGES = 20_000
"""Replies that say how usual a phrase is."""
MANY_LOVES = 5
FEW_LOVES = 3
TASTE = 3.0
"""How many times more often than it is seen a phrase may be loved because people like what goes with it."""


def find_suspects(connection: Connection, settings: SuspectSettings) -> None:
    """Fills the table `suspicious` from `messages` and `activity`."""
    bursts = connection.execute(queries.SELECT_BURSTS.format(limit=settings.burst)).fetchall()
    found = [_Suspect(user, "burst", most, settings.burst, "messages in a minute") for user, most in bursts]
    quick = queries.SELECT_QUICK.format(least=FEW_LOVES, limit=settings.quick_seconds)
    for user, seconds in connection.execute(quick).fetchall():
        found.append(_Suspect(user, "quick", seconds, settings.quick_seconds, "median seconds to a love"))
    found += _find_much(connection, settings.chance / 10)
    found += _find_phrases(connection, settings.chance)
    if found:
        connection.executemany("INSERT INTO suspicious VALUES (?, ?, ?, ?, ?)", found)


class _Suspect(NamedTuple):
    user: str
    reason: str
    value: float
    expected: float
    detail: str


def _find_much(connection: Connection, chance: float) -> Iterator[_Suspect]:
    """Users in the far tail of a beta-binomial law that has the mean and the spread of the users' rates."""
    rate, overdispersion = _fit_rates(connection)
    if rate in (0.0, 1.0):
        return
    size = 1.0 / overdispersion - 1.0
    select = queries.SELECT_MANY_LOVES.format(least=MANY_LOVES, rate=3 * rate)
    users, loves, shown = _fetch_columns(connection, select)
    for place in range(len(users)):
        if beta_binomial_tail(int(loves[place]), int(shown[place]), rate * size, (1.0 - rate) * size) >= chance:
            continue
        detail = f"{loves[place]} of {shown[place]} messages loved"
        yield _Suspect(users[place], "loves_much", float(loves[place] / shown[place]), rate, detail)


def beta_binomial_tail(count: int, trials: int, alpha: float, beta: float) -> float:
    """The probability of at least `count` successes, whose probability is drawn from Beta(alpha, beta) once for all.

    Args:
        count: in [0, trials].
        trials: at least 1.
        alpha: above 0.
        beta: above 0.
    """
    from scipy.special import betaln

    successes = np.arange(count, trials + 1)
    choices = -betaln(successes + 1, trials - successes + 1) - np.log(trials + 1)
    log_probability = choices + betaln(successes + alpha, trials - successes + beta) - betaln(alpha, beta)
    return float(min(1.0, np.exp(log_probability).sum()))


def _fit_rates(connection: Connection) -> tuple[float, float]:
    """The mean share of messages that users love, and how far users differ (0: by chance alone, below 1).

    By moments: the variance of the loves of n messages is rate (1 - rate) (n + (n^2 - n) overdispersion). Those who
    love most are left out, as they would stretch the law that is to find them.
    """
    rate, most = 0.0, 1.0
    for _ in range(4):
        select = queries.SELECT_RATES.format(rate=rate, most=most)
        loves, shown, squares, spread = (float(value or 0.0) for value in connection.execute(select).fetchone())
        if not loves:
            return 0.0, 0.0
        variance = rate * (1.0 - rate)
        rate, most = loves / shown, min(1.0, 8.0 * loves / shown)
    if not variance or squares <= shown:
        return rate, 1e-4
    return rate, min(0.5, max(1e-4, (spread / variance - shown) / (squares - shown)))


def _find_phrases(connection: Connection, chance: float) -> Iterator[_Suspect]:
    """Users whose loves share a pair of words that few replies have.

    A phrase of several users is looked at more closely: where some are beyond doubt, others with fewer loves follow.
    """
    from scipy.special import bdtrc  # scipy.stats has it too, and takes a second to import

    total = connection.execute("SELECT count(*) FROM messages").fetchone()[0]
    every = max(1, total // SAMPLED_MESSAGES)
    loved_rows, sampled_rows = queries.LOVED_ROWS.format(least=FEW_LOVES - 1), queries.SAMPLED_ROWS.format(every=every)
    connection.execute(queries.CREATE_WORDS.format(name="loved_words", rows=loved_rows))
    connection.execute(queries.CREATE_WORDS.format(name="sampled_words", rows=sampled_rows))
    sampled = connection.execute(f"SELECT count(*) FROM messages {sampled_rows}").fetchone()[0]
    users, pairs, loved_with, loves, seen_with = _fetch_columns(connection, queries.SELECT_PAIRS)
    usual = (seen_with + 0.5) / (sampled + 1.0)
    tails = bdtrc(loved_with - 1, loves, np.minimum(1.0, TASTE * usual))
    is_sure = (loved_with >= FEW_LOVES) & (tails < chance / 10)
    names, counts = np.unique(pairs[is_sure].astype(str), return_counts=True)
    is_shared = np.isin(pairs.astype(str), names[counts >= FEW_LOVES])
    reported: set[str] = set()
    surprise = tails / np.where(is_shared, 100.0, 1.0)
    for place in np.argsort(surprise, kind="stable"):
        if surprise[place] >= chance / 10:
            return
        if (user := users[place]) not in reported:
            reported.add(user)
            detail = f"{loved_with[place]} of {loves[place]} loves on {pairs[place]!r}"
            share = float(loved_with[place] / loves[place])
            yield _Suspect(user, "loves_phrase", share, float(usual[place]), detail)


def _fetch_columns(connection: Connection, select: str) -> list[np.ndarray]:
    """The columns of a query as arrays; texts are objects."""
    return [np.asarray(column) for column in connection.execute(select).fetchnumpy().values()]
