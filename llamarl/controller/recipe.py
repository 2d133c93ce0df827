"""The whole configuration of a run, one typed object; a TOML file is the same thing written down."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    field_validator,
    model_validator,
)
from pydantic_core import to_jsonable_python

from llamarl.algorithms import AIPOConfig, AlgorithmConfig
from llamarl.controller.guard import GuardConfig
from llamarl.controller.overrides import dotted_names, merge, parse_overrides
from llamarl.controller.placement_config import PlacementConfig, fill_in
from llamarl.controller.schedule import Schedule
from llamarl.controller.watch import WatchConfig
from llamarl.core.config import Config, read_toml
from llamarl.core.paths import FileName, ObjectName, absolute, absolute_object
from llamarl.core.sampling import Sampling
from llamarl.data.asks import load_ask
from llamarl.data.memory import Rows
from llamarl.data.prompts import BadRowPolicy
from llamarl.data.rows import RowFormat
from llamarl.generation.executor import GeneratorConfig
from llamarl.judges.config import JudgeConfig, beside
from llamarl.models.template_args import ChatTemplateArgs
from llamarl.training.config import TrainerConfig


def _read_source(value: Any) -> str | Rows:
    return absolute(os.fspath(value)) if isinstance(value, str | os.PathLike) else Rows(value)


Source = Annotated[str | Rows, PlainValidator(_read_source), PlainSerializer(str)]
"""A file, a glob or a Hub id; in a program also rows: a list of dictionaries or a `datasets.Dataset`."""


class DataConfig(Config):
    """Source and format of the prompts."""

    source: Source
    """A JSONL, Parquet or CSV file, a glob of them, or a Hub id (`owner/name`, extra `hub`). In a program also rows."""
    format: RowFormat = "auto"
    """Row format: `llamarl`, `trl`, `verl`, `verifiers`, or `auto`."""
    mapping: dict[str, str] = Field(default_factory=dict)
    """Our field -> their column, for columns under other names: `{prompt = "question"}`."""
    split: str | None = None
    """Split of a Hub data set."""
    limit: int | None = Field(default=None, ge=1)
    """Read only so many rows."""
    on_bad_row: BadRowPolicy = "error"
    """`skip` leaves out bad rows and prompts that are too long, counted and listed in the run directory."""
    epochs: int | None = Field(default=None, ge=1)
    """The run ends when each prompt came so often; None: when `schedule.steps` are done."""
    system: str | None = None
    """A system message put before every prompt that has none."""


class EvaluationConfig(Config):
    """Held-out prompts, answered before and after training, and every `schedule.evaluate_every` steps."""

    source: Source | None = None
    """Source of the held-out prompts; None holds out rows of the training data, which then never train. A run of
    several tasks names a source in each task instead (`held_out`)."""
    num_prompts: int = Field(default=128, ge=0)
    """Most prompts to use of each task, at most a fifth of the training data where held out from it; 0 turns evaluation
    off."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Completions of each; the reported reward is the mean over all."""
    temperature: float | None = Field(default=None, ge=0.0)
    """Sampling temperature of the evaluation; None: the training temperature."""


class ReportConfig(Config):
    """Outputs of a run beside `metrics.jsonl`, `summary.json` and the figures, which are always written."""

    rollouts_every: int = Field(default=10, ge=1)
    """Log some groups with all their texts, verdicts and versions every so many steps."""
    rollouts_per_step: int = Field(default=2, ge=0)
    """Groups shown in each logged step."""
    tensorboard: bool = False
    """True also writes TensorBoard events (extra `tensorboard`)."""
    trackio: str | None = None
    """Trackio project to log to as well (extra `trackio`)."""
    wandb: str | None = None
    """Weights & Biases project to log to as well (extra `wandb`), offline unless `WANDB_MODE` says otherwise."""
    mlflow: str | None = None
    """MLflow experiment to log to as well (extra `mlflow`), in the run directory if `MLFLOW_TRACKING_URI` is unset."""

    @property
    def trackers(self) -> dict[str, str]:
        """The project that each tracker in use logs to, by the tracker's name."""
        named = {"trackio": self.trackio, "wandb": self.wandb, "mlflow": self.mlflow}
        return ({"tensorboard": ""} if self.tensorboard else {}) | {name: to for name, to in named.items() if to}


