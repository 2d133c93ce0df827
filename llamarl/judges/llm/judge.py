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
`deadline_seconds`, an answer that cannot be read, money spent (`max_cost`). While a server is down (`breaker_failures`)
questions wait for it, `deadline_seconds` at most.
"""

import asyncio
import contextlib
import dataclasses
import functools
import logging
import random
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Self, TypeVar

import httpx
from pydantic import Field, model_validator

from llamarl.core.errors import ConfigError, EndpointError
from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import Completion, Message, Prompt, Status, Verdict
from llamarl.judges.llm.answers import MIN_MASS, SCHEMA, json_verdict, token_verdict
from llamarl.judges.llm.answers import VERSION as READER_VERSION
from llamarl.judges.llm.breaker import CircuitBreaker
from llamarl.judges.llm.cache import VerdictCache, content_key
from llamarl.judges.llm.templates import Way, load_template
from llamarl.judges.threads import run_in_thread
from llamarl.models.endpoint import ChatEndpoint, ChatReply, EndpointConfig, api_key

BYTES_PER_TOKEN = 3.0
"""Bytes that count as a token where the server does not count: on the dear side for English."""
POLL_SECONDS = 0.5
"""Seconds between two looks at whether a server that was down is back."""
ASK_AGAIN = "That was not one JSON object with reason, score and passed. Answer again: the object alone, no other text."
_log = logging.getLogger(__name__)
T = TypeVar("T")


class LLMJudgeConfig(EndpointConfig):
    """Settings of an LLM judge: who judges, what it is asked, and what that may cost."""

    template: str
    """`false_refusal`, `factuality`, `safety`, `rubric`, or the path of a TOML file like those in
    `judges/llm/prompts`."""
    way: Way | None = None
    """`probability` or `json`; None: the template's."""
    criteria: str | None = None
    """Criteria that `rubric` grades by, or guidelines in place of those of `safety`."""
    max_tokens: int = Field(default=512, ge=1)
    """Limit of a JSON answer."""
    top_logprobs: int = Field(default=20, ge=2)
    """Likeliest tokens to look for the two words among; servers allow 20, some fewer."""
    min_mass: float = Field(default=MIN_MASS, ge=0.0, le=1.0)
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
    """Dollars after which every further verdict fails; requests in flight may exceed it a little. Counted by each judge
    from its start: a resumed run, another process and another task's judge start at 0."""
    deadline_seconds: float = Field(default=300.0, gt=0.0)
    """Seconds for one verdict: its turn among the requests in flight, waiting for a server that is down, all tries and
    pauses; later it fails, alone. The deadline of the judge's groups (`timeout_seconds` of the recipe's judge) does not
    apply."""
    breaker_failures: int = Field(default=8, ge=1)
    """Number of requests in a row without a usable reply after which questions wait for the server, ..."""
    breaker_seconds: float = Field(default=10.0, gt=0.0)
    """... and one is tried in each such interval; below `deadline_seconds`."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.max_cost is not None and not self.prompt_price + self.completion_price:
            raise ValueError("max_cost: needs prompt_price and completion_price, or nothing would count")
        if self.breaker_seconds >= self.deadline_seconds:
            raise ValueError(
                f"breaker_seconds={self.breaker_seconds:g}: lower it below deadline_seconds={self.deadline_seconds:g}, "
                "or a question that waits for a server would fail before the server is tried again"
            )
        return self


@dataclasses.dataclass
class _Counters:
    """Counts since the last `metrics`."""

    requests: int = 0
    retries: int = 0
    hits: int = 0
    misses: int = 0
    blocked: int = 0
    cost: float = 0.0


class LLMJudge(Judge):
    """Asks a model about each completion. Requests in flight are bounded by `max_concurrency`."""

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
            sleep: waits that many seconds: between tries, and for a server that is down.
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
        self.info = JudgeInfo(
            version=f"{stem}@{self.template.version}",
            cost_class="paid" if config.prompt_price + config.completion_price else "local",
            has_deadline=True,  # of each verdict: a request that hangs must not fail the group's other verdicts
            counts=frozenset({"requests", "retries", "cost", "blocked"}),
        )
        self.spent = 0.0
        """Dollars since construction."""
        self._connect = functools.partial(ChatEndpoint, config, transport=transport, rng=rng, sleep=sleep)
        api_key(config)  # refuses a missing key now, not at the first completion
        self._endpoint: ChatEndpoint | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cache = VerdictCache(config.cache) if config.cache else None
        self._clock, self._sleep = clock, sleep
        self._last_problem = ""
        """Problem of the last request without a usable reply."""
        self._breaker = CircuitBreaker(config.breaker_failures, config.breaker_seconds, clock)
        self._counters = _Counters()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.name, self.config.model_dump(exclude_unset=True))

    def check(self, prompt: Prompt) -> None:
        """Checks before a run that the row has what the template needs. Raises `ConfigError` naming what is missing."""
        self._messages(prompt, "")

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion. Equal texts are asked about once; the first of them bears the cost."""
        texts = list(dict.fromkeys(completion.text for completion in completions))
        judged = await asyncio.gather(*(self._judge_text(prompt, text) for text in texts))
        by_text = dict(zip(texts, judged, strict=True))
        verdicts = []
        for completion in completions:
            verdicts.append(by_text[completion.text])
            by_text[completion.text] = dataclasses.replace(verdicts[-1], cost=0.0)
        return verdicts

    def metrics(self) -> dict[str, float]:
        """Returns, since the last call: `requests`, their `retries`, `cost` in dollars, `cache_hit_rate`, `blocked`.

        `blocked` counts questions that were not put, since the server stayed down or the money was spent.
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
        """Closes the connections, and waits for that, and the cache."""
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
            # This may be any thread, but connections are closed on the loop that opened them.
            with contextlib.suppress(RuntimeError):  # the loop has ended, and its connections with it
                loop.call_soon_threadsafe(lambda: loop.create_task(endpoint.close()))

    def _messages(self, prompt: Prompt, text: str) -> list[Message]:
        return self.template.render(self.way, prompt, text, self.config.criteria)

    async def _judge_text(self, prompt: Prompt, text: str) -> Verdict:
        started = time.perf_counter()
        try:
            messages = self._messages(prompt, text)
        except ConfigError as error:
            return Verdict.failed(str(error))
        deadline = asyncio.get_running_loop().time() + self.config.deadline_seconds
        work = self._ask if self._cache is None else functools.partial(self._ask_cached, self._cache)
        verdict = await work(messages, deadline)
        return dataclasses.replace(verdict, seconds=time.perf_counter() - started)

    async def _ask_cached(self, cache: VerdictCache, messages: list[Message], deadline: float) -> Verdict:
        key = self._key(messages)
        found = await _before(deadline, functools.partial(cache.get, key))
        if found is not None:
            self._counters.hits += 1
            return found
        self._counters.misses += 1
        verdict = await self._ask(messages, deadline)
        await _before(deadline, functools.partial(cache.put, key, verdict))
        return verdict

    def _key(self, messages: list[Message]) -> str:
        """Hashes all that makes the verdict: who is asked, what (the filled template), how, and how it is read."""
        config, template = self.config, self.template
        server = (config.base_url.rstrip("/"), config.model)
        options = (self.way, config.extra, config.max_tokens, config.top_logprobs, config.constrain_json)
        reading = (READER_VERSION, template.positive, template.negative, config.min_mass, self._range)
        return content_key(server, self.info.version, messages, options, SCHEMA, ASK_AGAIN, reading)

    async def _ask(self, messages: list[Message], deadline: float) -> Verdict:
        verdict, cost, answer = await self._ask_once(messages, deadline)
        if answer is not None and verdict.status is Status.FAILED and self.way == "json":
            again = [*messages, {"role": "assistant", "content": answer}, {"role": "user", "content": ASK_AGAIN}]
            verdict, further, _ = await self._ask_once(again, deadline)
            cost += further
        return dataclasses.replace(verdict, cost=cost)

    async def _ask_once(self, messages: list[Message], deadline: float) -> tuple[Verdict, float, str | None]:
        """Verdict, its cost, and the answer's text where there was one. `deadline` by the event loop's clock.

        What fails while the server is down waits with the others, and is asked again when it is back.
        """
        while True:
            problem = await self._turn(deadline)
            if problem:
                self._counters.blocked += 1
                return Verdict.failed(problem), 0.0, None
            self._counters.requests += 1
            begun = self._clock()
            try:
                async with asyncio.timeout_at(deadline):
                    reply = await self._chat(messages)
            except TimeoutError:
                problem = self._late()
                if not self._breaker.is_open:  # else what the server answered before says more
                    self._note_failure(begun, problem)
                return Verdict.failed(problem), 0.0, None
            except EndpointError as error:
                self._note_failure(begun, str(error))
                if not self._breaker.is_open:
                    return Verdict.failed(str(error)), 0.0, None
            except ConfigError as error:  # the server is there, and refused this one request; others may be fine
                self._breaker.note_success()
                return Verdict.failed(str(error)), 0.0, None
            else:
                self._breaker.note_success()
                self._counters.retries += reply.retries
                return self._read(reply), self._pay(reply, messages), reply.text

    async def _turn(self, deadline: float) -> str:
        """Waits while the server is down. Returns why not to ask even then; empty if nothing speaks against it."""
        config, loop = self.config, asyncio.get_running_loop()
        while True:
            if config.max_cost is not None and self.spent >= config.max_cost:
                return f"max_cost={config.max_cost:g} dollars are spent"
            if loop.time() >= deadline:
                return self._late()
            if self._breaker.allows():
                return ""
            if self._breaker.open_seconds >= config.deadline_seconds:  # nor will it be back for this question
                return self._late()
            # Polled: whichever question finds the server back closes the breaker, and tells nobody.
            await self._sleep(min(POLL_SECONDS, deadline - loop.time()))

    def _late(self) -> str:
        late = f"no answer within deadline_seconds={self.config.deadline_seconds:g}"
        if not self._breaker.is_open:
            return late
        return f"{late}: the server has been away for {self._breaker.open_seconds:.0f} s; last: {self._last_problem}"

    def _note_failure(self, begun: float, problem: str) -> None:
        was_open, self._last_problem = self._breaker.is_open, problem
        self._breaker.note_failure(begun)
        if self._breaker.is_open and not was_open:
            _log.warning(
                "judge %r: %d requests in a row failed; questions wait for the server, for %g s at most. Last: %s",
                self.name,
                self.config.breaker_failures,
                self.config.deadline_seconds,
                problem,
            )

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


async def _before(deadline: float, function: Callable[[], T]) -> T | None:
    """Calls the cache; returns None where that fails or is late: a broken cache costs money, not verdicts."""
    with contextlib.suppress(sqlite3.Error, TimeoutError):
        async with asyncio.timeout_at(deadline):
            return await run_in_thread(function)
    return None


def _estimate(text: str) -> int:
    return 1 + int(len(text.encode(errors="replace")) / BYTES_PER_TOKEN)


def _rebuilt(name: str, settings: Mapping[str, Any]) -> LLMJudge:
    return LLMJudge(name=name, **settings)
