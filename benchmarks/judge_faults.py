"""Whether a judge's faults move the reward: 30 % of the judgements fail, in five ways, whatever their score.

    python -m benchmarks.judge_faults [--samples 2048]

A language model judges as in a run's recipe, in both ways of asking: a panel built of its config, 16 groups of 8 at a
time, with its own retries, deadlines and circuit breaker. Its server is scripted and time is virtual: no second is
measured, so it doesn't matter what else the machine does. A sample drawn to fail fails at every try and when it is
asked for again:

    time-out         no answer, ever
    HTTP 500         the server's error
    malformed JSON   a verdict that breaks off; with `probability`, such a body
    NaN              as the score, or as a log-prob
    wrong schema     another field than `score`; no log-probs

Counted over all seeds, and none may be: samples that should fail and have a reward; rewards that differ from what the
server said; samples without a reward that weren't drawn to fail. The shift is the mean reward of the samples that
survive less that of all, in points of 100; `bound` is the end of its 95 % interval that is further from zero.
"""

import asyncio
import json
import math
import random
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.common import Benchmark, spread
from llamarl.core.records import Prompt, Sample
from llamarl.judges import JudgeConfig, JudgePanel, build_panel, text_completion
from llamarl.judges.llm.judge import LLMJudge
from llamarl.judges.llm.templates import Way
from llamarl.testing import run_virtual

FAULT_SHARE = 0.3
FAULTS = ("time-out", "HTTP 500", "malformed JSON", "NaN", "wrong schema")
PROMPT = Prompt("p", ({"role": "user", "content": "Tell me a number."},), info={"criteria": "Large numbers are good."})
NUM_GROUPS, GROUP_SIZE = 16, 8
"""Judged at a time."""
MAX_SCORE = 10
LATENCY_SECONDS = 0.5


@dataclass
class FaultyServer(httpx.AsyncBaseTransport):
    """Scores the completion `reply N: S` as S of 10, unless a fault was drawn for N."""

    faults: Mapping[int, str]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, or the fault."""
        body = (await request.aread()).decode()
        number, score = map(int, re.search(r"reply (\d+): (\d+)", body).groups())  # type: ignore[union-attr]
        fault = self.faults.get(number, "")
        if fault == "time-out":
            await asyncio.sleep(math.inf)
        await asyncio.sleep(LATENCY_SECONDS)
        if fault == "HTTP 500":
            return httpx.Response(500)
        is_json = '"response_format"' in body
        message, logprobs = (_verdict(score, fault), None) if is_json else ("Yes", _logprobs(score, fault))
        choice = {"message": {"content": message}, "finish_reason": "stop", "logprobs": logprobs}
        content = json.dumps({"choices": [choice]})
        return httpx.Response(200, text=content[:-9] if fault == "malformed JSON" and not is_json else content)


def _verdict(score: int, fault: str) -> str:
    value: Any = math.nan if fault == "NaN" else score
    field = "grade" if fault == "wrong schema" else "score"
    text = json.dumps({"reason": "as it is", field: value, **({} if field == "grade" else {"passed": score >= 6})})
    return text[:-9] if fault == "malformed JSON" else text


def _logprobs(score: int, fault: str) -> dict[str, Any] | None:
    yes = probability(score)
    tokens = [{"token": "Yes", "logprob": math.log(yes)}, {"token": "No", "logprob": math.log(1 - yes)}]
    if fault == "NaN":
        tokens[0]["logprob"] = math.nan
    return None if fault == "wrong schema" else {"content": [{**tokens[0], "top_logprobs": tokens}]}


def probability(score: int) -> float:
    """Of the token that passes."""
    return (score + 0.5) / (MAX_SCORE + 1)


def faulty_judge(way: Way, faults: Mapping[int, str]) -> LLMJudge:
    """The judge that the recipe names."""
    server = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "transport": FaultyServer(faults)}
    return LLMJudge(**server, template="rubric", way=way, clock=lambda: asyncio.get_running_loop().time())


@dataclass(frozen=True)
class Outcome:
    """What became of one seed's samples."""

    shift: float
    """Points of 100."""
    injected: int
    unscored: int
    lost: int
    """Without a reward, though not drawn to fail."""
    invented: int
    """With a reward, though drawn to fail, or with another one than the server gave."""


