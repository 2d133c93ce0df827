"""Endless, seeded, resumable order over prompts.

    stream = PromptStream(prompts, seed=1)
    position, epoch, prompt = next(stream)

Each position of the order holds the same prompt whoever asks and whenever: epoch `position // len(prompts)`, shuffled
by a hash of (seed, epoch, prompt id). To resume, name what was accounted for; the stream goes on with the rest:

    stream = PromptStream(prompts, seed=1, done=[(epoch, prompt_id), ...])

A cursor alone (`state`, `restore`) is exact only where everything issued was also finished.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Prompt
from llamarl.core.seeds import derive_seed


class Issue(NamedTuple):
    """One prompt of the stream."""

    position: int
    """Place in the order over all epochs; grows, with gaps where prompts were already accounted for."""
    epoch: int
    prompt: Prompt


class PromptStream(Iterator[Issue]):
    """Yields each prompt exactly once an epoch, in an order that depends on nothing but the seed and the epoch."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        epochs: int | None = None,
        should_shuffle: bool = True,
        done: Iterable[tuple[int, str]] = (),
    ) -> None:
        """Starts at the first prompt of epoch 0 that is not done.

        Args:
            prompts: with unique ids.
            seed: the run's seed.
            epochs: how often each prompt comes; None: without end.
            should_shuffle: False keeps the order of `prompts` in every epoch.
            done: (epoch, prompt id) pairs never to be yielded: those trained or dropped before a resume.

        Raises:
            DataError: no prompts, ids that are not unique, or a done id that is not among them.
        """
        self._prompts = prompts
        self._positions = {prompt.id: position for position, prompt in enumerate(prompts)}
        if not prompts or len(self._positions) < len(prompts):
            raise DataError(
                f"{len(prompts)} prompts with {len(self._positions)} ids; need at least one, with unique ids"
            )
        if epochs is not None and epochs < 0:
            raise ConfigError(f"epochs: got {epochs}; use 0 or more, or None for no end")
        self._seed, self._epochs, self._should_shuffle = seed, epochs, should_shuffle
        self._next = 0
        self._order: tuple[int, Sequence[int]] = (-1, ())
        self._done: dict[int, set[str]] = {}
        self.skip(done)

    def skip(self, done: Iterable[tuple[int, str]]) -> None:
        """Never yields these (epoch, prompt id) pairs from now on. Raises `DataError` for an unknown id."""
        for epoch, identifier in done:
            if identifier not in self._positions:
                raise DataError(f"prompt {identifier!r} of epoch {epoch} is not in the data; was the data changed?")
            self._done.setdefault(epoch, set()).add(identifier)

    def __next__(self) -> Issue:
        size = len(self._prompts)
        while self._epochs is None or self._next < self._epochs * size:
            epoch, place = divmod(self._next, size)
            done = self._done.get(epoch, ())
            if len(done) == size:  # without sorting an epoch that has nothing left
                self._next = (epoch + 1) * size
                continue
            position, self._next = self._next, self._next + 1
            prompt = self._prompts[self._order_of(epoch)[place]]
            if prompt.id not in done:
                return Issue(position, epoch, prompt)
        raise StopIteration

    def take(self, count: int) -> list[Issue]:
        """The next `count` prompts; fewer at the end."""
        return [issue for _, issue in zip(range(count), self, strict=False)]

    def state(self) -> dict[str, Any]:
        """The position of the stream, as plain JSON."""
        epoch = self._next // len(self._prompts)
        done = [[e, identifier] for e in sorted(self._done) if e >= epoch for identifier in sorted(self._done[e])]
        return {"seed": self._seed, "next": self._next, "done": done, "data": self._fingerprint()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state()` was taken; prompts done are again those of the state.

        Raises:
            DataError: the state is of another seed or other data, or is no state.
        """
        mine = {"seed": self._seed, "data": self._fingerprint()}
        for key, value in mine.items():
            if state.get(key) != value:
                raise DataError(
                    f"stream state: {key} is {state.get(key)!r}, this stream has {value!r}; resume with the same"
                )
        if not isinstance(state.get("next"), int) or not isinstance(state.get("done"), list):
            raise DataError("stream state: 'next' must be an integer and 'done' a list; the state is damaged")
        self._next, self._done = state["next"], {}
        self.skip((epoch, identifier) for epoch, identifier in state["done"])

    def _order_of(self, epoch: int) -> Sequence[int]:
        if self._order[0] != epoch:
            order: Sequence[int] = range(len(self._prompts))
            if self._should_shuffle:
                keys = [derive_seed("order", self._seed, epoch, prompt.id) for prompt in self._prompts]
                # By hash and id, never by place: the order stays when the rows of a file move.
                order = sorted(order, key=lambda position: (keys[position], self._prompts[position].id))
            self._order = (epoch, order)
        return self._order[1]

    def _fingerprint(self) -> str:
        """A hash of the ids, in the order that matters."""
        ids: Iterable[str] = sorted(self._positions) if self._should_shuffle else self._positions
        return hashlib.blake2b("\x1f".join(ids).encode(), digest_size=8).hexdigest()
