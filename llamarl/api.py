"""llamarl from Python: what the commands do, as functions.

    run = llamarl.train(model="model", data=rows, judges=[reward], schedule={"steps": 100}, run_dir="runs/first")
    run = llamarl.resume("runs/first", judges=[reward], schedule={"steps": 200})
    answers = llamarl.generate("model", ["2 + 2 ="], max_tokens=16)
    records = llamarl.judge(rows_with_completions, judges=["math", reward])
    summary = llamarl.sft("model", rows_with_answers, "tuned", num_epochs=2)
    summary = llamarl.dpo("model", pairs, "tuned", beta=0.1)

A keyword of `train` is a section of the recipe, with the recipe's words, checks and messages. All functions return when
the work is done, also where an event loop runs already, as in a notebook.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from llamarl.core.errors import ConfigError

if TYPE_CHECKING:
    from llamarl.core.records import Completion
    from llamarl.report.live import LiveView
    from llamarl.report.summary import RunSummary
    from llamarl.training.objective import Objective

LINE_SECONDS = 5.0
"""Least time between two lines of progress."""
FilePath = str | Path
Settings = Mapping[str, Any] | Any
"""Settings as a dictionary, or as the config that they make, such as `AIPOConfig(...)`."""


class Changes(TypedDict, total=False):
    """The sections of a recipe that a run may change when it goes on."""

    chat_template_args: Mapping[str, Any]
    algorithm: str | Settings
    """A name such as `grpo`, or settings with their `type`."""
    coverage: Sequence[Settings]
    sampling: Settings
    schedule: Settings
    evaluation: Settings
    generator: Settings
    num_generators: int
    trainer: Settings
    guard: Settings
    watch: Settings
    report: Settings
    engine: str
    placement: Settings
    pass_environment: Sequence[str]
    seed: int
    threads: int | None


class Sections(Changes, total=False):
    """The sections of a recipe, as keywords of `train`."""

    model: FilePath
    data: Any
    """A file, a glob, a Hub id, a list of dictionaries, a `datasets.Dataset`; or settings with one of them as `source`.
    """
    judges: Any
    """Functions of (prompt, completion), sync or async, and those of TRL, verl and verifiers; names; or settings with
    one of them as `function`. One, or a list."""
    tasks: Sequence[Mapping[str, Any]]


class SamplingSettings(TypedDict, total=False):
    """Settings by which tokens are drawn."""

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    stop: Sequence[str]


class Run:
    """A run directory: what was trained there, and the model that came out.

    Args:
        run_dir: of a run, finished or not.

    Raises:
        CheckpointError: not a run directory.
    """

    def __init__(self, run_dir: FilePath) -> None:
        from llamarl.controller.directory import read_recipe
        from llamarl.core.paths import read_path

        self.run_dir = read_path(run_dir, "run_dir").absolute()
        self.recipe = read_recipe(self.run_dir)
        """The recipe with every setting, as `recipe.json` holds it."""

    @property
    def summary(self) -> "RunSummary":
        """The run's figures, from `summary.json`. Raises `DataError` where the run has not written it yet."""
        from llamarl.report.summary import read_summary

        return read_summary(self.run_dir)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One record a step, from `metrics.jsonl`: `pandas.DataFrame(run.metrics)` is the table."""
        from llamarl.report.metrics import read_metrics

        return read_metrics(self.run_dir / "metrics.jsonl")

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Returns the steps and values of one metric, such as `rollout/reward/mean`, where it was measured.

        Raises:
            ConfigError: no record has such a metric.
        """
        from llamarl.core.config import suggest
        from llamarl.report.metrics import column

        records = self.metrics
        names = {key for record in records for key in record}
        if name not in names:
            raise ConfigError(f"{name!r} is no metric of this run.{suggest(name, sorted(names))}")
        return column(records, name)

    def export(self, directory: FilePath, *, step: str | int = "latest", adapter: bool = False) -> Path:
        """Writes the trained model as a standard Hugging Face checkpoint, adapters added to its weights.

        Args:
            directory: absent, empty, or an earlier export.
            step: `latest`, `best`, or a step number.
            adapter: write the adapters alone instead, in PEFT layout.

        Returns:
            The directory.

        Raises:
            CheckpointError: no such checkpoint, or a directory that won't do.
            ConfigError: `adapter` of a run that trains the whole model.
        """
        from llamarl.controller.export import export_run

        export_run(self.run_dir, directory, str(step), adapter=adapter)
        return Path(directory)

    def generate(
        self,
        prompts: Iterable[Any],
        *,
        samples: int = 1,
        step: str | int = "latest",
        seed: int = 0,
        **sampling: Unpack[SamplingSettings],
    ) -> "list[list[Completion]]":
        """Completes prompts with the trained model.

        Args:
            prompts: user messages, or chats.
            samples: completions of each prompt.
            step: `latest`, `best`, or a step number.
            seed: equal seeds give equal completions.
            sampling: what differs from the run's `sampling`, such as `temperature=0`.

        Returns:
            For each prompt its completions.

        Raises:
            CheckpointError: no such checkpoint.
            ConfigError: a prompt or setting that won't do.
        """
        from llamarl.controller.export import load_trained
        from llamarl.core.sampling import Sampling
        from llamarl.generation.texts import complete

        drawn = Sampling.parse({**self.recipe.sampling.model_dump(), **sampling})
        trained = load_trained(self.run_dir, str(step))
        return complete(
            trained.model, trained.tokenizer, prompts, drawn, self.recipe.generator, samples=samples, seed=seed
        )

    def __repr__(self) -> str:
        if not (self.run_dir / "summary.json").is_file():
            return f"Run({str(self.run_dir)!r}): no summary yet"
        summary, total = self.summary, self.recipe.schedule.steps
        change = ""
        if summary.reward_before is not None and summary.reward_after is not None:
            change = f", held-out reward {summary.reward_before:.3f} -> {summary.reward_after:.3f}"
        return f"Run({str(self.run_dir)!r}): {summary.steps} of {total} steps in {summary.seconds:.0f} s{change}"


