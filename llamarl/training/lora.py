"""Low-rank adapters for supervised training, as the peft library makes and merges them.

LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, https://arxiv.org/abs/2106.09685). The only module
that imports peft. `scoring.adapters` computes with them.
"""

from typing import Any

import torch
from torch import nn

from llamarl.core.errors import ConfigError, MissingDependencyError
from llamarl.core.seeds import derive_seed
from llamarl.training.config import LoraConfig


class Adapters:
    """Freezes a model and puts trainable adapters on some of its linear layers, in place, until `merge`.

    Args:
        model: a Hugging Face causal language model, or a `*ForSequenceClassification`, whose head is trained along.
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
        head = _head_of(model)
        targets = _targets(model, config, head)
        settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets)
        self._model = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("lora", seed))
            self._adapted = peft.LoraModel(model, settings, "default")
        if head is not None and "score" in dict(model.named_children()):
            head.requires_grad_(True)  # a new head starts at zero: without it nothing would be learned

    def merge(self) -> None:
        """Adds the adapters to their layers' weights; the model is then an ordinary one, trainable as a whole."""
        self._adapted.merge_and_unload()
        self._model.requires_grad_(True)


def _head_of(model: Any) -> nn.Module | None:
    """The layer of the outputs: a classifier's `score`, or a language model's output embeddings."""
    head: nn.Module | None = dict(model.named_children()).get("score") or model.get_output_embeddings()
    return head


def _targets(model: nn.Module, config: LoraConfig, head: nn.Module | None) -> list[str]:
    """Names of the linear layers to adapt; the head is none of them."""
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
