"""The record of who runs where: `[placement]` of a recipe, which `llamarl plan --out` writes."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from llamarl.core.config import describe_errors
from llamarl.engine.hosts import HostsConfig
from llamarl.generation.server.settings import ServerFields, ServerSettings
from llamarl.training.config import TrainerPlacement


class GeneratorPlacement(ServerFields):
    """Generators of one kind."""

    kind: Literal["native", "vllm", "sglang"] = "native"
    """Program that generates: llamarl's own, vLLM servers, or SGLang servers (tried on a fake only)."""
    replicas: int = Field(default=1, ge=1)
    """Generators, each with a copy of the weights; the same as `num_generators`."""
    tp: int = Field(default=1, ge=1)
    """Ranks that compute each completion together; a native generator is one rank."""
    device: str | None = None
    """Device of the generators; None: `generator.device`."""
    precision: Literal["fp32", "bf16", "int8"] | None = None
    """Number format of weights and cache; None: `generator.precision`."""
    slots: int | None = Field(default=None, ge=1)
    """Completions under way at a time in each; None: `generator.slots`."""

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if self.kind != "native":
            _ = self.server
            if self.precision == "int8":
                raise ValueError(f"precision: int8 is the native generator's; a {self.kind} one has fp32 and bf16")
            if self.kind == "vllm" and self.weights_folder is not None:
                raise ValueError("weights_folder: is of kind='sglang'; vLLM gets its weights over gloo, leave it out")
            if self.url and len(self.url) != self.replicas:
                raise ValueError(f"url: {len(self.url)} addresses for replicas={self.replicas}; give one each")
            return self
        if self.tp > 1:
            raise ValueError(f"tp={self.tp}: a native generator is one rank; set tp=1, or kind='vllm' or 'sglang'")
        for name, field in ServerFields.model_fields.items():
            if getattr(self, name) != field.default:
                raise ValueError(f"{name}: is of kind='vllm' and 'sglang'; leave it out, or set one of these")
        return self

    @property
    def server(self) -> ServerSettings:
        """The settings of its servers."""
        try:
            return ServerSettings.model_validate({name: getattr(self, name) for name in ServerFields.model_fields})
        except ValidationError as error:
            raise ValueError(describe_errors(error, ServerSettings)) from None


class PlacementConfig(HostsConfig):
    """Hosts of all executors; processes, devices and precision of trainer and generators."""

    is_shared: bool = False
    """The plan's note that trainer and generators have the same devices. Devices are what `device` of each says."""
    weight_deltas: bool = False
    """Whether generators on other hosts get only what changed of the weights, where that is less. It pays where they
    are bf16, the learning rate is low and the network is slow."""
    trainer: TrainerPlacement = Field(default_factory=TrainerPlacement)
    generators: tuple[GeneratorPlacement, ...] = Field(default=(), max_length=1)
    """The generators of the run, one table; without it, `num_generators` and `generator` say all."""

    @property
    def server_kind(self) -> Literal["vllm", "sglang"] | None:
        """Program of the servers that generate; None where the generators are native."""
        return next((table.kind for table in self.generators if table.kind != "native"), None)

    @model_validator(mode="after")
    def _check_deltas(self) -> Self:
        if self.weight_deltas and not self.has_hosts:
            raise ValueError(
                "weight_deltas: generators read the trainer's memory in place; name hosts, or leave it out"
            )
        return self

    def implied(self) -> Iterator[tuple[str, Any]]:
        """Settings elsewhere in a recipe, by dotted name, that these here stand for."""
        for name in ("device", "precision"):
            yield f"trainer.{name}", self.trainer.model_dump()[name]
        for table in self.generators:
            yield "num_generators", table.replicas
            for name in ("device", "precision", "slots"):
                yield f"generator.{name}", table.model_dump()[name]


def fill_in(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe's plain values, with those that its placement implies where the recipe leaves them open."""
    filled = dict(values)
    try:
        placement = PlacementConfig.model_validate(filled.get("placement", {}))
    except ValidationError:  # said where the field itself is checked
        return filled
    for name, value in placement.implied():
        table, _, key = name.rpartition(".")
        inner = filled.get(table, {}) if table else filled
        if value is not None and isinstance(inner, Mapping) and key not in inner:
            filled |= {table: {**inner, key: value}} if table else {key: value}
    return filled
