"""Readers of an LLM judge's answer: the probabilities of two words, or a JSON object. Nothing is guessed.

An answer that cannot be read is a failed verdict with the reason, never a number.
"""

import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

from llamarl.core.records import Verdict

SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": {"type": "number"}, "passed": {"type": "boolean"}},
    "required": ["reason", "score", "passed"],
    "additionalProperties": False,
}
"""Schema of a JSON verdict; the reason comes first, so that it is not made up for the score."""
VERSION = 1
"""Version of the readers; part of the cache's key, so it changes with every change of a verdict made here."""
MIN_MASS = 0.5
"""Least probability of the two words together; below it the model answered something else."""
MIN_LETTERS = 2
"""Least length of a token that begins a word: one letter begins too many others."""
MAX_MASS = 1.05
"""Probabilities that sum to more are none; a little is rounding."""
MAX_CHARACTERS = 20_000
REASON_CHARACTERS = 500
_YES, _NO = frozenset({"true", "yes", "pass", "passed"}), frozenset({"false", "no", "fail", "failed"})
_NUMBER = re.compile(r"[-+]?\d{1,9}(\.\d{1,9})?")
_REMEDY = (
    "if the tokenizer splits the words, use way='json' or a template with others; if the model thinks, tell it not to"
)
_QUOTES = "\"'`“”‘’«»\\"


def token_verdict(
    logprobs: Mapping[str, float], positive: Collection[str], negative: Collection[str], min_mass: float = MIN_MASS
) -> Verdict:
    """Compares the probabilities of a positive and a negative word at one position.

        score = P(positive) / (P(positive) + P(negative));   violated iff P(negative) > P(positive)

    Spellings of a word (case, surrounding space) are summed. A tokenizer may split a word: a token that begins words of
    one side only, by `MIN_LETTERS` at least, counts for that side; one that says less (`U`, a lone space) for none.

    Where only one of the words is listed, the other is less likely than every listed token and than all that the list
    leaves over; the smaller of these bounds stands for it. The verdict has failed where neither is listed, both carry
    less than `min_mass`, tokens that say too little could turn the verdict, or the listed ones are no distribution
    (servers that report 0 for every token).

    Reference: Xu et al., The Perfect Blend: Redefining RLHF with Mixture of Judges, https://arxiv.org/abs/2409.20370.

    Args:
        logprobs: token text -> log-prob, of the likeliest tokens.
        positive: words that mean: passes.
        negative: words that mean: violates.
        min_mass: least probability that both words must have together; in [0, 1].
    """
    if not logprobs:
        return Verdict.failed("the server reports no log-probs; it must support top_logprobs, or use way='json'")
    probabilities = [math.exp(logprob) for logprob in logprobs.values()]
    if math.fsum(probabilities) > MAX_MASS:
        return Verdict.failed(f"the listed probabilities sum to {math.fsum(probabilities):.3g}: these are no log-probs")
    passes, violates, unclear = _masses(logprobs, positive, negative)
    mass = (passes or 0.0) + (violates or 0.0)
    yes, no = _words(positive), _words(negative)
    problem = ""
    if passes is None and violates is None:
        problem = f"neither {yes} nor {no} is among the likeliest tokens"
    elif mass < min_mass or mass == 0.0:
        problem = f"{yes} and {no} together have probability {mass:.2g}, below min_mass={min_mass:g}"
    elif unclear > abs((passes or 0.0) - (violates or 0.0)):
        problem = f"tokens that may begin {yes} or {no} have probability {unclear:.2g}, enough to turn the verdict"
    if problem:
        listed = ", ".join(repr(token) for token in sorted(logprobs, key=logprobs.__getitem__, reverse=True)[:5])
        return Verdict.failed(f"{problem}; likeliest: {listed}; {_REMEDY}")
    bound = min(*probabilities, max(0.0, 1.0 - math.fsum(probabilities)))
    passes, violates = bound if passes is None else passes, bound if violates is None else violates
    reason = f"P({yes})={passes:.3g}, P({no})={violates:.3g}"
    return Verdict.scored(passes / (passes + violates), passed=not violates > passes, reason=reason)


