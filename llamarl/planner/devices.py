"""Devices: memory, peak rates and links, each from its maker's data sheet (`data/gpus.toml`)."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from llamarl.core.config import suggest
from llamarl.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator and its links."""

    name: str
    title: str
    memory_gib: float
    memory_gb_per_second: float
    """Read rate of its memory, 10^9 bytes per second."""
    tflops: Mapping[str, float]
    """Dense peak rate of matrix products by number format, 10^12 per second."""
    node: int
    """Devices that share the fast link."""
    link_gb_per_second: float
    """Rate of the fast link, in one direction."""
    network_gb_per_second: float
    """Rate of its share of the network between nodes, in one direction."""
    sources: tuple[str, ...]

    def peak(self, precision: str) -> float:
        """Operations per second in a number format; where the device has none of its own, in the next wider one."""
        for wider in _WIDER[_WIDER.index(precision) :]:
            if wider in self.tflops:
                return 1e12 * self.tflops[wider]
        raise ConfigError(f"gpu={self.name!r}: no rate is known for {precision} or anything wider")


_WIDER = ("int8", "fp8", "bf16", "tf32", "fp32")


@cache
def _devices() -> dict[str, Device]:
    text = resources.files("llamarl.planner").joinpath("data/gpus.toml").read_text(encoding="utf-8")
    return {
        name: Device(name=name, **{**values, "sources": tuple(values["sources"])})
        for name, values in tomllib.loads(text).items()
    }


def device_names() -> list[str]:
    """The devices that the package knows."""
    return list(_devices())


def find_device(name: str) -> Device:
    """A device by name.

    Raises:
        ConfigError: no such name.
    """
    if name not in _devices():
        raise ConfigError(f"gpu={name!r} is unknown.{suggest(name, device_names())}")
    return _devices()[name]
