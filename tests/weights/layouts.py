"""Layouts by hand, as placements of DTensors would say them."""

from llamarl.core.shards import Region, Shard


def split(size: int, parts: int) -> list[tuple[int, int]]:
    """(begin, size) of each part, as torch chunks: parts of equal size, then what is left, then nothing."""
    step = -(-size // parts)
    begins = [min(size, step * part) for part in range(parts)]
    return [(begin, min(step, size - begin)) for begin in begins]


def shards(shape: tuple[int, ...], ranks: int, dim: int | None, dtype: str = "float32") -> list[Shard]:
    """A tensor sharded along `dim` over the ranks, or replicated (None)."""
    if dim is None:
        return [Shard.whole(shape, dtype)] * ranks
    made = []
    for begin, size in split(shape[dim], ranks):
        offset = tuple(begin if d == dim else 0 for d in range(len(shape)))
        made.append(Shard(shape, Region(offset, tuple(size if d == dim else n for d, n in enumerate(shape))), dtype))
    return made


SHAPES = {
    "embed": ((98, 32), 0),
    "qkv": ((64, 32), 0),
    "out": ((32, 32), 1),
    "up": ((90, 32), 0),
    "down": ((32, 90), 1),
    "norm": ((32,), None),
    "scale": ((), None),
}
"""Parameters of a small model: shape, and the dimension that tensor parallelism shards."""


def layouts(kind: str, ranks: int, first: int = 0, dtype: str = "float32") -> dict[int, dict[str, Shard]]:
    """Layouts of ranks `first`, `first + 1`, ... : "full" (each holds all), "fsdp" or "tp"."""
    held: dict[int, dict[str, Shard]] = {first + rank: {} for rank in range(ranks)}
    for name, (shape, tp_dim) in SHAPES.items():
        fsdp_dim = 0 if shape else None
        dim = {"full": None, "fsdp": fsdp_dim, "tp": tp_dim}[kind]
        for rank, shard in enumerate(shards(shape, ranks, dim, dtype)):
            held[first + rank][name] = shard
    return held