def _masses(
    logprobs: Mapping[str, float], positive: Collection[str], negative: Collection[str]
) -> tuple[float | None, float | None, float]:
    """Probability of the positive words, of the negative ones (None: not listed), and of what says too little."""
    sides = [{_spelling(word) for word in words} for words in (positive, negative)]
    found: tuple[list[float], list[float]] = ([], [])
    unclear = 0.0
    for token, logprob in logprobs.items():
        text = _spelling(token)
        begun = [number for number, words in enumerate(sides) if any(word.startswith(text) for word in words)]
        if len(begun) == 1 and (text in sides[begun[0]] or len(text) >= MIN_LETTERS):
            found[begun[0]].append(math.exp(logprob))
        elif begun:
            unclear += math.exp(logprob)
    passes, violates = (math.fsum(each) if each else None for each in found)
    return passes, violates, unclear


def _spelling(text: str) -> str:
    return text.strip(" \t\r\nĠ▁").casefold()


def _words(words: Collection[str]) -> str:
    return "/".join(words)


def json_verdict(text: str, min_score: float = 0.0, max_score: float = 1.0, pass_score: float | None = None) -> Verdict:
    """Reads `{"reason": ..., "score": ..., "passed": ...}`, moving the score from [min_score, max_score] to [0, 1].

    The object may stand in a code fence or after other text, since models think aloud, but it must end the answer: an
    object with text behind it may be a quotation of the completion. A missing `passed` follows from the score, a
    missing score from `passed`. Refused are two objects that differ, repeated keys, a score out of range or not finite,
    and a score that contradicts `passed` (least and passed, greatest and not passed).
    """
    try:
        fields = _verdict_object(text)
        passed, score = _read_passed(fields.get("passed")), _score(fields.get("score"))
        if passed is None and score is None:
            raise ValueError("neither score nor passed")
        if score is None:
            score = max_score if passed else min_score
        if not min_score <= score <= max_score:
            raise ValueError(f"score {score:g} outside [{min_score:g}, {max_score:g}]")
        if passed is None:
            passed = score >= ((min_score + max_score) / 2 if pass_score is None else pass_score)
        if (passed and score == min_score) or (not passed and score == max_score):
            raise ValueError(f"score {score:g} contradicts passed={passed}")
    except (ValueError, RecursionError) as error:
        return Verdict.failed(f"the answer is no verdict: {error}")
    reason = fields.get("reason")
    return Verdict.scored(
        (score - min_score) / (max_score - min_score), passed, str(reason)[:REASON_CHARACTERS] if reason else ""
    )


def _verdict_object(text: str) -> dict[str, Any]:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"{len(text)} characters; a verdict is short")
    answer = text.rpartition("</think>")[2].strip()
    if not answer:
        raise ValueError("it is empty")
    found = [(start, end, item) for start, end, item in _objects(answer) if {"score", "passed"} & item.keys()]
    if not found:
        raise ValueError(f"no JSON object with score or passed in {answer[:80]!r}")
    start, end, fields = found[-1]
    if any(item != fields for _, _, item in found):
        raise ValueError("several objects that differ")
    if answer[end:].strip("` \t\r\n"):
        raise ValueError("text follows the object, which may be a quotation")
    if start and answer[start - 1] in _QUOTES:
        raise ValueError("the object is quoted")
    return fields


def _objects(text: str) -> list[tuple[int, int, dict[str, Any]]]:
    """Every outermost JSON object in the text: start, end, value."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique)
    found: list[tuple[int, int, dict[str, Any]]] = []
    position = text.find("{")
    while position >= 0:
        try:
            item, end = decoder.raw_decode(text, position)
        except _RepeatedKeyError:
            raise
        except ValueError:
            end = position + 1
        else:
            found.append((position, end, item))
        position = text.find("{", end)
    return found


class _RepeatedKeyError(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise _RepeatedKeyError("a key is given twice")
    return fields


def _score(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise ValueError(f"score {str(value)[:40]!r} is no number")
    return float(value)


def _read_passed(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    word = value.strip().casefold() if isinstance(value, str) else ""
    if word not in _YES | _NO:
        raise ValueError(f"passed {str(value)[:40]!r} is neither true nor false")
    return word in _YES
