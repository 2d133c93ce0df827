"""Colours by name: the same work, task or judge has the same colour in every figure and in every run.

They are those of Okabe and Ito, which people with colour-blindness can tell apart.
"""

import zlib
from collections.abc import Iterable

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D3B", "#6A51A3")
KNOWN = {
    **{"generate": 0, "decode": 0, "train": 4, "judge": 2, "publish": 3, "checkpoint": 1, "weights": 5, "score": 6},
    **{"training": 0, "held-out": 1, "mean": 0, "longest": 5, "oldest token": 4},
    **{"turn 1": 0, "turn 2": 4, "turn 3": 1, "turn 1 to 2": 7, "turn 2 to 3": 2},
    **{"for one look": 0, "always valid": 4},
}
"""Activities of executors, and curves and dots that often stand side by side."""


def colour_indices(names: Iterable[str]) -> dict[str, int]:
    """Name -> place in `PALETTE`, drawn from the name itself and not from its position among the others.

    Where two names draw the same colour, the later in the alphabet takes the next free one; with more names than
    colours, some share one.
    """
    wanted = set(names)
    chosen = {name: index for name, index in KNOWN.items() if name in wanted}
    for name in sorted(wanted - KNOWN.keys()):
        drawn = zlib.crc32(name.encode(errors="surrogatepass")) % len(PALETTE)
        order = [(drawn + step) % len(PALETTE) for step in range(len(PALETTE))]
        taken = set(chosen.values())
        chosen[name] = next((index for index in order if index not in taken), drawn)
    return chosen