def train(
    *,
    recipe: FilePath | None = None,
    run_dir: FilePath | None = None,
    progress: bool = True,
    **sections: Unpack[Sections],
) -> Run:
    """Trains a model by reinforcement learning, as `llamarl train` does.

    Example:
        >>> run = llamarl.train(                                            # doctest: +SKIP
        ...     model="path/to/checkpoint",
        ...     data=[{"prompt": "2 + 2 =", "answer": "4"}, ...],
        ...     judges=[lambda prompt, completion: prompt.answer == completion.text],
        ...     algorithm={"type": "aipo"},
        ...     sampling={"max_tokens": 16},
        ...     schedule={"steps": 20},
        ... )

    Args:
        recipe: a TOML file, over which the sections are laid: settings change one by one, lists as a whole.
        run_dir: an absent or empty directory; None makes one under `runs/`. A start that fails leaves none.
        progress: whether progress is printed: a panel on a terminal, lines of text elsewhere.
        sections: the recipe's, such as `schedule={"steps": 20}`; `llamarl train --list-settings` prints all. `data`
            takes rows, and `judges` functions, in place of names.

    Returns:
        The run: its summary, its metrics, its model.

    Raises:
        ConfigError: a section or setting that is wrong; names it, its value and what to do.
        DataError: a row that is wrong; names it.
        LlamaRLError: why the run ended early; `resume` goes on from its last checkpoint.
        KeyboardInterrupt: Ctrl-C; the step was finished and saved, and `resume` goes on. A second one ends at once.
    """
    from llamarl.controller import run
    from llamarl.controller.recipe import Recipe

    values = _spell_out(sections)
    parsed = Recipe.parse(values) if recipe is None else Recipe.load(Path(recipe), values)
    with _live(Path(parsed.model).name if recipe is None else Path(recipe).stem, progress) as live:
        _, reporter = run.train(parsed, run_dir, live=live)
    return _result_of(reporter.directory, reporter.is_interrupted)


def resume(
    run_dir: FilePath,
    *,
    judges: Any = (),
    step: str | int = "latest",
    progress: bool = True,
    **sections: Unpack[Changes],
) -> Run:
    """Goes on with a run from its newest good checkpoint, as `llamarl resume` does.

    Args:
        run_dir: of a run that ended, was stopped or killed.
        judges: the functions that judged, where the run directory could only write down their names: as they were given
            to `train`, or in a dictionary by name. Judges that were named, and functions of importable modules, need
            not be given.
        step: `latest`, `best`, or the number of a kept checkpoint; what the run did after it is forgotten.
        progress: as in `train`.
        sections: settings that change, such as `schedule={"steps": 200}`.

    Returns:
        The run.

    Raises:
        CheckpointError: not a run directory, or no such checkpoint.
        ConfigError: a judge is missing, or a setting is wrong or would make it another run.
        LlamaRLError: why the run ended early.
        KeyboardInterrupt: as in `train`.
    """
    from llamarl.controller import run
    from llamarl.core.paths import read_path

    with _live(read_path(run_dir, "run_dir").name, progress) as live:
        _, reporter = run.resume(run_dir, _spell_out(sections), judges=judges, step=str(step), live=live)
    return _result_of(reporter.directory, reporter.is_interrupted)


