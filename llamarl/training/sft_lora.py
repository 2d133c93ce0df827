"""Low-rank adapters for fine-tuning, as the peft library makes and merges them, on the packed forward pass.

LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, https://arxiv.org/abs/2106.09685). The only module
that imports peft.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llamarl.core.errors import ConfigError, MissingDependencyError
from llamarl.core.seeds import derive_seed
from llamarl.models.decoder import Decoder, Dense, Joined, why_unsupported
from llamarl.models.linear import linear
from llamarl.training.config import LoraConfig
from llamarl.training.scoring import PackedScorer, PaddedScorer, Scorer


class Adapters:
    """Freezes a model and puts trainable adapters on some of its linear layers, in place, until `merge`.

    Args:
        model: a Hugging Face causal language model.
        config: rank, scale and layers.
        seed: of A; B starts at zero, and so the model computes what it did.

    Raises:
        MissingDependencyError: without the extra `lora`.
        ConfigError: a target that is no linear layer of the model.
    """

    def __init__(self, model: nn.Module, config: LoraConfig, seed: int) -> None:
        try:
            import peft
        except ImportError:
            raise MissingDependencyError.for_extra("peft", "lora") from None
        targets = _targets(model, config)
        settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets)
        self._model = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("lora", seed))
            self._adapted = peft.LoraModel(model, settings, "default")

    def scorer(self) -> Scorer:
        """Scores with the adapters: packed where the decoder knows the model, padded rows elsewhere."""
        config: Any = self._model.config
        return PaddedScorer(self._model) if why_unsupported(config) else _AdaptedScorer(self._model)

    def merge(self) -> None:
        """Adds the adapters to their layers' weights; the model is then an ordinary one, trainable as a whole."""
        self._adapted.merge_and_unload()
        self._model.requires_grad_(True)


def _targets(model: Any, config: LoraConfig) -> list[str]:
    head = model.get_output_embeddings()
    linears = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head)
    names = sorted({name.rpartition(".")[2] for name in linears})
    if not names:
        raise ConfigError(f"lora: {type(model).__name__} has no linear layers to adapt; train it whole, without lora")
    if unknown := [target for target in config.targets if target not in names]:
        raise ConfigError(
            f"lora.targets: {unknown[0]!r} is none of the linear layers that can be adapted; choose among "
            f"{', '.join(names)}"
        )
    return list(config.targets) or names


@dataclass(slots=True)
class _AdaptedDense(Dense):
    """`x W^T + b + scale x A^T B^T`."""

    layer: Any = None

    def __call__(self, x: Tensor, /) -> Tensor:
        low, high = self.layer.lora_A["default"].weight, self.layer.lora_B["default"].weight
        added: Tensor = self.layer.scaling["default"] * linear(linear(x, low), high)
        return linear(x, self.weight, self.bias) + added


class _AdaptedScorer(PackedScorer):
    """The packed forward pass with the adapters, which the decoder, reading only weights, would leave out."""

    def __init__(self, model: nn.Module) -> None:
        self._decoder, self._temperature = Decoder.live(model.eval()), 1.0
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_A")]
        by_weight = {id(layer.weight): layer for layer in layers}

        def adapted(projection: Any) -> Any:
            if isinstance(projection, Joined):
                return Joined(tuple(adapted(part) for part in projection.parts))
            layer = by_weight.get(id(projection.weight))
            return projection if layer is None else _AdaptedDense(projection.weight, projection.bias, layer=layer)

        for block in self._decoder.layers:
            block.qkv, block.out = adapted(block.qkv), adapted(block.out)
            block.gate_up, block.down = adapted(block.gate_up), adapted(block.down)
