"""Conversations held with a model, many at a time; a run that was killed goes on where it stopped.

                     +-------------- the next turn, as soon as the reply is on file --------------+
                     v                                                                            |
    [conversations] --> worker: history = system + user turns + the model's own replies --> chat.reply --> thinking
      one queue, most   `max_in_flight` of them; a worker whose conversation is over           |          taken out
      open turns first  takes the next one, so that many requests are always in flight         v
                                                                                      OUT/responses.jsonl

A reply depends on the conversation's key, the turn and the run's seed, never on order or company. A turn that fails
ends its conversation: later turns are not asked, and are failed too. Failures are asked again when the run is resumed.
"""

import asyncio
import contextlib
import hashlib
import json
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llamarl.core.errors import ConfigError, DataError, EndpointError
from llamarl.core.records import Message
from llamarl.core.seeds import derive_seed
from llamarl.evals.conversations import Conversation
from llamarl.evals.replies import Reply, ReplyStore
from llamarl.evals.thinking import ThinkingRule, thinking_rule
from llamarl.generation.chats import Chat
from llamarl.report.progress import NoProgress, Progress

MIN_PATIENCE = 50
"""The least number of turns that must fail one after another before the run gives up."""


def run_conversations(
    conversations: Sequence[Conversation],
    chat: Chat,
    out: str | Path,
    *,
    max_in_flight: int = 16,
    seed: int = 0,
    system: str | None = None,
    strip_thinking: str = "none",
    progress: Progress | None = None,
) -> list[Reply]:
    """Holds all conversations and returns the replies, in the order of conversations and turns.

    What `out` holds already is not asked again. Ctrl-C leaves a directory that the same call goes on with.

    Args:
        conversations: with unique keys. More or fewer than before may be given when a run is resumed.
        chat: who answers; closed at the end.
        out: directory of the run.
        max_in_flight: conversations held at a time, each with one request in flight.
        seed: of all sampling.
        system: a system message before each conversation.
        strip_thinking: what is taken out of replies, before grading and from the history: `none`, `think`, or
            `OPEN,CLOSE` (see `thinking`).
        progress: told of every turn.

    Raises:
        ConfigError: a wrong setting; `out` was begun with other settings or is in use; the model refuses requests.
        DataError: two conversations have the same key, or a turn on file was the answer to another question.
        EndpointError: all turns failed, or so many one after another that going on is pointless.
    """
    return asyncio.run(
        hold_conversations(
            conversations,
            chat,
            out,
            max_in_flight=max_in_flight,
            seed=seed,
            system=system,
            strip_thinking=strip_thinking,
            progress=progress,
        )
    )


async def hold_conversations(
    conversations: Sequence[Conversation],
    chat: Chat,
    out: str | Path,
    *,
    max_in_flight: int = 16,
    seed: int = 0,
    system: str | None = None,
    strip_thinking: str = "none",
    progress: Progress | None = None,
) -> list[Reply]:
    """`run_conversations` for callers that have an event loop already."""
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(chat.close)
        if max_in_flight < 1:
            raise ConfigError(f"max_in_flight={max_in_flight}; give at least 1")
        _check_keys(conversations)
        rule = thinking_rule(strip_thinking)
        settings = {"chat": chat.record(), "seed": seed, "system": system, "strip_thinking": str(rule)}
        store = stack.enter_context(ReplyStore(Path(out), settings))
        _check_questions(conversations, store)
        view = stack.enter_context(progress or NoProgress())
        opening: list[Message] = [{"role": "system", "content": system}] if system else []
        patience = max(MIN_PATIENCE, 2 * max_in_flight)
        return await _Run(conversations, chat, store, view, seed, opening, rule, patience).all(max_in_flight)