def generate(
    model: FilePath,
    prompts: Iterable[Any],
    *,
    samples: int = 1,
    seed: int = 0,
    system: str | None = None,
    chat_template_args: Mapping[str, Any] | None = None,
    precision: str = "fp32",
    device: str = "auto",
    **sampling: Unpack[SamplingSettings],
) -> "list[list[Completion]]":
    """Completes prompts with a checkpoint, through the generator that training uses, as `llamarl generate` does.

    Args:
        model: a checkpoint directory in Hugging Face format, a GGUF file, or a Hub id.
        prompts: user messages, or chats (lists of messages).
        samples: completions of each prompt.
        seed: equal seeds give equal completions.
        system: a system message before each prompt.
        chat_template_args: arguments of the chat template, such as `{"enable_thinking": False}`.
        precision: `fp32`, `bf16` or `int8`.
        device: where the model runs, such as `cuda`.
        sampling: such as `max_tokens=16`, `temperature=0`.

    Returns:
        For each prompt its completions, with `text`, `token_ids`, `logprobs` and `finish_reason`.

    Raises:
        CheckpointError: the model cannot be loaded.
        ConfigError: a prompt or setting that won't do.
    """
    from llamarl.core.sampling import Sampling
    from llamarl.generation.executor import GeneratorConfig
    from llamarl.generation.texts import complete
    from llamarl.models.checkpoint import load_model, load_tokenizer

    drawn = Sampling.parse(sampling)
    config = GeneratorConfig.parse({"precision": precision, "device": device})
    tokenizer = load_tokenizer(model, chat_template_args)
    return complete(load_model(model), tokenizer, prompts, drawn, config, samples=samples, seed=seed, system=system)


def judge(rows: Any, judges: Any, *, max_in_flight: int = 16) -> list[dict[str, Any]]:
    """Judges completions, as `llamarl judge run` does.

    Args:
        rows: prompt rows that each have a `completion`, a text or a list of texts; in memory or in a file.
        judges: as in `train`, one or several; each judges every completion.
        max_in_flight: rows judged at the same time.

    Returns:
        One record per completion and judge: `id` of the row, `sample`, `judge`, `status` (`scored`, `abstained`,
        `failed`), `score`, `passed`, `reason`, `cost`, `seconds`.

    Raises:
        ConfigError: a judge that is none.
        DataError: a row without completion, or without what a judge needs.
        JudgeError: a judge failed its last 64 samples.
    """
    from llamarl.core.loops import run_async
    from llamarl.judges.config import JudgeConfig, list_judges
    from llamarl.judges.lab.runner import equal_panel, judge_rows, records_of
    from llamarl.judges.rows import read_completions

    if not isinstance(max_in_flight, int) or max_in_flight < 1:
        raise ConfigError(f"max_in_flight={max_in_flight!r}: give at least 1, a whole number")
    given = list_judges(judges)
    configs = [
        each if isinstance(each, JudgeConfig) else JudgeConfig.parse(table, f"judges.{number}")
        for number, (each, table) in enumerate(zip(given, map(_judge_table, given), strict=True))
    ]
    panel = equal_panel(configs)
    read = read_completions(rows)

    async def work() -> list[dict[str, Any]]:
        try:
            samples = await judge_rows(panel, read, max_in_flight=max_in_flight)
        finally:
            await panel.aclose()
        return [record for row, judged in zip(read, samples, strict=True) for record in records_of(row, judged)]

    return run_async(work())


