"""A whole training of a reward model in one directory, which a second call goes on with after a kill.

OUT/model/            the checkpoint, a Hugging Face *ForSequenceClassification; complete whenever it is there
OUT/metrics.jsonl     one record per step
OUT/summary.json      the result; its presence says that the training is finished
OUT/reward.png        learning curve, calibration, score against length
OUT/recipe.json, environment.json, checkpoints/
"""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamarl.core.errors import CheckpointError
from llamarl.functional.preference import Bin
from llamarl.models.checkpoint import load_classifier, load_config, load_tokenizer, save_model
from llamarl.models.classifier import ensure_padding
from llamarl.models.template_check import check_template
from llamarl.models.tokenizer import Tokenizer
from llamarl.report.environment import ENVIRONMENT_FILE, environment_record
from llamarl.report.files import read_json, write_json
from llamarl.report.metrics import JsonlSink, read_metrics
from llamarl.report.reward_plots import Points, plot_reward_model
from llamarl.report.rundir import METRICS_FILE
from llamarl.report.summary import SUMMARY_FILE, peak_memory_bytes
from llamarl.training.reward import Batches, Objective, RewardTrainer, objective_of
from llamarl.training.reward_config import RewardConfig
from llamarl.training.reward_data import Example, ExampleData, Kind, hold_out, read_examples, without_leaks
from llamarl.training.reward_report import Report, as_dict

Source = str | Path | Iterable[Mapping[str, Any]]
MODEL, FIGURE, CHECKPOINTS = "model", "reward.png", "checkpoints"

OnStep = Callable[[int, int, Mapping[str, float | None]], None]
"""Called after each step with its number, the number of all steps, and the step's metrics."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is trained and measured on."""

    train: list[Example]
    held_out: list[Example]
    skipped: dict[str, int]
    """Rows left out, by reason."""
    has_tools: bool
    """Whether a row offers tools."""


def read_rows(
    data: Source, eval_data: Source | None, kind: Kind, tokenizer: Tokenizer, config: RewardConfig, split: str | None
) -> Rows:
    """Reads the training data, and splits off or reads the held-out rows; no prompt is on both sides.

    Raises:
        DataError: see `read_examples`, `hold_out`, `without_leaks`.
    """
    train = read_examples(data, kind, tokenizer, config, split)
    if eval_data is None:
        return Rows(*hold_out(train.examples, config.held_out), train.skip_counts, train.has_tools)
    held_out: ExampleData = read_examples(eval_data, kind, tokenizer, config, split)
    kept, num_leaks = without_leaks(
        train, held_out.examples, config, str(data) if isinstance(data, str | Path) else "rows"
    )
    skipped = train.skip_counts | {f"evaluation: {name}": n for name, n in held_out.skip_counts.items()}
    skipped |= {"leak": num_leaks} if num_leaks else {}
    return Rows(kept, list(held_out.examples), skipped, train.has_tools or held_out.has_tools)


