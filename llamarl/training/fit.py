"""A whole supervised training, which a second call goes on with after a kill: `fit(DPO(config), model, data, out)`.

    rows -> measure -> step, and now and then: measure on held-out rows, keep the best, save -> the model, a report

An objective says whether OUT itself becomes the checkpoint (`sft`, `dpo`), or a directory of the training with the
checkpoint (`reward`) or the adapter alone (a detector) in or beside it. The files of the training lie in OUT.partial
until OUT is written whole, or in OUT:

metrics.jsonl      one record per step
summary.json       the result; its presence says that the training is finished
recipe.json        model, rows and settings, with environment.json
checkpoints/       what a resume needs, until the training is finished
best/              the best weights so far, until the training is finished
"""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

from torch import Tensor, nn

from llamarl.core import metric_names as names
from llamarl.core.errors import CollapseError, ConfigError
from llamarl.data.rows import excerpt
from llamarl.models.checkpoint import load_config, load_tokenizer, save_model
from llamarl.models.device import resolve_device
from llamarl.models.template_check import check_template
from llamarl.models.tensor_parallel import why_not_split
from llamarl.report.metrics import JsonlSink, read_metrics
from llamarl.report.summary import peak_memory_bytes
from llamarl.training.checkpoints import copy_weights
from llamarl.training.config import RanksConfig
from llamarl.training.fit_files import FitFiles
from llamarl.training.fitter import Batches, Fitter
from llamarl.training.objective import Objective, R, Report, Rows, Source
from llamarl.training.rank_processes import run_ranks
from llamarl.training.ranks import ALONE, Ranks

OnStep = Callable[[int, int, Mapping[str, float | None]], None]
"""Called after each step with its number, the number of all steps, and the step's metrics."""


