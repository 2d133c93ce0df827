"""The rates of one machine from the record of one run, so that other runs of it can be planned.

Three numbers are fitted, each to the mean of what the run logged: the share of the peak that training reaches
(`time/train`), a delay of each decode step (`time/generate`), and a delay of each step beside both (`time/step`).
Means are of the middle four fifths of the steps: some wait for other programs, and asynchronous ones take turns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from llamarl.core import metric_names as names
from llamarl.core.config import read_toml
from llamarl.core.errors import ConfigError, DataError
from llamarl.planner.cost import GeneratorCost, Rates, Workload, batch_seconds, default_rates, train_seconds
from llamarl.planner.devices import Device, find_device
from llamarl.planner.lengths import Lengths, mix
from llamarl.planner.memory import Precision, TrainerLayout
from llamarl.planner.shapes import ModelShape
from llamarl.report.rundir import RunFiles, read_run

LEAST_STEPS = 4
"""Records that a calibration needs at least, beside the first."""


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """The settings of a run and its means over steps, times in seconds."""

    name: str
    prompts: int
    samples: int
    slots: int
    generators: int
    staleness: int
    engine: str
    trainer_precision: Precision
    generator_precision: Precision
    step_seconds: float
    train_seconds: float
    generate_seconds: float
    tokens_mean: float
    """Mean tokens of a completion."""
    tokens_longest: float
    """Mean over steps of the longest completion."""
    tokens_limit: int
    signal_share: float = 1.0
    """Share of the samples that had an advantage; the trainer leaves the others out where it can."""

    @classmethod
    def read(cls, run_dir: str | Path) -> "MeasuredRun":
        """The settings and means of a run directory.

        Raises:
            DataError: no run, or too few steps.
        """
        return cls.of(read_run(run_dir))

    @classmethod
    def of(cls, run: RunFiles) -> "MeasuredRun":
        """The settings and means of what a run wrote."""
        recipe, schedule = run.recipe, run.recipe.get("schedule", {})
        steps = [record for record in run.metrics if names.TIME_STEP in record][1:]
        if len(steps) < LEAST_STEPS:
            raise DataError(
                f"{run.path}: {len(steps)} steps after the first; a calibration needs at least {LEAST_STEPS}: "
                "let the run go on"
            )

        def middle(name: str) -> float:
            values = [record[name] for record in steps if record.get(name) is not None]
            if not values:
                raise DataError(f"{run.path}: no step logged {name}; give a run of reinforcement learning")
            cut = len(values) // 10
            return float(fmean(sorted(values)[cut : len(values) - cut]))

        completions = middle(names.TOKENS) / middle(names.RESPONSE_LENGTH)
        samples = int(schedule.get("samples_per_prompt", 8))
        trained = [record for record in steps if record.get(names.TRAIN_SAMPLES)]
        silent = sum(record.get(names.SAMPLES_WITHOUT_SIGNAL) or 0.0 for record in trained)
        return cls(
            name=run.path.name,
            prompts=round(completions / samples),
            samples=samples,
            slots=int(recipe.get("generator", {}).get("slots", 64)),
            generators=int(recipe.get("num_generators", 1)),
            staleness=int(schedule.get("max_staleness", 1)),
            engine=str(recipe.get("engine", "inprocess")),
            trainer_precision=recipe.get("trainer", {}).get("precision", "fp32"),
            generator_precision=recipe.get("generator", {}).get("precision", "fp32"),
            step_seconds=middle(names.TIME_STEP),
            train_seconds=middle(names.TIME_TRAIN),
            generate_seconds=middle(names.TIME_GENERATE),
            tokens_mean=middle(names.RESPONSE_LENGTH),
            tokens_longest=middle(names.RESPONSE_LENGTH_MAX),
            tokens_limit=int(recipe.get("sampling", {}).get("max_tokens", 256)),
            signal_share=1.0 - silent / max(1.0, sum(record[names.TRAIN_SAMPLES] for record in trained)),
        )

    def workload(self, prompt_tokens: float) -> Workload:
        """The work of its steps, the spread of the lengths such that the longest is as long as it was."""
        longest = max(self.tokens_limit, math.ceil(self.tokens_mean))
        lengths = Lengths(self.tokens_mean, longest, _find_spread(self, longest))
        return Workload(self.prompts, self.samples, lengths, prompt_tokens, trained_share=self.signal_share)


def _find_spread(run: MeasuredRun, limit: int) -> float:
    """The spread with which the longest of a step's completions is about as long as it was."""
    low, high = 0.01, 2.0
    number = run.prompts * run.samples
    for _ in range(40):
        middle = (low + high) / 2
        is_less = Lengths(run.tokens_mean, limit, middle).expected_longest(number) < run.tokens_longest
        low, high = (middle, high) if is_less else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True, slots=True)
class Prediction:
    """Seconds of a step and of its parts."""

    train: float
    generate: float
    step: float


