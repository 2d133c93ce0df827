"""The planner beside public measurements (`data/public.toml`): what it predicts, what was reported, how far off it is.

The two fitted rates come from here as well: `fit_rates` finds them from the rows that are not held out.
"""

import math
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from llamarl.planner.cost import (
    GeneratorCost,
    Rates,
    Workload,
    batch_seconds,
    default_rates,
    steady_seconds,
    sync_seconds,
    train_seconds,
)
from llamarl.planner.devices import find_device
from llamarl.planner.lengths import Lengths, mix
from llamarl.planner.memory import Pipeline, TrainerLayout, cache_bytes_per_token, generator_memory, trainer_memory
from llamarl.planner.search import Answer, Limits, Search
from llamarl.planner.shapes import public_shape

_GIB = 2**30
_SERVER_SHARE = 0.8
"""Share of memory that the generators of the GRPO rows may fill, by their recipes (`gpu_memory_utilization`)."""
_NEMO_FORWARDS = 2
"""Forward passes of the GRPO rows beside the trained one: the old policy's log-probs, and the reference's."""
LADDER = Workload(256, 8, Lengths(512, 2048), 128)
"""The step assumed for the LlamaRL paper's table, which says neither."""


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of a public row."""

    row: int
    what: str
    quantity: str
    """memory (GiB), training or decoding (tokens/s on each GPU), step or sync (s)."""
    predicted: float
    reported: float
    is_held_out: bool
    source: str

    @property
    def error(self) -> float:
        """Predicted / reported - 1."""
        return self.predicted / self.reported - 1.0


@cache
def public_rows() -> dict[str, list[dict[str, Any]]]:
    """The rows of the data file, by kind."""
    return tomllib.loads(resources.files("llamarl.planner").joinpath("data/public.toml").read_text(encoding="utf-8"))


def score_memory() -> list[Score]:
    """The memory of the training rows, for which nothing is fitted."""
    return [
        _score(row, "memory", sum(row_memory(row).values()) / _GIB, row["memory_gib"])
        for row in public_rows()["training"]
        if "memory_gib" in row
    ]


def row_memory(row: Mapping[str, Any]) -> dict[str, int]:
    """Bytes by part of the fullest device of a training row, whose trainer makes all logits at once."""
    pipeline = _pipeline(row)
    tokens = row["local_batch"] * row["sequence"] // (pipeline.micro_batches if row["pp"] > 1 else 1)
    return trainer_memory(public_shape(row["model"]), _layout(row), tokens, pipeline=pipeline, has_whole_logits=True)


def score_times(rates: Rates | None = None) -> list[Score]:
    """Training, decoding and GRPO steps, by the fitted rates or by others."""
    rates = rates or default_rates()
    rows = public_rows()
    training = [
        _score(row, "training", _training_speed(row, rates), row["tokens_per_second"])
        for row in rows["training"]
        if "tokens_per_second" in row
    ]
    steps = [_score(row, f"{row['mode']} step", grpo_seconds(row, rates), row["seconds"]) for row in rows["grpo"]]
    decoding = [
        _score(row, "decoding", _decoding_speed(row, rates), row["tokens_per_second"]) for row in rows["decoding"]
    ]
    return [*training, *steps, *decoding]


def score_syncs(rates: Rates | None = None) -> list[Score]:
    """Reported weight syncs beside what the links would allow."""
    rates, device = rates or default_rates(), find_device("h100")
    return [
        _score(
            row,
            "sync",
            sync_seconds(public_shape(row["model"]), device, rates, "bf16", row["senders"], row["generator_tp"]),
            row["seconds"],
        )
        for row in public_rows()["sync"]
    ]


def score_ladder(rates: Rates | None = None) -> list[dict[str, Any]]:
    """The LlamaRL paper's steps beside plans for the step that is assumed (`LADDER`).

    Synchronous ones are two: as the paper's baseline is described, with one parallelism and bf16 for both sides, and
    the best that is found.
    """
    found = []
    for row in public_rows()["ladder"]:
        search = Search(public_shape(row["model"]), find_device(row["gpu"]), LADDER, Limits(), rates)
        answer = search.find(row["gpus"])
        assert isinstance(answer, Answer) and answer.synchronous and answer.asynchronous
        baseline = search.share_one_parallelism(row["gpus"])
        assert baseline is not None
        found.append(
            {
                **row,
                "baseline": baseline.step_seconds,
                "synchronous": answer.synchronous.step_seconds,
                "asynchronous": answer.asynchronous.step_seconds,
            }
        )
    return found


def fit_rates(scale: float = 0.2) -> Rates:
    """The two rates under which rows that are not held out are predicted best.

    The sum of ln(1 + (e / scale)^2) over rows is least, e the logarithm of predicted / reported: rows that the model
    does not describe count little more when they are further off. Figures of one row share its weight.
    """
    from scipy.optimize import minimize

    sizes = Counter(score.row for score in score_times() if not score.is_held_out)

    def loss(logs: Any) -> float:
        shares = [min(1.0, math.exp(each)) for each in logs]
        scores = score_times(replace(default_rates(), compute_share=shares[0], memory_share=shares[1]))
        return sum(
            math.log1p((math.log(each.predicted / each.reported) / scale) ** 2) / sizes[each.row]
            for each in scores
            if not each.is_held_out
        )

    start = [math.log(0.5), math.log(0.5)]
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 2e-3, "fatol": 1e-4})
    compute, memory = (math.exp(each) for each in found.x)
    return replace(default_rates(), compute_share=compute, memory_share=memory)


def grpo_seconds(row: Mapping[str, Any], rates: Rates) -> float:
    """Seconds of a step of a GRPO row, in the layout that it reports."""
    parts = grpo_parts(row, rates)
    return parts["step"]


def grpo_parts(row: Mapping[str, Any], rates: Rates) -> dict[str, float]:
    """Seconds of the parts of a GRPO row's step: train, generate (alone), sync, and the step itself."""
    shape, device, layout = public_shape(row["model"]), find_device(row["gpu"]), _layout(row)
    workload = Workload(
        row["completions"],
        1,
        Lengths(row["tokens_mean"], row["tokens_max"]),
        row["prompt_tokens"],
        has_shared_prompts=False,
        extra_forwards=_NEMO_FORWARDS,
    )
    micro_batches = row["completions"] / row["updates"] / layout.fsdp
    train = train_seconds(
        shape,
        device,
        rates,
        layout,
        workload,
        bubble=(layout.pp - 1) / micro_batches,
        micro_batches=row["updates"],
    )
    is_synchronous = row["mode"] == "synchronous"
    tp = row["generator_tp"]
    replicas = (row["gpus"] if is_synchronous else row["gpus"] - layout.ranks) // tp
    share = row["completions"] / replicas
    cost = GeneratorCost(shape, device, rates, "bf16", tp)
    room = _SERVER_SHARE * device.memory_gib * _GIB
    room -= generator_memory(shape, "bf16", tp, cached_tokens=0, slots=0)["weights"]
    slots = int(room / cache_bytes_per_token(shape, tp) / (workload.prompt_tokens + workload.lengths.mean))
    prefill = cost.prefill_seconds(share * workload.prompt_tokens)
    sync = sync_seconds(shape, device, rates, "bf16", layout.ranks, tp)
    lengths = mix(workload.lengths.sample(int(share)))
    generate = prefill + batch_seconds(cost.step_seconds, lengths, workload.prompt_tokens, slots)
    step = train + generate + sync
    if not is_synchronous:
        steady, _ = steady_seconds(
            cost.step_seconds, workload, share, slots, train_seconds=train, staleness=1, other_seconds=prefill
        )
        step = steady + sync
    return {"train": train, "generate": generate, "sync": sync, "step": step}