def outcome(way: Way, seed: int, num_samples: int) -> Outcome:
    """Judges all samples, groups of which share a deadline as they would in a run."""
    rng = random.Random(seed)
    scores = [rng.randint(0, MAX_SCORE) for _ in range(num_samples)]
    faults = {number: rng.choice(FAULTS) for number in range(num_samples) if rng.random() < FAULT_SHARE}
    settings = {"way": way, "faults": faults}
    panel = build_panel([JudgeConfig(function=f"{__file__}:faulty_judge", settings=settings)])
    samples = run_virtual(_judged(panel, scores))
    expected = [100 * (score / MAX_SCORE if way == "json" else probability(score)) for score in scores]
    found = {number: 100 * sample.reward for number, sample in enumerate(samples) if sample.reward is not None}
    return Outcome(
        shift=statistics.fmean(found.values()) - statistics.fmean(expected),
        injected=len(faults),
        unscored=num_samples - len(found),
        lost=sum(number not in found and number not in faults for number in range(num_samples)),
        invented=sum(number in faults or abs(value - expected[number]) > 1e-6 for number, value in found.items()),
    )


async def _judged(panel: JudgePanel, scores: list[int]) -> list[Sample]:
    completions = [text_completion(f"reply {number}: {score}") for number, score in enumerate(scores)]
    groups = [completions[start : start + GROUP_SIZE] for start in range(0, len(completions), GROUP_SIZE)]
    samples: list[Sample] = []
    for start in range(0, len(groups), NUM_GROUPS):
        judged = await asyncio.gather(
            *(panel.judge_group(PROMPT, group) for group in groups[start : start + NUM_GROUPS])
        )
        samples += [sample for group in judged for sample in group]
    return samples


def row_of(way: str, outcomes: list[Outcome], num_samples: int) -> dict[str, Any]:
    """One line: sums over the seeds."""
    shifts, total = [each.shift for each in outcomes], num_samples * len(outcomes)
    error = statistics.stdev(shifts) / math.sqrt(len(shifts)) if len(shifts) > 1 else math.inf
    return {
        "way": way,
        "samples": total,
        "injected": sum(each.injected for each in outcomes) / total,
        "unscored": sum(each.unscored for each in outcomes) / total,
        "lost": sum(each.lost for each in outcomes),
        "invented": sum(each.invented for each in outcomes),
        "shift of a seed, points": spread(shifts, 3),
        "mean shift, points": round(statistics.fmean(shifts), 3),
        "bound, points": round(abs(statistics.fmean(shifts)) + 1.96 * error, 3),
    }


def main() -> None:
    benchmark = Benchmark("judge_faults", __doc__, repeats=20, quick_repeats=3, max_load=math.inf)
    benchmark.parser.add_argument("--samples", type=int, default=2048, help="of each seed (default 2048)")
    options = benchmark.start()
    rows = []
    for way in ("json", "probability"):
        outcomes = [outcome(way, seed, options.samples) for seed in range(options.repeats)]
        rows.append(row_of(way, outcomes, options.samples))
        benchmark.note(way)
    headlines = {
        "shift, points": max(row["bound, points"] for row in rows),
        "invented scores": float(sum(row["invented"] for row in rows)),
        "lost samples": float(sum(row["lost"] for row in rows)),
    }
    benchmark.finish(rows, headlines, [f"seeds 0 to {options.repeats - 1}; scores 0 to {MAX_SCORE}, all as likely"])


if __name__ == "__main__":
    main()
