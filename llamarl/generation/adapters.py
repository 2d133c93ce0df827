"""Low-rank adapters in a generator: beside its frozen weights, not added to them.

    y = W x + b + (alpha / rank) B A x

W stays in the generator's precision and is held once. Adding the adapters to the weights instead would decode a little
faster (on one CPU core, 64 rows of the 0.34M demo model: by 10 to 17 %; 16 rows of a 135M Llama: by 1 to 19 %), but
bf16 and int8 round most of a small change away, each update would quantise and pack the whole model again (0.5 to 1 s
at 135M, against 3 ms), and the weights of the start would have to be kept beside the sums, in float32.

Layers of one input (q, k, v; gate, up) share one product with
their stacked A, and one with their B on the diagonal of a wide matrix:

    [y_q y_k y_v] += (alpha / rank) [low_q low_k low_v] diag(B_q, B_k, B_v)^T
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from llamarl.core.errors import WeightSyncError
from llamarl.models.blocks import Projection
from llamarl.models.decoder import Decoder
from llamarl.models.lora import adapter_shapes
from llamarl.models.lora_config import LoraConfig


class Adapted:
    """A projection of a fused decoder with adapters beside it; no gradients.

    Args:
        projection: the frozen one, `[M, in] -> [M, out]`.
        low: `[K, in]`, the stacked A of its parts.
        high: `[out, K]`, each part's B in the rows of its outputs and the columns of its A, zeros elsewhere.
        scale: alpha / rank.
    """

    def __init__(self, projection: Projection, low: Tensor, high: Tensor, scale: float) -> None:
        self.projection, self.low, self.high, self.scale = projection, low, high, scale

    def __call__(self, x: Tensor, /) -> Tensor:
        """Maps `x [M, in]`."""
        result, low = self.projection(x), torch.mm(x.to(self.low.dtype), self.low.t())
        if result.dtype == low.dtype:
            return result.addmm_(low, self.high.t(), alpha=self.scale)
        return result.add_(torch.mm(low, self.high.t()), alpha=self.scale)


class HeldTensors:
    """Tensors that a receiver computes with and refreshes in place from what the trainer sends.

    Args:
        views: by the names that they are sent under.
    """

    def __init__(self, views: Mapping[str, Tensor]) -> None:
        self._views = views

    @torch.no_grad()
    def copy_from(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes new values for every tensor, cast as it is held.

        Raises:
            WeightSyncError: names are missing or unknown, or a shape differs; nothing has been copied then.
        """
        views = self._views
        wrong = sorted(views.keys() ^ tensors.keys())
        wrong += sorted(n for n in views.keys() & tensors.keys() if views[n].shape != tensors[n].shape)
        if wrong:
            raise WeightSyncError(f"weights: {len(wrong)} names missing, unknown or of another shape: {wrong[0]}, ...")
        for name, view in views.items():
            view.copy_(tensors[name])

    def named_views(self) -> Mapping[str, Tensor]:
        """The tensors by name."""
        return self._views

    def mismatches(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names whose held value is not that of `tensors`, up to the rounding to the held dtype."""
        return [name for name, view in self._views.items() if not torch.equal(view, tensors[name].to(view))]

    @property
    def num_bytes(self) -> int:
        """The bytes of the tensors."""
        return sum(view.nbytes for view in self._views.values())


def adapt(decoder: Decoder, model: nn.Module, config: LoraConfig) -> HeldTensors:
    """Puts adapters, all zeros at first, beside a fused decoder's projections.

    Args:
        decoder: changed in place.
        model: the `*ForCausalLM` that it was fused from; only its layers' names and sizes are read.
        config: rank, scale and layers.

    Returns:
        The adapters, through which new ones arrive.

    Raises:
        ConfigError: a target that is no linear layer of the model.
    """
    build = _Builder(decoder, model, config)
    for index, layer in enumerate(decoder.layers):
        attention, mlp = f"model.layers.{index}.self_attn.", f"model.layers.{index}.mlp."
        layer.qkv = build(layer.qkv, [f"{attention}{name}_proj" for name in "qkv"])
        layer.out = build(layer.out, [f"{attention}o_proj"])
        if layer.gate_up is not None and layer.down is not None:  # experts have no adapters
            layer.gate_up = build(layer.gate_up, [f"{mlp}gate_proj", f"{mlp}up_proj"])
            layer.down = build(layer.down, [f"{mlp}down_proj"])
    return HeldTensors(build.views)


class _Builder:
    """Collects the views into the buffers of all adapters, by the names that the trainer has for them."""

    def __init__(self, decoder: Decoder, model: nn.Module, config: LoraConfig) -> None:
        self._shapes, self._scale = adapter_shapes(model, config), config.alpha / config.rank
        # On a CPU, bf16 products of so few columns take longer than float32 ones; on a GPU they take half as long.
        dtype = torch.float32 if decoder.device.type == "cpu" else decoder.dtype
        self._new: Callable[..., Tensor] = functools.partial(torch.zeros, dtype=dtype, device=decoder.device)
        self._outputs = {n: m.out_features for n, m in model.named_modules() if isinstance(m, nn.Linear)}
        self._rank = config.rank
        self.views: dict[str, Tensor] = {}

    def __call__(self, projection: Projection, parts: Sequence[str]) -> Projection:
        """The projection with adapters beside it, or as it is where none of its parts has any."""
        adapted = [name for name in parts if f"{name}.lora_A.weight" in self._shapes]
        if not adapted:
            return projection
        inputs, rank = self._shapes[f"{adapted[0]}.lora_A.weight"][1], self._rank
        low = self._new(len(adapted) * rank, inputs)
        high = self._new(sum(self._outputs[name] for name in parts), len(low))
        row = column = 0
        for name in parts:
            rows = slice(row, row := row + self._outputs[name])
            if name in adapted:
                columns = slice(column, column := column + rank)
                self.views[f"{name}.lora_A.weight"] = low[columns]
                self.views[f"{name}.lora_B.weight"] = high[rows, columns]
        return Adapted(projection, low, high, self._scale)