def _training_speed(row: Mapping[str, Any], rates: Rates) -> float:
    layout, pipeline = _layout(row), _pipeline(row)
    sequences = row["local_batch"] * layout.fsdp
    workload = Workload(sequences, 1, Lengths(row["sequence"], row["sequence"]), 0.0)
    bubble = (layout.pp - 1) / (pipeline.chunks * pipeline.micro_batches) * (layout.pp > 1)
    seconds = train_seconds(public_shape(row["model"]), find_device(row["gpu"]), rates, layout, workload, bubble=bubble)
    return float(sequences * row["sequence"] / seconds / layout.ranks)


def _decoding_speed(row: Mapping[str, Any], rates: Rates) -> float:
    cost = GeneratorCost(public_shape(row["model"]), find_device(row["gpu"]), rates, row["precision"], 1)
    lengths = Lengths(row["tokens_mean"], row["tokens_max"]).sample(row["completions"])
    seconds = batch_seconds(cost.step_seconds, lengths, row["prompt_tokens"], row["slots"])
    seconds += cost.prefill_seconds(row["completions"] * row["prompt_tokens"])
    return float(row["completions"] * row["tokens_mean"] / seconds)


def _layout(row: Mapping[str, Any]) -> TrainerLayout:
    return TrainerLayout(
        row["fsdp"], row["tp"], row["pp"], row.get("ep", 1), row.get("precision", "bf16"), row["checkpointing"]
    )


def _pipeline(row: Mapping[str, Any]) -> Pipeline:
    return Pipeline(row.get("micro_batches", 1), row.get("chunks", 1))


def _score(row: Mapping[str, Any], quantity: str, predicted: float, reported: float) -> Score:
    return Score(row["row"], row["what"], quantity, predicted, reported, row.get("is_held_out", False), row["source"])


def table_rows() -> Iterator[tuple[str, ...]]:
    """Rows of the table in the guide: row, what, quantity, predicted, reported, off by, held out."""
    for score in sorted([*score_memory(), *score_times(), *score_syncs()], key=lambda each: each.row):
        yield (
            str(score.row),
            score.what,
            score.quantity,
            f"{score.predicted:.3g}" if score.predicted < 1000 else f"{score.predicted:,.0f}",
            f"{score.reported:,g}",
            f"{score.error:+.0%}",
            "held out" if score.is_held_out else "",
        )