class CoverageConfig(Config):
    """One form in which every training prompt is asked.

    The completions of all forms are one group, learnt under the prompt as it stands.
    """

    ask: ObjectName
    """`plain`, `voting` or `adaptive` instructions, or a function of a prompt that returns the prompt to ask:
    `module:function` or `path/to/file.py:function`."""
    samples: int = Field(ge=1)
    """Completions of each prompt in this form."""

    @field_validator("ask")
    @classmethod
    def _is_known(cls, ask: str) -> str:
        load_ask(ask)
        return ask


def _by_name(value: Any) -> Any:
    """An algorithm given by its name alone."""
    return {"type": value} if isinstance(value, str) else value


class TaskConfig(Config):
    """One of several tasks that a run trains together: its own prompts, judges and algorithm."""

    name: str = Field(pattern=r"^[\w-]+$")
    """Name of the task, used in metrics and before the ids of its prompts."""
    data: DataConfig
    judges: tuple[JudgeConfig, ...] = Field(min_length=1)
    """Judges of this task's completions, and only these."""
    algorithm: Annotated[AlgorithmConfig | None, BeforeValidator(_by_name)] = None
    """None: the recipe's."""
    prompts_per_step: int | None = Field(default=None, ge=1)
    """Groups of the task in one optimizer step; None: `schedule.prompts_per_step`."""
    samples_per_prompt: int | None = Field(default=None, ge=1)
    """None: `schedule.samples_per_prompt`, or the sum over `coverage`."""
    coverage: tuple[CoverageConfig, ...] = ()
    """Ask each training prompt in these forms, instead of as it stands."""
    weight: float | None = Field(default=None, ge=0.0)
    """Factor of its gradient in the step's sum; None: its share of the step's prompts."""
    held_out: Source | None = None
    """Source of the task's held-out prompts; None: rows of its data, which then never train."""


