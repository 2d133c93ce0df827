"""A detector from labelled claims: train it, score validation and test claims, choose its threshold, write it down.

    summary = train(Train(data="claims", model="model", method="rate_ft", out="detector"))

    OUT/detector.json, README.md    the detector, and what a stranger should know of it
    OUT/scores.jsonl                validation and test claims with their scores: `detect eval --scores` reads it
    OUT/train.json                  what was asked for; the same call goes on with a training that was killed
    OUT/summary.json                the result; written last
    OUT/training/                   files of the training itself, where there is one

The threshold is searched on validation claims alone. Methods without training get theirs in the same way.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llamarl.core.errors import CheckpointError, DataError
from llamarl.data.jsonl import write_jsonl
from llamarl.factuality.detectors.detector import Detector
from llamarl.factuality.detectors.files import DETECTOR_FILE, save_detector
from llamarl.factuality.detectors.method import TRAINING_FOLDER, Method, TrainingJob, find_method
from llamarl.factuality.evaluation import evaluate
from llamarl.factuality.labelled import Data, LabelledClaim, read_data
from llamarl.factuality.model_card import write_model_card
from llamarl.factuality.scoring import BATCH_CLAIMS, MIN_MASS, score_claims
from llamarl.factuality.settings import Evaluation, Train
from llamarl.factuality.stages import count_reasons
from llamarl.functional.detection import search_threshold
from llamarl.jobs import LOCK_FILE, changed_names, lock_directory
from llamarl.report.files import read_json, write_json
from llamarl.report.summary import SUMMARY_FILE

JOB_FILE, SCORES_FILE = "train.json", "scores.jsonl"
OnStep = Callable[[int, int, Mapping[str, float | None]], None]
OnScored = Callable[[int, int], object]


def train(
    settings: Train,
    overrides: Mapping[str, Any] | None = None,
    *,
    on_step: OnStep | None = None,
    on_scored: OnScored = lambda done, total: None,
    tell: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains a detector and writes its directory; returns what `summary.json` holds.

    Args:
        settings: data, model, method, directory.
        overrides: the method's own settings.
        on_step: called after each step of a training.
        on_scored: called with claims scored and all claims.
        tell: hears, in sentences, what a user should know.

    Raises:
        DataError: claims that cannot be used, or none of one label.
        ConfigError: an unknown method or setting; another process trains there.
        CheckpointError: OUT holds a detector or another training; the model cannot be loaded.
        CollapseError: the training broke down.
    """
    started = time.perf_counter()
    kind = find_method(settings.method)
    method_settings = kind.Settings.parse(overrides or {}, overrides=list(overrides or ()))
    data = read_data(settings.data)
    record = {
        "model": settings.model,
        "method": settings.method,
        "data": data.digest,
        "settings": method_settings.model_dump(mode="json"),
        "precision": settings.precision,
    }
    _refuse_foreign(settings.out)
    with lock_directory(settings.out, "training a detector in"):
        _claim(settings.out, record)
        job = TrainingJob(
            model=settings.model,
            data=data,
            out=settings.out,
            settings=method_settings,
            device=settings.device,
            precision=settings.precision,
            batch_tokens=settings.batch_tokens,
            on_step=on_step,
            tell=tell,
        )
        detector = kind.train(job)
        summary = _judge(detector, data, settings, on_scored)
        summary["seconds"] = time.perf_counter() - started
        save_detector(detector, settings.out)
        write_model_card(settings.out, detector, data, summary)
        write_json(settings.out / SUMMARY_FILE, summary)
    (settings.out / LOCK_FILE).unlink(missing_ok=True)
    return summary


