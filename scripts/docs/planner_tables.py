"""The planner's tables in the guide: public measurements beside its predictions, the paper's ladder, devices."""

import re
from collections.abc import Callable, Iterable, Sequence

from llamarl.planner.devices import device_names, find_device
from llamarl.planner.public import LADDER, score_ladder, table_rows

BLOCK = re.compile(r"(<!-- generated: planner (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str) -> str:
    """A page with its planner tables written anew."""
    return BLOCK.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def scores() -> str:
    """Every public figure beside the prediction."""
    return table(("row", "what", "quantity", "predicted", "reported", "off by", ""), table_rows())


def ladder() -> str:
    """The LlamaRL paper's step times beside the planner's."""
    rows = []
    for row in score_ladder():
        paper = (row["synchronous_seconds"], row["asynchronous_seconds"])
        rows.append(
            (
                row["model"],
                str(row["gpus"]),
                f"{row['baseline']:.1f}",
                f"{paper[0]:g}",
                f"{row['baseline'] / paper[0] - 1:+.0%}",
                f"{row['asynchronous']:.1f}",
                f"{paper[1]:g}",
                f"{row['asynchronous'] / paper[1] - 1:+.0%}",
                f"{row['baseline'] / row['asynchronous']:.1f} / {paper[0] / paper[1]:.1f}",
                f"{row['synchronous']:.1f}",
            )
        )
    assumed = (
        f"\nAssumed: {LADDER.prompts} prompts x {LADDER.samples} completions, {LADDER.lengths.mean:g} tokens on "
        f"average and at most {LADDER.lengths.longest:,} (log-normal, spread {LADDER.lengths.spread:g}), prompts of "
        f"{LADDER.prompt_tokens:g}, H100 80 GB, staleness 1, no reference policy.\n"
    )
    names = ["model", "GPUs", "synchronous", "paper", "off by", "asynchronous", "paper", "off by", "ratio / paper's"]
    names.append("best synchronous")
    return table(names, rows) + assumed


def devices() -> str:
    """Every device with its figures and sources."""
    rows = []
    for device in map(find_device, device_names()):
        rates = ", ".join(f"{precision} {rate:g}" for precision, rate in device.tflops.items())
        links = f"{device.link_gb_per_second:g} / {device.network_gb_per_second:g}"
        memory = (f"{device.memory_gib:g}", f"{device.memory_gb_per_second:,g}")
        rows.append((f"`{device.name}`", device.title, *memory, rates, links, "; ".join(device.sources)))
    return table(("name", "device", "GiB", "GB/s", "TFLOP/s", "link / network, GB/s", "source"), rows)


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[], str]] = {"scores": scores, "ladder": ladder, "devices": devices}
