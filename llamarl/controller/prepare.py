"""Reads and checks everything that can be wrong with a run before anything starts."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from llamarl.algorithms import AlgorithmConfig
from llamarl.controller.memory import describe_memory, least_memory, plan_memory, refuse_misfit
from llamarl.controller.recipe import DataConfig, Recipe, TaskConfig
from llamarl.controller.task import PromptVariant
from llamarl.controller.watch import WatchConfig
from llamarl.core.errors import ConfigError, DataError
from llamarl.core.judge import Judge
from llamarl.core.loops import run_async
from llamarl.core.records import Completion, Prompt, Trajectory
from llamarl.core.seeds import derive_seed
from llamarl.data import BadRow, read_prompts
from llamarl.data.asks import load_ask
from llamarl.data.memory import Rows
from llamarl.data.prompts import Place
from llamarl.engine.identity import read_secret
from llamarl.judges.config import build_panel
from llamarl.judges.lab.trial import try_out
from llamarl.models.checkpoint import count_parameters, load_config, load_tokenizer, new_skeleton
from llamarl.models.device import describe_device, num_devices, resolve_device
from llamarl.models.lora import count_adapters
from llamarl.models.template_check import check_template
from llamarl.models.tensor_parallel import why_not_split
from llamarl.models.tokenizer import Tokenizer
from llamarl.monitors.monitors import Estimates, Monitors
from llamarl.monitors.responses import read_sessions
from llamarl.report.trackers import check_trackers
from llamarl.training.memory import total_memory

_PROMPTS_MEASURED = 256
"""Most prompts per task that are encoded to know how long they are."""


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """One task's data, read and checked."""

    config: TaskConfig
    """The task's settings, with those that it left open filled in (`Recipe.all_tasks`)."""
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    skipped_rows: Sequence[Any]
    baselines: Mapping[str, Completion]
    """Prompt id -> `info.baseline` as a completion, for algorithms that may fall back on it."""
    paying: Mapping[str, float]
    """Weights of the judges whose scores make the reward, by name."""
    variants: Sequence[PromptVariant]
    """Rewrites of training prompts to sample from; where empty, the prompts as they stand."""
    notes: Sequence[str] = ()
    """Remarks about the task for the user, said before the run starts."""
    control: Estimates | None = None
    """The monitors' quantities in the file of the control's responses; None where the recipe names none."""

    @property
    def algorithm(self) -> AlgorithmConfig:
        """Settings of the task's algorithm."""
        assert self.config.algorithm is not None
        return self.config.algorithm

    def describe(self, steps: int) -> dict[str, Any]:
        """Returns what the task would run, for `--dry-run`."""
        size, samples = self.config.prompts_per_step or 0, self.config.samples_per_prompt or 0
        return {
            "prompts": len(self.prompts),
            "held_out": len(self.held_out),
            "skipped_rows": len(self.skipped_rows),
            "epochs": round(steps * size / len(self.prompts), 3),
            "completions_per_step": size * samples,
            **({"coverage": {each.name: each.samples for each in self.variants}} if self.variants else {}),
            "algorithm": self.algorithm.type,
            "judges": [judge.label for judge in self.config.judges],
            "weight": self.config.weight,
        }


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything read and checked before the first process starts."""

    recipe: Recipe
    tasks: Sequence[PreparedTask]
    tokenizer: Tokenizer
    model_config: Any
    """The policy's transformers config."""
    max_positions: int
    template_limits: Sequence[str]
    """Sentences about each ability that the prompts need and the chat template lacks."""
    devices: Mapping[str, str]
    """Devices of the trainer and the generators, by executor."""
    notes: Sequence[str]
    """Remarks about the run for the user, said before it starts; the first says where it runs."""

    @property
    def needs_reference(self) -> bool:
        """True if an algorithm of the run compares with the policy that the run starts from."""
        return any(task.algorithm.needs.reference for task in self.tasks)

    @property
    def needs_reference_copy(self) -> bool:
        """True if a second copy of that policy is loaded: a trainer of adapters only switches them off."""
        return self.needs_reference and self.recipe.trainer.lora is None

    @property
    def executor_names(self) -> list[str]:
        """Names of all executors of the run."""
        reference = ["reference"] if self.needs_reference_copy else []
        return ["trainer", "judge", *reference, *generator_names(self.recipe)]

    @property
    def probe_prompts(self) -> list[tuple[int, ...]]:
        """Token ids of some prompts, on which generators prove their weights: the first of each task."""
        return [encode_prompt(self.tokenizer, prompt) for task in self.tasks for prompt in task.prompts[:2]]

    def plan_memory(self) -> dict[str, int]:
        """Bytes that the run takes, by part; from the lengths of each task's first prompts."""
        longest = max(self.measure_prompts())
        return plan_memory(
            self.recipe, self.model_config, longest_prompt=longest, needs_reference=self.needs_reference_copy
        )

    def measure_prompts(self) -> list[int]:
        """Tokens of each task's first prompts."""
        prompts = (prompt for task in self.tasks for prompt in task.prompts[:_PROMPTS_MEASURED])
        return [len(encode_prompt(self.tokenizer, prompt)) for prompt in prompts]

    @property
    def _devices_of_trainer(self) -> int:
        return min(self.recipe.placement.trainer.num_ranks, num_devices(self.devices["trainer"]))

    @property
    def held_out(self) -> list[Prompt]:
        """Held-out prompts of all tasks."""
        return [prompt for task in self.tasks for prompt in task.held_out]

    @property
    def skipped_rows(self) -> list[Any]:
        """Skipped rows of all tasks."""
        return [row for task in self.tasks for row in task.skipped_rows]

    def describe(self) -> dict[str, Any]:
        """Returns what would run, for `--dry-run`."""
        schedule, device = self.recipe.schedule, self.devices["trainer"]
        tasks = {task.config.name: task.describe(schedule.steps) for task in self.tasks}
        return {
            **(tasks["default"] if not self.recipe.tasks else {"tasks": tasks}),
            "steps": schedule.steps,
            "max_staleness": schedule.max_staleness,
            "engine": self.recipe.engine,
            "devices": dict(self.devices),
            "template_limits": list(self.template_limits),
            "notes": list(self.notes),
            "executors": self.executor_names,
            "memory": describe_memory(self.plan_memory(), self._devices_of_trainer * total_memory(device)),
        }


