"""Accuracy against inference budget, from settings to results; also `llamarl eval budget`.

OUT/samples/NAME/responses.jsonl    replies of a model, kept for a run that goes on
OUT/samples.jsonl                   all samples, judged
OUT/results.json                    see `budget`
OUT/frontier.png                    the figure
OUT/report.html                     the same, with all tables, as a page that opens by double click
"""

import re
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from llamarl.core.config import Config, Metavar, suggest
from llamarl.core.errors import DataError
from llamarl.core.paths import FullPath
from llamarl.evals.answering import SAMPLING_SEED, AnswerSettings, CheckpointSettings, ServerSettings

if TYPE_CHECKING:
    from llamarl.data.asks import Ask
    from llamarl.evals.budget import BudgetPlan
    from llamarl.evals.budget_samples import Attempt, Reading
    from llamarl.report.progress import Progress

CHAIN_READING = {"judge": "chain", "groups": "llamarl.tasks.chain:group", "answers": "whole"}
"""Settings of built-in problems, where none are given."""
RESULTS_FILE, FIGURE_FILE, SAMPLES_FILE = "results.json", "frontier.png", "samples.jsonl"
Size = Annotated[int, Field(ge=1)]


class Models(Config):
    """The models that answer."""

    model: Annotated[dict[str, str], Metavar("NAME=DIR")] = Field(default_factory=dict)
    """A checkpoint or Hub id, and its name in the results."""
    endpoint: Annotated[str | None, Metavar("URL")] = None
    """One more model, behind an OpenAI-compatible server."""
    endpoint_model: Annotated[str | None, Metavar("NAME")] = None
    """Name of that model, at the server and in the results."""
    ask: Annotated[dict[str, str], Metavar("NAME=HOW")] = Field(default_factory=dict)
    """Way to ask a model: plain, voting or adaptive instructions; S, L or A with builtin; or module:function of a
    prompt (default: the problem as it stands)."""

    @field_validator("model")
    @classmethod
    def _check_names(cls, models: dict[str, str]) -> dict[str, str]:
        for name in models:
            if not re.fullmatch(r"[\w.-]+", name):
                raise ValueError(f"{name!r} names a directory; write NAME=DIR, with a NAME of letters, digits, . _ -")
        return models

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if bool(self.endpoint) != bool(self.endpoint_model):
            raise ValueError("--endpoint and --endpoint-model belong together: give both or neither")
        if self.server_name in self.model:
            raise ValueError(f"--endpoint-model {self.server_name}: --model has that name already; give another")
        if not self.models:
            raise ValueError("no model given: use --model NAME=DIR, or --endpoint URL --endpoint-model NAME")
        self.check_name("--ask", *self.ask)
        return self

    @property
    def server_name(self) -> str | None:
        """The name of the server's model in the results."""
        return re.sub(r"[^\w.-]+", "-", self.endpoint_model) if self.endpoint_model else None

    @property
    def models(self) -> dict[str, str | None]:
        """The checkpoint of each model by its name, None for the server's."""
        return self.model | ({} if self.server_name is None else {self.server_name: None})

    def check_name(self, option: str, *names: str) -> None:
        """Raises `ValueError` for the name of a model that is not there."""
        for name in names:
            if name not in self.models:
                raise ValueError(f"{option} {name}: no model of that name.{suggest(name, list(self.models))}")


class Comparison(Config):
    """Settings of the comparison."""

    baseline: tuple[str, ...] = ()
    """A model whose votes are the opponent (default: the first model)."""
    votes: Annotated[tuple[Size, ...], Metavar("K,K,...")] = (1, 2, 4, 8)
    """Sizes of majority votes."""
    best_of: Annotated[tuple[Size, ...], Metavar("K,K,...")] = (1, 2, 4, 8)
    """Sizes of best-of-k."""
    samples: int | None = Field(default=None, ge=1)
    """Samples of each problem by each model (default: the largest K); more make votes exacter."""
    judge: str = "math"
    """Judge of the answers: math, module:function, file.py:function, or a TOML file of judges."""
    groups: Annotated[str, Metavar("FUNCTION")] = "llamarl.judges.voting:group"
    """Function that sorts responses into groups; by default votes are long and single answers short."""
    answers: Annotated[str, Metavar("FUNCTION")] = "stated"
    """Vote of a text: stated (its boxed or final answer; equal ones in any spelling agree), whole (all behind
    the thoughts), or module:function of the text; of these equal texts agree."""


