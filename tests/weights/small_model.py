"""A model of a transformer's shapes, whole or on several ranks: tied head, grouped heads, sizes that don't divide."""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

VOCABULARY, HIDDEN, HEADS, GROUPS, HEAD_SIZE, INNER = 98, 32, 4, 2, 8, 90
"""98 words and 90 inner columns do not divide by 4; two groups of keys for four heads."""


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(HIDDEN, HEADS * HEAD_SIZE, bias=True)
        self.k = nn.Linear(HIDDEN, GROUPS * HEAD_SIZE, bias=False)
        self.v = nn.Linear(HIDDEN, GROUPS * HEAD_SIZE, bias=False)
        self.o = nn.Linear(HEADS * HEAD_SIZE, HIDDEN, bias=False)
        self.gate = nn.Linear(HIDDEN, INNER, bias=False)
        self.up = nn.Linear(HIDDEN, INNER, bias=False)
        self.down = nn.Linear(INNER, HIDDEN, bias=False)
        self.norm = nn.RMSNorm(HIDDEN)


class Model(nn.Module):
    def __init__(self, is_tied: bool):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.norm = nn.RMSNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        if is_tied:
            self.head.weight = self.embed.weight


def build(seed: int, is_tied: bool) -> Model:
    torch.manual_seed(seed)
    model = Model(is_tied)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def shard(model: Model, kind: str) -> Model:
    """Over the default process group: "full" (as it is), "fsdp", "tp", or "fsdp x tp" on four ranks."""
    size = torch.distributed.get_world_size() if kind != "full" else 1
    if kind == "tp":
        _tensor_parallel(model, init_device_mesh("cpu", (size,)))
    elif kind == "fsdp":
        _fsdp(model, init_device_mesh("cpu", (size,)))
    elif kind == "fsdp x tp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        _tensor_parallel(model, mesh["tp"])
        _fsdp(model, mesh["dp"])
    return model


def _tensor_parallel(model: Model, mesh) -> None:
    rows, columns = RowwiseParallel, ColwiseParallel
    plan = {f"layers.*.{name}": columns() for name in ("q", "k", "v", "gate", "up")}
    plan |= {f"layers.*.{name}": rows() for name in ("o", "down")}
    plan |= {"head": columns()} if model.head.weight is not model.embed.weight else {}
    parallelize_module(model, mesh, plan)


def _fsdp(model: Model, mesh) -> None:
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
