"""Low-rank adapters for supervised training, as the peft library makes and merges them.

LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, https://arxiv.org/abs/2106.09685). The only module
that imports peft. `scoring.adapters` computes with them.
"""

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llamarl.core.errors import CheckpointError, ConfigError, MissingDependencyError
from llamarl.core.seeds import derive_seed
from llamarl.training.config import LoraConfig

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""Names of an adapter's files, as peft loads them."""
ERROR_CHARACTERS = 500
_PREFIX = "base_model.model."
"""Stands before the model's own names in an adapter's file."""


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
        peft = _import_peft()
        head = _head_of(model)
        targets = _targets(model, config, head)
        self._settings = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets)
        self._model = model
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed("lora", seed))
            self._adapted = peft.LoraModel(model, self._settings, "default")
        if head is not None and "score" in dict(model.named_children()):
            head.requires_grad_(True)  # a new head starts at zero: without it nothing would be learned

    def merge(self) -> None:
        """Adds the adapters to their layers' weights; the model is then an ordinary one, trainable as a whole."""
        self._adapted.merge_and_unload()
        self._model.requires_grad_(True)

    def save(self, directory: Path, base: str) -> None:
        """Writes the adapters alone, in PEFT layout, into a directory; each file takes its name when complete.

        Args:
            directory: made where it is missing.
            base: name of the model that they belong to.
        """
        settings = copy.copy(self._settings)
        settings.base_model_name_or_path, settings.task_type, settings.inference_mode = base, "CAUSAL_LM", True
        draft = directory / f".adapter-{os.getpid()}"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        weights = {
            _PREFIX + name.replace(".default.", "."): parameter.detach().cpu().contiguous()
            for name, parameter in self._model.named_parameters()
            if "lora_" in name
        }
        save_file(weights, draft / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        settings.save_pretrained(str(draft))
        for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
            (draft / name).replace(directory / name)
        draft.rmdir()


def load_adapter(model: nn.Module, directory: str | Path) -> None:
    """Puts a trained adapter on a model, in place and not merged.

    Args:
        model: a causal language model, the base that the adapter was trained on.
        directory: with `adapter_config.json` and `adapter_model.safetensors`, as peft lays them out.

    Raises:
        MissingDependencyError: without the extra `lora`.
        CheckpointError: files missing or broken, or an adapter of another model.
    """
    peft = _import_peft()
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (Path(directory) / name).is_file():
            raise CheckpointError(f"{directory}: no {name}; give the directory of an adapter as peft saves it")
    try:
        config = peft.PeftConfig.from_pretrained(str(directory))
        peft.LoraModel(model, {"default": config}, "default")
        stored = load_file(Path(directory) / ADAPTER_WEIGHTS)
    except Exception as error:  # peft raises whatever the values of a config run into
        problem = str(error)[:ERROR_CHARACTERS]
        raise CheckpointError(f"{directory}: can't load the adapter: {type(error).__name__}: {problem}") from error
    own = {
        _PREFIX + name.replace(".default.", "."): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    _refuse_misfits(str(directory), own, stored)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])
    model.requires_grad_(False).eval()


def _import_peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingDependencyError.for_extra("peft", "lora") from None
    return peft


def _refuse_misfits(place: str, own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    """Raises `CheckpointError` unless the stored weights are those that the model has a place for."""
    remedy = "give the model that the adapter was trained on"
    if others := sorted(own.keys() ^ stored.keys()):
        raise CheckpointError(
            f"{place}: {len(others)} weights of the adapter fit no layer, first {others[0]}; {remedy}"
        )
    for name, tensor in stored.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{place}: {name} has shape {list(tensor.shape)}, the model's layer takes {list(own[name].shape)}; "
                f"{remedy}"
            )


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