class _Row(NamedTuple):
    """A prompt and where it stands."""

    prompt: Prompt
    place: Place


def generator_names(recipe: Recipe) -> list[str]:
    """Executor names of the generators."""
    return [f"generator-{i}" for i in range(recipe.num_generators)]


def prepare(recipe: Recipe) -> Prepared:
    """Reads data and tokenizer and checks that they fit the model and each other.

    Raises:
        ConfigError, DataError, CheckpointError: what is wrong, where, and what to do; also that the run can't fit.
        MissingDependencyError: a tracker's package is not installed.
    """
    check_trackers(recipe.report.trackers)
    if recipe.placement.has_hosts:
        read_secret(recipe.placement.secret_env)
    devices = {
        "trainer": resolve_device(recipe.trainer.device, "trainer.device"),
        "generators": recipe.generator.resolved_device,
    }
    config = load_config(recipe.model)
    if reason := why_not_split(config, tp := recipe.placement.trainer.tp):
        raise ConfigError(f"placement.trainer.tp={tp}: {reason}; choose another tp, or fsdp instead")
    positions = config.max_position_embeddings
    if recipe.sampling.max_tokens >= positions:
        raise ConfigError(
            f"sampling.max_tokens={recipe.sampling.max_tokens}: the model has {positions} positions for a prompt and "
            f"its completion together; set it below {positions}"
        )
    tokenizer = load_tokenizer(recipe.model, recipe.chat_template_args)
    template = check_template(tokenizer, config)
    tasks = [_prepare_task(recipe, task, tokenizer, positions) for task in recipe.all_tasks]
    prompts = (prompt for task in tasks for prompt in (*task.prompts, *task.held_out))
    limits = template.limits_for((prompt.messages, prompt.tools) for prompt in prompts)
    where = [f"{name} on {describe_device(device)}" for name, device in devices.items()]
    notes = [
        f"device: {', '.join(where)}",
        *_describe_ranks(recipe),
        *_describe_lora(recipe, config),
        *(f"chat template: {limit}" for limit in limits),
        *(f"task {task.config.name}: {note}" if recipe.tasks else note for task in tasks for note in task.notes),
    ]
    prepared = Prepared(recipe, tasks, tokenizer, config, positions, limits, devices, notes)
    recipe.placement.check_all_placed(prepared.executor_names)
    held = least_memory(recipe, config, devices, prepared.needs_reference_copy)
    refuse_misfit(held, {device: total_memory(device) for device in held})
    return prepared


