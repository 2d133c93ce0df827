"""The memory for scores: what decides whether a claim is known, its bounds, what is not remembered."""

import threading
import tracemalloc

import pytest
from scripted_detector import ScriptedDetector

from llamarl.factuality.claims import Answer, Ask, Claim
from llamarl.factuality.detectors.cache import ENTRY_BYTES, ScoreCache
from llamarl.factuality.detectors.cot_tf import CotTF
from llamarl.factuality.detectors.detector import Score
from llamarl.factuality.detectors.fine_tuning import RateFT
from llamarl.factuality.detectors.internal_states import TokenEntropy, TokenProbability
from llamarl.factuality.detectors.method import METHODS, Method, find_method
from llamarl.factuality.detectors.probe import Probe
from llamarl.factuality.detectors.prompt_prob import PromptProb
from llamarl.factuality.detectors.prompt_tf import PromptTF
from llamarl.factuality.detectors.selfcheck import SelfCheck


def claim(
    text: str = "Lyon is in France.",
    answer: str = "Lyon is in France. It is old.",
    prompt: str = "Well?",
    subject: str | None = None,
    span: tuple[int, int] = (0, 18),
) -> Claim:
    return Claim("any", Answer(Ask("any", prompt, subject), answer, "stop"), text, span)


BASE = claim()
VARIED = {
    "text": claim(text="Lyon is in Spain."),
    "prompt": claim(prompt="Where?"),
    "subject": claim(subject="Lyon"),
    "answer": claim(answer="Lyon is in France. It is new."),
    "span": claim(span=(19, 29)),
}
READ = {
    PromptTF: {"text"},
    PromptProb: {"text"},
    CotTF: {"text"},
    Probe: {"text"},
    RateFT: {"text"},
    SelfCheck: {"text", "prompt", "subject"},
    TokenProbability: {"prompt", "answer", "span"},
    TokenEntropy: {"prompt", "answer", "span"},
}


@pytest.mark.parametrize("method", READ, ids=lambda each: each.name)
def test_a_key_is_what_the_method_reads(method: type[Method]) -> None:
    detector = object.__new__(method)  # what it reads does not depend on a model
    assert {name for name, each in VARIED.items() if detector.key(each) != detector.key(BASE)} == READ[method]


def test_every_method_says_what_it_reads() -> None:
    assert {each.name for each in READ} | {"fine_tuning"} == set(METHODS)
    assert find_method("fine_tuning").key is RateFT.key


def test_a_claim_is_computed_once() -> None:
    detector = ScriptedDetector()
    cache = ScoreCache(detector, 10)
    others = [claim("Lyon is in Spain."), BASE, claim("Lyon is in Spain.")]
    first, second = cache.score([*others, BASE]), cache.score(others)
    assert [each.p_factual for each in first] == [0.125, 0.875, 0.125, 0.875] and second == first[:3]
    assert list(map(len, detector.batches)) == [2]
    assert (cache.num_asked, cache.num_computed, len(cache)) == (7, 2, 2)
    assert cache.recall([BASE, claim("Lyon is new.")]) == [Score(0.875, 0.99), None]
    assert cache.name == "scripted" and cache.key(BASE) == detector.key(BASE) and cache.score([]) == []


def test_a_key_is_not_its_words_put_together() -> None:
    cache = ScoreCache(ScriptedDetector(), 10)
    cache.score([claim(prompt="a', 'b", answer="c"), claim(prompt="a", answer="b', 'c")])
    assert cache.num_computed == 2


def test_the_claim_that_was_asked_for_longest_ago_is_forgotten() -> None:
    cache = ScoreCache(ScriptedDetector(), 2)
    one, two, three = (claim(f"City {number} is in Peru.") for number in range(3))
    cache.score([one, two])
    cache.recall([one])
    cache.score([three])
    assert [each is not None for each in cache.recall([one, two, three])] == [True, False, True]


def test_a_batch_that_does_not_fit_is_answered_all_the_same() -> None:
    cache = ScoreCache(ScriptedDetector(), 2)
    claims = [claim(f"City {number} is in {'Spain' if number % 2 else 'Peru'}.") for number in range(5)]
    assert [each.p_factual for each in cache.score(claims)] == [0.875, 0.125, 0.875, 0.125, 0.875]
    assert len(cache) == 2 and cache.recall(claims)[:3] == [None] * 3


@pytest.mark.parametrize("score", [Score(None, problem="no reply: server down"), Score(float("nan")), Score(1.5)])
def test_what_is_no_score_is_asked_again(score: Score) -> None:
    answers = iter([score, Score(0.5)])
    cache = ScoreCache(ScriptedDetector(lambda claim: next(answers)), 10)
    cache.score([BASE])
    assert len(cache) == 0
    assert cache.score([BASE]) == cache.score([BASE]) == [Score(0.5)]


def test_the_bytes_are_bounded_however_long_claims_are() -> None:
    cache = ScoreCache(ScriptedDetector(lambda claim: Score(len(claim.text) / 1e6, 0.1 + len(claim.text) / 1e6)), 2000)
    cache.score([BASE])
    tracemalloc.start()
    for number in range(0, 4000, 100):
        cache.score([claim(f"{each} " * 500, answer=f"{each} " * 500) for each in range(number, number + 100)])
        cache._detector.batches.clear()  # type: ignore[attr-defined]  # the script keeps what it was asked
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(cache) == 2000 and 100 * 2000 < held < ENTRY_BYTES * 2000


def test_threads_share_it() -> None:
    cache = ScoreCache(ScriptedDetector(), 50)
    claims = [claim(f"City {number} is in {'Spain' if number % 2 else 'Peru'}.") for number in range(100)]
    right: list[bool] = []

    def work(start: int) -> None:
        for shift in range(30):
            part = [claims[(start + shift * 7 + each) % 100] for each in range(20)]
            found = [each.p_factual for each in cache.score(part)]
            right.append(found == [0.125 if "Spain" in each.text else 0.875 for each in part])

    threads = [threading.Thread(target=work, args=(number * 13,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(right) and len(right) == 120 and len(cache) == 50
    assert cache.num_asked == 2400 and cache.num_computed <= 2400