def train_reward_model(
    model: str,
    data: Source,
    out: str | Path,
    config: RewardConfig,
    *,
    kind: Kind = "pairs",
    eval_data: Source | None = None,
    split: str | None = None,
    on_step: OnStep | None = None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains, measures, writes `out`; returns what `summary.json` holds.

    Called again with the same arguments after a kill, it goes on from the last checkpoint and ends with the numbers of
    an uninterrupted training.

    Args:
        model: a causal language model, which gets a new head, or an earlier reward model or classifier.
        data: preference pairs or labelled rows (`training.reward_data`).
        out: new, empty, or an unfinished training of the same model, data and settings.
        config: the settings.
        kind: of the rows.
        eval_data: rows to measure on; None holds out a share of the prompts.
        split: of a Hub data set.
        on_step: for progress.
        tell: hears what the rows need and the chat template cannot do, before the training.

    Raises:
        DataError: bad, leaking or missing rows.
        ConfigError: settings, or a tokenizer or chat template that would spoil the training.
        CheckpointError: `out` is finished or another training's; `model` cannot be loaded.
        CollapseError: a loss or score is not finite.
    """
    objective, files = objective_of(kind, config), _Files(Path(out))
    files.refuse_finished()
    tokenizer, model_config = load_tokenizer(model, config.chat_template_args), load_config(model)
    config = _within_positions(config, model_config)
    template = check_template(tokenizer, model_config, is_policy=False)
    rows = read_rows(data, eval_data, kind, tokenizer, config, split)
    notes = [f"chat template: {limit}" for limit in template.met_by([((), rows.has_tools)])]
    for note in notes:
        if tell is not None:
            tell(note)
    recipe = {"model": model, "kind": kind, "rows": _fingerprint(rows), "settings": config.model_dump(mode="json")}
    trainer = _new_trainer(model, tokenizer, objective, config, len(rows.train))
    files.claim(recipe)
    run = _Run(trainer, tokenizer, rows, files, on_step)
    run.train()
    state = run.state
    del run, trainer  # model and moments, before the result is loaded
    report = _measured(files, objective, config, rows.held_out)
    summary = {
        "steps": state.step,
        "version": state.step,
        "seconds": state.seconds,
        "model": str(files.model),
        "kind": kind,
        "rows": {"train": len(rows.train), "held_out": len(rows.held_out), "skipped": rows.skipped},
        "notes": notes,
        "model_step": state.best_step or state.step,
        "held_out": None if report is None else as_dict(report),
        "peak_memory_bytes": peak_memory_bytes(),
    }
    files.finish(summary)
    return summary


@dataclass
class _State:
    """What a resume needs beside weights and moments."""

    step: int = 0
    seconds: float = 0.0
    best_step: int | None = None
    """None while no model was saved for being the best."""
    best: float = -math.inf
    """Held-out accuracy, or negative loss, of the best measurement."""


class _Run:
    """Steps, measures, keeps the best model, saves checkpoints."""

    def __init__(
        self, trainer: RewardTrainer, tokenizer: Tokenizer, rows: Rows, files: "_Files", on_step: OnStep | None
    ) -> None:
        self._trainer, self._tokenizer, self._rows, self._files = trainer, tokenizer, rows, files
        self._config, self._on_step = trainer.config, on_step
        self._batches = Batches(rows.train, self._config.batch_size, self._config.seed)
        self._total = self._config.total_steps(len(rows.train))
        latest = files.latest_checkpoint()
        self.state = _State() if latest is None else _State(**trainer.load(latest)["state"])

    def train(self) -> None:
        """Runs the steps that are left."""
        sink = JsonlSink(self._files.metrics)
        sink.rewind(self.state.step)
        try:
            while self.state.step < self._total:
                metrics = self._step()
                sink.write(self.state.step, metrics)
                if self._on_step is not None:
                    self._on_step(self.state.step, self._total, metrics)
        finally:
            sink.close()

    def _step(self) -> dict[str, float | None]:
        started = time.perf_counter()
        metrics: dict[str, float | None] = {**self._trainer.step(self._batches[self.state.step])}
        self.state.step += 1
        step, is_last = self.state.step, self.state.step == self._total
        if self._rows.held_out and (is_last or step % self._config.evaluate_every == 0):
            metrics |= self._evaluate()
        if is_last and self.state.best_step is None:
            save_model(self._trainer.model, self._tokenizer, self._files.model)
        metrics["time/step"] = time.perf_counter() - started
        self.state.seconds += time.perf_counter() - started
        if not is_last and step % self._config.checkpoint_every == 0:
            self._files.save_checkpoint(step, lambda draft: self._trainer.save(draft, {"state": asdict(self.state)}))
        return metrics

    def _evaluate(self) -> dict[str, float | None]:
        """Measures on the held-out rows, and saves the model where it is the best so far."""
        report = self._trainer.evaluate(self._rows.held_out)
        value = (report.accuracy.value or 0.0) if self._config.keep == "accuracy" else -report.loss
        if self._config.keep != "last" and value > self.state.best:
            self.state.best, self.state.best_step = value, self.state.step
            save_model(self._trainer.model, self._tokenizer, self._files.model)
        return report.metrics()


class _Files:
    """The directory of one training."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.model, self.metrics = directory / MODEL, directory / METRICS_FILE
        self._summary, self._recipe = directory / SUMMARY_FILE, directory / "recipe.json"
        self._checkpoints = directory / CHECKPOINTS

    def refuse_finished(self) -> None:
        """Raises `CheckpointError` where a training has ended, or where something else lies."""
        if self._summary.exists():
            raise CheckpointError(f"{self._directory}: holds a finished training; choose another directory")
        if self._directory.is_dir() and any(self._directory.iterdir()) and not self._recipe.exists():
            raise CheckpointError(f"{self._directory}: not empty and no training of a reward model; choose another")

    def claim(self, recipe: Mapping[str, Any]) -> None:
        """Writes the recipe or, where there is a checkpoint to go on from, checks that it is the one that is there."""
        if self.latest_checkpoint() is None:
            write_json(self._recipe, recipe)
            write_json(self._directory / ENVIRONMENT_FILE, environment_record())
        there = read_json(self._recipe)
        for name in recipe:
            if there.get(name) != recipe[name]:
                raise CheckpointError(
                    f"{self._directory}: an unfinished training with other {name} "
                    f"({_changes(there.get(name), recipe[name])}); repeat the command that began it, or choose another "
                    "directory"
                )

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return max(self._checkpoints.glob("step-*"), default=None)

    def save_checkpoint(self, step: int, write: Callable[[Path], None]) -> None:
        """Has `write` fill a draft, which takes its name when complete; then the older ones go."""
        draft, old = self._checkpoints / "draft", list(self._checkpoints.glob("step-*"))
        shutil.rmtree(draft, ignore_errors=True)
        write(draft)
        draft.rename(self._checkpoints / f"step-{step:09d}")
        for directory in old:
            shutil.rmtree(directory)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes the summary, the last file of all; checkpoints are needed no more."""
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        write_json(self._summary, summary)

    def draw(self, bins: Sequence[Bin], answers: Mapping[str, Points]) -> None:
        """Draws the figure."""
        path = self._directory / FIGURE
        plot_reward_model(path, read_metrics(self.metrics), bins, answers, self._directory.name)


def _changes(before: Any, now: Any) -> str:
    """What it was and is; of settings, only those that differ."""
    if not (isinstance(before, Mapping) and isinstance(now, Mapping)):
        return f"{before}, now {now}"
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    return ", ".join(f"{name}={before.get(name)}, now {now.get(name)}" for name in names)


def _within_positions(config: RewardConfig, model_config: Any) -> RewardConfig:
    """The settings with `max_tokens` at most what the model's positions allow."""
    limit = getattr(model_config.get_text_config(), "max_position_embeddings", config.max_tokens)
    return config.model_copy(update={"max_tokens": min(config.max_tokens, limit)})


def _new_trainer(
    model: str, tokenizer: Tokenizer, objective: Objective, config: RewardConfig, num_rows: int
) -> RewardTrainer:
    net: Any = load_classifier(model, new_labels=len(objective.label_names), device=config.device)
    ensure_padding(net, tokenizer)
    net.config.id2label = dict(enumerate(objective.label_names))
    net.config.label2id = {name: index for index, name in enumerate(objective.label_names)}
    return RewardTrainer(net, objective, config, config.total_steps(num_rows))


def _measured(files: _Files, objective: Objective, config: RewardConfig, held_out: Sequence[Example]) -> Report | None:
    """The saved model's own numbers on the held-out rows, and their figure."""
    if not held_out:
        files.draw([], {})
        return None
    net = load_classifier(files.model, device=config.device)
    trainer = RewardTrainer(net, objective, config.model_copy(update={"schedule": "constant"}))
    logits = trainer.logits(held_out)
    report = objective.report(logits, held_out)
    files.draw(report.bins, objective.answers(logits, held_out))
    return report


def _fingerprint(rows: Rows) -> str:
    keys = [[example.key for example in side] for side in (rows.train, rows.held_out)]
    return hashlib.blake2b(json.dumps(keys).encode(), digest_size=8).hexdigest()
