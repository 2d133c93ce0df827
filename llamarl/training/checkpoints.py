"""The trainer's files: weights and moments as safetensors, counters as JSON. Never a pickle.

They hold whole tensors, however many ranks wrote them: one rank puts each together and writes it before the next. Every
rank reads its own part of each. So what one layout saves, any other resumes.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llamarl.core.errors import CheckpointError
from llamarl.training.layout import WHOLE, Layout, index_of

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
    layout: Layout = WHOLE,
) -> None:
    """Writes the files, the counters last. All ranks call it; the first writes, and is the one that may fail.

    Args:
        directory: new or empty.
        weights: what this rank holds of each.
        optimizer: likewise.
        counters: the same on all ranks.
        critics: whole on all ranks.
        layout: the place of what this rank holds.

    Raises:
        CheckpointError: the directory isn't empty.
        OSError: the disk refused (full, read-only); what is written so far stays.
    """
    directory = Path(directory)
    problem: Exception | None = None
    if layout.ranks.is_first:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if any(directory.iterdir()):
                problem = CheckpointError(f"{directory}: not empty; give each checkpoint a directory of its own")
        except OSError as error:
            problem = error
    for tensors, name, metadata in ((weights, WEIGHTS, {"format": "pt"}), (optimizer, OPTIMIZER, {})):
        problem = _save(tensors, directory / name, metadata, layout, problem)
    if problem is not None:
        raise problem
    if layout.ranks.is_first:
        if critics:
            _raise(_save(critics, directory / CRITICS, {}, WHOLE, None))
        (directory / COUNTERS).write_text(json.dumps(dict(counters), indent=1) + "\n", encoding="utf-8")


def save_tensors(tensors: Mapping[str, Tensor], path: Path, layout: Layout = WHOLE) -> None:
    """Writes whole tensors into one file, of which each rank holds its part. All ranks call it; the first writes."""
    _raise(_save(tensors, path, {"format": "pt"}, layout, None))


def load_tensors(path: Path, layout: Layout = WHOLE) -> dict[str, Tensor]:
    """What this rank holds of each tensor that `save_tensors` wrote."""
    return _load(path, layout)


def _raise(problem: Exception | None) -> None:
    if problem is not None:
        raise problem


_FORMATS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}
"""Names that the format has for number formats."""


def _save(
    tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str], layout: Layout, problem: Exception | None
) -> Exception | None:
    """Writes tensors in the safetensors format, one by one, unless there is a problem; returns what went wrong.

    Nothing is raised in between: the first rank must go on putting tensors together, or the others would wait for it.
    """
    tensors = dict(
        sorted(tensors.items())
    )  # a resumed optimizer has them in another order, and equal states equal files
    with contextlib.ExitStack() as stack:
        file: IO[bytes] | None = None
        if layout.ranks.is_first and problem is None:
            try:
                file = stack.enter_context(open(path, "wb"))
                file.write(_header(tensors, metadata, layout))
            except OSError as error:
                problem = error
        for name, tensor in tensors.items():
            whole = layout.put_together(name, tensor)
            if file is None or whole is None or problem is not None:
                continue
            try:
                file.write(whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            except OSError as error:
                problem = error
        try:
            stack.close()  # what was buffered may not fit either
        except OSError as error:
            problem = problem or error
    return problem


def _header(tensors: Mapping[str, Tensor], metadata: dict[str, str], layout: Layout) -> bytes:
    """The beginning of a safetensors file: eight bytes of length, and a JSON object of formats, shapes and places."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    place = 0
    for name, tensor in tensors.items():
        shape = layout.shape(name, tensor)
        end = place + torch.Size(shape).numel() * tensor.itemsize
        entries[name] = {"dtype": _FORMATS[tensor.dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers lie at a multiple of their size
    return len(text).to_bytes(8, "little") + text


def read(
    directory: str | Path,
    expected: Mapping[str, Tensor],
    critics: Mapping[str, Tensor] | None = None,
    base: int | None = None,
    layout: Layout = WHOLE,
) -> Stored:
    """Reads a checkpoint of a model with trained weights like `expected`; changes nothing.

    Args:
        directory: what `write` wrote.
        expected: what this rank holds of the model's parameters, or its adapters.
        layout: the place of that; as much is read.
        critics: those that the run trains; None: whatever the checkpoint holds.
        base: digest of the frozen weights that adapters belong to; None: the whole model is trained.

    Raises:
        CheckpointError: a file is missing or broken, the weights are another model's, or adapters are another base's.
    """
    directory = Path(directory)
    try:
        counters = json.loads((directory / COUNTERS).read_text(encoding="utf-8"))
        shapes = _shapes(directory / WEIGHTS)
        is_same = shapes == {name: layout.shape(name, tensor) for name, tensor in expected.items()}
        weights = _load(directory / WEIGHTS, layout) if is_same else {}
        optimizer = _load(directory / OPTIMIZER, layout) if is_same else {}
        stored_critics = _load(directory / CRITICS, WHOLE) if (directory / CRITICS).exists() else {}
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{directory}: not a readable trainer checkpoint ({error})") from error
    _check_base(directory, counters.get("base"), base)
    differing = sorted(shapes.keys() ^ expected.keys())
    differing += sorted(n for n in shapes.keys() & expected.keys() if shapes[n] != layout.shape(n, expected[n]))
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


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def _load(path: Path, layout: Layout) -> dict[str, Tensor]:
    """What a rank holds of each tensor of a file; no more is read."""
    found: dict[str, Tensor] = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            part, region = file.get_slice(name), layout.region(name)
            if region is None or not part.get_shape():
                found[name] = file.get_tensor(name)
            elif region.numel:
                found[name] = part[index_of(region)]
            else:  # a part of no rows, which the file cannot cut
                found[name] = torch.empty(region.shape)
    return found


@torch.no_grad()  # autograd refuses to write into parameters
def copy_weights(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    """Copies every tensor in place, so that whoever holds the parameters sees the new values."""
    for name, tensor in target.items():
        tensor.copy_(source[name])
