"""Weights in the order in which oneDNN's kernels read them: products of few rows run at the speed of memory.

    [out, in]  ->  [out / 64, in / 16, 16, 64]        32-bit numbers
                   [out / 64, in / 32, 16, 64, 2]     16-bit numbers

A product that finds its weights row by row has to gather them, or works on a copy that it makes anew at each call. Here
the packed form is the only one. It is seen through an ordinary tensor over the same memory: new weights are written in
place, rows are looked up (a tied embedding), and what is held can be compared with what should be.
"""

import ctypes
from functools import cache

import torch
from torch import Tensor

from llamarl.models.linear import is_onednn_faster, product

_OUT_BLOCK = 64
_IN_BLOCK_BYTES = 64
_MIN_SIZE = 1 << 14
"""Smaller weights stay in the caches, where a product costs what its call costs."""
_TYPICAL_ROWS = 64
"""oneDNN is asked for the order that suits so many rows. Kernels for other counts read the same order."""


class Packed:
    """`x W^T + b` with packed weights; a `models.decoder.Quantised` projection whose rounding is none.

    Args:
        weight: `[out, in]`, one that `suits_packing`.
        bias: `[out]` or None, kept as it is.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias, self.shape = bias, weight.shape
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _TYPICAL_ROWS)
        self.blocks = _window(self._packed, weight.shape, weight.dtype)

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]` to `[M, out]`."""
        return product(x, self._packed, self.bias)

    @property
    def num_bytes(self) -> int:
        """The bytes of the packed weights: as many as of the plain ones."""
        return self.shape.numel() * self.blocks.itemsize

    def write(self, rows: slice, weight: Tensor) -> None:
        """Takes `weight [rows, in]` as the weights of these outputs."""
        places = self._places(torch.arange(rows.start, rows.stop))
        self.blocks[places] = weight.to(self.blocks).reshape(-1, *self.blocks.shape[2:])

    def holds(self, rows: slice, weight: Tensor) -> bool:
        """True where the weights of these outputs are exactly `weight` in this dtype."""
        return torch.equal(self.dense(rows), weight.to(self.blocks))

    def dense(self, rows: slice) -> Tensor:
        """A copy of the weights of these outputs, `[rows, in]`."""
        return self.lookup(torch.arange(rows.start, rows.stop))

    def lookup(self, ids: Tensor) -> Tensor:
        """The weights of the outputs `ids [M]`: `[M, in]`."""
        return self.blocks[self._places(ids)].flatten(1)

    def _places(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        return outputs // _OUT_BLOCK, outputs % _OUT_BLOCK


def suits_packing(weight: Tensor) -> bool:
    """True where `weight [out, in]` can be packed on this machine, and products with it gain by that."""
    if weight.dim() != 2 or not weight.is_cpu or weight.numel() < _MIN_SIZE:
        return False
    if weight.shape[0] % _OUT_BLOCK or weight.shape[1] * weight.element_size() % _IN_BLOCK_BYTES:
        return False
    is_faster = (weight.dtype == torch.float32 and is_onednn_faster()) or (
        weight.dtype == torch.bfloat16 and torch._C._has_mkldnn and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return is_faster and _has_known_order(weight.shape, weight.dtype)


@cache
def _has_known_order(shape: torch.Size, dtype: torch.dtype) -> bool:
    """True where this version of oneDNN orders weights of this shape as the module says; other CPUs may want others."""
    if not hasattr(torch.ops.mkldnn, "data_ptr"):
        return False
    # Neighbours differ, and bf16 holds every number below 256 exactly.
    weight = torch.arange(shape.numel(), dtype=torch.int32).mul_(7919).remainder_(251).view(shape).to(dtype)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, _TYPICAL_ROWS)
    if torch.ops.mkldnn._nbytes(packed) != weight.nbytes:
        return False
    blocks = _window(packed, shape, dtype)
    return torch.equal(blocks.reshape(shape), weight)


def _window(packed: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor over the memory of `packed`, indexed `[out / 64, 64, in / 16, 16]` or `[.., .., in / 32, 16, 2]`.

    The memory belongs to `packed`, which must be kept as long as the result.
    """
    per_place = 4 // dtype.itemsize  # numbers that stand together in 32 bits
    memory = (ctypes.c_char * (shape.numel() * dtype.itemsize)).from_address(torch.ops.mkldnn.data_ptr(packed))
    flat = torch.frombuffer(memory, dtype=dtype)
    blocks = flat.view(shape[0] // _OUT_BLOCK, shape[1] // (16 * per_place), 16, _OUT_BLOCK, per_place)
    blocks = blocks.permute(0, 3, 1, 2, 4)
    return blocks[..., 0] if per_place == 1 else blocks
