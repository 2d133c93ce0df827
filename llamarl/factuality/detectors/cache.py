"""Scores that are computed once: a detector that remembers those of the latest claims.

    claim --Detector.key--> all that its score depends on --hash--> score

Importing this module does not import torch.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

from llamarl.factuality.claims import Claim
from llamarl.factuality.detectors.detector import ClaimKey, Detector, Score

ENTRY_BYTES = 384
"""Most memory of one remembered claim, however long it is: keys are hashes. So a bound on claims is one on bytes."""


class ScoreCache:
    """A detector that computes a claim once. Safe to call from several threads.

    Claims without a score are not remembered: the server that was asked may be up again.

    Args:
        detector: gives the scores.
        max_claims: claims that are remembered, those that were asked for last; 0: none.
    """

    def __init__(self, detector: Detector, max_claims: int) -> None:
        self._detector, self._max_claims = detector, max_claims
        self._scores: OrderedDict[bytes, Score] = OrderedDict()
        self._lock = threading.Lock()  # of scores and numbers; the detector computes outside of it
        self.num_asked = self.num_computed = 0
        """Claims that were asked for, and those that the detector was asked for."""

    @property
    def name(self) -> str:
        """The detector's."""
        return self._detector.name

    def __len__(self) -> int:
        """The number of remembered claims."""
        return len(self._scores)

    def key(self, claim: Claim) -> ClaimKey:
        """The detector's."""
        return self._detector.key(claim)

    def recall(self, claims: Sequence[Claim]) -> list[Score | None]:
        """The remembered scores of claims, in their order; None where there is none. Nothing is computed."""
        return self._recall([self._hash(claim) for claim in claims])

    def score(self, claims: Sequence[Claim]) -> list[Score]:
        """The scores of claims, in their order; each that is not remembered is computed once."""
        keys = [self._hash(claim) for claim in claims]
        known = {key: score for key, score in zip(keys, self._recall(keys), strict=True) if score is not None}
        new = {key: claim for key, claim in zip(keys, claims, strict=True) if key not in known}
        fresh = dict(zip(new, self._detector.score(list(new.values())), strict=True)) if new else {}
        self._remember(fresh, len(claims))
        return [known[key] if key in known else fresh[key] for key in keys]

    def _recall(self, keys: Sequence[bytes]) -> list[Score | None]:
        with self._lock:
            for key in keys:
                if key in self._scores:
                    self._scores.move_to_end(key)
            return [self._scores.get(key) for key in keys]

    def _remember(self, fresh: dict[bytes, Score], num_asked: int) -> None:
        with self._lock:
            self.num_asked += num_asked
            self.num_computed += len(fresh)
            self._scores |= {key: score for key, score in fresh.items() if score.is_probability}
            while len(self._scores) > self._max_claims:
                self._scores.popitem(last=False)

    def _hash(self, claim: Claim) -> bytes:
        # The text of a tuple of texts and numbers names it: quotation marks within are escaped.
        return hashlib.blake2b(repr(self.key(claim)).encode(), digest_size=16).digest()
