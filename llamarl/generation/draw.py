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


def draw(logits: Tensor, uniform: Tensor, filters: Filters) -> tuple[Tensor, Tensor]:
    """Draws one token per row and says how probable it was.

    Args:
        logits: `[n, V]`, any float dtype.
        uniform: `[n]` float64 in [0, 1).
        filters: the rows' settings.

    Returns:
        Token ids `[n]` int64 and their log-probs `[n]` float32 under the filtered, renormalised distribution.
    """
    probs = torch.softmax(filtered(logits.float(), filters), dim=-1)
    cdf = probs.cumsum(-1)
    target = (uniform * cdf[:, -1].double()).to(cdf.dtype)
    target = torch.minimum(target, torch.nextafter(cdf[:, -1], torch.zeros_like(target)))  # rounding may reach the end
    tokens = torch.searchsorted(cdf, target.unsqueeze(1), right=True)  # first index above the target: its prob is > 0
    return tokens[:, 0], probs.gather(1, tokens)[:, 0].log()


def filtered(logits: Tensor, filters: Filters) -> Tensor:
    """Logits after temperature, top-k, top-p and min-p, in this order; excluded tokens are -inf. `[n, V]` float32."""
    if filters.temperature is not None:
        temperature = filters.temperature.unsqueeze(1)
        logits = torch.where(temperature > 0, logits / temperature.clamp_min(1e-6), _greedy(logits))
    if filters.top_k is not None or filters.top_p is not None:
        logits = _ranked(logits, filters)
    if filters.min_p is not None:
        probs = torch.softmax(logits, dim=-1)
        bound = filters.min_p.unsqueeze(1) * probs.amax(-1, keepdim=True)
        logits = logits.masked_fill(probs < bound, -torch.inf)
    return logits


def _greedy(logits: Tensor) -> Tensor:
    """0 at the most probable token, -inf elsewhere."""
    return torch.full_like(logits, -torch.inf).scatter(1, logits.argmax(-1, keepdim=True), 0.0)


def _ranked(logits: Tensor, filters: Filters) -> Tensor:
    """Top-k and top-p, which need the tokens in order of probability; ties go to the lower id."""
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if filters.top_k is not None:
        limit = torch.where(filters.top_k > 0, filters.top_k, logits.shape[-1]).unsqueeze(1)
        ranks = torch.arange(logits.shape[-1], device=logits.device)
        ordered = ordered.masked_fill(ranks >= limit, -torch.inf)
    if filters.top_p is not None:
        probs = torch.softmax(ordered, dim=-1)
        before = probs.cumsum(-1) - probs
        is_cut = (before >= filters.top_p.unsqueeze(1)) & (filters.top_p.unsqueeze(1) < 1.0)
        ordered = ordered.masked_fill(is_cut, -torch.inf)
    return torch.empty_like(logits).scatter(1, order, ordered)
