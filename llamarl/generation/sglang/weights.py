"""Weights for an SGLang server: the folder that it loads, the names that it has, and what its digests prove."""

import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from llamarl.core.errors import WeightSyncError

FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Layers that SGLang holds as one, and their parts in checkpoints."""
EXPERTS = {"w13_weight": ("gate_proj", "up_proj"), "w2_weight": ("down_proj",)}
"""The same of mixtures of experts, whose experts it holds as one tensor each."""
MEMORY = Path("/dev/shm")


@contextmanager
def write_folder(tensors: Mapping[str, Tensor], parent: str | None) -> Iterator[str]:
    """A folder with the tensors, which is gone afterwards; in memory where no other place is named."""
    place = parent or (str(MEMORY) if MEMORY.is_dir() else None)
    with tempfile.TemporaryDirectory(prefix="llamarl-weights-", dir=place) as folder:
        # Tied tensors share memory, which the format does not allow.
        whole = {name: tensor.detach().to("cpu").clone().contiguous() for name, tensor in tensors.items()}
        save_file(whole, str(Path(folder) / "model.safetensors"), metadata={"format": "pt"})
        yield folder


def list_parts(name: str, sent: Sequence[str]) -> list[str]:
    """Names that checkpoints have for what the server holds under one name.

    Args:
        name: the server's.
        sent: names of a checkpoint, which say how many experts there are.
    """
    *path, module, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", name, "")
    if module in FUSED:
        return [".".join([*path, part, kind]) for part in FUSED[module]]
    if module == "experts" and kind in EXPERTS:
        prefix = ".".join([*path, module])
        number = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
        count = 1 + max((int(found[1]) for each in sent if (found := number.match(each))), default=0)
        return [f"{prefix}.{expert}.{part}.weight" for expert in range(count) for part in EXPERTS[kind]]
    return [name]


def count_digests(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """CRC-32 of each tensor's bytes."""
    return {
        name: zlib.crc32(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        for name, tensor in tensors.items()
    }


def check_digests(
    version: int,
    sent: tuple[Mapping[str, int] | None, Mapping[str, int]],
    held: tuple[Sequence[Mapping[str, str]], Sequence[Mapping[str, str]]],
) -> None:
    """Checks that in each worker just those tensors changed that are new.

    The digests are the server's own, which nobody else can compute for what it holds as one tensor. But one that stayed
    as it was, of a tensor that did not, tells that the tensor was not loaded.

    Args:
        version: for messages.
        sent: digests of what was sent last time, and this time; None the first time.
        held: digests of what each worker held before, and holds now.

    Raises:
        WeightSyncError: names a tensor that should have changed and did not, or the other way round, or says that the
            digests tell nothing.
    """
    before, now = sent
    for worker, (was, has) in enumerate(zip(*held, strict=True)):
        single = {name: has[name] for name in has if name in now}
        if len(set(single.values())) == 1 < len({now[name] for name in single}):
            raise WeightSyncError(f"weights of version {version}: worker {worker} of the server digests nothing")
        for name in has if before is not None else ():
            assert before is not None
            is_new = any(before.get(part) != now[part] for part in list_parts(name, list(now)))
            if is_new != (was.get(name) != has[name]):
                fault = "did not arrive" if is_new else "changed though it was not new"
                raise WeightSyncError(f"weights of version {version}: {name} {fault} at worker {worker} of the server")