def fit(
    objective: Objective[R],
    model: str | Path,
    data: Source,
    out: str | Path,
    *,
    eval_data: Source | None = None,
    split: str | None = None,
    on_step: OnStep | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains, measures, writes `out`; returns what `summary.json` holds.

    Called again with the same arguments after a kill, it goes on from the last checkpoint and ends with the numbers of
    an uninterrupted training.

    Args:
        objective: what is learned, with its settings.
        model: checkpoint to start from: a directory, a GGUF file or a Hub id.
        data: rows to train on.
        out: new, empty, or an unfinished training of the same model, data and settings; where the objective's result is
            a plain checkpoint, also an earlier result, which is replaced.
        eval_data: rows to measure on; None: those that the settings keep apart of `data`.
        split: of a Hub data set.
        on_step: for progress.
        tell: hears, in sentences, what a user should know before the training.

    Raises:
        DataError: bad, leaking or missing rows.
        ConfigError: a source that is none, settings, or a tokenizer or chat template that would spoil the training.
        CheckpointError: `out` is finished or another training's; `model` cannot be loaded.
        CollapseError: a loss or score is not finite; the best weights so far stay in `model/` beside the checkpoints.
    """
    _check_source("data", data)
    if eval_data is not None:
        _check_source("eval_data", eval_data)
    config, files = objective.config, FitFiles(out, objective.model_folder, model)
    tokenizer, model_config = load_tokenizer(model, config.chat_template_args), load_config(model)
    template = check_template(tokenizer, model_config, is_policy=objective.is_policy)
    if reason := why_not_split(model_config, config.tp):
        raise ConfigError(f"tp={config.tp}: {reason}; choose another tp, or fsdp instead")
    positions = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    rows = objective.read(data, eval_data, split, tokenizer, positions)
    notes = [*rows.notes, *(f"chat template: {limit}" for limit in template.limits_for(rows.conversations))]
    if tell is not None:
        for note in notes:
            tell(note)
    settings = config.model_dump(mode="json", exclude=_OPEN_SETTINGS)
    recipe = {"model": str(model), "objective": objective.name, "rows": _fingerprint(rows), "settings": settings}
    with files.claim(recipe):
        work = partial(_train, objective, str(model), rows, files, notes)
        if config.num_ranks == 1:
            return work(ALONE, on_step)
        summary: dict[str, Any] = run_ranks(work, config, on_step)
        return summary


_OPEN_SETTINGS = {*RanksConfig.model_fields, "exchange_seconds"}
"""Settings that a resumed training may change: who computes, not what."""


def _train(
    objective: Objective[R],
    model: str,
    rows: Rows[R],
    files: FitFiles,
    notes: Sequence[str],
    ranks: Ranks,
    on_step: OnStep | None,
) -> dict[str, Any]:
    """One rank's part of the training; returns the summary."""
    files.is_written_here = ranks.is_first
    tokenizer = load_tokenizer(model, objective.config.chat_template_args)
    batches = Batches(rows.train, objective)
    fitter = Fitter(objective.load(model, tokenizer), objective, batches.num_steps, ranks)
    known = files.read_cache()
    files.write_cache(objective.prepare(fitter.scores, [*rows.train, *rows.held_out], known))
    run = _Run(fitter, batches, rows, files, ranks, on_step)

    def write(place: Path, beside: Sequence[Path] = ()) -> None:
        result = run.put_together(lambda: objective.load(model, tokenizer))
        if result is None:
            return
        if objective.keeps_adapter:
            result.save_adapter(place, model)
        else:
            result.merge()
            save_model(result.model, tokenizer, place, beside)

    try:
        run.train()
    except CollapseError:
        if run.state.best_step is not None:
            run.settle()
            files.rescue(write)
        ranks.agree(True)  # the first one to fail would end the others, and the first rank still writes
        raise
    state, scores = run.state, run.settle()
    report = None if scores is None else objective.report(scores, rows.held_out)
    summary = {
        "steps": state.step,
        "version": state.step,
        "seconds": state.seconds,
        "objective": objective.name,
        "model": str(files.model),
        "rows": {"train": len(rows.train), "held_out": len(rows.held_out), "skipped": dict(rows.skipped)},
        "notes": notes,
        "device": resolve_device(objective.config.device),
        "ranks": ranks.count,
        "trained_parameters": fitter.num_trained,
        "model_step": state.best_step or state.step,
        "loss": state.loss,
        "held_out_before": state.before,
        "held_out": None if report is None else as_dict(report),
        "peak_memory_bytes": max(ranks.tell(peak_memory_bytes())),
    }
    if ranks.is_first:
        objective.draw(files.work, read_metrics(files.metrics), scores, rows.held_out)
    files.finish(summary, write)
    return summary


def _check_source(name: str, source: Any) -> None:
    """Raises `ConfigError` unless the argument `name` is rows, or the name of some."""
    if isinstance(source, str) and not source:
        raise ConfigError(f"{name}: an empty name; give a file, a glob or a Hub id, or leave it out")
    if isinstance(source, Mapping) or not isinstance(source, str | Path | Iterable):
        raise ConfigError(
            f"{name}: {excerpt(source)} is no list of rows; give dictionaries in a list, a file, a Hub id"
        )


@dataclass
class _State:
    """State that a resume needs beside weights and moments."""

    step: int = 0
    seconds: float = 0.0
    loss: float | None = None
    """Loss of the last step."""
    before: dict[str, Any] | None = None
    """The report on the held-out rows before the first step."""
    best_step: int | None = None
    """None while no weights were kept for being the best."""
    best: float = -math.inf
    """Held-out accuracy, or negative loss, of the best measurement."""


class _Run(Generic[R]):
    """Steps, measures, keeps the best weights, saves checkpoints."""

    def __init__(
        self,
        fitter: Fitter[R],
        batches: Batches[R],
        rows: Rows[R],
        files: FitFiles,
        ranks: Ranks,
        on_step: OnStep | None,
    ) -> None:
        self._ranks = ranks
        self._fitter, self._batches, self._rows, self._files = fitter, batches, rows, files
        self._config, self._on_step = fitter.config, on_step
        latest = files.latest_checkpoint()
        self.state = _State() if latest is None else _State(**fitter.load(latest)["state"])

    def train(self) -> None:
        """Runs the steps that are left."""
        if self._rows.held_out and self.state.before is None:
            self.state.before = as_dict(self._fitter.evaluate(self._rows.held_out))
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(closing(JsonlSink(self._files.metrics))) if self._ranks.is_first else None
            if sink is not None:
                sink.rewind(self.state.step)
            while self.state.step < self._batches.num_steps:
                metrics = self._step()
                if sink is not None:
                    sink.write(self.state.step, metrics)
                if self._on_step is not None:
                    self._on_step(self.state.step, self._batches.num_steps, metrics)

    def settle(self) -> Tensor | None:
        """Leaves the model with the weights to keep; a lone rank's adapters are merged unless they are the result.

        Returns:
            Its scores of the held-out rows, where there are any.
        """
        if self.state.best_step is not None:
            self._ranks.agree(True)  # the first rank may still be writing the file
            self._fitter.load_weights(self._files.best_file(self.state.best_step))
        if self._ranks.count == 1 and not self._fitter.objective.keeps_adapter:
            self._fitter.merge()
        return self._fitter.scores(self._rows.held_out) if self._rows.held_out else None

    def put_together(self, load: Callable[[], nn.Module]) -> Fitter[R] | None:
        """What holds the whole model, on the first rank; None on the others.

        Args:
            load: gives the model that was trained, as it was before.
        """
        if self._ranks.count == 1:
            return self._fitter
        weights = self._fitter.collect()
        if not self._ranks.is_first:
            return None
        whole = Fitter(load(), self._fitter.objective, self._batches.num_steps)
        copy_weights(weights, whole.weights())
        return whole

    def _step(self) -> dict[str, float | None]:
        """Takes one step, and does what is due after it."""
        started, state = time.perf_counter(), self.state
        metrics: dict[str, float | None] = {**self._fitter.step(self._batches[state.step])}
        state.step, state.loss = state.step + 1, metrics[names.LOSS]
        is_last = state.step == self._batches.num_steps
        if self._rows.held_out and self._fitter.objective.is_due(state.step, self._batches.num_steps):
            metrics |= self._evaluate()
        metrics[names.TIME_STEP] = time.perf_counter() - started
        state.seconds += time.perf_counter() - started
        if not is_last and state.step % self._config.checkpoint_every == 0:
            self._files.save_checkpoint(
                state.step, state.best_step, lambda draft: self._fitter.save(draft, {"state": asdict(state)})
            )
        return metrics

    def _evaluate(self) -> dict[str, float | None]:
        """Measures on the held-out rows, and keeps the weights where they are the best so far."""
        report, state = self._fitter.evaluate(self._rows.held_out), self.state
        value = self._fitter.objective.rate(report)
        if self._config.keep != "last" and value > state.best:
            state.best, state.best_step = value, state.step
            self._files.save_best(state.step, self._fitter.save_weights)
        return report.metrics()


def as_dict(report: Report) -> dict[str, Any]:
    """The report as plain JSON values."""
    values: Any = report
    return asdict(values)


def _fingerprint(rows: Rows[R]) -> str:
    """A hash of all rows in their order."""
    keys = [[row.key for row in side] for side in (rows.train, rows.held_out)]
    return hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).hexdigest()