@dataclass
class _Run:
    """One call of `run_conversations`."""

    conversations: Sequence[Conversation]
    chat: Chat
    store: ReplyStore
    progress: Progress
    seed: int
    opening: list[Message]
    rule: ThinkingRule
    patience: int

    def __post_init__(self) -> None:
        # Those that take longest begin first, or they would end alone.
        self.queue = deque(sorted(self.conversations, key=self._num_open, reverse=True))
        self.places = [(c.key, number) for c in self.conversations for number in range(1, len(c.turns) + 1)]
        self.num_done = sum(place in self.store.finished for place in self.places)
        self.failed: dict[tuple[str, int], Reply] = {}
        self.num_failures_in_a_row = 0
        self.has_answered = bool(self.store.finished)

    def _num_open(self, conversation: Conversation) -> int:
        """Turns that are not on file."""
        places = ((conversation.key, number) for number in range(1, len(conversation.turns) + 1))
        return sum(place not in self.store.finished for place in places)

    async def all(self, max_in_flight: int) -> list[Reply]:
        """Holds what is left; returns everything, in order."""
        self.progress.start(self.num_done, len(self.places))
        workers = [asyncio.create_task(self._work()) for _ in range(min(max_in_flight, len(self.queue)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if self.failed and not self.has_answered:
            raise EndpointError(
                f"all {len(self.places)} turns failed, the first with: {next(iter(self.failed.values())).error}; "
                "mend the cause and run the same again"
            )
        return [self.store.finished.get(place) or self.failed[place] for place in self.places]

    async def _work(self) -> None:
        while self.queue:
            await self._hold(self.queue.popleft())

    async def _hold(self, conversation: Conversation) -> None:
        """One conversation, from its first turn; turns on file are not asked again."""
        history = list(self.opening)
        for number, turn in enumerate(conversation.turns, start=1):
            history.append({"role": "user", "content": turn.prompt})
            reply = self.store.finished.get((conversation.key, number))
            if reply is None:
                reply = await self._ask(conversation, number, history)
            if reply.response is None:
                self._give_up(conversation, reply)
                return
            history.append({"role": "assistant", "content": reply.response})

    async def _ask(self, conversation: Conversation, number: int, history: Sequence[Message]) -> Reply:
        key, asked = conversation.key, _digest_questions(conversation, number)
        try:
            answer = await self.chat.reply(list(history), derive_seed("turn", self.seed, key, number))
        except (EndpointError, ConfigError) as error:
            # Before anything worked, a refusal means that a setting is wrong; afterwards, that this conversation is.
            if isinstance(error, ConfigError) and not self.has_answered:
                raise
            self._count_failure(error)
            return Reply(key, number, None, "error", str(error), asked=asked)
        self.has_answered, self.num_failures_in_a_row = True, 0
        response, thinking = self.rule.split(answer.text)
        reply = Reply(
            key,
            number,
            response,
            answer.finish_reason,
            thinking=thinking,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            seconds=round(answer.seconds, 3),
            retries=answer.retries,
            asked=asked,
        )
        self.store.finished[key, number] = reply
        self._note(reply)
        return reply

    def _count_failure(self, error: Exception) -> None:
        self.num_failures_in_a_row += 1
        if self.num_failures_in_a_row >= self.patience:
            raise EndpointError(
                f"{self.num_failures_in_a_row} turns failed one after another, the last with: {error}; what was "
                f"answered is in {self.store.out}: mend the cause and run the same again"
            ) from error

    def _give_up(self, conversation: Conversation, failure: Reply) -> None:
        """The turn failed; so have those after it, which nobody can ask."""
        rest = range(failure.turn + 1, len(conversation.turns) + 1)
        reason = f"not asked, since turn {failure.turn} failed"
        for reply in (failure, *(Reply(failure.key, number, None, "error", reason) for number in rest)):
            self.failed[reply.key, reply.turn] = reply
            self._note(reply)

    def _note(self, reply: Reply) -> None:
        self.store.append(reply)
        self.num_done += 1
        self.progress.update(self.num_done, len(self.failed))


def _digest_questions(conversation: Conversation, number: int) -> str:
    """Digests the user's messages up to this turn."""
    questions = [turn.prompt for turn in conversation.turns[:number]]
    return hashlib.blake2b(json.dumps(questions).encode(), digest_size=8).hexdigest()


def _check_keys(conversations: Sequence[Conversation]) -> None:
    keys = Counter(conversation.key for conversation in conversations)
    repeated = [key for key, count in keys.items() if count > 1]
    if repeated:
        raise DataError(f"{len(repeated)} keys name several conversations, first {repeated[0]!r}; make keys unique")


def _check_questions(conversations: Sequence[Conversation], store: ReplyStore) -> None:
    for conversation in conversations:
        for number in range(1, len(conversation.turns) + 1):
            reply = store.finished.get((conversation.key, number))
            if reply is not None and reply.asked != _digest_questions(conversation, number):
                raise DataError(
                    f"{store.out}: what is on file for conversation {conversation.key!r}, turn {number} answers "
                    "another question; the data changed since: choose another directory"
                )
