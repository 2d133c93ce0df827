"""What an update must hold before a server gets it, and what it must say that it has, before anybody believes it."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from llamarl.core.errors import WeightSyncError

TIED_HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


def with_tied_head(tensors: Mapping[str, Tensor], held: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors with the output head under its own name, where it is tied to the embeddings.

    vLLM on a CPU packs a copy of the head when it loads: without this it would compute with the old one, and say that
    it has the new weights.
    """
    is_tied = TIED_HEAD in held and TIED_HEAD not in tensors and EMBEDDINGS in tensors
    return {**tensors, **({TIED_HEAD: tensors[EMBEDDINGS]} if is_tied else {})}


def check_coverage(
    version: int, tensors: Mapping[str, Tensor], held: Mapping[str, Sequence[int]], *, has_shapes: bool
) -> None:
    """Checks that names and shapes are those which the server holds, all of them, before anything is sent.

    Args:
        version: for messages.
        tensors: to be sent.
        held: names, and shapes where they are known.
        has_shapes: False where workers hold parts.

    Raises:
        WeightSyncError: names what is missing, unknown or of another shape.
    """
    faults = {
        "held by the server but not sent": sorted(held.keys() - tensors.keys()),
        "sent but unknown to the server": sorted(tensors.keys() - held.keys()),
        # The vocabulary's size is padded there.
        "of another shape there": sorted(
            name
            for name in held.keys() & tensors.keys()
            if has_shapes and held[name] and tuple(held[name][1:]) != tuple(tensors[name].shape[1:])
        ),
    }
    found = [f"{len(names)} {fault} ({names[0]}, ...)" for fault, names in faults.items() if names]
    if found or not tensors:
        raise WeightSyncError(f"weights of version {version}: {'; '.join(found) or 'none to send'}")
