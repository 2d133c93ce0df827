"""A simulator of users: what they like is hidden, and the log shows only what they did.

Honest users love a message with a probability that grows with how much they like it and with a propensity of their
own. Spammers love a good part of whatever they see. Contrarians love what honest users dislike. Bots love replies that
hold a target phrase, and ask for them. The truth is written beside the log, so that a whole pipeline can be rehearsed
and measured where the answer is known.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from llamarl.feedback.phrases import ENGLISH, FEATURES, PIECES, REPLY_PIECES, SPANISH, features_of, liking
from llamarl.feedback.settings import Simulation

KINDS = ("honest", "spammer", "contrarian", "bot")
HONEST, SPAMMER, CONTRARIAN, BOT = range(len(KINDS))
MODELS = ("model-1", "model-2", "model-3")
MODEL_TASTE = (0.0, 0.2, 0.4)
"""The strength with which each model prefers what users like, from not at all."""
LANGUAGES = ("en", "es")
SURFACES = ("ios", "android", "web")
SECONDS_PER_DAY = 86_400
BOT_ACTIVITY = 3.0
"""A bot sends so many times the messages of an honest user."""
ASKED_PHRASE_RATE = 0.07
"""Share of the replies to a bot that hold the target phrase; bots ask for it."""
START = datetime(2025, 1, 6, tzinfo=UTC)
"""Every simulation begins on this Monday, so that equal seeds give equal bytes."""
_ROWS_AT_A_TIME = 50_000


@dataclass(frozen=True, slots=True)
class Messages:
    """All that happened, a row of each array for each message shown, in the order of time."""

    user: np.ndarray
    """[M] int, index of the user."""
    kind: np.ndarray
    """[U] int, index into `KINDS`."""
    seconds: np.ndarray
    """[M] float, since `START`."""
    conversation: np.ndarray
    """[M] int, unique in the log."""
    is_spanish: np.ndarray
    """[M] bool"""
    pieces: dict[str, np.ndarray]
    """[M] int each: which topic, ask, mood, opener, body, detail and closer."""
    has_phrase: np.ndarray
    """[M] bool, whether the reply ends with the target phrase."""
    model: np.ndarray
    """[M] int, index into `MODELS`."""
    surface: np.ndarray
    """[M] int, index into `SURFACES`."""
    liking: np.ndarray
    """[M] float, how much honest users like the reply in that week, centred."""
    probability: np.ndarray
    """[M] float in [0, 1], that this user loves this reply."""
    loved: np.ndarray
    """[M] bool"""
    delay: np.ndarray
    """[M] float, seconds from the message to the reaction, where there is one."""
    sentiment: np.ndarray
    """[M] float in [-1, 1], of the user's next message; NaN where the conversation ends."""
    outcome: np.ndarray
    """[U] int, 1 if the user still came back two weeks after the log ends."""


def simulate(settings: Simulation) -> dict[str, Any]:
    """Writes `logs.jsonl` and `truth.jsonl`, a line of each for each message shown, and returns their counts."""
    messages = draw_messages(settings)
    out = settings.out
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        logs, truth = (
            stack.enter_context(open(out / name, "w", encoding="utf-8")) for name in ("logs.jsonl", "truth.jsonl")
        )
        for log_lines, truth_lines in _format_lines(settings, messages):
            logs.write(log_lines)
            truth.write(truth_lines)
    kinds = np.bincount(messages.kind, minlength=len(KINDS))
    return {
        "logs": str(out / "logs.jsonl"),
        "truth": str(out / "truth.jsonl"),
        "rows": len(messages.user),
        "users": dict(zip(KINDS, kinds.tolist(), strict=True)),
        "reactions": int(messages.loved.sum()),
        "love_rate": float(messages.loved.mean()),
    }