@dataclass(frozen=True, slots=True)
class Machine:
    """A device and what of its rates is reached on one machine."""

    device: Device
    rates: Rates

    def predict(self, shape: ModelShape, run: MeasuredRun, prompt_tokens: float) -> Prediction:
        """The times of a run's steps.

        Executors of one process share its cores by turns, so that their times add up even where the run is
        asynchronous; what staleness saves then is the tail of each batch, during which few rows are decoded.
        """
        workload = run.workload(prompt_tokens)
        layout = TrainerLayout(precision=run.trainer_precision)
        plain = replace(self.rates, update_delay=0.0)
        train = train_seconds(shape, self.device, plain, layout, workload)
        cost = GeneratorCost(shape, self.device, self.rates, run.generator_precision, 1)
        share = workload.completions / run.generators
        tokens = workload.prompts * prompt_tokens / run.generators
        if run.staleness == 0:
            lengths = mix(workload.lengths.sample(max(1, round(share))))
            generate = batch_seconds(cost.step_seconds, lengths, prompt_tokens, run.slots)
        else:
            active = min(run.slots, share * (run.staleness + 1))
            decode = cost.step_seconds(active, active * workload.mean_context)
            generate = share * workload.lengths.mean / active * decode
        generate += cost.prefill_seconds(tokens)
        apart = run.engine != "inprocess" and run.staleness > 0
        step = max(train, generate) if apart else train + generate
        return Prediction(train, generate, step + self.rates.update_delay)


def this_machine(threads: int, gpus: Sequence[str]) -> Machine:
    """A device of the data sheets that stands for this machine: its accelerator, or so many cores of a CPU.

    Args:
        threads: of the CPU.
        gpus: names of its accelerators, as torch has them.
    """
    if gpus:
        known = (("H200", "h200"), ("H100", "h100"), ("B200", "b200"), ("L40S", "l40s"), ("80GB", "a100-80gb"))
        name = next((name for mark, name in known if mark in gpus[0]), "a100-40gb")
        return Machine(find_device(name), default_rates())
    core = find_device("cpu")
    tflops = {precision: threads * rate for precision, rate in core.tflops.items()}
    rate = threads * core.memory_gb_per_second
    return Machine(replace(core, tflops=tflops, memory_gb_per_second=rate), replace(default_rates(), step_delay=2e-3))


def calibrate(shape: ModelShape, device: Device, run: MeasuredRun, prompt_tokens: float) -> Machine:
    """The machine on which the model predicts a run's means.

    Memory is taken to be as much slower or faster than the data sheet as products are.
    """
    rates = replace(default_rates(), step_delay=0.0, update_delay=0.0)
    scale = 1.0
    for _ in range(30):  # training is not quite inversely proportional to the share: moments and optimizer
        found = Machine(device, _scaled(rates, scale)).predict(shape, run, prompt_tokens)
        scale *= found.train / run.train_seconds
    rates = _scaled(rates, scale)
    low, high = 0.0, max(run.generate_seconds, 1e-6)
    for _ in range(60):
        middle = (low + high) / 2
        found = Machine(device, replace(rates, step_delay=middle)).predict(shape, run, prompt_tokens)
        low, high = (middle, high) if found.generate < run.generate_seconds else (low, middle)
    rates = replace(rates, step_delay=low)
    step = Machine(device, rates).predict(shape, run, prompt_tokens).step
    return Machine(device, replace(rates, update_delay=max(0.0, run.step_seconds - step)))


def _scaled(rates: Rates, scale: float) -> Rates:
    return replace(rates, compute_share=rates.compute_share * scale, memory_share=rates.memory_share * scale)


def machine_toml(machine: Machine, runs: Sequence[str]) -> str:
    """A machine as TOML, for `read_machine`."""
    device = {name: value for name, value in asdict(machine.device).items() if name != "sources"}
    lines = [f"# llamarl plan --calibrate {' '.join(runs)}", "[device]"]
    lines += [f"{name} = {_toml(value)}" for name, value in device.items()]
    lines += [f"sources = [{', '.join(_toml(each) for each in machine.device.sources)}]", "", "[rates]"]
    lines += [f"{name} = {_toml(value)}" for name, value in asdict(machine.rates).items()]
    return "\n".join(lines) + "\n"


def read_machine(path: str | Path) -> Machine:
    """The machine that a calibration wrote.

    Raises:
        ConfigError: no such file, or not one of a calibration.
    """
    values = read_toml(path)
    try:
        device = Device(**{**values["device"], "sources": tuple(values["device"]["sources"])})
        return Machine(device, Rates(**values["rates"]))
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a machine's file ({error}); write one with llamarl plan --calibrate RUN"
        ) from None


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(each)}" for name, each in value.items()) + " }"
    return f'"{value}"' if isinstance(value, str) else repr(value)
