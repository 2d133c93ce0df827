"""A language model as a judge, through any server that speaks OpenAI's protocol.

    judge = LLMJudge(base_url="http://127.0.0.1:8000/v1", model="judge", template="safety")

    [[judges]]
    function = "llm"
    role = "constraint"
    settings = {base_url = "http://127.0.0.1:8000/v1", model = "judge", template = "safety", cache = "judge.sqlite"}

It asks a template's question (`templates`) about each completion and reads the answer (`answers`) in one of two ways:

    probability   one token; the probability of a negative word against that of a positive word (as CGPO does)
    json          {"reason", "score", "passed"}; an answer that cannot be read is asked for once more

What cannot be judged is a failed verdict with the reason: no answer after the endpoint's retries or within
`deadline_seconds`, an answer that cannot be read, a server that failed so often that it is left alone for a while
(`breaker_failures`), money spent (`max_cost`).
"""

import asyncio
import contextlib
import dataclasses
import functools
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self

import httpx
from pydantic import Field, model_validator

from llamarl.core.errors import ConfigError, EndpointError
from llamarl.core.records import Completion, Message, Prompt, Status, Verdict
from llamarl.judges.answers import SCHEMA, json_verdict, token_verdict
from llamarl.judges.breaker import CircuitBreaker
from llamarl.judges.cache import VerdictCache, content_key
from llamarl.judges.templates import Way, load_template
from llamarl.judges.threads import run_in_thread
from llamarl.models.endpoint import ChatEndpoint, ChatReply, EndpointConfig, api_key

BYTES_PER_TOKEN = 3.0
"""For the cost where the server does not count tokens: on the dear side for English."""
ASK_AGAIN = "That was not one JSON object with reason, score and passed. Answer again: the object alone, no other text."


class LLMJudgeConfig(EndpointConfig):
    """Which model judges, what it is asked, and what that may cost."""

    template: str
    """`false_refusal`, `factuality`, `safety`, `rubric`, or the path of a TOML file like those in `judges/prompts`."""
    way: Way | None = None
    """`probability` or `json`; None: the template's."""
    criteria: str | None = None
    """What `rubric` grades by, or guidelines in place of those of `safety`."""
    max_tokens: int = Field(default=512, ge=1)
    """Limit of a JSON answer."""
    top_logprobs: int = Field(default=20, ge=2)
    """Likeliest tokens to look for the two words among; servers allow 20, some fewer."""
    min_mass: float = Field(default=0.01, ge=0.0, le=1.0)
    """Least probability of the two words together; below it the model answered something else: the verdict fails."""
    constrain_json: bool = True
    """Ask the server to enforce the JSON schema; off for servers that refuse `response_format`."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Further fields of every request, such as `{chat_template_kwargs = {enable_thinking = false}}`."""
    cache: str | None = None
    """SQLite file that keeps verdicts across runs; processes may share it. None: no cache."""
    prompt_price: float = Field(default=0.0, ge=0.0)
    """Dollars per million prompt tokens."""
    completion_price: float = Field(default=0.0, ge=0.0)
    """Dollars per million answered tokens."""
    max_cost: float | None = Field(default=None, gt=0.0)
    """Dollars after which every further verdict fails; requests in flight may exceed it a little."""
    deadline_seconds: float = Field(default=300.0, gt=0.0)
    """For one verdict: its turn among the requests in flight, all tries and pauses; later it fails, alone. The deadline
    of the judge's groups (`timeout_seconds` of the recipe's judge) does not apply."""
    breaker_failures: int = Field(default=8, ge=1)
    """After so many requests in a row without a usable reply, verdicts fail at once, ..."""
    breaker_seconds: float = Field(default=30.0, gt=0.0)
    """... and one request is tried in each such interval."""

    @model_validator(mode="after")
    def _check_cost(self) -> Self:
        if self.max_cost is not None and not self.prompt_price + self.completion_price:
            raise ValueError("max_cost: needs prompt_price and completion_price, or nothing would count")
        return self


@dataclasses.dataclass
class _Counters:
    """Since the last `metrics`."""

    requests: int = 0
    retries: int = 0
    hits: int = 0
    misses: int = 0
    blocked: int = 0
    cost: float = 0.0


