"""Reads and checks everything that can be wrong with a run before anything starts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from llamarl.algorithms import AlgorithmConfig
from llamarl.controller.recipe import Recipe, TaskConfig
from llamarl.controller.task import Form
from llamarl.core.errors import DataError
from llamarl.core.records import Completion, Prompt
from llamarl.core.seeds import derive_seed
from llamarl.data import read_prompts
from llamarl.data.asks import load_ask
from llamarl.judges.config import build_panel
from llamarl.models.checkpoint import load_config, load_tokenizer
from llamarl.models.template_check import check_template
from llamarl.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class PreparedTask:
    """One task's data, read and checked."""

    config: TaskConfig
    """With nothing left open (`Recipe.all_tasks`)."""
    prompts: Sequence[Prompt]
    held_out: Sequence[Prompt]
    skipped_rows: Sequence[Any]
    baselines: Mapping[str, Completion]
    """By prompt id, where the algorithm may fall back on `info.baseline`."""
    paying: Mapping[str, float]
    """Weights of the judges whose scores make the reward, by name."""
    forms: Sequence[Form]
    """How training prompts are asked, if not as they stand."""

    @property
    def algorithm(self) -> AlgorithmConfig:
        """Its algorithm's settings."""
        assert self.config.algorithm is not None
        return self.config.algorithm

    def describe(self, steps: int) -> dict[str, Any]:
        """What of it would run."""
        size, samples = self.config.prompts_per_step or 0, self.config.samples_per_prompt or 0
        return {
            "prompts": len(self.prompts),
            "held_out": len(self.held_out),
            "skipped_rows": len(self.skipped_rows),
            "epochs": round(steps * size / len(self.prompts), 3),
            "completions_per_step": size * samples,
            **({"coverage": {form.name: form.samples for form in self.forms}} if self.forms else {}),
            "algorithm": self.algorithm.type,
            "judges": [judge.name or judge.function for judge in self.config.judges],
            "weight": self.config.weight,
        }


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything read and checked before the first process starts."""

    recipe: Recipe
    tasks: Sequence[PreparedTask]
    tokenizer: Tokenizer
    max_positions: int
    template_limits: Sequence[str]
    """What the chat template cannot do, in words."""

    @property
    def needs_reference(self) -> bool:
        """Whether an algorithm compares with the policy that the run starts from."""
        return any(task.algorithm.build().needs_reference for task in self.tasks)

    @property
    def held_out(self) -> list[Prompt]:
        """Of all tasks."""
        return [prompt for task in self.tasks for prompt in task.held_out]

    @property
    def skipped_rows(self) -> list[Any]:
        """Of all tasks."""
        return [row for task in self.tasks for row in task.skipped_rows]

    def describe(self) -> dict[str, Any]:
        """What would run, for `--dry-run`."""
        schedule = self.recipe.schedule
        tasks = {task.config.name: task.describe(schedule.steps) for task in self.tasks}
        executors = ["trainer", "judge", *(["reference"] if self.needs_reference else [])]
        return {
            **(tasks["default"] if not self.recipe.tasks else {"tasks": tasks}),
            "steps": schedule.steps,
            "max_staleness": schedule.max_staleness,
            "engine": self.recipe.engine,
            "template_limits": list(self.template_limits),
            "executors": [*executors, *generator_names(self.recipe)],
        }


def generator_names(recipe: Recipe) -> list[str]:
    """Executor names of the generators."""
    return [f"generator-{i}" for i in range(recipe.num_generators)]


def prepare(recipe: Recipe) -> Prepared:
    """Reads data and tokenizer and checks that they fit the model and each other.

    Raises:
        ConfigError, DataError, CheckpointError: what is wrong, where, and what to do.
    """
    config = load_config(recipe.model)
    tokenizer = load_tokenizer(recipe.model)
    limits = [f"{name}: {text}" for name, text in check_template(tokenizer, config).limits.items()]
    tasks = [_prepare_task(recipe, task, tokenizer) for task in recipe.all_tasks]
    prepared = Prepared(recipe, tasks, tokenizer, config.max_position_embeddings, limits)
    _check_lengths(prepared)
    return prepared


def _prepare_task(recipe: Recipe, task: TaskConfig, tokenizer: Tokenizer) -> PreparedTask:
    data = task.data
    rows = read_prompts(
        data.source,
        format=data.format,
        mapping=data.mapping,
        split=data.split,
        limit=data.limit,
        on_bad_row=data.on_bad_row,
    )
    prompts, held_out = _hold_out(task, recipe.evaluation.num_prompts, [_with_system(row, data.system) for row in rows])
    if recipe.tasks:
        prompts, held_out = _of_task(task.name, prompts), _of_task(task.name, held_out)
    assert task.algorithm is not None
    algorithm = task.algorithm.build()
    if hasattr(algorithm, "check_prompts"):
        algorithm.check_prompts(prompts)
    baselines = _baselines(tokenizer, prompts) if getattr(algorithm, "uses_baseline", False) else {}
    paying = _check_judges(task, [*prompts, *held_out])
    forms = [Form(form.ask, load_ask(form.ask), form.samples) for form in task.coverage]
    return PreparedTask(task, prompts, held_out, rows.skipped, baselines, paying, forms)


def _of_task(name: str, prompts: Sequence[Prompt]) -> list[Prompt]:
    """With ids that are unique over all tasks of the run."""
    return [replace(prompt, id=f"{name}/{prompt.id}", task=name) for prompt in prompts]


def _baselines(tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> dict[str, Completion]:
    """`info.baseline` of each prompt that has one, as tokens; no policy sampled them (version -1, log-prob 0)."""
    found = {}
    for prompt in prompts:
        if isinstance(text := prompt.info.get("baseline"), str):
            ids = (*tokenizer.encode(text), tokenizer.eos_ids[0])
            zeros, versions = (0.0,) * len(ids), (-1,) * len(ids)
            found[prompt.id] = Completion(encode_prompt(tokenizer, prompt), ids, zeros, versions, text, "stop")
    return found


def _hold_out(task: TaskConfig, most: int, prompts: list[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts. Held-out rows are chosen by a hash of their id: the same in every run."""
    if not most:
        return prompts, []
    if task.held_out is not None:
        rows = read_prompts(task.held_out, mapping=task.data.mapping, limit=most)
        held_out = [_with_system(prompt, task.data.system) for prompt in rows]
        trained = {_text(prompt) for prompt in prompts}
        if leaked := [prompt.id for prompt in held_out if _text(prompt) in trained]:
            raise DataError(
                f"held-out prompts {task.held_out}: {len(leaked)} of them are also training prompts, first "
                f"{leaked[0]!r}; remove them from one side"
            )
        return prompts, held_out
    order = sorted(range(len(prompts)), key=lambda i: derive_seed("held out", prompts[i].id))
    chosen = set(order[: min(most, len(prompts) // 5)])
    return [p for i, p in enumerate(prompts) if i not in chosen], [prompts[i] for i in sorted(chosen)]


def _text(prompt: Prompt) -> str:
    return "\x1f".join(f"{m['role']}:{m['content']}" for m in prompt.messages)


def _with_system(prompt: Prompt, system: str | None) -> Prompt:
    if system is None or prompt.messages[0]["role"] == "system":
        return prompt
    return replace(prompt, messages=({"role": "system", "content": system}, *prompt.messages))


def encode_prompt(tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    """Token ids of a prompt, ending where its completion begins."""
    return tokenizer.encode_chat(prompt.messages, prompt.tools)


def _check_lengths(prepared: Prepared) -> None:
    """No prompt, in whatever form, may be so long that its completion cannot fit the model's positions."""
    room = prepared.max_positions - prepared.recipe.sampling.max_tokens
    for name, prompt in _asked(prepared):
        if (length := len(encode_prompt(prepared.tokenizer, prompt))) > room:
            raise DataError(
                f"prompt {prompt.id!r}{name} has {length} tokens; with sampling.max_tokens="
                f"{prepared.recipe.sampling.max_tokens} the model's {prepared.max_positions} positions leave {room}; "
                "shorten the prompt, lower sampling.max_tokens, or drop the row"
            )


def _asked(prepared: Prepared) -> Iterator[tuple[str, Prompt]]:
    """Every prompt as it stands, and in each form that it is asked in."""
    yield from (("", prompt) for prompt in prepared.held_out)
    for task in prepared.tasks:
        for prompt in task.prompts:
            yield "", prompt
            yield from ((f" asked as {form.name}", form.ask(prompt)) for form in task.forms)


def _check_judges(config: TaskConfig, prompts: Iterable[Prompt]) -> dict[str, float]:
    """Builds the judges once and lets those that can look at each prompt; returns the weights of those that pay."""
    panel = build_panel(config.judges)
    try:
        panel.check(prompts)
    finally:
        panel.close()
    pairs = zip(panel.judges, config.judges, strict=True)
    return {judge.name: each.weight for judge, each in pairs if each.role == "reward"}