def sft(
    model: FilePath,
    data: Any,
    out: FilePath,
    *,
    eval_data: Any = None,
    split: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Fine-tunes a checkpoint on examples, as `llamarl sft` does.

    Called again with the same arguments after a kill, it goes on from the last checkpoint.

    Args:
        model: the checkpoint to start from.
        data: rows of `{messages, tools?}` or `{prompt, completion, tools?}`, in memory or in a file.
        out: where the trained checkpoint goes: new, empty, or an earlier result.
        eval_data: rows to measure on; None: those that the setting `held_out` keeps.
        split: of a Hub data set.
        progress: whether notes and a line now and then are printed.
        settings: of `llamarl sft --list-settings`, such as `num_epochs=2`, `learning_rate=1e-5`, `lora={"rank": 16}`.

    Returns:
        What `summary.json` holds: `steps`, `loss`, `held_out`, `model`, ...

    Raises:
        ConfigError: a setting that is wrong, or a chat template that would spoil the training.
        DataError: a row that is wrong; names it.
        CheckpointError: the model cannot be loaded, or `out` won't do.
    """
    from llamarl.training.objectives import SFT, SFTConfig

    return _fit(SFT(SFTConfig.parse(settings)), model, data, out, eval_data, split, progress)


def dpo(
    model: FilePath,
    data: Any,
    out: FilePath,
    *,
    eval_data: Any = None,
    split: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a checkpoint to prefer the chosen answers of pairs, as `llamarl dpo` does.

    Args:
        model: see `sft`.
        data: rows of `{chosen, rejected, prompt?, tools?}`, in memory or in a file.
        out: see `sft`.
        eval_data: see `sft`.
        split: see `sft`.
        progress: see `sft`.
        settings: of `llamarl dpo --list-settings`, such as `beta=0.1`, `loss="ipo"`.

    Returns:
        What `summary.json` holds, with the accuracy on held-out pairs.

    Raises:
        ConfigError, DataError, CheckpointError: see `sft`.
    """
    from llamarl.training.objectives import DPO, DPOConfig

    return _fit(DPO(DPOConfig.parse(settings)), model, data, out, eval_data, split, progress)


def _fit(
    objective: "Objective[Any]",
    model: FilePath,
    data: Any,
    out: FilePath,
    eval_data: Any,
    split: str | None,
    progress: bool,
) -> dict[str, Any]:
    """Trains on rows; prints where it computes, what there is to know, and a line every few seconds."""
    from llamarl.models.device import describe_device, resolve_device
    from llamarl.report.console import SafeConsole
    from llamarl.training.fit import fit

    console, last = SafeConsole(quiet=not progress), time.monotonic()

    def tell(text: str) -> None:
        console.print(text, soft_wrap=True)

    def show(step: int, total: int, metrics: Mapping[str, float | None]) -> None:
        nonlocal last
        if step == total or time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            tell(f"step {step}/{total}  loss {metrics['train/loss']:.4f}")

    tell(f"! device: {describe_device(resolve_device(objective.config.device))}")
    return fit(
        objective,
        model,
        data,
        out,
        eval_data=eval_data,
        split=split,
        on_step=show,
        tell=lambda note: tell(f"! {note}"),
    )


def _spell_out(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces what a keyword may be short for by the tables of a recipe: rows, and functions."""
    from llamarl.judges.config import list_judges

    values = dict(sections)
    if "data" in values:
        values["data"] = _data_table(values["data"])
    if not isinstance(judges := values.get("judges"), Mapping | None):  # a mapping changes a recipe's by number
        values["judges"] = [_judge_table(each) for each in list_judges(judges)]
    if isinstance(values.get("tasks"), list | tuple):
        values["tasks"] = [_spell_out(task) if isinstance(task, Mapping) else task for task in values["tasks"]]
    return values


def _data_table(data: Any) -> Any:
    from llamarl.controller.recipe import DataConfig

    if not isinstance(data, Mapping):
        return data if isinstance(data, DataConfig) else {"source": data}
    if data and not data.keys() & DataConfig.model_fields.keys():
        names = ", ".join(map(repr, list(data)[:4]))
        raise ConfigError(f"data: a table of {names}, not of rows; give one split of it, or a list of dictionaries")
    return data


def _judge_table(judge: Any) -> Any:
    from llamarl.judges.config import JudgeConfig

    return judge if isinstance(judge, Mapping | JudgeConfig) else {"function": judge}


@contextmanager
def _live(title: str, progress: bool) -> "Iterator[LiveView | None]":
    from llamarl.report.live import LiveView

    if not progress:
        yield None
        return
    with LiveView(title) as view:
        yield view


def _result_of(directory: Path, is_interrupted: bool) -> Run:
    """Returns the run. Raises `KeyboardInterrupt` where that ended it early, or the program would go on as if not."""
    run = Run(directory)
    steps, total = run.summary.steps, run.recipe.schedule.steps
    if is_interrupted and steps < total:
        raise KeyboardInterrupt(f"stopped at step {steps} of {total}; llamarl.resume({str(directory)!r}) goes on")
    return run