class Recipe(Config):
    """A run: which model, on which prompts, judged by whom, improved how, for how long.

    Plain runs have one task: `data`, `judges`, `algorithm`. Runs of several list them under `tasks` instead.

    Raises:
        ConfigError: (from `load` and `parse`) names each wrong field, its value and what to do.
    """

    model: FileName
    """Checkpoint directory in Hugging Face format, a GGUF file (extra `gguf`), or a Hub id."""
    chat_template_args: ChatTemplateArgs = Field(default_factory=dict)
    """Arguments of the model's chat template, such as `{enable_thinking = false}`."""
    data: DataConfig | None = None
    """Required, unless the recipe lists `tasks`."""
    judges: tuple[JudgeConfig, ...] = ()
    """Judges of the run; required, unless the recipe lists `tasks`. The reward is the weighted mean of their scores."""
    algorithm: Annotated[AlgorithmConfig, BeforeValidator(_by_name)] = Field(default_factory=AIPOConfig)
    tasks: tuple[TaskConfig, ...] = ()
    """Several tasks trained together, one optimizer step for the weighted sum of their gradients."""
    coverage: tuple[CoverageConfig, ...] = ()
    """Ask each training prompt in these forms, instead of as it stands (algorithms `ibpo` and `raft`)."""
    sampling: Sampling = Field(default_factory=Sampling)
    schedule: Schedule = Field(default_factory=Schedule)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)
    num_generators: int = Field(default=1, ge=1)
    """Generator executors, each with its own copy of the model."""
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    guard: GuardConfig = Field(default_factory=GuardConfig)
    watch: WatchConfig = Field(default_factory=WatchConfig)
    report: ReportConfig = Field(default_factory=ReportConfig)
    engine: Literal["inprocess", "monarch", "ray"] = "inprocess"
    """Executors as threads of this process, or as processes started by Monarch or by Ray (extras of these names)."""
    placement: PlacementConfig = Field(default_factory=PlacementConfig)
    """Who runs where. What it says of devices, precision and slots holds for `trainer` and `generator` too."""
    pass_environment: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")], ...] = ()
    """Names of environment variables that executors' processes get, where the engine has processes, beside the common
    ones and those that judges name in `api_key_env`. For functions that read a key: `pass_environment = ["MY_KEY"]`."""
    seed: int = Field(default=0, ge=0)
    """Decides the order of prompts and every sampled token."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads for all executors together; None: all cores."""

    @model_validator(mode="before")
    @classmethod
    def _place(cls, values: Any) -> Any:
        return fill_in(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        self._check_placement()
        if self.tasks:
            self._check_tasks()
        elif self.data is None or not self.judges:
            missing = "data" if self.data is None else "judges"
            raise ValueError(f"{missing}: required, but not given (a run of several tasks lists them under `tasks`)")
        if self.engine != "inprocess":
            self._check_named()
        if "samples_per_prompt" in self.schedule.model_fields_set and not self.tasks:
            _check_group_size("schedule.", self.schedule.samples_per_prompt, self.coverage)
        for index, task in enumerate(self.all_tasks):
            self._check_algorithm(task)
            self._check_updates(task)
            own = self.tasks and self.tasks[index].samples_per_prompt
            _check_comparison(task, f"tasks.{index}." if own else "schedule.")
        if self.sampling.temperature == 0.0:
            raise ValueError("sampling.temperature=0 samples no variety, so no group has a signal; use 1.0")
        return self

    def _check_placement(self) -> None:
        where = self.placement.trainer
        if self.placement.has_hosts and self.engine != "monarch":
            raise ValueError(
                f"placement.hosts: engine={self.engine!r} does not place executors on hosts; set engine='monarch' "
                "(extra hosts)"
            )
        if where.num_ranks > 1 and self.engine == "inprocess":
            raise ValueError(
                f"placement.trainer: fsdp={where.fsdp} x tp={where.tp} is {where.num_ranks} processes, and "
                "engine='inprocess' has only this one; set engine='monarch' (extra monarch), or both to 1"
            )
        if (kind := self.placement.server_kind) is not None:
            foreign: dict[str, Any] = {"precision": "int8", "on_update": "keep"}
            foreign |= {"routed_experts": True} if kind == "vllm" else {}
            for name, value in foreign.items():
                if self.generator.model_dump()[name] == value:
                    raise ValueError(f"generator.{name}={value!r} is the native generator's; kind={kind!r} has it not")
            if self.trainer.lora is not None:
                raise ValueError(f"trainer.lora: {kind} generators take whole weights; leave it out, or go native")
        held = {"num_generators": self.num_generators}
        held |= {f"trainer.{name}": value for name, value in self.trainer.model_dump().items()}
        held |= {f"generator.{name}": value for name, value in self.generator.model_dump().items()}
        for name, value in self.placement.implied():
            if value is not None and held[name] != value:
                raise ValueError(f"{name}={held[name]!r}, but placement says {value!r}; leave one of the two out")

    def _check_named(self) -> None:
        held = [judge.label for task in self.all_tasks for judge in task.judges if judge.is_in_memory]
        if held:
            raise ValueError(
                f"engine={self.engine!r}: its processes do not see the judge {held[0]!r}, which is in this program's "
                "memory; write it into a file and name it 'file.py:function', or use engine='inprocess'"
            )

    def _check_algorithm(self, task: TaskConfig) -> None:
        config = task.algorithm or self.algorithm
        needs = config.needs
        if task.coverage and not needs.ignores_behavior_logprobs:
            raise ValueError(
                f"coverage: algorithm.type={config.type!r} as it is set weighs or clips by the probabilities that its "
                "completions were sampled with, but under coverage these are of another prompt; use ibpo or raft with "
                'off_policy = "none", or leave coverage out'
            )
        if self.sampling.filters and self.placement.server_kind == "vllm" and not needs.ignores_behavior_logprobs:
            name, value = next(iter(self.sampling.filters.items()))
            raise ValueError(
                f"sampling.{name}={value}: algorithm.type={config.type!r} as it is set weighs completions by their "
                "probability among the tokens that the filter left, and vllm generators do not tell which these are; "
                f"leave sampling.{name} out, use native generators, or raft or ibpo with "
                'off_policy = "none", which learn by heart'
            )
        if self.schedule.max_staleness > 0 and not needs.corrects_staleness and not task.coverage:
            raise ValueError(
                f"algorithm.type={config.type!r} has no off-policy correction, but schedule.max_staleness="
                f"{self.schedule.max_staleness} trains stale samples; set schedule.max_staleness=0 or "
                f"{_correction(config)}"
            )

    def _check_updates(self, task: TaskConfig) -> None:
        """Checks that each batch of a task may get several optimizer updates."""
        config, trainer, size = task.algorithm or self.algorithm, self.trainer, task.prompts_per_step or 1
        if trainer.num_updates == 1:
            return
        updates = f"trainer.passes={trainer.passes} x trainer.minibatches={trainer.minibatches}"
        if not config.needs.allows_several_updates:
            raise ValueError(
                f"{updates}: algorithm.type={config.type!r} as it is set has no ratio that makes up for the updates "
                f"before; set both to 1, or {_correction(config)}"
            )
        if trainer.minibatches > size:
            raise ValueError(
                f"trainer.minibatches={trainer.minibatches}: a step has {size} prompts, so some parts would be empty; "
                f"set it to at most {size}"
            )
        if self.schedule.max_staleness > 0 and trainer.behavior_cap is None and config.needs.corrects_staleness:
            raise ValueError(
                f"trainer.behavior_cap=none: with {updates} nothing else makes up for schedule.max_staleness="
                f"{self.schedule.max_staleness}; set trainer.behavior_cap=2.0, or schedule.max_staleness=0"
            )

    def _check_tasks(self) -> None:
        names = [task.name for task in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"tasks: the names {names} repeat; give each task its own")
        for field, given in (
            ("data", self.data),
            ("judges", self.judges),
            ("evaluation.source", self.evaluation.source),
            ("coverage", self.coverage),
        ):
            if given:
                raise ValueError(f"{field}: given beside `tasks`; move it into the task it belongs to")
        for index, task in enumerate(self.tasks):
            if task.samples_per_prompt is not None:
                _check_group_size(f"tasks.{index}.", task.samples_per_prompt, task.coverage)
        if not any(task.weight is None or task.weight > 0 for task in self.tasks):
            raise ValueError("tasks: every weight is 0, so nothing would be learnt; give one a positive weight")

    @property
    def all_tasks(self) -> tuple[TaskConfig, ...]:
        """The tasks with nothing left open; a plain recipe is one task named `default`, of weight 1."""
        assert self.tasks or self.data is not None
        tasks = self.tasks or (
            TaskConfig.model_construct(
                name="default",
                data=self.data,
                judges=self.judges,
                held_out=self.evaluation.source,
                coverage=self.coverage,
            ),
        )
        sizes = [task.prompts_per_step or self.schedule.prompts_per_step for task in tasks]
        return tuple(
            task.model_copy(
                update={
                    "algorithm": task.algorithm or self.algorithm,
                    "prompts_per_step": size,
                    "samples_per_prompt": sum(form.samples for form in task.coverage)
                    or task.samples_per_prompt
                    or self.schedule.samples_per_prompt,
                    "weight": size / sum(sizes) if task.weight is None else task.weight,
                }
            )
            for task, size in zip(tasks, sizes, strict=True)
        )

    @property
    def publishes_bf16(self) -> bool:
        """True if weights travel in bf16: generators that round them to it anyway lose nothing by that."""
        return self.generator.precision == "bf16" and self.trainer.lora is None

    @property
    def passed_variables(self) -> frozenset[str]:
        """Names of environment variables that the recipe's judges need."""
        settings = [judge.settings or {} for task in self.all_tasks for judge in task.judges]
        named = {each["api_key_env"] for each in settings if isinstance(each.get("api_key_env"), str)}
        return frozenset({*self.pass_environment, *named})

    def record(self) -> dict[str, Any]:
        """Every setting as plain values, from which `parse` makes the same recipe."""
        values = self.model_dump(mode="json")
        if self.coverage:
            values["schedule"]["samples_per_prompt"] = self.all_tasks[0].samples_per_prompt
        return values

    def changes(self) -> list[dict[str, Any]]:
        """The settings that differ from their defaults: `name`, and `default` where there is one."""
        return list(_changes(self, ""))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> Self:
        """Reads a TOML recipe (or a run directory's `recipe.json`) and applies overrides.

        They are `--dotted.name value` as on a command line, or nested values as a program has them.

        Relative file names are relative to the recipe where they exist there, otherwise to the working directory; the
        loaded recipe holds absolute ones.
        """
        path = Path(path)
        values = json.loads(path.read_text()) if path.suffix == ".json" else read_toml(path)
        changes = overrides if isinstance(overrides, Mapping) else parse_overrides(overrides)
        values = merge(values, changes)
        _locate_files(values, path.parent)
        if isinstance(overrides, Mapping):
            source = f"{path} with {', '.join(changes)}" if changes else str(path)
            return cls.parse(values, source=source)
        return cls.parse(values, source=str(path), overrides=dotted_names(changes))


def _changes(config: BaseModel, prefix: str) -> Iterator[dict[str, Any]]:
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if value == default:
            continue
        entries = [(f"{prefix}{name}", value)]
        if isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            entries = [(f"{prefix}{name}.{index}", entry) for index, entry in enumerate(value)]
        for dotted, entry in entries:
            if not isinstance(entry, BaseModel):
                plain = {} if field.is_required() else {"default": to_jsonable_python(default, fallback=str)}
                yield {"name": dotted, **plain}
                continue
            if type(entry) is not type(default) and "type" in type(entry).model_fields:  # a tagged union's other member
                was = default.model_dump(include={"type"}) if isinstance(default, BaseModel) else {}
                yield {"name": f"{dotted}.type", **({"default": was["type"]} if was else {})}
            yield from _changes(entry, f"{dotted}.")


def _correction(config: AlgorithmConfig) -> str:
    """The setting with which stale samples may train."""
    field = type(config).model_fields.get("off_policy")
    values = [value for value in get_args(field.annotation) if value != "none"] if field else []
    return f"algorithm.off_policy={values[0]!r}" if values else "algorithm.type='aipo'"


def _check_comparison(task: TaskConfig, prefix: str) -> None:
    """Raises `ValueError` where every sample is alone among those that its reward is compared with."""
    assert task.algorithm is not None
    within = task.algorithm.needs.comparison
    samples, prompts = task.samples_per_prompt or 1, task.prompts_per_step or 1
    if within is None or (samples if within == "group" else samples * prompts) > 1:
        return
    among = "of its prompt" if within == "group" else "of the step"
    rest = "" if samples > 1 or within == "group" else " or more prompts_per_step"
    raise ValueError(
        f"{prefix}samples_per_prompt={samples}: algorithm.type={task.algorithm.type!r} as it is set compares each "
        f"sample with the others {among}, and alone none has an advantage, so nothing would be learnt from any reward; "
        f"set it to 2 or more (8 is usual){rest}, or use reinforce_pp without group_baseline, or ppo"
    )


def _check_group_size(prefix: str, samples: int, coverage: Sequence[CoverageConfig]) -> None:
    total = sum(form.samples for form in coverage)
    if coverage and samples != total:
        raise ValueError(
            f"{prefix}samples_per_prompt={samples}, but coverage asks for {total} samples of each prompt; leave "
            "samples_per_prompt out, or change one of them"
        )


def _locate_files(values: dict[str, Any], folder: Path) -> None:
    """Makes file names absolute that exist beside the recipe; the configs do so with those of the working directory."""
    tasks = [task for task in values.get("tasks", []) if isinstance(task, dict)]
    files = [(values, "model"), (values.get("evaluation"), "source"), (values.get("watch"), "control")]
    files += [(task, "held_out") for task in tasks]
    objects: list[tuple[Any, str]] = []
    for table in (values, *tasks):
        files.append((table.get("data"), "source"))
        objects += [(table.get("algorithm"), "factory"), (table.get("algorithm"), "groups")]
        objects += [(form, "ask") for form in table.get("coverage", [])]
        for judge in table.get("judges", []):
            if isinstance(judge, dict):
                judge |= beside(judge, folder)
    for locate, places in ((absolute, files), (absolute_object, objects)):
        for place, key in places:
            if isinstance(place, dict) and isinstance(place.get(key), str):
                place[key] = locate(place[key], folder)
