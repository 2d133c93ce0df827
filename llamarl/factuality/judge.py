"""A hallucination detector as a judge: the share of a completion's claims that are factual, or whether any is not.

    [[judges]]
    function = "detector"
    role = "constraint"
    settings = {detector = "detectors/rate_ft", mode = "none_hallucinated"}

The detector's own threshold decides unless another is given. A completion one of whose claims has no score has no
verdict: it fails, and is never counted as 0.

Reference, for judges as constraints: Xu et al., The Perfect Blend: Redefining RLHF with Mixture of Judges,
https://arxiv.org/abs/2409.20370; for detectors: Qin et al., https://arxiv.org/abs/2505.12265.
"""

import functools
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from llamarl.core.errors import ConfigError
from llamarl.core.judge import Judge, JudgeInfo
from llamarl.core.records import Completion, Prompt, Verdict
from llamarl.factuality.asking import excerpt_of
from llamarl.factuality.claims import Claim
from llamarl.factuality.decomposition import Decomposer, FactDecomposer, SentenceDecomposer
from llamarl.factuality.detectors.cache import ScoreCache
from llamarl.factuality.detectors.detector import Detector
from llamarl.factuality.facts import FactTable
from llamarl.factuality.scoring import ScoredClaim, list_claims, resolve_threshold, score_claims
from llamarl.judges.adapters.base import prompt_text, with_seconds
from llamarl.judges.threads import run_in_thread

Mode = Literal["share", "none_hallucinated"]
WithoutClaims = Literal["abstain", "pass", "fail"]
BATCH_TOKENS = 4096