def _describe_ranks(recipe: Recipe) -> list[str]:
    """Says how the trainer is spread, where it has several ranks, and whether some would have nothing to do."""
    where = recipe.placement.trainer
    if where.num_ranks == 1:
        return []
    completions = sum((task.prompts_per_step or 0) * (task.samples_per_prompt or 0) for task in recipe.all_tasks)
    idle = f"; a step has {completions} completions, so ranks beyond have nothing to do: lower placement.trainer.fsdp"
    spread = f"trainer: {where.num_ranks} ranks, fsdp {where.fsdp} x tp {where.tp}"
    return [spread + idle * (where.fsdp > completions)]


def _describe_lora(recipe: Recipe, config: Any) -> list[str]:
    """Says how much is trained where adapters are; refuses targets that the model hasn't."""
    if (lora := recipe.trainer.lora) is None:
        return []
    trained, frozen = count_adapters(new_skeleton(config), lora), count_parameters(config)
    return [f"lora: adapters of {trained:,} numbers are trained beside {frozen:,} frozen ones ({trained / frozen:.1%})"]


def _prepare_task(recipe: Recipe, task: TaskConfig, tokenizer: Tokenizer, positions: int) -> PreparedTask:
    data, asked = task.data, recipe.evaluation.num_prompts
    rows, bad = _read(data, data.source, format=data.format, split=data.split, limit=data.limit)
    num_rows = len(rows)
    rows, held_out, bad_held_out = _hold_out(task, asked, rows)
    notes = []
    if len(held_out) < asked:
        rule = "all that it has" if task.held_out else f"at most a fifth of its {num_rows} rows"
        notes.append(
            f"held-out prompts: {len(held_out)} from {task.held_out or data.source}, {rule}, where "
            f"evaluation.num_prompts allows {asked}"
        )
    if recipe.tasks:
        rows, held_out = _of_task(task.name, rows), _of_task(task.name, held_out)
    variants = [PromptVariant(each.ask, load_ask(each.ask), each.samples) for each in task.coverage]
    lengths = _Lengths(tokenizer, positions, recipe.sampling.max_tokens, should_skip=data.on_bad_row == "skip")
    rows, long = lengths.fitting(rows, variants)
    if not rows:
        raise DataError(f"{data.source}: no prompt is left to train; the first: {long[0]}")
    held_out, long_held_out = lengths.fitting(held_out)
    prompts = [row.prompt for row in rows]
    assert task.algorithm is not None
    with _naming_the_row(rows) as watched:
        task.algorithm.credit().check_prompts(watched)
    baselines = _baselines(tokenizer, prompts) if task.algorithm.needs.baseline else {}
    paying, untried = _check_judges(task, rows, held_out, tokenizer)
    skipped = [*bad, *bad_held_out, *long, *long_held_out]
    held_out_prompts = [row.prompt for row in held_out]
    return PreparedTask(
        task,
        prompts,
        held_out_prompts,
        skipped,
        baselines,
        paying,
        variants,
        [*notes, *untried],
        _measure_control(recipe.watch, task.name if recipe.tasks else None),
    )


