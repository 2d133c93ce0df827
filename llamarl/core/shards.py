"""Which part of the weights each rank holds: boxes with a global shape around them. Works without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Region:
    """A box of a tensor: the elements from `offset` on, `shape` of them along each dimension."""

    offset: Sizes
    shape: Sizes

    @property
    def numel(self) -> int:
        """Its number of elements; that of a scalar is 1."""
        return math.prod(self.shape)

    @property
    def end(self) -> Sizes:
        """The first index behind it, along each dimension."""
        return tuple(start + size for start, size in zip(self.offset, self.shape, strict=True))

    def intersect(self, other: "Region") -> "Region":
        """The elements of both; of shape 0 along a dimension in which they don't meet."""
        start = tuple(map(max, self.offset, other.offset))
        end = tuple(map(min, self.end, other.end))
        return Region(start, tuple(max(0, stop - begin) for begin, stop in zip(start, end, strict=True)))

    def __str__(self) -> str:
        return "[" + ", ".join(f"{a}:{b}" for a, b in zip(self.offset, self.end, strict=True)) + "]"


@dataclass(frozen=True, slots=True)
class Shard:
    """What one rank holds of one tensor."""

    global_shape: Sizes
    region: Region
    dtype: str
    """The name of its `torch.dtype`, such as "float32"."""

    @classmethod
    def whole(cls, shape: Sizes, dtype: str) -> "Shard":
        """The shard of a rank that holds all of the tensor."""
        return cls(shape, Region((0,) * len(shape), shape), dtype)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.global_shape)}"


Layout = Mapping[str, Shard]
"""What one rank holds, by parameter name."""


@dataclass(frozen=True, slots=True)
class Sharding:
    """One model over several ranks: what each holds, and which of them this process is."""

    rank: int
    layouts: tuple[Layout, ...]

    @property
    def own(self) -> Layout:
        """What this process holds."""
        return self.layouts[self.rank]
