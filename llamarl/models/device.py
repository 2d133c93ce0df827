"""The device of tensors: the one that a setting names, or the best one that this machine has."""

import functools

import torch
from torch.nn import functional as F

from llamarl.core.errors import ConfigError
from llamarl.core.machine import usable_cores
from llamarl.functional.checksum import checksum


def resolve_device(name: str, field: str = "device") -> str:
    """The device that `name` stands for. It is only looked for; to claim memory there is up to who uses it.

    Args:
        name: as torch names it (`cpu`, `cuda`, `cuda:1`, `mps`), or `auto`: CUDA if there is a device, else MPS if it
            computes what we need as the CPU does, else the CPU.
        field: the setting, for the message.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return _best_device()
    found = ["cpu"]
    if (accelerator := torch.accelerator.current_accelerator()) is not None:
        count = torch.get_device_module(accelerator).device_count()
        found += [f"{accelerator.type}:{index}" for index in range(count)]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or not (device.type == "cpu" or f"{device.type}:{device.index or 0}" in found):
        raise ConfigError(
            f"{field}={name!r}: torch {torch.__version__} finds only {', '.join(found)} here; name one of these, say "
            "auto, or install the torch build for your device"
        )
    return name


def describe_device(name: str) -> str:
    """A resolved device in words: `cpu (8 cores)`, `cuda (NVIDIA H200)`."""
    device = torch.device(name)
    if device.type == "cuda":
        return f"{name} ({torch.cuda.get_device_name(device)})"
    number = usable_cores()
    return f"{name} ({number} core{'s' * (number > 1)})" if device.type == "cpu" else name


def num_devices(name: str) -> int:
    """How many devices a resolved name stands for, where each of several processes takes one: all GPUs, or the host."""
    return max(1, torch.cuda.device_count()) if torch.device(name).type == "cuda" else 1


@functools.cache
def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available() and computes_like_cpu("mps"):
        return "mps"
    return "cpu"


def computes_like_cpu(name: str) -> bool:
    """True where a device has the operations of training and generation, with the CPU's results.

    Looked at are attention under a mask, log-probs, their gradient, sorting, and the 64-bit checksums of weights.
    """
    try:
        return all(map(_is_close, _sample_of_work(name), _sample_of_work("cpu")))
    except (RuntimeError, NotImplementedError, TypeError):  # what torch raises for what a device lacks
        return False


def _is_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a, b) if a.dtype == torch.int64 else torch.allclose(a, b, atol=1e-4)


def _sample_of_work(name: str) -> list[torch.Tensor]:
    x = torch.linspace(-1.0, 1.0, 64, device=name).reshape(1, 2, 4, 8).requires_grad_()
    mask = torch.ones(4, 4, dtype=torch.bool, device=name).tril()
    hidden = F.scaled_dot_product_attention(x, x, x, attn_mask=mask)
    logprobs = hidden.flatten(0, 2).log_softmax(-1)
    logprobs.gather(1, logprobs.argmax(-1, keepdim=True)).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    sums = torch.tensor(list(checksum({"x": x.detach()}).values()))
    return [logprobs.detach().cpu(), x.grad.cpu(), logprobs.argsort(-1).cumsum(-1).cpu(), sums]
