"""plan: what a run takes and how to place it, before it starts."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from llamarl.cli.common import print_json, say
from llamarl.cli.options import Output, Positional
from llamarl.core.config import Config, Metavar
from llamarl.core.errors import ConfigError

if TYPE_CHECKING:
    from llamarl.controller.recipe import Recipe
    from llamarl.planner.search import Plan, Search
    from llamarl.planner.shapes import ModelShape


class PlanSettings(Config):
    """The model, the devices and the work of a step."""

    recipe: Positional[str | None] = None
    """TOML recipe whose model, batch and longest completion are planned; the options below win over it."""
    model: str | None = None
    """A model's name (llama-3.1-8b, -70b, -405b, qwen3-30b-a3b, qwen3-32b, qwen3-235b-a22b, deepseek-v3), the directory
    of a config.json, or a GGUF file."""
    gpus: int = Field(default=1, ge=1)
    """Devices together."""
    gpu: str = "h100"
    """Kind of device: h100, h200, a100-80gb, a100-40gb, b200, l40s, or cpu for cores of a host."""
    prompts_per_step: int | None = Field(default=None, ge=1)
    """Prompts in one optimizer step (default 64, or the recipe's)."""
    samples_per_prompt: int | None = Field(default=None, ge=1)
    """Completions of each prompt (default 8, or the recipe's)."""
    tokens: Annotated[tuple[float, ...], Metavar("MEAN,MAX")] = ()
    """Mean and longest tokens of a completion (default 512,2048, or the recipe's longest and a quarter of it)."""
    prompt_tokens: float = Field(default=128.0, ge=0.0)
    """Mean tokens of a prompt."""
    spread: float = Field(default=0.8, gt=0.0, le=3.0)
    """Standard deviation of the logarithm of a completion's length."""
    max_staleness: int | None = Field(default=None, ge=0)
    """Versions that a trained token may be behind (default 1, or the recipe's); 0 plans a synchronous run."""
    reference: bool = False
    """The trainer keeps and asks a frozen reference policy."""
    lora_rank: int | None = Field(default=None, ge=1)
    """Train low-rank adapters of this rank in place of all weights (or as the recipe's `trainer.lora` says)."""
    out: Annotated[Path | None, Metavar("FILE")] = None
    """Write the placement as TOML."""
    simulate: bool = False
    """Run the plan in simulated time with lengths drawn at random: lags, idle shares."""
    figure: Annotated[Path | None, Metavar("FILE")] = None
    """The simulation as a picture, such as run.png; none is drawn without it."""
    report: Annotated[Path | None, Metavar("FILE.html")] = None
    """The simulation as a page that opens by double click, with a timeline that zooms."""
    simulated_steps: int = Field(default=30, ge=6)
    """Steps of the simulation; the first third fills the pipeline."""
    seed: int = 0
    """Decides the lengths of the simulation."""
    calibrate: Annotated[str | None, Metavar("RUN")] = None
    """Fit the rates of the machine that this run was on, instead of planning; --out FILE keeps them."""
    compare: Annotated[tuple[str, ...], Metavar("RUN")] = ()
    """Other runs of that machine, to see how well they are predicted."""
    machine: Annotated[Path | None, Metavar("FILE")] = None
    """Rates of a machine, the --out of --calibrate, instead of --gpu's data sheet."""


def plan(settings: PlanSettings, output: Output) -> int:
    """Plan a run before it starts: memory, devices for each side, step time, staleness, cost; or why it can't fit.

    The answer may be that a synchronous run is as fast. Exit status 1: nothing fits, with the nearest that does.

    Examples:
        llamarl plan --model llama-3.1-8b --gpus 16 --gpu h100
        llamarl plan --model llama-3.1-70b --gpus 256 --prompts-per-step 256 --tokens 800,4096 --max-staleness 2
        llamarl plan --model checkpoints/mine --gpus 8 --gpu a100-80gb --out placement.toml
        llamarl plan recipe.toml --gpus 2 --gpu h200
        llamarl plan --model qwen3-32b --lora-rank 16 --gpus 4 --gpu h200
        llamarl plan --model llama-3.1-405b --gpus 4096 --prompts-per-step 512 --simulate --report run.html
        llamarl plan --model deepseek-v3 --gpus 512 --json
        llamarl plan --calibrate runs/a --compare runs/b --gpu cpu --prompt-tokens 32 --out machine.toml
        llamarl plan recipe.toml --machine machine.toml
    """
    if settings.report is not None:
        from llamarl.report.page import check_page_path

        if not settings.simulate:
            raise ConfigError(f"--report {settings.report}: is the page of a simulation; add --simulate")
        check_page_path(settings.report)
    if settings.figure is not None and not settings.simulate:
        raise ConfigError(f"--figure {settings.figure}: is the picture of a simulation; add --simulate")
    if settings.calibrate is not None:
        return _calibrate(settings, output)
    from llamarl.planner.result import describe_answer, placement_toml
    from llamarl.planner.search import Misfit

    search = _build_search(settings)
    answer = search.find(settings.gpus)
    if isinstance(answer, Misfit):
        return _say_misfit(search, answer.reason, settings, output)
    result = describe_answer(search, answer, settings.gpus)
    if settings.out is not None:
        from llamarl.report.files import write_text

        write_text(settings.out, placement_toml(result))
        result["out"] = str(settings.out)
    if settings.simulate:
        result["simulation"] = _simulate(search, answer.best, settings)
    if output.json:
        print_json(result)
    else:
        _print_plan(result)
    return 0


def _build_search(settings: PlanSettings) -> "Search":
    from llamarl.planner.cost import Workload
    from llamarl.planner.devices import find_device
    from llamarl.planner.lengths import Lengths
    from llamarl.planner.search import Limits, Search

    values: dict[str, Any] = {
        "prompts": 64,
        "samples": 8,
        "tokens": (512.0, 2048.0),
        "staleness": 1,
        "model": None,
        "lora": (0, ()),
    }
    if settings.recipe is not None:
        values |= _read_recipe(settings.recipe)
    given = {
        "prompts": settings.prompts_per_step,
        "samples": settings.samples_per_prompt,
        "tokens": settings.tokens or None,
        "staleness": settings.max_staleness,
        "model": settings.model,
        "lora": None if settings.lora_rank is None else (settings.lora_rank, values["lora"][1]),
    }
    values |= {name: value for name, value in given.items() if value is not None}
    if values["model"] is None:
        raise ConfigError("no model given: use llamarl plan --model NAME, or llamarl plan recipe.toml")
    if len(values["tokens"]) != 2:
        raise ConfigError(f"--tokens {','.join(map(str, values['tokens']))}: give MEAN,MAX, as in 512,2048")
    mean, longest = values["tokens"]
    workload = Workload(
        values["prompts"],
        values["samples"],
        Lengths(mean, int(longest), settings.spread),
        settings.prompt_tokens,
        extra_forwards=int(settings.reference),
    )
    shape, (rank, targets) = read_shape(values["model"]), values["lora"]
    adapters = shape.adapter_parameters(rank, targets) if rank else 0
    limits = Limits(values["staleness"], has_reference=settings.reference, adapters=adapters, lora_rank=rank)
    device, rates = find_device(settings.gpu), None
    if settings.machine is not None:
        from llamarl.planner.calibration import read_machine

        machine = read_machine(settings.machine)
        device, rates = machine.device, machine.rates
    return Search(shape, device, workload, limits, rates)


def _read_recipe(path: str) -> dict[str, Any]:
    """Reads a recipe's model and steps."""
    from llamarl.controller.recipe import Recipe

    recipe = Recipe.load(path)
    tasks, longest = recipe.all_tasks, recipe.sampling.max_tokens
    return {
        "prompts": sum(task.prompts_per_step or 1 for task in tasks),
        "samples": max(task.samples_per_prompt or 1 for task in tasks),
        "tokens": (max(1.0, longest / 4), longest),
        "staleness": recipe.schedule.max_staleness,
        "model": recipe.model,
        "lora": (0, ()) if recipe.trainer.lora is None else (recipe.trainer.lora.rank, recipe.trainer.lora.targets),
    }


def read_shape(model: str) -> "ModelShape":
    """The shape of a model by name, or of a checkpoint's config; with the real model's count of parameters."""
    from llamarl.planner.shapes import ModelShape, model_names, public_shape

    if model in model_names() or not Path(model).expanduser().exists():
        return public_shape(model)
    from llamarl.models.checkpoint import count_parameters, load_config

    config = load_config(model)
    name, values = Path(model).name, config.get_text_config().to_dict()
    ModelShape.from_config(name, values)  # sizes that cannot be are refused before a model of them is built
    return ModelShape.from_config(name, values, count_parameters(config))


def estimate_run(recipe: "Recipe", config: Any, prompt_tokens: float) -> dict[str, Any]:
    """The planner's estimate of a recipe on this machine, by the data sheet: seconds of a step and of the run.

    Args:
        recipe: the run.
        config: the policy's transformers config.
        prompt_tokens: mean tokens of a prompt.
    """
    import torch

    from llamarl.core.machine import usable_cores
    from llamarl.models.checkpoint import count_parameters
    from llamarl.models.device import resolve_device
    from llamarl.planner.calibration import MeasuredRun, this_machine
    from llamarl.planner.shapes import ModelShape

    shape = ModelShape.from_config("policy", config.get_text_config().to_dict(), count_parameters(config))
    is_gpu = resolve_device(recipe.trainer.device, "trainer.device").startswith("cuda")
    machine = this_machine(recipe.threads or usable_cores(), [torch.cuda.get_device_name()] if is_gpu else [])
    longest = recipe.sampling.max_tokens
    run = MeasuredRun(
        name="recipe",
        prompts=sum(task.prompts_per_step or 1 for task in recipe.all_tasks),
        samples=max(task.samples_per_prompt or 1 for task in recipe.all_tasks),
        slots=recipe.generator.slots,
        generators=recipe.num_generators,
        staleness=recipe.schedule.max_staleness,
        engine=recipe.engine,
        trainer_precision=recipe.trainer.precision,
        generator_precision=recipe.generator.precision,
        step_seconds=0.0,
        train_seconds=0.0,
        generate_seconds=0.0,
        tokens_mean=max(1.0, longest / 2),
        tokens_longest=longest,
        tokens_limit=longest,
    )
    predicted = machine.predict(shape, run, prompt_tokens)
    return {
        "step_seconds": predicted.step,
        "train_seconds": predicted.train,
        "generate_seconds": predicted.generate,
        "run_seconds": predicted.step * recipe.schedule.steps,
        "assumed": f"{machine.device.title}, {longest / 2:g} of {longest} tokens a completion, {prompt_tokens:.0f} a "
        "prompt, an instant judge; no calibration: expect a factor of two, and take llamarl plan --calibrate RUN after "
        "a first run",
    }


def _say_misfit(search: "Search", reason: str, settings: PlanSettings, output: Output) -> int:
    number = search.nearest(settings.gpus)
    nearest = None if number is None else {"gpus": number, "gpu": settings.gpu}
    if output.json:
        print_json({"fits": False, "reason": reason, "nearest": nearest})
        return 1
    say(f"does not fit: {reason}")
    if number is None:
        say("nothing up to 16,384 devices of this kind fits; shorten --tokens, or take a device with more memory")
    else:
        say(f"nearest: --gpus {number} --gpu {settings.gpu}")
    return 1


def _calibrate(settings: PlanSettings, output: Output) -> int:
    """Fits a machine to a run, and shows how it predicts that run and others."""
    from llamarl.planner.calibration import MeasuredRun, calibrate, machine_toml
    from llamarl.planner.devices import find_device
    from llamarl.report.rundir import read_run

    assert settings.calibrate is not None
    folders = [settings.calibrate, *settings.compare]
    files = [read_run(folder) for folder in folders]
    runs = [MeasuredRun.of(each) for each in files]
    shapes = [read_shape(settings.model or str(each.recipe.get("model"))) for each in files]
    machine = calibrate(shapes[0], find_device(settings.gpu), runs[0], settings.prompt_tokens)
    found = []
    for run, shape in zip(runs, shapes, strict=True):
        predicted = machine.predict(shape, run, settings.prompt_tokens)
        found.append(
            {
                "run": run.name,
                "step_seconds": run.step_seconds,
                "predicted_step_seconds": predicted.step,
                "error": predicted.step / run.step_seconds - 1.0,
                "train_seconds": run.train_seconds,
                "predicted_train_seconds": predicted.train,
                "generate_seconds": run.generate_seconds,
                "predicted_generate_seconds": predicted.generate,
            }
        )
    if settings.out is not None:
        from llamarl.report.files import write_text

        write_text(settings.out, machine_toml(machine, folders[:1]))
    if output.json:
        print_json({"rates": dataclasses.asdict(machine.rates), "runs": found, "out": settings.out})
        return 0
    from llamarl.cli.feedback_commands import build_table
    from llamarl.report.console import SafeConsole

    columns = ("run", "step, s", "predicted", "off by", "train, s", "predicted", "generate, s", "predicted")
    keys = ["step_seconds", "predicted_step_seconds", "error", "train_seconds", "predicted_train_seconds"]
    keys += ["generate_seconds", "predicted_generate_seconds"]
    rows = (
        [str(each["run"]), *(f"{each[key]:+.0%}" if key == "error" else f"{each[key]:.3f}" for key in keys)]
        for each in found
    )
    SafeConsole().print(build_table(columns, rows))
    say()
    rates = machine.rates
    say(
        f"fitted on {runs[0].name}: {rates.compute_share:.2%} of the peak of products, {rates.step_delay * 1e3:.3g} ms "
        f"more per decode step, {rates.update_delay * 1e3:.3g} ms more per step"
    )
    if settings.out is not None:
        say(f"the machine is {settings.out}; llamarl plan recipe.toml --machine {settings.out} plans by it")
    return 0


def _simulate(search: "Search", best: "Plan", settings: PlanSettings) -> dict[str, Any]:
    """Simulates a plan, draws what was asked for, and returns what came of it."""
    from llamarl.planner.report import build_page
    from llamarl.planner.simulation import simulate_plan
    from llamarl.report.page import write_page
    from llamarl.report.plan_plots import draw_simulation

    found = simulate_plan(
        best,
        search.shape,
        search.device,
        search.rates,
        search.workload,
        staleness=search.limits.staleness,
        steps=settings.simulated_steps,
        seed=settings.seed,
    )
    title = f"{search.shape.name} on {settings.gpus} x {settings.gpu}, {best.mode}"
    if settings.figure is not None:
        draw_simulation(settings.figure, title, found.spans, found.window, found.ends, found.lags, found.idle)
    if settings.report is not None:
        write_page(settings.report, build_page(title, found))
    return {
        "step_seconds": found.step_seconds,
        "idle": found.idle,
        "slots_filled": found.filled,
        "lags": {str(lag): share for lag, share in found.lags.items()},
        "figure": None if settings.figure is None else str(settings.figure),
        "report": None if settings.report is None else str(settings.report),
    }


def _describe_idle(idle: dict[str, float], is_shared: bool) -> str:
    """A generator beside a trainer seldom stands still: it has free slots, and the line says so."""
    generator = f"generator {idle['generator']:.0%}" + ("" if is_shared else " (as free slots)")
    return f"trainer {idle['trainer']:.0%}, {generator}, all {idle['all']:.0%}"


def _print_plan(result: dict[str, Any]) -> None:
    from llamarl.cli.feedback_commands import build_table
    from llamarl.planner.result import memory_rows
    from llamarl.report.console import SafeConsole
    from llamarl.report.text import format_number, format_seconds

    model, where = result["model"], result["placement"]
    trainer, generators = where["trainer"], where["generators"][0]
    active = "" if model["active_parameters"] == model["parameters"] else f", {model['active_parameters']:,} active"
    if model["adapter_parameters"]:
        active += f", {model['adapter_parameters']:,} in adapters, which alone are trained"
    say(f"{model['name']}: {model['parameters']:,} parameters{active}, on {result['gpus']:,} x {result['gpu']}")
    say(f"{result['mode']}, {format_seconds(result['step_seconds'])} a step: {result['why']}")
    say()
    sampling = "" if result["mode"] == "synchronous" else " at full slots"
    on = "all devices, in turns" if where["is_shared"] else "devices of their own"
    cut = f"fsdp {trainer['fsdp']} x tp {trainer['tp']}" + (
        f", experts over {trainer['ep']}" if "ep" in trainer else ""
    )
    ranks = f"{trainer['ranks']:,} rank{'s' * (trainer['ranks'] > 1)}"
    rows = [
        (
            "trainer",
            f"{ranks}, {cut}, {trainer['precision']}, checkpointing {trainer['checkpointing']}",
        ),
        (
            "generators",
            f"{generators['replicas']} x tp {generators['tp']}, {generators['precision']}, {generators['slots']} slots",
        ),
        ("on", on),
        ("a step's training", format_seconds(result["trainer_seconds"])),
        ("a step's sampling", format_seconds(result["generator_seconds"]) + sampling),
        ("weight sync", format_seconds(result["weight_sync_seconds"])),
        ("synchronous step", format_seconds(result["synchronous_step_seconds"])),
        ("asynchronous step", format_seconds(result["asynchronous_step_seconds"])),
        ("idle", _describe_idle(result["idle"], where["is_shared"])),
        ("staleness", f"at most {result['staleness']['bound']}, mean token {result['staleness']['mean_token']:.1f}"),
        ("a version on its way", f"{format_number(result['published_gib'])} GiB"),
        ("checkpoint", f"{format_number(result['checkpoint_gib'])} GiB"),
        ("cost", f"{format_number(result['gpu_hours_per_1000_steps'])} GPU-hours per 1,000 steps"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"{name:{width}}  {value}")
    say()
    columns = ("GiB of one device", "trainer", "generator")
    SafeConsole().print(build_table(columns, memory_rows(result)))
    say()
    for sentence in result["assumptions"]:
        say(f"assumed: {sentence}")
    if "simulation" in result:
        found = result["simulation"]
        lags = ", ".join(f"{lag}: {share:.0%}" for lag, share in found["lags"].items())
        idle = ", ".join(f"{side} {share:.0%}" for side, share in found["idle"].items())
        say(f"simulated: {format_seconds(found['step_seconds'])} a step, idle {idle} (without any work)")
        say(f"simulated: trained tokens are behind by so many versions: {lags}")
        if found["figure"] is not None:
            say(f"the figure is {found['figure']}")
        if found["report"] is not None:
            say(f"the page is {found['report']}")
    if "out" in result:
        say(f"the placement is {result['out']}")
    say(
        "today's train: "
        + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in result["settings"].items())
    )
