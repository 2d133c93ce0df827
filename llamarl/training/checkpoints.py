"""The trainer's files: weights and moments as safetensors, counters as JSON. Never a pickle."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llamarl.core.errors import CheckpointError

WEIGHTS, OPTIMIZER, COUNTERS = "model.safetensors", "optimizer.safetensors", "trainer.json"
CRITICS = "critics.safetensors"
"""File of the critics' weights; written only where an algorithm trains a critic."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Contents of a checkpoint."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    counters: dict[str, Any]
    critics: dict[str, Tensor]


def write(
    directory: str | Path,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    counters: Mapping[str, Any],
    critics: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes the files, the counters last.

    Raises:
        CheckpointError: the directory isn't empty.
        OSError: the disk refused (full, read-only); what is written so far stays.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise CheckpointError(f"{directory}: not empty; give each checkpoint a directory of its own")
    _save(weights, directory / WEIGHTS, {"format": "pt"})
    _save(optimizer, directory / OPTIMIZER)
    if critics:
        _save(critics, directory / CRITICS)
    (directory / COUNTERS).write_text(json.dumps(dict(counters), indent=1) + "\n", encoding="utf-8")


def _save(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:  # its only word for a disk that refuses
        raise OSError(f"{path}: {error}") from error


def read(
    directory: str | Path,
    expected: Mapping[str, Tensor],
    critics: Mapping[str, Tensor] | None = None,
    base: int | None = None,
) -> Stored:
    """Reads a checkpoint of a model with trained weights like `expected`; changes nothing.

    Args:
        directory: what `write` wrote.
        expected: the model's parameters, or its adapters.
        critics: those that the run trains; None: whatever the checkpoint holds.
        base: digest of the frozen weights that adapters belong to; None: the whole model is trained.

    Raises:
        CheckpointError: a file is missing or broken, the weights are another model's, or adapters are another base's.
    """
    directory = Path(directory)
    try:
        counters = json.loads((directory / COUNTERS).read_text(encoding="utf-8"))
        weights, optimizer = load_file(directory / WEIGHTS), load_file(directory / OPTIMIZER)
        stored_critics = load_file(directory / CRITICS) if (directory / CRITICS).exists() else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: not a readable trainer checkpoint ({error})") from error
    _check_base(directory, counters.get("base"), base)
    differing = sorted(weights.keys() ^ expected.keys())
    differing += sorted(n for n in weights.keys() & expected.keys() if weights[n].shape != expected[n].shape)
    if differing:
        remedy = "" if base is None else "; adapters go on with the trainer.lora that they began with"
        raise CheckpointError(
            f"{directory}: not of this model: {differing[0]!r} is missing or of another shape{remedy}"
        )
    if critics is not None and critics.keys() != stored_critics.keys():
        raise CheckpointError(
            f"{directory}: holds critics {sorted(stored_critics)}, but the run's algorithms train {sorted(critics)}; "
            "resume with the algorithms that wrote it"
        )
    return Stored(weights, optimizer, counters, stored_critics)


def _check_base(directory: Path, stored: int | None, base: int | None) -> None:
    """Raises `CheckpointError` unless both are whole models, or adapters beside the same frozen weights."""
    if stored == base:
        return
    if stored is None or base is None:
        held, trained = ("whole weights", "adapters") if stored is None else ("adapters", "whole weights")
        raise CheckpointError(
            f"{directory}: holds {held}, but this run trains {trained}; go on with the trainer.lora that it began with"
        )
    raise CheckpointError(
        f"{directory}: its adapters were trained beside other weights than the model has now; put the checkpoint that "
        "the run started from back in its place"
    )


@torch.no_grad()  # autograd refuses to write into parameters
def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copies every tensor in place, so that whoever holds the parameters sees the new values."""
    for name, tensor in target.items():
        tensor.copy_(source[name])
