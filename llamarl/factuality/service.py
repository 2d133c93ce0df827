"""A detector as a service: `POST /v1/detect {"text", "prompt"?, "subject"?}` answers what `detect score --json` prints.

The claims of requests that wait are scored in common batches, on one thread; the event loop never waits for a model.
"""

from collections.abc import Callable, Sequence
from typing import Any

from pydantic import Field

from llamarl.core.config import Config
from llamarl.core.machine import return_freed_memory
from llamarl.factuality.claims import Claim
from llamarl.factuality.decomposition import Decomposer
from llamarl.factuality.detectors.cache import ENTRY_BYTES, ScoreCache
from llamarl.factuality.detectors.detector import Detector
from llamarl.factuality.scoring import ScoredClaim, list_claims, score_claims
from llamarl.factuality.settings import DetectServing
from llamarl.serving.batching import Batcher
from llamarl.serving.http import Refusal, Route, Service
from llamarl.serving.metrics import Metrics


class DetectRequest(Config):
    """The body of a request."""

    text: str
    """The answer whose claims are scored."""
    prompt: str = ""
    """The prompt that the text answers."""
    subject: str | None = Field(default=None, min_length=1)
    """The person or thing it is about."""


class DetectService:
    """The routes of a detector. Belongs to one event loop.

    Args:
        detector: gives the scores.
        decomposer: takes texts apart.
        settings: address, limits, batches.
        threshold: told by `/health`.
    """

    def __init__(self, detector: Detector, decomposer: Decomposer, settings: DetectServing, threshold: float) -> None:
        self._decomposer, self._settings = decomposer, settings
        self.metrics = Metrics()
        self._cache = ScoreCache(detector, settings.cache_claims)
        self._claims = self.metrics.counter("detect_claims", "Claims that were scored.")
        self._computed = self.metrics.counter(
            "detect_claims_computed", "Claims among them that were not remembered, so that the model was asked."
        )
        self._unscored = self.metrics.counter("detect_claims_without_score", "Claims that have no score.")
        self._batcher = Batcher[Claim, ScoredClaim](
            self._score,
            max_batch=settings.batch_claims,
            max_waiting=settings.max_waiting,
            on_batch=self._on_batch,
        )
        self.metrics.waiting.set_function(lambda: self._batcher.num_waiting)
        remembered = self.metrics.gauge("detect_cache_claims", "Claims whose scores are remembered.")
        remembered.set_function(lambda: len(self._cache))
        memory = self.metrics.gauge("detect_cache_bytes", "Most memory that they take.")
        memory.set_function(lambda: ENTRY_BYTES * len(self._cache))
        about = {"detector": detector.name, "threshold": threshold}
        self.http = Service(
            settings, [Route("/v1/detect", DetectRequest, self.detect)], self.metrics, describe=lambda: about
        )

    async def detect(self, request: DetectRequest) -> list[dict[str, Any]]:
        """The claims of a text, scored. Raises `Refusal`, `QueueFullError` and `EndpointError`."""
        found = await list_claims(request.text, self._decomposer, prompt=request.prompt, subject=request.subject)
        if found.problem:
            raise Refusal(502, f"the helper gave {found.problem}")
        if len(found.claims) > self._settings.max_claims:
            most = self._settings.max_claims
            raise Refusal(413, f"text: {len(found.claims)} claims, the most is {most}; send it in parts", param="text")
        scored = await self._score_all(found.claims)
        self._claims.inc(len(scored))
        self._unscored.inc(sum(each.score.p_factual is None for each in scored))
        return [each.record() for each in scored]

    async def _score_all(self, claims: Sequence[Claim]) -> list[ScoredClaim]:
        """Remembered claims at once, even where the queue is full; the others in batches."""
        known = self._cache.recall(claims)
        new = [claim for claim, score in zip(claims, known, strict=True) if score is None]
        computed = iter(await self._batcher.run(new))
        return [
            next(computed) if score is None else ScoredClaim(claim, score)
            for claim, score in zip(claims, known, strict=True)
        ]

    def _score(self, claims: Sequence[Claim]) -> list[ScoredClaim]:
        before = self._cache.num_computed
        scored = score_claims(self._cache, claims)
        self._computed.inc(self._cache.num_computed - before)  # there is one batch at a time
        return_freed_memory()  # here, on the thread that computed: it takes some milliseconds
        return scored

    async def run(self, on_start: Callable[[str], object]) -> int:
        """Serves until it is told to stop; returns the number of requests that were cut off."""
        num_cut = await self.http.run(on_start)
        await self._batcher.close()
        return num_cut

    async def close(self) -> None:
        """Lets accepted requests finish, and ends."""
        await self.http.drain()
        await self._batcher.close()

    def _on_batch(self, items: int, seconds: float) -> None:
        self.metrics.batch_items.observe(items)
        self.metrics.batch_seconds.inc(seconds)
