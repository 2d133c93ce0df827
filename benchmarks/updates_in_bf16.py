"""How much of an update bf16 weights show, with and without dither.

    python -m benchmarks.updates_in_bf16 --model DIR --trained FILE.safetensors

The change of each matrix from the checkpoint to what a run made of it is scaled down, as if the run had only begun,
added to the weights that the run starts from, and rounded to bf16. `seen` is the part of the change that the rounded
weights made too: their change, projected on it. `noise` is the length of the rest over the length of the change.

    as released     the checkpoint's own numbers
    in bf16         rounded to bf16 first, as most checkpoints are released
    dithered        in bf16, at a random place within what rounds to it (`trainer.dither`)
"""

import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.common import Benchmark
from llamarl.models.checkpoint import load_model
from llamarl.training.dither import dither_weights

SHARES = (0.02, 0.1, 0.25, 0.5, 1.0)


def starts(model: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """The matrices from which training may start, by name, of each way."""
    ways = {"as released": matrices(model)}
    for tensor in model.parameters():
        tensor.data.copy_(tensor.data.bfloat16())
    ways["in bf16"] = matrices(model)
    dither_weights(model, seed=0)
    return ways | {"dithered": matrices(model)}


def matrices(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of what is dithered."""
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters() if tensor.dim() > 1}


def seen_part(
    start: dict[str, torch.Tensor], before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], share: float
) -> tuple[float, float]:
    """What bf16 shows of `share` of the change from `before` to `after`, and the noise beside it."""
    product = length = shown = 0.0
    for name, weights in start.items():
        change = share * (after[name].float() - before[name])
        rounded = (weights + change).bfloat16().float() - weights.bfloat16().float()
        product += float((change * rounded).sum(dtype=torch.float64))
        length += float(change.square().sum(dtype=torch.float64))
        shown += float(rounded.square().sum(dtype=torch.float64))
    return product / length, math.sqrt(max(0.0, shown / length - (product / length) ** 2))


def main() -> None:
    """The command line."""
    benchmark = Benchmark("updates_in_bf16", __doc__, repeats=1, quick_repeats=1, max_load=math.inf)
    benchmark.parser.add_argument(
        "--model", required=True, type=Path, help="checkpoint directory that the run began from"
    )
    benchmark.parser.add_argument("--trained", required=True, type=Path, help="weights of a run's checkpoint")
    options = benchmark.start()
    model, after = load_model(options.model, dtype="float32"), load_file(options.trained)
    before = matrices(model)
    rms = math.sqrt(
        sum(float((after[name].float() - tensor).square().sum(dtype=torch.float64)) for name, tensor in before.items())
        / sum(tensor.numel() for tensor in before.values())
    )
    rows, headlines = [], {}
    for way, start in starts(model).items():
        for share in SHARES:
            seen, noise = seen_part(start, before, after, share)
            headlines[f"seen, {way}, {share:g} of the run"] = seen
            row = {"start": way, "share of the run": share, "rms change": share * rms, "seen": seen, "noise": noise}
            rows.append(row)
    benchmark.finish(rows, headlines, [f"{options.model.name}, a change of rms {rms:.3g}"])


if __name__ == "__main__":
    main()
