"""What changed between two versions of the weights, block by block.

    delta = encode_delta(6, old, 7, new)          # sender: it holds both versions
    apply_delta(delta, held_version=6, into=old)  # receiver: `old` becomes `new`, bit for bit

Of each tensor travel one bit a block and the blocks in which any bit changed. Values are absolute, not differences, so
nothing is lost to rounding and a delta that is applied twice does no harm. The proof is that of a full copy: version,
checksums and probe are of what the receiver holds in the end.

An optimizer moves nearly every float32 value at every step, so a delta in float32 saves nothing. In bfloat16 a value
changes once its steps add up to half of its last bit: the lower the learning rate, the fewer. Whether it pays is for
the sender to see: `Delta.num_bytes` against that of the tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llamarl.core.errors import WeightSyncError

BLOCK = 8
"""Elements that travel together where one of them changed. Changes are scattered: where one value in 500 changed, so
did one block of 8 in 60, and one of 1024 in two."""

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Delta:
    """The way from one version to another."""

    base: int
    version: int
    masks: Mapping[str, Tensor] = field(repr=False)
    """uint8 [blocks / 8] of each tensor: one bit a block, set where it changed."""
    values: Mapping[str, Tensor] = field(repr=False)
    """The new elements of the changed blocks, end to end, and after them those that fill no block."""

    @property
    def num_bytes(self) -> int:
        """Bytes of masks and values."""
        return sum(tensor.nbytes for tensor in (*self.masks.values(), *self.values.values()))


@torch.no_grad()
def encode_delta(base: int, old: Mapping[str, Tensor], version: int, new: Mapping[str, Tensor]) -> Delta:
    """Finds the blocks of `new`, which is `version`, that differ in any bit from `old`, which is `base`.

    Args:
        base: version of `old`.
        old: CPU tensors that the receiver holds, too.
        version: version of `new`.
        new: CPU tensors of the same names, shapes and dtypes.

    Raises:
        WeightSyncError: names, shapes or dtypes differ.
    """
    if wrong := sorted(old.keys() ^ new.keys()):
        raise WeightSyncError(f"weights: versions {base} and {version} differ in names: {', '.join(wrong)}")
    masks, values = {}, {}
    for name, tensor in new.items():
        if (tensor.shape, tensor.dtype) != (old[name].shape, old[name].dtype):
            raise WeightSyncError(f"weights: {name!r} changed its shape or dtype between {base} and {version}")
        (blocks, tail), (old_blocks, _) = _split(tensor), _split(old[name])
        is_changed = _differ(old_blocks, blocks)
        masks[name] = torch.from_numpy(np.packbits(is_changed.numpy()))
        values[name] = torch.cat([blocks[is_changed].flatten(), tail])
    return Delta(base, version, masks, values)


@torch.no_grad()
def apply_delta(delta: Delta, held_version: int, into: Mapping[str, Tensor]) -> None:
    """Turns `into`, which holds the delta's base, into its version, in place.

    Args:
        delta: what changed.
        held_version: of `into`.
        into: contiguous CPU tensors.

    Raises:
        WeightSyncError: `into` is another version, or has other names or sizes; nothing is written then.
    """
    if held_version != delta.base:
        raise WeightSyncError(f"weights: a delta from version {delta.base} does not fit version {held_version}")
    if wrong := sorted(into.keys() ^ delta.masks.keys()):
        raise WeightSyncError(f"weights: the delta has other names: {', '.join(wrong)}")
    places = {name: _places(delta, name, tensor) for name, tensor in into.items()}
    for name, tensor in into.items():
        blocks, tail = _split(tensor.detach())
        values, end = delta.values[name], int(places[name].sum()) * BLOCK
        blocks[places[name]] = values[:end].view(-1, BLOCK)
        tail.copy_(values[end:])


def _split(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the whole blocks [blocks, BLOCK] and of the elements that are left."""
    flat = tensor.view(-1)
    end = flat.numel() // BLOCK * BLOCK
    return flat[:end].view(-1, BLOCK), flat[end:]


def _differ(old: Tensor, new: Tensor) -> Tensor:
    """Bool [blocks]: where any bit differs. NaN equals itself and -0 is not 0, as the receiver must hold them."""
    bits = _BITS[new.dtype.itemsize]
    # Eight flags are eight bytes: whether one is set is asked of all at once.
    return (old.view(bits) != new.view(bits)).view(torch.uint8).view(torch.int64).view(-1) != 0


def _places(delta: Delta, name: str, tensor: Tensor) -> Tensor:
    """Bool [blocks]: which of them change; refuses a delta that is not of this tensor."""
    count, left = divmod(tensor.numel(), BLOCK)
    mask = delta.masks[name].numpy()
    is_changed = torch.from_numpy(np.unpackbits(mask)[:count]).bool()
    if len(mask) != -(-count // 8) or delta.values[name].numel() != int(is_changed.sum()) * BLOCK + left:
        raise WeightSyncError(f"weights: the delta of {name!r} is not one of its {tensor.numel()} elements")
    return is_changed