class BudgetEvaluation(Models, Comparison, AnswerSettings):
    """An evaluation of accuracy against inference budget."""

    data: str
    """Rows of prompt (or problem) and answer (or solution), or builtin."""
    out: Annotated[FullPath, Metavar("DIR")]
    """Directory for samples, results and figure."""
    split: str | None = None
    """Split of a Hub data set (default train)."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first N problems only (builtin: default 256)."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Stop at a bad row, or leave it out and count it."""
    seed: int = SAMPLING_SEED
    """Seed of sampling and of intervals."""

    @model_validator(mode="before")
    @classmethod
    def _read_the_chain(cls, values: Any) -> Any:
        """Built-in problems are not mathematics, so they have a judge, groups and answers of their own."""
        return CHAIN_READING | values if isinstance(values, dict) and values.get("data") == "builtin" else values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if all(where is None for where in self.models.values()):
            self.refuse_unused("an endpoint alone", CheckpointSettings)
        if self.endpoint is None:
            self.refuse_unused("checkpoints alone", ServerSettings)
        self.check_name("--baseline", *self.baseline)
        largest = max((1, *self.votes, *self.best_of))
        if self.samples is not None and self.samples < largest:
            raise ValueError(
                f"--samples {self.samples}: votes and best-of-k ask for {largest}; give at least as many, or smaller "
                "--votes and --best-of"
            )
        if (self.samples or largest) > 1 and not self.temperature:
            raise ValueError("--temperature 0: all samples of a problem would be equal; give a temperature above 0")
        return self

    @property
    def plan(self) -> "BudgetPlan":
        """The plan: what is compared, and how intervals are drawn."""
        from llamarl.evals.budget import BudgetPlan
        from llamarl.evals.groups import Bootstrap

        baselines = tuple(dict.fromkeys(self.baseline)) or (next(iter(self.models)),)
        bootstrap = Bootstrap(self.seed)
        return BudgetPlan(baselines, self.votes, self.best_of, bootstrap, self.answers == "stated")

    @property
    def reading(self) -> "Reading":
        """The way replies are judged and measured. Raises `ConfigError` for a judge or function that is not there."""
        from llamarl.data.groups import load_group_function
        from llamarl.evals.budget_samples import Reading, load_answer_function

        return Reading(self.judge_name, load_group_function(self.groups), load_answer_function(self.answers))

    @property
    def judge_name(self) -> str:
        """The judge that is used: for math that of votes, which judges a plain answer alike and a vote by its last."""
        return "llamarl.judges.voting:judge" if self.judge == "math" else self.judge

    def load_asks(self) -> "dict[str, Ask]":
        """Loads the way each model in `ask` is asked. Raises `ConfigError` for a way that is not there."""
        from llamarl.data.asks import SHIPPED, load_ask
        from llamarl.tasks import chain

        of_chain: dict[str, Ask] = {"S": chain.short, "L": chain.long, "A": chain.adaptive}
        known = SHIPPED | (of_chain if self.data == "builtin" else {})
        return {name: load_ask(how, known) for name, how in self.ask.items()}

    def record(self) -> dict[str, Any]:
        """Lists what the numbers depend on; how replies were made is beside them, in `samples/NAME/settings.json`."""
        names = ("data", "split", "limit", "groups", "answers", "system", "strip_thinking")
        return {
            "models": {
                name: where or f"{self.endpoint_model} at {self.endpoint}" for name, where in self.models.items()
            },
            "ask": [f"{name}={how}" for name, how in self.ask.items()],
            "judge": self.judge_name,
            "samples_per_prompt": self.samples or self.plan.num_needed,
            "seed": self.seed,
            **{name: getattr(self, name) for name in names},
            **self.sampling.model_dump(mode="json"),
        }


def run_budget(settings: BudgetEvaluation, show: "Callable[[str], Progress] | None" = None) -> dict[str, Any]:
    """Samples what is not on file yet, judges it, and writes samples, results and figure to `settings.out`.

    Args:
        settings: who is compared on what.
        show: makes the view of a model's sampling from the model's name.

    Returns:
        What `results.json` holds.

    Raises:
        ConfigError, DataError, EndpointError, JudgeError: see `read_problems`, `sample`, `assess` and `budget_results`.
    """
    from llamarl.data.jsonl import write_jsonl
    from llamarl.evals.budget import budget_results
    from llamarl.evals.budget_report import PAGE_FILE, build_page
    from llamarl.evals.budget_samples import assess, read_problems, sample
    from llamarl.report.files import write_json
    from llamarl.report.frontier_plot import plot_frontier
    from llamarl.report.page import write_page

    asks, plan, reading = settings.load_asks(), settings.plan, settings.reading
    problems = read_problems(settings.data, limit=settings.limit, split=settings.split, on_bad_row=settings.on_bad_row)
    reading.check(problems)
    attempts: dict[str, dict[str, list[Attempt]]] = {}
    for name, checkpoint in settings.models.items():
        replies = sample(
            problems,
            settings.build_chat(checkpoint or str(settings.endpoint_model), None if checkpoint else settings.endpoint),
            settings.out / "samples" / name,
            settings.samples or plan.num_needed,
            ask=asks.get(name),
            max_in_flight=settings.max_in_flight,
            seed=settings.seed,
            system=settings.system,
            strip_thinking=settings.strip_thinking,
            progress=None if show is None else show(name),
        )
        try:
            attempts[name] = assess(problems, replies, reading)
        except DataError as error:
            raise DataError(f"{error}; no reply is lost: mend it and run the same again") from error
    results = budget_results(problems, attempts, plan)
    results["settings"] = settings.record() | {"skipped_rows": [str(row) for row in problems.skipped]}
    every = ((name, each) for name, by_id in attempts.items() for samples in by_id.values() for each in samples)
    write_jsonl(settings.out / SAMPLES_FILE, ({"model": name, **asdict(each)} for name, each in every))
    write_json(settings.out / RESULTS_FILE, results)
    plot_frontier(results, settings.out / FIGURE_FILE)
    write_page(settings.out / PAGE_FILE, build_page(results))
    return results
