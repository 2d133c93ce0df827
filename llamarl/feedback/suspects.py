"""Users who don't react as people do, each with the reason: five rules over what the log says of them.

    burst           more messages in one minute than a person reads
    quick           loves faster than a person reads
    regular         sends messages, or loves, like a clock
    loves_phrase    loves replies that hold a phrase, more often than liking it explains
    loves_much      loves a share of messages that the spread of all users' shares doesn't explain

The first three are about time, and believe a log's times only where most users have times that a person can have. The
last two ask how likely it is by chance; so many users are asked that some are unlikely, so that the bar is set by how
many of the suspects are wrong (the false discovery rate), not by how unlikely each is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from llamarl.feedback.chance import beta_binomial_tail, find_unlikely, fit_beta_binomial, overlap_tail
from llamarl.feedback.engines import QueryEngine
from llamarl.feedback.queries import suspects as queries
from llamarl.feedback.settings import SuspectSettings

SAMPLED_MESSAGES = 20_000
"""Replies that say how usual a phrase is."""
MANY_LOVES = 5
FEW_LOVES = 3
MANY_GAPS = 20
MOST_TERMS = 3
"""Terms of each user that are looked at closely."""
TASTE = 3.0
"""The factor of odds that a reply with a phrase may have over others because somebody likes what goes with it."""
MESSAGES_AT_ONCE, LOVES_AT_ONCE = 4_000_000, 100_000
"""Users are asked for their medians, and for what their loves share, in groups that have so many, about."""
MOST_MESSAGES = 10_000
"""Users who saw more are judged by the law of the others, and are none of those it is fitted to."""


class Suspect(NamedTuple):
    """A user, and one reason."""

    user_hash: str
    reason: str
    value: float
    expected: float
    detail: str


TYPES = {"user_hash": "string", "reason": "string", "value": "double", "expected": "double", "detail": "string"}


def find_suspects(engine: QueryEngine, settings: SuspectSettings) -> list[str]:
    """Keeps the table `suspicious` of what is found in `messages` and `activity`; returns what a reader should know."""
    notes: list[str] = []
    ((total, _, _),) = engine.fetch(queries.SELECT_COUNTS.format(few=FEW_LOVES - 1, many=FEW_LOVES))
    groups = _divide_users(total, MESSAGES_AT_ONCE)
    found = [
        Suspect(user, "burst", float(most), float(settings.burst), "messages in a minute")
        for user, most in engine.fetch(queries.SELECT_BURSTS.format(limit=settings.burst))
    ]
    found += _find_quick(engine, groups, settings.quick_seconds, notes)
    found += _find_regular(engine, groups, "messages", queries.GAPS, MANY_GAPS, 0.5, notes)
    found += _find_regular(engine, groups, "loves", queries.DELAYS, MANY_LOVES, 0.9, notes)
    found += _find_phrases(engine, settings.wrong_share)
    engine.load("suspicious", _columns(found), TYPES)
    much = list(_find_much(engine, settings.wrong_share))
    if much:
        engine.forget("suspicious")
        engine.load("suspicious", _columns(found + much), TYPES)
    return notes


def _columns(found: list[Suspect]) -> Mapping[str, list[object]]:
    return {name: [getattr(suspect, name) for suspect in found] for name in Suspect._fields}


# ---- times


def _divide_users(total: int, at_once: int) -> list[str]:
    """Conditions that divide the users who have so many rows into groups, in the order of their hashes."""
    characters = queries.HASH_CHARACTERS
    groups = np.array_split(list(characters), min(len(characters), 1 + total // at_once))
    return [queries.USERS.format(first=group[0], last=group[-1]) for group in groups]


def _fetch_groups(engine: QueryEngine, groups: Sequence[str], select: str, passed: str) -> list[np.ndarray]:
    """The columns of a query about the users of all groups."""
    return _join(engine.fetch_arrays(select.format(passed=passed.format(users=users))) for users in groups)


def _join(tables: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
    """The columns of tables, one below the other."""
    return [np.concatenate(columns) for columns in zip(*tables, strict=True)]


def _find_quick(engine: QueryEngine, groups: Sequence[str], limit: float, notes: list[str]) -> list[Suspect]:
    users, seconds, loves = _fetch_groups(engine, groups, queries.SELECT_MEDIANS, queries.DELAYS)
    is_quick = seconds < limit
    if 2 * is_quick.sum() > len(users):
        notes.append(f"most users who love do so within {limit:g} s: these times don't tell who is quick")
        return []
    return [
        Suspect(users[place], "quick", float(seconds[place]), limit, "median seconds to a love")
        for place in np.flatnonzero(is_quick & (loves >= FEW_LOVES))
    ]


def _find_regular(
    engine: QueryEngine,
    groups: Sequence[str],
    what: str,
    passed: str,
    least: int,
    share: float,
    notes: list[str],
) -> list[Suspect]:
    """Users of whose times a share lies within a second of their median, which a person's don't."""
    users, counts, seconds, alike = _fetch_groups(engine, groups, queries.SELECT_ALIKE, passed)
    is_alike = (alike >= share) & (seconds >= 1.0)  # shorter ones are those of a burst, or of a clock that stood
    if 2 * is_alike.sum() > len(users):
        notes.append(f"the times of most users' {what} are alike: they don't tell who is regular")
        return []
    return [
        Suspect(users[place], "regular", float(alike[place]), share, f"share of {what} after {seconds[place]:.0f} s")
        for place in np.flatnonzero(is_alike & (counts >= least))
    ]


# ---- phrases


def _find_phrases(engine: QueryEngine, wrong_share: float) -> Iterator[Suspect]:
    """Users whose loves share a word, an emoji or two neighbouring words.

    Two explanations must fail: that all replies are like that, and that the replies which this user saw are (their
    language, their topic, their character). Each allows for `TASTE`. Where several users are found out on one term,
    others are held to it alone, so that fewer loves tell.
    """
    from scipy.special import bdtrc  # scipy.stats has it too, and takes a second to import

    ((total, lovers, many),) = engine.fetch(queries.SELECT_COUNTS.format(few=FEW_LOVES - 1, many=FEW_LOVES))
    every = max(1, total // SAMPLED_MESSAGES)
    sampled_rows = queries.SAMPLED_ROWS.format(every=every)
    engine.keep("usual", queries.SELECT_USUAL.format(terms=queries.select_terms(sampled_rows)))
    ((sampled,),) = engine.fetch(f"SELECT count(*) FROM {sampled_rows}")
    engine.keep("loved_replies", queries.SELECT_LOVED.format(least=FEW_LOVES - 1))
    users, terms, loved_with, loves, shown, seen_with, tried = _join(_fetch_loved_terms(engine, sampled))
    engine.forget("loved_replies")
    usual = (seen_with + 0.5) / (sampled + 1.0)
    of_all = bdtrc(loved_with - 1, loves, np.minimum(1.0, TASTE * usual))
    is_likely = (loved_with >= FEW_LOVES) & (of_all * tried < wrong_share)
    of_own = _ask_own(engine, is_likely, users, terms, loved_with, loves, shown)
    chance = np.minimum(1.0, np.maximum(of_all, of_own) * tried)

    is_found = np.zeros(len(users), dtype=bool)
    best = _best_of_each(users, np.where(is_likely, chance, 1.0))
    best = best[loves[best] >= FEW_LOVES]
    is_found[best[find_unlikely(chance[best], many, wrong_share)]] = True
    targets, counts = np.unique(terms[is_found].astype(str), return_counts=True)
    shared = targets[counts >= FEW_LOVES]
    is_likely = np.isin(terms.astype(str), shared) & (of_all < wrong_share)
    of_own = _ask_own(engine, is_likely, users, terms, loved_with, loves, shown)
    for target in shared:
        places = np.flatnonzero((terms == target) & (of_own < wrong_share))
        is_found[places[find_unlikely(of_all[places], lovers, wrong_share)]] = True
    for place in _best_of_each(users, np.where(is_found, chance, 2.0)):
        if is_found[place]:
            detail = f"{loved_with[place]} of {loves[place]} loves on {terms[place]!r}"
            share = float(loved_with[place] / loves[place])
            yield Suspect(users[place], "loves_phrase", share, float(usual[place]), detail)


def _fetch_loved_terms(engine: QueryEngine, sampled: int) -> Iterator[list[np.ndarray]]:
    """The columns of `SELECT_LOVED_TERMS` for groups of users: a love has 40 terms, which a group needs at once."""
    ((total,),) = engine.fetch("SELECT count(*) FROM loved_replies")
    for users in _divide_users(total, LOVES_AT_ONCE):
        engine.keep("loved_terms", queries.select_terms(f"loved_replies WHERE {users}"))
        yield engine.fetch_arrays(queries.SELECT_LOVED_TERMS.format(sampled=sampled, most=MOST_TERMS))
        engine.forget("loved_terms")


def _ask_own(
    engine: QueryEngine,
    is_likely: np.ndarray,
    users: np.ndarray,
    terms: np.ndarray,
    loved_with: np.ndarray,
    loves: np.ndarray,
    shown: np.ndarray,
) -> np.ndarray:
    """The probability that chance puts a term into so many of a user's loves, given in how many of their replies it is.

    [N], 1 where it is not likely enough to be asked for: replies have to be searched.
    """
    chance = np.ones(len(users))
    places = np.flatnonzero(is_likely)
    columns = {"user_hash": list(users[places]), "term": list(terms[places])}
    engine.load("candidates", columns, dict.fromkeys(columns, "string"))
    holding = {(user, term): count for user, term, count in engine.fetch(queries.SELECT_HOLDING)}
    engine.forget("candidates")
    for place in places:
        held = int(holding[users[place], terms[place]])
        chance[place] = overlap_tail(int(loved_with[place]), int(loves[place]), held, int(shown[place]), TASTE)
    return chance


def _best_of_each(users: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """The place of the least chance of each user, of equal ones the first; `users` is sorted."""
    order = np.lexsort((np.arange(len(users)), chance, users.astype(str)))
    _, first = np.unique(users[order].astype(str), return_index=True)
    places: np.ndarray = order[first]
    return places


# ---- shares


def _find_much(engine: QueryEngine, wrong_share: float) -> Iterator[Suspect]:
    """Users in the far tail of a beta-binomial law that has the mean and the spread of the users' shares."""
    loves, shown, weights = engine.fetch_arrays(queries.SELECT_LOVE_COUNTS)
    few = shown <= MOST_MESSAGES
    if not loves.any() or (loves == shown).all() or not few.any():
        return
    alpha, beta = fit_beta_binomial(loves[few], shown[few], weights[few])
    usual = alpha / (alpha + beta)
    much = np.flatnonzero((loves >= MANY_LOVES) & (loves > 3.0 * usual * shown))
    chances = [beta_binomial_tail(int(loves[place]), int(shown[place]), alpha, beta) for place in much]
    is_found = find_unlikely(np.repeat(chances, weights[much]), int(weights.sum()), wrong_share)
    much = np.unique(np.repeat(much, weights[much])[is_found])
    pairs = set(zip(loves[much].tolist(), shown[much].tolist(), strict=True))
    for user, count, of in engine.fetch(queries.SELECT_LOVERS.format(least=MANY_LOVES)):
        if (count, of) in pairs:
            yield Suspect(user, "loves_much", count / of, usual, f"{count} of {of} messages loved")