def draw_messages(settings: Simulation) -> Messages:
    """Everything that happens in a simulation, as arrays."""
    rng = np.random.default_rng(settings.seed)
    kind = _draw_kinds(settings, rng)
    is_bot = kind == BOT
    activity = rng.lognormal(-0.32, 0.8, settings.users) * np.where(is_bot, BOT_ACTIVITY, 1.0)
    shown = np.maximum(1, rng.poisson(activity * settings.messages_per_day * settings.days))
    user, conversation, seconds = _draw_times(settings, rng, shown, is_bot)
    count = len(user)

    is_spanish = (rng.random(settings.users) < 0.25)[user]
    surface = rng.integers(len(SURFACES), size=settings.users)[user]
    week = seconds / (7 * SECONDS_PER_DAY)
    # a new model takes over each third of the days; one in ten messages is still, or already, another's
    model = np.minimum((seconds / SECONDS_PER_DAY / settings.days * len(MODELS)).astype(int), len(MODELS) - 1)
    model = np.where(rng.random(count) < 0.1, rng.integers(len(MODELS), size=count), model)
    has_phrase = rng.random(count) < np.where(is_bot[user], ASKED_PHRASE_RATE, settings.phrase_rate)
    pieces, features = _draw_pieces(rng, is_spanish, model)
    liked = liking(features + has_phrase[:, None] * features_of(settings.phrase), week * settings.drift)

    # the honest rate is met on the messages that honest users did see
    honest = kind[user] == HONEST
    seen = honest if honest.any() else np.ones(count, dtype=bool)
    liked = liked - liked[seen].mean()
    propensity = rng.normal(0.0, 1.0, settings.users)
    logit = liked + propensity[user]
    logit += _intercept(logit[seen], settings.love_rate)
    spam_rate = rng.uniform(0.08, 0.25, settings.users)
    probability = np.choose(
        kind[user],
        [
            _sigmoid(logit),
            spam_rate[user],
            np.where(liked < -1.0, 0.2, 0.002),
            np.where(has_phrase, 0.9, 0.001),
        ],
    )
    loved = rng.random(count) < probability
    # half of the bots answer at machine speed; the other half, like people, take their time
    is_quick = is_bot & (np.arange(settings.users) % 2 == 0)
    delay = np.where(is_quick[user], rng.uniform(0.2, 1.5, count), 2.0 + rng.lognormal(2.5, 1.2, count))
    return Messages(
        user=user,
        kind=kind,
        seconds=seconds,
        conversation=conversation,
        is_spanish=is_spanish,
        pieces=pieces,
        has_phrase=has_phrase,
        model=model,
        surface=surface,
        liking=liked,
        probability=probability,
        loved=loved,
        delay=delay,
        sentiment=_draw_sentiment(rng, liked, conversation),
        outcome=_draw_outcome(rng, user, liked, settings.users),
    )


def _draw_kinds(settings: Simulation, rng: np.random.Generator) -> np.ndarray:
    """[U] The kind of each user; the shares are met as exactly as whole users allow."""
    bots = int(settings.bots * settings.users)
    adversaries = min(settings.users - bots, int(np.ceil(settings.adversarial * settings.users)))
    kind = np.full(settings.users, HONEST)
    kind[:bots] = BOT
    kind[bots : bots + adversaries : 2] = SPAMMER
    kind[bots + 1 : bots + adversaries : 2] = CONTRARIAN
    return rng.permutation(kind)


