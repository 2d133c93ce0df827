"""Drawing tokens: one uniform number per (seed, position), inverse CDF over the filtered distribution.

No generator state exists. A token depends on its sample's seed, its position and the logits, never on which other rows
share the batch, so texts don't change with slots, order, grouping or the number of workers (up to the rounding of the
model's own matrix products, about 1e-6 of probability).

Shape legend: n rows, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, splitmix64's increment
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_NUM_BITS = 52
_CANDIDATES = 256
"""The most probable tokens that are looked at first, where a filter goes by rank."""


def uniforms(seeds: Tensor, positions: Tensor) -> Tensor:
    """Uniform numbers in [0, 1 - 2**-52], `[n]` float64: a hash of seed and position.

    Two rounds of splitmix64's output function (Steele, Lea, Flood 2014), the position added between them; int64
    products wrap.

    Args:
        seeds: `[n]` int64.
        positions: `[n]` int64, the index of the token in its completion.
    """
    bits = _mix(_mix(seeds + _GOLDEN) + positions * _GOLDEN)
    return _shift(bits, 64 - _NUM_BITS).double() * 2.0**-_NUM_BITS


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch shifts int64 arithmetically."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


@dataclass(frozen=True, slots=True)
class Filters:
    """Sampling settings of n rows; a None means that no row uses that filter."""

    temperature: Tensor | None = None
    """`[n]` float32; 0 is greedy."""
    top_k: Tensor | None = None
    """`[n]` int64; 0 keeps all."""
    top_p: Tensor | None = None
    """`[n]` float32."""
    min_p: Tensor | None = None
    """`[n]` float32."""

    def of(self, rows: Tensor) -> "Filters":
        """The settings of some rows: indices, or `[n]` bool."""
        columns = (self.temperature, self.top_k, self.top_p, self.min_p)
        return Filters(*(None if column is None else column[rows] for column in columns))


def draw(filtered: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one token per row and says how probable it was.

    Args:
        filtered: `[n, V]` float32, what `apply_filters` gives.
        uniform: `[n]` float64 in [0, 1).

    Returns:
        Token ids `[n]` int64 and their log-probs `[n]` float32 under the filtered, renormalised distribution.
    """
    probs = torch.softmax(filtered, dim=-1)
    cdf = probs.cumsum(-1)
    target = (uniform * cdf[:, -1].double()).to(cdf.dtype)
    target = torch.minimum(target, torch.nextafter(cdf[:, -1], torch.zeros_like(target)))  # rounding may reach the end
    tokens = torch.searchsorted(cdf, target.unsqueeze(1), right=True)  # first index above the target: its prob is > 0
    return tokens[:, 0], probs.gather(1, tokens)[:, 0].log()


def apply_filters(logits: Tensor, filters: Filters) -> Tensor:
    """Logits `[n, V]`, any float dtype, after temperature, top-k, top-p and min-p, in this order: `[n, V]` float32.

    Excluded tokens are -inf.
    """
    logits = logits.float()
    if filters.temperature is not None:
        temperature = filters.temperature.unsqueeze(1)
        logits = torch.where(temperature > 0, logits / temperature.clamp_min(1e-6), _greedy(logits))
    if filters.top_k is not None or filters.top_p is not None:
        logits = _filter_by_rank(logits, filters)
    if filters.min_p is not None:
        probs = torch.softmax(logits, dim=-1)
        bound = filters.min_p.unsqueeze(1) * probs.amax(-1, keepdim=True)
        logits = logits.masked_fill(probs < bound, -torch.inf)
    return logits


def _greedy(logits: Tensor) -> Tensor:
    """0 at the most probable token, -inf elsewhere."""
    return torch.full_like(logits, -torch.inf).scatter(1, logits.argmax(-1, keepdim=True), 0.0)


def _filter_by_rank(logits: Tensor, filters: Filters) -> Tensor:
    """Top-k and top-p, which need the tokens in order of probability; ties go to the lower id.

    Most rows keep few tokens, so the most probable ones are enough; only rows that want more are sorted whole.
    """
    vocab_size = logits.shape[-1]
    num_candidates = _CANDIDATES if filters.top_k is None else max(_CANDIDATES, int(filters.top_k.max()))
    kept, is_settled = _among_first(logits, filters, min(num_candidates, vocab_size))
    if not is_settled.all():
        rows = ~is_settled
        kept[rows] = _among_first(logits[rows], filters.of(rows), vocab_size)[0]
    return logits.masked_fill(~kept, -torch.inf)


def _among_first(logits: Tensor, filters: Filters, num_candidates: int) -> tuple[Tensor, Tensor]:
    """The tokens that top-k and top-p keep `[n, V]` bool, and whether these are all among the first candidates `[n]`.

    Where they are not, the first means nothing.
    """
    vocab_size = logits.shape[-1]
    ordered = logits.topk(num_candidates).values
    ranks = torch.arange(num_candidates, device=logits.device)
    limit = torch.full_like(logits[:, 0], vocab_size)
    if filters.top_k is not None:
        limit = torch.where(filters.top_k > 0, filters.top_k, vocab_size)
    is_kept = ranks < limit.unsqueeze(1)
    is_settled = limit <= num_candidates
    if filters.top_p is not None:
        top_p = filters.top_p.unsqueeze(1)
        of_kept = ordered.masked_fill(~is_kept, -torch.inf).logsumexp(-1)
        total = torch.where(is_settled, of_kept, logits.logsumexp(-1))  # of what top-k keeps
        probs = (ordered - total.unsqueeze(1)).exp()
        before = probs.cumsum(-1) - probs
        is_cut = (before >= top_p) & (top_p < 1.0)
        is_kept &= ~is_cut
        is_settled = is_settled | is_cut[:, -1]
    num_kept = is_kept.sum(-1, keepdim=True)
    smallest = ordered.gather(1, num_kept - 1)
    kept = logits > smallest
    is_tied = logits == smallest
    room = num_kept - kept.sum(-1, keepdim=True)
    has_more = (is_tied.sum(-1, keepdim=True) > room)[:, 0]
    if has_more.any():
        tied = is_tied[has_more]
        is_tied[has_more] = tied & (tied.cumsum(-1) <= room[has_more])
    return kept | is_tied, is_settled
