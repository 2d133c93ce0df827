"""Low-rank adapters, as the peft library makes, switches off, merges, saves and loads them.

LoRA: Low-Rank Adaptation of Large Language Models (Hu et al. 2021, https://arxiv.org/abs/2106.09685). The only module
that imports peft. `scoring.adapters` computes with them where they are trained, `generation.adapters` in a generator.
"""

import contextlib
import copy
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llamarl.core.errors import CheckpointError, ConfigError, MissingDependencyError
from llamarl.core.seeds import derive_seed
from llamarl.models.lora_config import LoraConfig

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

    def tensors(self) -> dict[str, Tensor]:
        """A and B of each adapted layer, `<layer>.lora_A.weight [rank, in]` and `<layer>.lora_B.weight [out, rank]`."""
        # Detached: they are copied, hashed and saved without autograd.
        return {name: parameter.detach() for name, parameter in _adapter_parameters(self._model).items()}

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """Lets the model compute what it did without adapters, inside the block."""
        self._adapted.disable_adapter_layers()
        try:
            yield
        finally:
            self._adapted.enable_adapter_layers()

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
        weights = {_PREFIX + name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}
        save_file(weights, draft / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        settings.save_pretrained(str(draft))
        for name in (ADAPTER_WEIGHTS, ADAPTER_CONFIG):
            (draft / name).replace(directory / name)
        draft.rmdir()


def load_adapter(model: nn.Module, directory: str | Path, *, merged: bool = False) -> None:
    """Puts a trained adapter on a model, in place.

    Args:
        model: a causal language model, the base that the adapter was trained on.
        directory: with `adapter_config.json` and `adapter_model.safetensors`, as peft lays them out.
        merged: add it to the weights; the model is an ordinary one then.

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
        adapted = peft.LoraModel(model, {"default": config}, "default")
        stored = load_file(Path(directory) / ADAPTER_WEIGHTS)
    except Exception as error:  # peft raises whatever the values of a config run into
        problem = str(error)[:ERROR_CHARACTERS]
        raise CheckpointError(f"{directory}: can't load the adapter: {type(error).__name__}: {problem}") from error
    own = {_PREFIX + name: parameter for name, parameter in _adapter_parameters(model).items()}
    _refuse_misfits(str(directory), own, stored)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])
    if merged:
        adapted.merge_and_unload()
    model.requires_grad_(merged).eval()


def find_base(directory: Path) -> str | None:
    """The name of the model that a folder's adapter belongs to; None where the folder is none of an adapter alone.

    Raises:
        CheckpointError: a broken config, or one that names no model.
    """
    file = directory / ADAPTER_CONFIG
    if not file.is_file() or (directory / "config.json").exists():
        return None
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: can't read base_model_name_or_path ({error}); copy the adapter again") from None
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{file}: base_model_name_or_path={base!r} names no model; write its directory or Hub id")
    return base


def adapter_shapes(model: nn.Module, config: LoraConfig) -> dict[str, tuple[int, int]]:
    """The shapes of the tensors that `Adapters` of these settings would have, by name; the model stays as it is.

    Args:
        model: without adapters; it may be on torch's meta device.
        config: rank, scale and layers.

    Raises:
        ConfigError: a target that is no linear layer of the model.
    """
    head = _head_of(model)
    targets, shapes = _targets(model, config, head), {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and module is not head and name.rpartition(".")[2] in targets:
            shapes[f"{name}.lora_A.weight"] = (config.rank, module.in_features)
            shapes[f"{name}.lora_B.weight"] = (module.out_features, config.rank)
    return shapes


def count_adapters(model: nn.Module, lora: LoraConfig) -> int:
    """Numbers in the adapters that the model would get; it stays as it is, and may be on torch's meta device.

    Raises:
        MissingDependencyError: without the extra `lora`.
        ConfigError: a target that is no linear layer of the model.
    """
    _import_peft()
    return sum(rows * columns for rows, columns in adapter_shapes(model, lora).values())


def _adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' parameters, by the names that they have in files, without peft's prefix."""
    return {adapter_name(name): parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def adapter_name(name: str) -> str:
    """The name that a parameter of a model with adapters has in files: peft's own names say which adapter it is."""
    return name.replace(".default.", ".") if ".lora_" in name else name


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