def _measure_control(watch: WatchConfig, task: str | None) -> Estimates | None:
    """The monitors' quantities in the file of the control's responses, those of one task where a run has several."""
    if watch.control is None:
        return None
    monitors = Monitors(watch.monitors, watch)
    return monitors.estimate(monitors.measure(read_sessions(watch.control, task)))


def _read(data: DataConfig, source: str | Rows, **options: Any) -> tuple[list[_Row], list[BadRow]]:
    """The rows of a source, and those that are skipped."""
    found = read_prompts(source, mapping=data.mapping, on_bad_row=data.on_bad_row, **options)
    rows = [_Row(_with_system(prompt, data.system), place) for prompt, place in zip(found, found.places, strict=True)]
    return rows, list(found.skipped)


@contextmanager
def _naming_the_row(rows: Sequence[_Row]) -> Iterator[Iterator[Prompt]]:
    """The rows' prompts, to be looked at in turn; an error meanwhile is raised with file and line of the row."""
    row: _Row | None = None

    def prompts() -> Iterator[Prompt]:
        nonlocal row
        for row in rows:
            yield row.prompt
        row = None

    try:
        yield prompts()
    except (ConfigError, DataError) as error:
        if row is None:
            raise
        raise type(error)(f"{row.place[0]}, line {row.place[1]}: {error}") from error.__cause__


def _of_task(name: str, rows: Sequence[_Row]) -> list[_Row]:
    """Returns the rows with ids that are unique over all tasks of the run."""
    return [_Row(replace(prompt, id=f"{name}/{prompt.id}", task=name), place) for prompt, place in rows]