class LLMJudge:
    """Asks a model about each completion. Requests in flight are bounded by `max_concurrency`."""

    has_deadline = True
    """Of each verdict: one request that hangs must not fail the group, whose other verdicts are there."""

    def __init__(
        self,
        *,
        name: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        **settings: Any,
    ) -> None:
        """Reads the template and opens the cache; connects with the first completion.

        Args:
            name: in verdicts and metrics; default: the template's.
            transport: instead of the network, for tests.
            rng: randomness of the pauses between tries.
            sleep: waits that many seconds.
            clock: seconds, for the circuit breaker.
            settings: of `LLMJudgeConfig`.

        Raises:
            ConfigError: a setting is wrong, the template cannot be read or used, the key is not set, the cache cannot
                be opened.
        """
        self.config = config = LLMJudgeConfig.parse(settings, source="settings")
        self.template = load_template(config.template)
        self.way: Way = config.way or self.template.way
        if self.template.asks(self.way) is None:
            raise ConfigError(f"way={self.way!r}: template {config.template!r} asks only in the other way")
        stem = config.template.rpartition("/")[2].removesuffix(".toml")
        self.name = name or stem
        self.version = f"{stem}@{self.template.version}"
        self.cost_class = "paid" if config.prompt_price + config.completion_price else "local"
        self.spent = 0.0
        """Dollars since construction."""
        self._connect = functools.partial(ChatEndpoint, config, transport=transport, rng=rng, sleep=sleep)
        api_key(config)  # refuses a missing key now, not at the first completion
        self._endpoint: ChatEndpoint | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cache = VerdictCache(config.cache) if config.cache else None
        self._clock = clock
        self._breaker = CircuitBreaker(config.breaker_failures, config.breaker_seconds, clock)
        self._counters = _Counters()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.name, self.config.model_dump(exclude_unset=True))

    def check(self, prompt: Prompt) -> None:
        """Checks before a run that the row has what the template needs. Raises `ConfigError` naming what is missing."""
        self._messages(prompt, "")

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """One verdict per completion. Equal texts are asked about once; the first of them bears the cost."""
        texts = list(dict.fromkeys(completion.text for completion in completions))
        judged = await asyncio.gather(*(self._judge_text(prompt, text) for text in texts))
        by_text = dict(zip(texts, judged, strict=True))
        verdicts = []
        for completion in completions:
            verdicts.append(by_text[completion.text])
            by_text[completion.text] = dataclasses.replace(verdicts[-1], cost=0.0)
        return verdicts

    def metrics(self) -> dict[str, float]:
        """Since the last call: `requests`, their `retries`, `cost` in dollars, `cache_hit_rate`, `blocked`.

        `blocked` counts verdicts that failed at once, since the server was down or the money spent.
        """
        counted, self._counters = self._counters, _Counters()
        metrics = {
            "requests": float(counted.requests),
            "retries": float(counted.retries),
            "cost": counted.cost,
            "blocked": float(counted.blocked),
        }
        if counted.hits + counted.misses:
            metrics["cache_hit_rate"] = counted.hits / (counted.hits + counted.misses)
        return metrics

    async def aclose(self) -> None:
        """Closes connections and cache."""
        if self._endpoint is not None:
            await self._endpoint.close()
            self._endpoint = None
        self.close()

    def close(self) -> None:
        """Closes the cache at once, and the connections when their event loop next runs. Idempotent."""
        if self._cache is not None:
            self._cache.close()
        endpoint, loop, self._endpoint = self._endpoint, self._loop, None
        if endpoint is not None and loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and its connections with it
                loop.call_soon_threadsafe(lambda: loop.create_task(endpoint.close()))

    def _messages(self, prompt: Prompt, text: str) -> list[Message]:
        return self.template.render(self.way, prompt, text, self.config.criteria)

    async def _judge_text(self, prompt: Prompt, text: str) -> Verdict:
        started, begun = time.perf_counter(), self._clock()
        try:
            messages = self._messages(prompt, text)
        except ConfigError as error:
            return Verdict.failed(str(error))
        seconds = self.config.deadline_seconds
        try:
            async with asyncio.timeout(seconds):
                work = self._ask(messages) if self._cache is None else self._cached(self._cache, messages)
                verdict = await work
        except TimeoutError:
            self._breaker.failed(begun)
            verdict = Verdict.failed(f"no answer within deadline_seconds={seconds:g}")
        return dataclasses.replace(verdict, seconds=time.perf_counter() - started)

    async def _cached(self, cache: VerdictCache, messages: list[Message]) -> Verdict:
        """A broken cache costs money, not verdicts."""
        config = self.config
        words = (self.template.positive, self.template.negative)
        options = (self.way, words, config.extra, config.max_tokens, config.top_logprobs, config.min_mass)
        key = content_key(config.model, self.version, self._range, messages, options)
        with contextlib.suppress(sqlite3.Error):
            found = await run_in_thread(functools.partial(cache.get, key))
            if found is not None:
                self._counters.hits += 1
                return found
        self._counters.misses += 1
        verdict = await self._ask(messages)
        with contextlib.suppress(sqlite3.Error):
            await run_in_thread(functools.partial(cache.put, key, verdict))
        return verdict

    async def _ask(self, messages: list[Message]) -> Verdict:
        verdict, cost, answer = await self._ask_once(messages)
        if answer is not None and verdict.status is Status.FAILED and self.way == "json":
            again = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": ASK_AGAIN}]
            verdict, further, _ = await self._ask_once(again)
            cost += further
        return dataclasses.replace(verdict, cost=cost)

    async def _ask_once(self, messages: list[Message]) -> tuple[Verdict, float, str | None]:
        """Verdict, its cost, and the answer's text where there was one."""
        problem = self._closed()
        if problem:
            self._counters.blocked += 1
            return Verdict.failed(problem), 0.0, None
        self._counters.requests += 1
        begun = self._clock()
        try:
            reply = await self._chat(messages)
        except EndpointError as error:
            self._breaker.failed(begun)
            return Verdict.failed(str(error)), 0.0, None
        except ConfigError as error:  # the server refused this one request; others may be fine
            return Verdict.failed(str(error)), 0.0, None
        self._breaker.succeeded()
        self._counters.retries += reply.retries
        return self._read(reply), self._pay(reply, messages), reply.text

    def _closed(self) -> str:
        """Why not to ask now; empty if nothing speaks against it."""
        config = self.config
        if config.max_cost is not None and self.spent >= config.max_cost:
            return f"max_cost={config.max_cost:g} dollars are spent"
        if not self._breaker.allows():
            return f"{config.base_url} failed {config.breaker_failures} times in a row and is left alone for a while"
        return ""

    async def _chat(self, messages: list[Message]) -> ChatReply:
        loop, config = asyncio.get_running_loop(), self.config
        if self._endpoint is None or self._loop is not loop:
            self._endpoint, self._loop = self._connect(), loop
        if self.way == "probability":
            return await self._endpoint.chat(
                messages, max_tokens=1, top_logprobs=config.top_logprobs, extra=config.extra
            )
        schema = SCHEMA if config.constrain_json else None
        return await self._endpoint.chat(messages, max_tokens=config.max_tokens, json_schema=schema, extra=config.extra)

    def _read(self, reply: ChatReply) -> Verdict:
        if self.way == "probability":
            first = reply.top_logprobs[0] if reply.top_logprobs else {}
            return token_verdict(first, self.template.positive, self.template.negative, self.config.min_mass)
        verdict = json_verdict(reply.text, *self._range)
        if verdict.status is Status.FAILED and reply.finish_reason == "length":
            return Verdict.failed(f"the answer was cut at max_tokens={self.config.max_tokens}; raise it")
        return verdict

    @property
    def _range(self) -> tuple[float, float, float | None]:
        return self.template.min_score, self.template.max_score, self.template.pass_score

    def _pay(self, reply: ChatReply, messages: Sequence[Message]) -> float:
        prompt_tokens, tokens = reply.prompt_tokens, reply.completion_tokens
        if prompt_tokens is None:
            prompt_tokens = _estimate("".join(str(message["content"]) for message in messages))
        if tokens is None:
            tokens = _estimate(reply.text)
        cost = (prompt_tokens * self.config.prompt_price + tokens * self.config.completion_price) / 1e6
        self.spent += cost
        self._counters.cost += cost
        return cost


def _estimate(text: str) -> int:
    return 1 + int(len(text.encode(errors="replace")) / BYTES_PER_TOKEN)


def _rebuilt(name: str, settings: Mapping[str, Any]) -> LLMJudge:
    return LLMJudge(name=name, **settings)
