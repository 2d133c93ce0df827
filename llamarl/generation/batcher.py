"""Continuous batching over slots: which rows run, what was drawn for them, when they are done.

Active completions are always rows 0..n-1 of every per-row buffer. A row that ends leaves; the last live row moves into
the hole. Waiting completions start as soon as slots are free; completions of one prompt that start together share its
prefill. Rows behind the active ones keep what finished completions left in the cache: the next turn of a dialogue
reads only what is new, where `reuses_cache` is set (see `kept`).

    add -> [waiting, by priority] -> admit (prefill, first token) -> rows -> decode one token each -> finished requests

Shape legend: S slots, n active rows, V vocabulary.
"""

import heapq
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, Protocol

import torch
from torch import Tensor

from llamarl.core.errors import ConfigError, DataError
from llamarl.core.records import Completion, FinishReason, GenerationRequest, Support, Trajectory, pack_ids
from llamarl.generation.draw import apply_filters, draw, uniforms
from llamarl.generation.kept import KeptRows
from llamarl.generation.rows import Rows
from llamarl.generation.stops import completes_stop

Finished = tuple[int, tuple[Completion, ...]]
"""A request's key and its completions, in the order of its seeds."""


class Backend(Protocol):
    """The model under a batcher: rows of cache, prefilled and decoded."""

    device: torch.device
    max_positions: int
    vocab_size: int
    can_reuse: bool
    """True if rows that `move` takes from may stay, and `prefill` may be told what rows hold already."""

    def prefill(
        self, sequences: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], num_known: Sequence[int]
    ) -> Tensor:
        """Reads each sequence once into its cache rows; logits `[sequences, V]` after the last tokens.

        Args:
            sequences: token ids.
            rows: the cache rows of each sequence.
            num_known: how many of its first tokens these rows hold already; fewer than it has.
        """

    def decode(self, tokens: Tensor, longest: int) -> Tensor:
        """Appends `tokens [n]` to rows 0..n-1, whose longest then has `longest` tokens; logits `[n, V]`."""

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Rows `targets` hold from now on what rows `sources` held before, all at once."""

    def hold(self, rows: Collection[int]) -> None:
        """Frees the cache of all rows but these."""

    def routed_experts(self, row: int) -> bytes:
        """The experts of all tokens that a row holds (`Trajectory.routed_experts`); empty where nobody asked."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes new weights; the cache is left as it is."""

    def named_views(self) -> Mapping[str, Tensor]:
        """The weights it holds, by parameter name."""

    def mismatches(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names whose held value is not that of `tensors`, up to the rounding of the held form."""

    def memory(self) -> tuple[int, int]:
        """Bytes of its weights, and of its cache."""

    def probe_logprobs(self, ids: Sequence[int]) -> tuple[float, ...]:
        """Log-probs of `ids[1:]`, each given the ids before it."""


@dataclass(slots=True)
class _Job:
    """A request on its way."""

    request: GenerationRequest
    prompt_ids: "array[int]"
    """Shared by its completions."""
    completions: list[Completion | None]
    next_sample: int = 0
    num_open: int = 0


@dataclass(slots=True)
class _Row:
    """An active completion."""

    job: _Job
    sample: int
    length_offset: int
    """The row's length (prompt and drawn tokens) minus the batcher's clock: constant, since all rows grow together."""
    versions: list[tuple[int, int]] = field(default_factory=list)
    """(index of the first token, version), one entry per version that drew tokens."""
    support: Support | None = None
    """What filters left at each token drawn so far; it grows. None: nobody asked for it."""


class Batcher:
    """Completes requests, one token per active row and step.

    Args:
        backend: the model.
        eos_ids: a completion ends with any of these.
        decode: token ids -> text without special tokens.
        slots: most completions decoded together.
        on_update: what new weights do to completions under way. `recompute` rebuilds their cache, so that every
            log-prob is exactly that of the version it is labelled with; `keep` goes on with the old cache.
        version: policy version of the backend's current weights.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        eos_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        slots: int = 64,
        on_update: Literal["recompute", "keep"] = "recompute",
        version: int = 0,
    ) -> None:
        if slots < 1:
            raise ConfigError(f"slots: {slots} is not positive; give at least 1")
        self.backend, self.slots, self.version = backend, slots, version
        self._eos_ids, self._decode_text, self._on_update = tuple(eos_ids), decode, on_update
        self._jobs: dict[int, _Job] = {}
        self._waiting: list[tuple[int, int, _Job]] = []
        self._arrivals = 0
        self._rows: list[_Row] = []
        self._clock = 0
        self._has_stops = False
        self._state = Rows(slots, backend.device)
        self._kept = KeptRows(slots)
        self._begun: dict[tuple[int, ...], int] = {}
        """Prompts of requests that have begun in part, and rows beyond the slots that hold them for the rest."""
        self.reuses_cache = False
        """True lets prompts take over what rows of the same first tokens hold, if the backend `can_reuse`. Log-probs
        then depend, by rounding, on what was generated before: a training run that is resumed would not repeat
        exactly."""
        self.on_draw: Callable[[list[tuple[int, int]], Tensor, Tensor], object] | None = None
        """Hears of each draw: (request key, sample) by row, logits `[n, V]`, and the tokens `[n]` drawn from them."""
        self.num_tokens = 0
        """Tokens drawn."""
        self.num_read = 0
        """Tokens of prompts that were read."""
        self.num_recalled = 0
        """Tokens of prompts that were not read, since a row held them already."""

    # Verbs

    def add(self, requests: Sequence[GenerationRequest]) -> None:
        """Queues requests.

        Raises:
            DataError: a prompt is empty, holds unknown ids or leaves no room for `max_tokens`, or a key is already
                under way; then nothing is queued.
        """
        keys = set(self._jobs)
        for request in requests:
            self._check(request, keys)
            keys.add(request.key)
        for request in requests:
            count = len(request.seeds)
            job = _Job(request, pack_ids(request.prompt_ids), [None] * count, num_open=count)
            self._jobs[request.key] = job
            # The arrival breaks ties: first come, first served, and jobs need no order of their own.
            heapq.heappush(self._waiting, (request.priority, self._arrivals, job))
            self._arrivals += 1

    def step(self) -> list[Finished]:
        """Starts what fits, decodes one token per active row; returns requests whose completions are all done."""
        finished = self._admit()
        if self._rows:
            longest = max(row.length_offset for row in self._rows) + self._clock
            logits = self.backend.decode(self._state.token[: len(self._rows)], longest)
            self._clock += 1
            finished += self._extend(logits, 0)
        return finished

    def generate(self, requests: Sequence[GenerationRequest]) -> list[tuple[Completion, ...]]:
        """Completes everything that is queued; returns the completions of `requests`, in their order."""
        self.add(requests)
        done: dict[int, tuple[Completion, ...]] = {}
        while self.has_work:
            done.update(self.step())
        return [done[request.key] for request in requests]

    def cancel(self, keys: Iterable[int]) -> None:
        """Forgets these requests, wherever they are. Unknown keys are ignored."""
        dropped = {id(self._jobs.pop(key)) for key in set(keys) if key in self._jobs}
        self._waiting = [entry for entry in self._waiting if id(entry[2]) not in dropped]
        heapq.heapify(self._waiting)
        self._remove([index for index, row in enumerate(self._rows) if id(row.job) in dropped])
        self._free()

    def set_weights(self, version: int, tensors: Mapping[str, Tensor]) -> None:
        """Takes new weights between two steps; tokens drawn from now on carry `version`."""
        self.backend.load(tensors)
        self.adopt(version)

    def adopt(self, version: int) -> None:
        """Goes on under the weights that the backend holds by now, as `version`."""
        self.version = version
        # Kept rows come from the weights before.
        self._kept.clear()
        self._begun.clear()
        self._free()
        counts = self._state.count[: len(self._rows)].tolist()
        for index, row in enumerate(self._rows):
            row.versions.append((counts[index], version))
        if self._on_update == "recompute" and self._rows:
            self._read_again(counts)

    def _read_again(self, counts: Sequence[int]) -> None:
        """Rebuilds the cache of all rows, which have drawn so many tokens: the prompt of a group once."""
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for index, row in enumerate(self._rows):
            rows_of.setdefault(row.job.request.prompt_ids, []).append(index)
        groups = {p: rows for p, rows in rows_of.items() if len(rows) > 1} if self.backend.can_reuse else {}
        if groups:
            self.backend.prefill(list(groups), list(groups.values()), [0] * len(groups))
        known = {row: len(prompt) for prompt, rows in groups.items() for row in rows}
        left = [i for i, count in enumerate(counts) if i not in known or count > 1]
        if left:
            prefixes = [self._prefix(i, counts[i]) for i in left]
            self.backend.prefill(prefixes, [[i] for i in left], [known.get(i, 0) for i in left])

    @property
    def has_work(self) -> bool:
        """True while a request is unfinished."""
        return bool(self._jobs)

    @property
    def num_active(self) -> int:
        """Completions being decoded."""
        return len(self._rows)

    @property
    def num_requests(self) -> int:
        """Unfinished requests."""
        return len(self._jobs)

    # Admission

    def _check(self, request: GenerationRequest, keys: set[int]) -> None:
        num_prompt, num_new = len(request.prompt_ids), request.sampling.max_tokens
        if request.key in keys:
            raise DataError(f"request {request.key}: this key is already under way; give each request its own")
        if not num_prompt or not request.seeds:
            raise DataError(
                f"request {request.key}: {num_prompt} prompt tokens and {len(request.seeds)} seeds; "
                "give at least one of each"
            )
        wrong = next((token for token in request.prompt_ids if not 0 <= token < self.backend.vocab_size), None)
        if wrong is not None:
            raise DataError(
                f"request {request.key}: token id {wrong} is not in the model's vocabulary of "
                f"{self.backend.vocab_size}; is this the model's own tokenizer?"
            )
        if num_prompt + num_new > self.backend.max_positions:
            raise DataError(
                f"request {request.key}: {num_prompt} prompt tokens + max_tokens {num_new} exceed the model's "
                f"{self.backend.max_positions} positions; shorten the prompt or set max_tokens to at most "
                f"{max(self.backend.max_positions - num_prompt, 0)}"
            )

    def _admit(self) -> list[Finished]:
        """Fills free slots, once enough are free to make a prefill worth its while."""
        finished: list[Finished] = []
        while self._waiting:
            free = self.slots - len(self._rows)
            num_waiting = sum(len(job.request.seeds) - job.next_sample for _, _, job in self._waiting)
            if free < min(num_waiting, max(self.slots // 8, 1)):
                break
            finished += self._start(self._take(free))
        return finished

    def _take(self, free: int) -> list[tuple[_Job, list[int]]]:
        """The next completions that fit in `free` slots: (job, sample indices)."""
        taken = []
        while self._waiting and free:
            job = self._waiting[0][2]
            last = min(len(job.request.seeds), job.next_sample + free)
            taken.append((job, list(range(job.next_sample, last))))
            free -= last - job.next_sample
            job.next_sample = last
            if last == len(job.request.seeds):
                heapq.heappop(self._waiting)
        return taken

    def _start(self, taken: list[tuple[_Job, list[int]]]) -> list[Finished]:
        """Prefills each distinct prompt once for all its rows and draws their first tokens."""
        first = len(self._rows)
        rows_of: dict[tuple[int, ...], list[int]] = {}
        for job, samples in taken:
            offset = len(job.request.prompt_ids) + 1 - self._clock
            for sample in samples:
                rows_of.setdefault(job.request.prompt_ids, []).append(len(self._rows))
                support = Support(array("i"), array("i")) if job.request.keeps_support else None
                self._rows.append(_Row(job, sample, offset, [(0, self.version)], support))
        self._state.start(first, [(row.job.request, row.sample) for row in self._rows[first:]])
        self._note_settings()
        num_known = self._recall(rows_of, first)
        self.num_read += sum(map(len, rows_of)) - sum(num_known)
        logits = self.backend.prefill(list(rows_of), list(rows_of.values()), num_known)
        self._hold_begun(rows_of)
        owner = [0] * (len(self._rows) - first)
        for index, rows in enumerate(rows_of.values()):
            for row in rows:
                owner[row - first] = index
        return self._extend(logits[torch.tensor(owner, device=logits.device)], first)

    def _hold_begun(self, rows_of: Mapping[tuple[int, ...], list[int]]) -> None:
        """Keeps the prompts, just read, of requests whose other samples wait for a slot."""
        if not self.backend.can_reuse:
            return
        for prompt in self._find_begun() & rows_of.keys() - self._begun.keys():
            self._begun[prompt] = max([self.slots - 1, *self._begun.values()]) + 1
            self.backend.move([rows_of[prompt][0]], [self._begun[prompt]])

    def _find_begun(self) -> set[tuple[int, ...]]:
        return {job.request.prompt_ids for _, _, job in self._waiting if job.next_sample}

    def _recall(self, rows_of: Mapping[tuple[int, ...], list[int]], first: int) -> list[int]:
        """Gives what the cache holds of new prompts to their rows; says how many of their tokens that are."""
        if not self.backend.can_reuse:
            return [0] * len(rows_of)
        active = {row.job.request.prompt_ids: i for i, row in enumerate(self._rows[:first]) if self._is_current(row)}
        active |= self._begun
        if not self.reuses_cache:  # what other samples of the same prompt hold is part of their group
            active = {prompt: row for prompt, row in active.items() if prompt in rows_of}
        plan = self._kept.make_room(rows_of, active)
        if plan.sources:
            self.backend.move(plan.sources, plan.targets)
        self._free()
        self.num_recalled += sum(plan.num_known)
        return plan.num_known

    def _is_current(self, row: _Row) -> bool:
        """True if all that the cache holds of a row comes from the present weights."""
        return self._on_update == "recompute" or len(row.versions) == 1

    # Decoding

    def _extend(self, logits: Tensor, first: int) -> list[Finished]:
        """Draws a token for each row from `first` on, and lets go of the rows that are done."""
        last = len(self._rows)
        state = self._state
        filtered = apply_filters(logits, state.filters(first, last))
        tokens, logprobs = draw(filtered, uniforms(state.seed[first:last], state.count[first:last]))
        state.append(first, last, tokens, logprobs)
        self._note_support(filtered, first)
        self.num_tokens += last - first
        if self.on_draw is not None:
            self.on_draw([(row.job.request.key, row.sample) for row in self._rows[first:last]], logits, tokens)
        done = state.count[first:last] >= state.limit[first:last]
        for eos in self._eos_ids:
            done |= tokens == eos
        ended = [first + index for index in done.nonzero()[:, 0].tolist()]
        if self._has_stops:
            ended = sorted({*ended, *self._find_stopped(first, last)})
        return self._retire(ended) if ended else []

    def _note_support(self, filtered: Tensor, first: int) -> None:
        """Notes the tokens that were left, `filtered [n, V]`, for the rows from `first` on that shall tell them."""
        asked = [index for index, row in enumerate(self._rows[first:]) if row.support is not None]
        if not asked:
            return
        is_left = filtered[asked] > -torch.inf
        ids, counts = is_left.nonzero()[:, 1].int().cpu(), is_left.sum(-1).tolist()
        for index, left in zip(asked, torch.split(ids, counts), strict=True):
            support = self._rows[first + index].support
            assert support is not None
            support.ids.frombytes(left.numpy().tobytes())
            support.counts.append(len(left))

    def _find_stopped(self, first: int, last: int) -> list[int]:
        """Rows whose newest token completes one of their stop strings."""
        hits = []
        for index in range(first, last):
            stops = self._rows[index].job.request.sampling.stop
            if stops and completes_stop(self._state.tokens_of(index), stops, self._decode_text):
                hits.append(index)
        return hits

    def _retire(self, ended: list[int]) -> list[Finished]:
        """Turns ended rows into completions and closes the holes."""
        finished: list[Finished] = []
        held: dict[int, tuple[int, ...]] = {}
        for index in ended:
            row = self._rows[index]
            job = row.job
            completion = job.completions[row.sample] = self._completion(index)
            if self.reuses_cache and self._is_current(row):
                held[index] = (*job.request.prompt_ids, *completion.token_ids[:-1])  # the newest was never read
            job.num_open -= 1
            if not job.num_open:
                del self._jobs[job.request.key]
                finished.append((job.request.key, tuple(c for c in job.completions if c is not None)))
        self._remove(ended, held)
        return finished

    def _completion(self, index: int) -> Completion:
        row = self._rows[index]
        tokens = self._state.tokens_of(index)
        starts = [*(start for start, _ in row.versions), len(tokens)]
        versions = [v for i, (_, v) in enumerate(row.versions) for _ in range(starts[i + 1] - starts[i])]
        text = self._decode_text(tokens)
        sampling = row.job.request.sampling
        is_stop = tokens[-1] in self._eos_ids or any(stop in text for stop in sampling.stop)
        reason: FinishReason = "stop" if is_stop else "length"
        logprobs = self._state.logprobs_of(index)
        experts = self.backend.routed_experts(index)
        trajectory = Trajectory.sampled(row.job.prompt_ids, tokens, logprobs, versions, reason, row.support, experts)
        return Completion(trajectory, text)

    def _remove(self, ended: list[int], held: Mapping[int, tuple[int, ...]] = MappingProxyType({})) -> None:
        """Closes the holes with rows from the end, and keeps what the ended rows still hold, by index, behind them."""
        if not ended:
            return
        n = len(self._rows) - len(ended)
        gone = set(ended)
        holes = [index for index in ended if index < n]
        movers = [index for index in range(n, len(self._rows)) if index not in gone]
        if holes:
            leaving = dict(zip(holes, movers, strict=True))  # they swap places
            kept = [index for index in holes if index in held]
            sources, targets = [*movers, *kept], [*holes, *(leaving[index] for index in kept)]
            self.backend.move(sources, targets)
            self._state.move(*(torch.tensor(x, device=self.backend.device) for x in (movers, holes)))
            for source, target in zip(movers, holes, strict=True):
                self._rows[target] = self._rows[source]
            held = {leaving.get(index, index): tokens for index, tokens in held.items()}
        for index, tokens in held.items():
            self._kept.keep(index, tokens)
        del self._rows[n:]
        self._free()
        self._note_settings()

    def _free(self) -> None:
        """Frees the cache of rows that are neither active nor kept."""
        begun = self._find_begun()
        self._begun = {prompt: row for prompt, row in self._begun.items() if prompt in begun}
        self.backend.hold([*range(len(self._rows)), *self._kept.rows, *self._begun.values()])

    def _note_settings(self) -> None:
        """Notes which filters and stop strings the active rows use, so that a step computes no others."""
        requests = [row.job.request for row in self._rows]
        self._state.use_filters_of(requests)
        self._has_stops = any(request.sampling.stop for request in requests)

    def _prefix(self, index: int, count: int) -> tuple[int, ...]:
        """Tokens that the cache holds of a row: the prompt and all drawn tokens but the newest."""
        return (*self._rows[index].job.request.prompt_ids, *self._state.tokens_of(index)[: count - 1])
