"""What a claim costs by each method that detects hallucinations without retrieval: one prefill against twenty answers.

    python -m benchmarks.detect MODEL [--prompts 2] [--samples 20] [--answer-tokens 96] [--threads 1]

The model answers `Tell me about the city of X in four sentences.` greedily, and every sentence is a claim. Every round
has cities of its own, so that nothing that a generator keeps of earlier prompts helps; the methods take turns in it.

    prompt_tf, one at a time    a call for each claim: one prefill of the question
    all others                  one call with all claims of the round, as `detect train` and `detect eval` make it
    probe                       with random weights of its small classifier, whose cost is that of trained ones

Seconds are CPU seconds of this process: what a claim takes on idle cores, whoever else works on the machine. A ratio is
the median of the rounds' own ratios.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import torch

from benchmarks.common import Benchmark, paired_ratio, spread, take_turns
from llamarl.core.loops import run_async
from llamarl.core.sampling import Sampling
from llamarl.factuality.claims import Answer, Ask, Claim
from llamarl.factuality.decomposition import split_sentences
from llamarl.factuality.detectors.backbone import Backbone
from llamarl.factuality.detectors.cot_tf import CotTF, CotTFSettings
from llamarl.factuality.detectors.internal_states import TokenEntropy, TokenProbability
from llamarl.factuality.detectors.method import Method
from llamarl.factuality.detectors.mlp import Mlp
from llamarl.factuality.detectors.probe import Probe, ProbeSettings
from llamarl.factuality.detectors.prompt_prob import PromptProb
from llamarl.factuality.detectors.prompt_tf import PromptTF
from llamarl.factuality.detectors.selfcheck import SelfCheck, SelfCheckSettings
from llamarl.generation.chats import NativeChat

CITIES = (
    *("Lyon", "Osaka", "Turin", "Nairobi", "Lima", "Quito", "Porto", "Graz", "Perth", "Basel", "Leeds", "Ghent"),
    *("Busan", "Hanoi", "Sofia", "Tunis", "Cusco", "Malmo", "Parma", "Delft", "Ulm", "Bergen", "Split", "Varna"),
)
WARM_UP = 1
BASE = "prompt_tf"


def answer(backbone: Backbone, cities: Sequence[str], max_tokens: int) -> list[Claim]:
    """The sentences of the model's answers about some cities."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
    chat = NativeChat.over(backbone.model, backbone.tokenizer, sampling, name=backbone.path, device="cpu")
    asks = [Ask(city, f"Tell me about the city of {city} in four sentences.", city) for city in cities]

    async def reply_all() -> list[Any]:
        return await asyncio.gather(*(chat.reply([{"role": "user", "content": ask.text}], 0) for ask in asks))

    answers = [
        Answer(ask, reply.text, reply.finish_reason) for ask, reply in zip(asks, run_async(reply_all()), strict=True)
    ]
    return [
        Claim(f"{each.ask.id}/{start}", each, each.text[start:end], (start, end))
        for each in answers
        for start, end in split_sentences(each.text)
    ]


def build_methods(backbone: Backbone, samples: int, answer_tokens: int) -> dict[str, Method]:
    """The methods, as they come; reasoning and answers have the same limit."""
    size = backbone.model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    probe = ProbeSettings(variants=("last",))
    mlp = Mlp(torch.randn(probe.hidden_size, size), torch.zeros(probe.hidden_size), torch.randn(128), torch.zeros(()))
    return {
        "token_probability": TokenProbability(backbone),
        "token_entropy": TokenEntropy(backbone),
        BASE: PromptTF(backbone),
        "probe": Probe(backbone, probe, mlp=mlp),
        "prompt_prob": PromptProb(backbone),
        "cot_tf": CotTF(backbone, CotTFSettings(max_new_tokens=answer_tokens)),
        "selfcheck": SelfCheck(backbone, SelfCheckSettings(num_samples=samples, max_new_tokens=answer_tokens)),
    }


def timed(score: Callable[[Sequence[Claim]], object], rounds: Iterator[Sequence[Claim]]) -> Callable[[], float]:
    """A turn: CPU seconds a claim, of the next round's claims."""

    def turn() -> float:
        claims = next(rounds)
        started = time.process_time()
        score(claims)
        return (time.process_time() - started) / len(claims)

    return turn


def main() -> None:
    benchmark = Benchmark("detect", __doc__, repeats=3, quick_repeats=1, max_load=float("inf"))
    benchmark.parser.add_argument("model", help="a chat model's checkpoint directory")
    benchmark.parser.add_argument("--prompts", type=int, default=2, help="of a round (default 2)")
    benchmark.parser.add_argument("--samples", type=int, default=20, help="of SelfCheck (default 20)")
    benchmark.parser.add_argument("--answer-tokens", type=int, default=96, help="most tokens of an answer (default 96)")
    benchmark.parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    options = benchmark.start()
    torch.set_num_threads(options.threads)
    backbone = Backbone.load(options.model, device="cpu")
    rounds = []
    for index in range(WARM_UP + options.repeats):
        start = index * options.prompts
        cities = [CITIES[place % len(CITIES)] for place in range(start, start + options.prompts)]
        rounds.append(answer(backbone, cities, options.answer_tokens))
    rounds[:WARM_UP] = [claims[:1] for claims in rounds[:WARM_UP]]  # enough to load what is loaded late
    benchmark.note(f"{sum(map(len, rounds))} claims in {len(rounds)} rounds")
    methods = build_methods(backbone, options.samples, options.answer_tokens)
    base = methods[BASE]
    contenders = {
        f"{BASE}, one at a time": timed(lambda claims: [base.score([claim]) for claim in claims], iter(rounds))
    }
    contenders |= {name: timed(method.score, iter(rounds)) for name, method in methods.items()}
    done = count(1)
    results = take_turns(contenders, options.repeats, WARM_UP, lambda index: benchmark.note(f"round {next(done)}"))
    rows = [
        {
            "method": name,
            "CPU s a claim": spread(seconds),
            f"of {BASE}": paired_ratio(seconds, results[BASE]),
        }
        for name, seconds in results.items()
    ]
    selfcheck = results["selfcheck"]
    headlines = {
        f"selfcheck over {BASE}": paired_ratio(selfcheck, results[BASE])["median"],
        f"selfcheck over {BASE}, one at a time": paired_ratio(selfcheck, results[f"{BASE}, one at a time"])["median"],
    }
    check = methods["selfcheck"]
    failures = dict(check.failures) if isinstance(check, SelfCheck) else {}
    notes = [
        f"{sum(map(len, rounds[WARM_UP:]))} claims of {options.prompts * options.repeats} answers",
        f"SelfCheck: {options.samples} answers of at most {options.answer_tokens} tokens a prompt; not judged, warm-up "
        f"included: {failures or 'none'}",
        "CPU seconds of this process; others may have worked on the machine: see the load",
    ]
    benchmark.finish(rows, headlines, notes)


if __name__ == "__main__":
    main()