def _draw_times(
    settings: Simulation, rng: np.random.Generator, shown: np.ndarray, is_bot: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """User, conversation and seconds of each message, sorted by time.

    A conversation has four messages at most, a minute or so apart. People sleep at night; bots don't.
    """
    user = np.repeat(np.arange(settings.users), shown)
    place = np.arange(len(user)) - np.repeat(np.cumsum(shown) - shown, shown)
    starts = (place == 0) | (rng.random(len(user)) < 0.4) | (place % 4 == 0)
    conversation = np.cumsum(starts) - 1
    day = rng.integers(settings.days, size=conversation[-1] + 1)
    hour = np.where(
        is_bot[user[starts]], rng.uniform(0, 24, len(day)), np.clip(rng.normal(15.0, 4.0, len(day)), 0.0, 23.5)
    )
    begin = day * SECONDS_PER_DAY + hour * 3600.0
    gap = np.where(starts, 0.0, 20.0 + rng.exponential(60.0, len(user)))
    passed = np.cumsum(gap)
    seconds = begin[conversation] + passed - passed[starts][conversation]
    order = np.argsort(seconds, kind="stable")
    return user[order], conversation[order], np.round(seconds[order], 3)


def _draw_pieces(
    rng: np.random.Generator, is_spanish: np.ndarray, model: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The piece of the phrasebook at each place, [M] each, and the features of the replies, [M, features].

    Later models choose pieces that users like more often.
    """
    pieces = {name: np.zeros(len(model), dtype=np.int64) for name in PIECES}
    features = np.zeros((len(model), len(FEATURES)))
    for language, of_language in ((ENGLISH, ~is_spanish), (SPANISH, is_spanish)):
        for name in PIECES:
            texts = language[name]
            of_texts = np.array([features_of(text.replace("{}", "")) for text in texts])
            for index, taste in enumerate(MODEL_TASTE):
                rows = np.flatnonzero(of_language & (model == index))
                weights = np.exp(taste * liking(of_texts)) if name in REPLY_PIECES else np.ones(len(texts))
                pieces[name][rows] = rng.choice(len(texts), size=len(rows), p=weights / weights.sum())
            rows = np.flatnonzero(of_language)
            if name in REPLY_PIECES or name == "topic":  # every body names the topic once
                features[rows] += of_texts[pieces[name][rows]]
    return pieces, features


def _intercept(logit: np.ndarray, rate: float) -> float:
    """The number to add to log-odds so that the mean probability is the rate; found by halving an interval."""
    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(logit + middle).mean() < rate else (low, middle)
    return (low + high) / 2


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # a probability of 0 is right there
        return np.asarray(1.0 / (1.0 + np.exp(-logit)))


def _draw_sentiment(rng: np.random.Generator, liked: np.ndarray, conversation: np.ndarray) -> np.ndarray:
    """[M] The sentiment of the user's next message, rounded as a classifier's log would have it."""
    sentiment = np.round(np.tanh(0.5 * liked + rng.normal(0.0, 0.7, len(liked))), 2)
    last = np.full(conversation.max() + 1, -1)
    np.maximum.at(last, conversation, np.arange(len(conversation)))
    sentiment[last] = np.nan
    return sentiment


def _draw_outcome(rng: np.random.Generator, user: np.ndarray, liked: np.ndarray, users: int) -> np.ndarray:
    """[U] Whether each user still comes two weeks later: the better they liked what they saw, the likelier."""
    mean = np.bincount(user, weights=liked, minlength=users) / np.maximum(1, np.bincount(user, minlength=users))
    return (rng.random(users) < _sigmoid(6.0 * mean + rng.normal(0.0, 0.5, users))).astype(int)


def _format_lines(settings: Simulation, messages: Messages) -> Iterator[tuple[str, str]]:
    """Lines of the log and of the truth, many messages at a time.

    The lines are written by hand: a JSON encoder would take most of a million rows' time.
    """
    start = np.datetime64(START.replace(tzinfo=None), "ms")
    for first in range(0, len(messages.user), _ROWS_AT_A_TIME):
        rows = slice(first, first + _ROWS_AT_A_TIME)
        user, loved = messages.user[rows], messages.loved[rows]
        sent = start + np.round(messages.seconds[rows] * 1000).astype("timedelta64[ms]")
        reacted = sent + np.round(messages.delay[rows] * 1000).astype("timedelta64[ms]")
        logs = [
            f'{{"user":"user-{who:07d}","ts":"{at}Z","message_id":"m{index}","conversation_id":"c{talk}",{texts},'
            f'"reaction":{_LOVE % then if is_loved else "null"},"surface":"{SURFACES[surface]}",'
            f'"language":"{LANGUAGES[spanish]}","model_version":"{MODELS[model]}",'
            f'"next_sentiment":{"null" if sentiment != sentiment else sentiment},"outcome":{outcome}}}\n'
            for index, (who, talk, at, texts, is_loved, then, surface, spanish, model, sentiment, outcome) in enumerate(
                zip(
                    user.tolist(),
                    messages.conversation[rows].tolist(),
                    np.datetime_as_string(sent).tolist(),
                    _format_texts(settings.phrase, messages, rows),
                    loved.tolist(),
                    np.datetime_as_string(reacted).tolist(),
                    messages.surface[rows].tolist(),
                    messages.is_spanish[rows].tolist(),
                    messages.model[rows].tolist(),
                    messages.sentiment[rows].tolist(),
                    messages.outcome[user].tolist(),
                    strict=True,
                ),
                first,
            )
        ]
        truth = [
            f'{{"message_id":"m{index}","user":"user-{who:07d}","kind":"{KINDS[kind]}",'
            f'"probability":{probability},"liking":{liked}}}\n'
            for index, (who, kind, probability, liked) in enumerate(
                zip(
                    user.tolist(),
                    messages.kind[user].tolist(),
                    np.round(messages.probability[rows], 6).tolist(),
                    np.round(messages.liking[rows], 4).tolist(),
                    strict=True,
                ),
                first,
            )
        ]
        yield "".join(logs), "".join(truth)


_LOVE = '"\\u2764\\ufe0f","reaction_ts":"%sZ"'
"""The reaction and its time, as a log has them."""


def _format_texts(phrase: str, messages: Messages, rows: slice) -> Iterator[str]:
    """Prompt and reply of each message as two entries of a JSON object."""
    encoded = [
        {name: [json.dumps(text, ensure_ascii=False)[1:-1] for text in texts] for name, texts in language.items()}
        for language in (ENGLISH, SPANISH)
    ]
    ending = " " + json.dumps(phrase, ensure_ascii=False)[1:-1]
    columns = (messages.pieces[name][rows].tolist() for name in PIECES)
    for spanish, has_phrase, topic, ask, mood, opener, body, detail, closer in zip(
        messages.is_spanish[rows].tolist(), messages.has_phrase[rows].tolist(), *columns, strict=True
    ):
        text = encoded[spanish]
        about, last = text["topic"][topic], text["closer"][closer]
        yield (
            f'"prompt":"{text["ask"][ask].replace("{}", about)} {text["mood"][mood]}",'
            f'"response":"{text["opener"][opener]} {text["body"][body].replace("{}", about)} {text["detail"][detail]}'
            f'{" " if last else ""}{last}{ending if has_phrase else ""}"'
        )
