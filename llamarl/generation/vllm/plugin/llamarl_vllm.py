"""What llamarl runs inside a vLLM server: weights over gloo, and what proves them. Nothing here imports llamarl.

    python -m vllm.entrypoints.openai.api_server --model ... --weight-transfer-config '{"backend": "llamarl"}' \
        --worker-extension-cls llamarl_vllm.Extension

vLLM's workers import this file for its extension class, which registers the transfer backend.
"""

import datetime
import zlib
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "llamarl"
RECEIVED: dict[str, tuple[int, int]] = {}
"""Number of elements and CRC-32 of each tensor of the newest update, as this worker received it."""


@dataclass
class Join(WeightTransferInitInfo):
    """Where the sender listens, and which ranks the workers are."""

    host: str
    port: int
    rank_offset: int
    world_size: int
    timeout_seconds: float


@dataclass
class Update(WeightTransferUpdateInfo):
    """What is sent, in this order."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]


class GlooEngine(WeightTransferEngine[Join, Update]):
    """Receives what rank 0 broadcasts."""

    init_info_cls, update_info_cls = Join, Update
    supports_draft_weight_update = False
    _group: Any = None

    def init_transfer_engine(self, init_info: Join) -> None:
        """Joins a group of its own, beside those of vLLM."""
        rank = init_info.rank_offset + self.parallel_config.rank
        timeout = datetime.timedelta(seconds=init_info.timeout_seconds)
        store = dist.TCPStore(init_info.host, init_info.port, init_info.world_size, False, timeout)
        self._group = dist.ProcessGroupGloo(dist.PrefixStore(BACKEND, store), rank, init_info.world_size, timeout)

    def start_weight_update(self) -> None:
        """Lets vLLM load its layers anew."""
        RECEIVED.clear()
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: Any) -> None:
        """Receives one batch of tensors. That of the base class would wait for an accelerator."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Update) -> None:
        """Loads tensors as they come."""
        self.model.load_weights(self._receive(update_info))

    def _receive(self, update: Update) -> Any:
        for name, dtype, shape in zip(update.names, update.dtypes, update.shapes, strict=True):
            tensor = torch.empty(shape, dtype=getattr(torch, dtype))
            self._group.broadcast(tensor, 0).wait()
            data = tensor.reshape(-1).view(torch.uint8).numpy()
            RECEIVED[name] = (tensor.numel(), zlib.crc32(data))
            yield name, tensor

    def finish_weight_update(self) -> None:
        """Ends the update."""
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leaves the group."""
        self._group = None


if BACKEND not in WeightTransferEngineFactory._registry:  # another import of this file has done it
    WeightTransferEngineFactory.register_engine(BACKEND, GlooEngine)


class Extension:
    """Methods of a worker, for `/collective_rpc`."""

    def llamarl_held(self) -> dict[str, list[int]]:
        """Names of all parameters as checkpoints have them, tied ones too, with the shape of those not fused.

        Layers that vLLM fuses stand under the names of their parts, with no shape.
        """
        model = self.model_runner.get_model()  # type: ignore[attr-defined]
        fused = getattr(model, "packed_modules_mapping", {})
        held: dict[str, list[int]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            *path, module, kind = name.split(".")
            parts = fused.get(module)
            if parts is None:
                held[name] = list(parameter.shape) if parameter.numel() else []
            else:
                held |= {".".join([*path, part, kind]): [] for part in parts}
        return held

    def llamarl_received(self) -> dict[str, tuple[int, int]]:
        """Elements and CRC-32 of each tensor that this worker received in the newest update."""
        return RECEIVED