def score_rows(
    detector: Detector, claims: Sequence[LabelledClaim], on_scored: OnScored = lambda done, total: None
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Scores labelled claims.

    Returns:
        Rows of `{id, prompt, label, score, split, method, mass?}`, as `detect eval` reads them, of the claims that have
        a score; and the number of the others by reason.
    """
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    on_scored(0, len(claims))
    for start in range(0, len(claims), BATCH_CLAIMS):
        on_scored(start, len(claims))
        part = claims[start : start + BATCH_CLAIMS]
        for each, scored in zip(part, score_claims(detector, [each.claim for each in part]), strict=True):
            score = scored.score
            if score.p_factual is None:
                problems.append(score.kind_of_problem)
                continue
            values = {"label": each.label, "score": score.p_factual, "split": each.split, "method": detector.name}
            mass = {} if score.mass is None else {"mass": score.mass}
            rows.append({"id": each.claim.id, "prompt": each.prompt, **values, **mass})
    on_scored(len(claims), len(claims))
    return rows, count_reasons(problems)


def _judge(detector: Method, data: Data, settings: Train, on_scored: OnScored) -> dict[str, Any]:
    """Scores, searches the threshold, which the detector keeps, and evaluates where there are test claims."""
    rows, unscored = score_rows(detector, [*data.validation, *data.test], on_scored)
    chosen = [row for row in rows if row["split"] == "validation"]
    labels = np.array([row["label"] for row in chosen], dtype=bool)
    if labels.all() or not labels.any():
        raise DataError(
            f"{detector.name}: only {len(chosen)} of {len(data.validation)} validation claims have a score, and not of "
            f"both labels, so there is no threshold; without a score: {unscored}"
        )
    detector.threshold = search_threshold(np.array([row["score"] for row in chosen]), labels)
    path = settings.out / SCORES_FILE
    write_jsonl(path, rows)
    summary: dict[str, Any] = {
        "detector": str(settings.out),
        "method": detector.name,
        "threshold": detector.threshold,
        "claims": {split: len(getattr(data, split)) for split in ("train", "validation", "test")},
        "unscored": unscored,
        "low_mass": sum(row.get("mass", 1.0) < MIN_MASS for row in rows),
        "scores": str(path),
    }
    if {row["label"] for row in rows if row["split"] == "test"} == {True, False}:
        found = evaluate(Evaluation(scores=(str(path),)))
        names = ("auc", "auc_interval", "bacc", "bacc_interval", "recall", "calibration")
        summary["test"] = {name: found[name] for name in names}
    else:
        summary["test"] = None
    return summary


def _refuse_foreign(out: Path) -> None:
    """Raises `CheckpointError` unless the directory is new, empty, or one of an unfinished training."""
    if (out / DETECTOR_FILE).exists() and (out / SUMMARY_FILE).exists():
        raise CheckpointError(f"out={str(out)!r}: holds a detector; choose another directory")
    there = [] if not out.is_dir() else [file.name for file in out.iterdir() if file.name != LOCK_FILE]
    if there and JOB_FILE not in there:
        raise CheckpointError(f"out={str(out)!r}: not empty (holds {min(there)}); choose another directory")


def _claim(out: Path, record: Mapping[str, Any]) -> None:
    """Writes down what is asked for, or compares it with what a training that has got somewhere was asked for."""
    path = out / JOB_FILE
    if not _has_progress(out):  # so that a mistyped name can be put right
        write_json(path, record)
        return
    plain = json.loads(json.dumps(record))  # as it is read back
    if changes := changed_names(read_json(path), plain):
        described = ", ".join(f"{name}={before}, now {now}" for name, (before, now) in changes.items())
        raise CheckpointError(
            f"{out}: an unfinished training that was asked for otherwise ({described}); repeat the command that began "
            "it, or choose another directory"
        )


def _has_progress(out: Path) -> bool:
    """True where something lies in the directory that another training would not make."""
    others = {file.name for file in out.iterdir()} - {JOB_FILE, LOCK_FILE, TRAINING_FOLDER}
    work = out / TRAINING_FOLDER
    return bool(others) or (work / SUMMARY_FILE).exists() or any(work.glob("checkpoints/step-*"))