class DetectorJudge(Judge):
    """Scores completions by the claims they make. The claims of a group are one batch; equal ones are scored once."""

    info = JudgeInfo(version="1", cost_class="local")
    """The version changes with every change of a verdict by the same detector."""

    def __init__(
        self,
        detector: str | Any,
        *,
        mode: Mode = "share",
        threshold: float | None = None,
        min_share: float | None = None,
        without_claims: WithoutClaims = "abstain",
        facts: str | None = None,
        relations: str | None = None,
        model: str | None = None,
        device: str = "auto",
        precision: str = "fp32",
        batch_tokens: int = BATCH_TOKENS,
        cache_claims: int = 100_000,
        name: str = "detector",
    ) -> None:
        """Describes the judge.

        Args:
            detector: directory of a detector, as `llamarl detect train` writes it; in a program also a detector.
            mode: `share`: the score is the share of factual claims; `none_hallucinated`: 1 and a pass if no claim is
                hallucinated, else 0 and no pass.
            threshold: claims whose probability is above it are factual; None: the detector's own, or 0.5.
            min_share: with `share`, the share from which on a completion passes; None: the judge only scores.
            without_claims: what a completion without a single claim gets: `abstain`; `pass`, a score of 1; `fail`, 0.
            facts: table of facts, as for `llamarl detect build`; the claims are then what it can check, one for each
                relation, and the other sentences are left out. None: every sentence is a claim.
            relations: TOML file that says how the table's relations are worded.
            model: the detector's model, where it is no longer where it was.
            device: where the model runs: as torch names it, such as `cuda`, or `auto`: CUDA, else MPS, else the CPU.
            precision: `fp32` or `bf16`, of the forward pass.
            batch_tokens: most tokens of one forward pass.
            cache_claims: scored claims that are remembered, the latest ones; 0: none.
            name: in verdicts and metrics.

        Raises:
            ConfigError: a setting is wrong, or two contradict each other.
        """
        if mode not in ("share", "none_hallucinated"):
            raise ConfigError(f"mode={mode!r}; choose 'share' or 'none_hallucinated'")
        if without_claims not in ("abstain", "pass", "fail"):
            raise ConfigError(f"without_claims={without_claims!r}; choose 'abstain', 'pass' or 'fail'")
        for field, value in (("threshold", threshold), ("min_share", min_share)):
            if value is not None and not 0.0 <= value <= 1.0:
                raise ConfigError(f"{field}={value}: give a number from 0 to 1")
        if min_share is not None and mode != "share":
            raise ConfigError("min_share: a share is asked for by mode = 'share'; leave one of them out")
        if relations is not None and facts is None:
            raise ConfigError("relations: says how the relations of a table are worded; give facts")
        if cache_claims < 0:
            raise ConfigError(f"cache_claims={cache_claims}: give 0 or more")
        self.name = name
        self._detector: str | Detector = detector
        self._threshold = threshold
        self._mode, self._min_share, self._without_claims = mode, min_share, without_claims
        self._facts, self._relations = facts, relations
        self._options: dict[str, Any] = {
            "model": model,
            "device": device,
            "precision": precision,
            "batch_tokens": batch_tokens,
        }
        self._loaded: tuple[ScoreCache, float] | None = None
        self._is_checked = False
        self._loading = threading.Lock()  # groups judge side by side, and the model is loaded once
        self._cache_claims = cache_claims
        self._num_completions = self._num_claims = 0
        self._num_asked = self._num_computed = 0  # of the cache, at the last look
        self.info = replace(self.info, can_pass=mode == "none_hallucinated" or min_share is not None)

    def check(self, prompt: Prompt) -> None:
        """Checks, before a run, that the detector is there and complete.

        Raises:
            CheckpointError, ConfigError: naming the directory and what it lacks.
        """
        if not self._is_checked and isinstance(self._detector, str):
            from llamarl.factuality.detectors.files import read_record  # with torch, which settings do without

            read_record(self._detector)
        self._is_checked = True  # the files are hashed, and every prompt of a run asks

    @functools.cached_property
    def _decomposer(self) -> Decomposer:
        return FactDecomposer(FactTable.read([self._facts], self._relations)) if self._facts else SentenceDecomposer()

    def load(self) -> None:
        """Loads the detector and its model now. Raises `CheckpointError` or `ConfigError` where it cannot be had."""
        self._load()

    async def judge(self, prompt: Prompt, completions: Sequence[Completion]) -> list[Verdict]:
        """Returns one verdict per completion: failed where one of its claims has no score."""
        started = time.perf_counter()
        subject = prompt.info.get("subject")
        subject = subject if isinstance(subject, str) else None
        claims: list[list[Claim]] = []
        for completion in completions:
            is_cut = completion.finish_reason == "length"
            found = await list_claims(
                completion.text, self._decomposer, prompt=prompt_text(prompt), subject=subject, is_cut=is_cut
            )
            claims.append(found.claims)
        group = [claim for each in claims for claim in each]
        scored = iter(await run_in_thread(lambda: score_claims(self._load()[0], group)))
        verdicts = [self._verdict([next(scored) for _ in each]) for each in claims]
        share = (time.perf_counter() - started) / max(1, len(verdicts))
        return [with_seconds(verdict, share) for verdict in verdicts]

    def metrics(self) -> dict[str, float]:
        """Returns, since the last call: `claims` of a completion on average, `cache_hit_rate` of the claims."""
        metrics = {"claims": self._num_claims / self._num_completions} if self._num_completions else {}
        self._num_completions = self._num_claims = 0
        if self._loaded is not None:
            cache, _ = self._loaded
            asked, computed = cache.num_asked - self._num_asked, cache.num_computed - self._num_computed
            self._num_asked, self._num_computed = cache.num_asked, cache.num_computed
            metrics |= {"cache_hit_rate": 1.0 - computed / asked} if asked else {}
        return metrics

    def _verdict(self, claims: Sequence[ScoredClaim]) -> Verdict:
        self._num_completions += 1
        self._num_claims += len(claims)
        if not claims:
            return self._verdict_without_claims()
        _, threshold = self._load()
        for each in claims:
            if each.score.p_factual is None:
                return Verdict.failed(f"claim {excerpt_of(each.claim.text)!r} has no score: {each.score.problem}")
        doubtful = [each for each in claims if each.is_doubtful(threshold)]
        reason = f"{len(doubtful)} of {len(claims)} claims doubtful"
        if doubtful:
            worst = min(doubtful, key=lambda each: each.score.p_factual or 0.0)
            reason += f", first of all {excerpt_of(worst.claim.text)!r} ({worst.score.p_factual:.2f})"
        if self._mode == "none_hallucinated":
            return Verdict.scored(float(not doubtful), not doubtful, reason)
        share = 1.0 - len(doubtful) / len(claims)
        return Verdict.scored(share, None if self._min_share is None else share >= self._min_share, reason)

    def _verdict_without_claims(self) -> Verdict:
        if self._without_claims == "abstain":
            return Verdict.abstained("it claims nothing")
        passes = self._without_claims == "pass"
        return Verdict.scored(float(passes), passes if self.info.can_pass else None, "it claims nothing")

    def _load(self) -> tuple[ScoreCache, float]:
        """The detector, which remembers, with the threshold."""
        with self._loading:
            if self._loaded is None:
                detector, threshold = self._read()
                self._loaded = ScoreCache(detector, self._cache_claims), threshold
            return self._loaded

    def _read(self) -> tuple[Detector, float]:
        if not isinstance(self._detector, str):
            return self._detector, resolve_threshold(self._threshold, None)
        from llamarl.factuality.detectors.files import load_detector

        method = load_detector(self._detector, **self._options)
        return method, resolve_threshold(self._threshold, method.threshold)