def _baselines(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> dict[str, Completion]:
    """`info.baseline` of each prompt that has one, as tokens that no policy sampled."""
    found = {}
    for prompt in prompts:
        if isinstance(text := prompt.info.get("baseline"), str):
            ids = (*tokenizer.encode(text), tokenizer.eos_ids[0])
            found[prompt.id] = Completion(Trajectory.given(encode_prompt(tokenizer, prompt), ids), text)
    return found


def _hold_out(task: TaskConfig, most: int, rows: list[_Row]) -> tuple[list[_Row], list[_Row], list[BadRow]]:
    """Training rows, held-out rows, and bad ones of a held-out file.

    Held-out rows are chosen by a hash of their id: the same in every run.
    """
    if not most:
        return rows, [], []
    if task.held_out is not None:
        held_out, bad = _read(task.data, task.held_out, limit=most)
        trained = {_text(row.prompt) for row in rows}
        if leaked := [row for row in held_out if _text(row.prompt) in trained]:
            raise DataError(
                f"held-out prompts {task.held_out}: {len(leaked)} of them are also training prompts, first "
                f"{leaked[0].prompt.id!r} on line {leaked[0].place[1]}; remove them from one side"
            )
        return rows, held_out, bad
    order = sorted(range(len(rows)), key=lambda i: derive_seed("held out", rows[i].prompt.id))
    chosen = set(order[: min(most, len(rows) // 5)])
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)], []


def _text(prompt: Prompt) -> str:
    return "\x1f".join(f"{m['role']}:{m['content']}" for m in prompt.messages)


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    if system is None or prompt.messages[0]["role"] == "system":
        return prompt
    return replace(prompt, messages=({"role": "system", "content": system}, *prompt.messages))


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    """Token ids of a prompt, ending where its completion begins."""
    return tokenizer.encode_chat(prompt.messages, prompt.tools)


@dataclass(frozen=True, slots=True)
class _Lengths:
    """No prompt, in whatever variant, may be so long that its completion cannot fit the model's positions."""

    tokenizer: Tokenizer
    positions: int
    max_tokens: int
    should_skip: bool

    def fitting(self, rows: Sequence[_Row], variants: Sequence[PromptVariant] = ()) -> tuple[list[_Row], list[BadRow]]:
        """The rows that fit, in all variants too, and those that don't. Raises `DataError` at the first."""
        fit, long = [], []
        with _naming_the_row(rows) as prompts:
            for row, prompt in zip(rows, prompts, strict=False):
                if not (problem := self._problem(prompt, variants)):
                    fit.append(row)
                    continue
                remedy = "shorten the prompt, lower sampling.max_tokens, or drop the row"
                if not self.should_skip:
                    raise DataError(f"{problem}; {remedy} (data.on_bad_row='skip')")
                long.append(BadRow(*row.place, "prompt_too_long", "", problem, remedy))
        return fit, long

    def _problem(self, prompt: Prompt, variants: Sequence[PromptVariant]) -> str:
        room = self.positions - self.max_tokens
        for name, asked in [("", prompt), *((f" asked as {each.name}", each.ask(prompt)) for each in variants)]:
            if (length := len(encode_prompt(self.tokenizer, asked))) > room:
                return (
                    f"prompt {prompt.id!r}{name} has {length} tokens; with sampling.max_tokens={self.max_tokens} the "
                    f"model's {self.positions} positions leave {room}"
                )
        return ""


def _check_judges(
    config: TaskConfig, rows: Sequence[_Row], held_out: Sequence[_Row], tokenizer: Tokenizer
) -> tuple[dict[str, float], list[str]]:
    """Builds the judges once, lets those that can look at each prompt, and those that are free judge one.

    Returns:
        The weights of the judges that pay, and a sentence on each judge that judged nothing.
    """
    panel = build_panel(config.judges)
    weights = {seat.name: seat.weight for seat in panel.seats if seat.role == "reward"}
    try:
        if config.algorithm is not None and config.algorithm.needs.calibrated_reward:
            _check_calibrated(config.name, [judge for judge in panel.judges if weights.get(judge.name)], rows)
        with _naming_the_row([*rows, *held_out]) as prompts:
            panel.check(prompts)
        notes = run_async(try_out(panel, [row.prompt for row in rows], functools.partial(_plausible, tokenizer)))
    finally:
        panel.close()
    return weights, notes


def _plausible(tokenizer: Tokenizer, prompt: Prompt) -> list[Completion]:
    """Completions as a policy might give them, right ones among them if the row has an answer that is text."""
    answer = "42" if prompt.answer is None else str(prompt.answer)
    prompt_ids = encode_prompt(tokenizer, prompt)
    completions = []
    for text in (answer, f"Let me think.\nThe answer is {answer}.", "I am not sure, but I would say so."):
        ids = (*tokenizer.encode(text), tokenizer.eos_ids[0])
        trajectory = Trajectory.sampled(prompt_ids, ids, (-1.0,) * len(ids), (0,) * len(ids))
        completions.append(Completion(trajectory, text))
    return completions


def _check_calibrated(task: str, paying: Sequence[Judge], rows: Sequence[_Row]) -> None:
    """`reward = "calibrated"` takes what judges pay for margins over a baseline; a constraint's 0 or 1 is none."""
    setting = f"algorithm.reward='calibrated' (task {task!r})"
    for judge in paying:
        if not judge.info.is_calibrated:
            raise ConfigError(
                f"{setting}: judge '{judge.name}' pays raw rewards, not margins over a baseline response; set "
                "calibrated = true in its settings and write baselines with 'llamarl reward baselines', or set "
                "algorithm.reward='as_is' if its scores are never negative"
            )
    names = {judge.name for judge in paying}
    with _naming_the_row(rows) as prompts:
        for prompt in prompts:
            wanted = prompt.info.get("judges")
            if wanted and names.isdisjoint(wanted):
                raise ConfigError(
                    f"{setting}: prompt {prompt.id!r} names judges of which none pays, so it has no margin over a "
                    "baseline response; put such prompts into a task with algorithm.reward='constant'"
                )
    if not names:
        raise ConfigError(
            f"{setting}: no judge pays, so there is no margin over a baseline response; set "
            "algorithm.reward='constant', and a sample that meets every constraint counts 1"
        )
