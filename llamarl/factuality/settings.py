"""Settings of the commands on hallucinations. Nothing here imports more than pydantic, so that their help is quick."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from llamarl.core.config import Config, Metavar, Words


class Evaluation(Config):
    """Scores of detectors, and how they are judged."""

    scores: Annotated[tuple[str, ...], Metavar("FILE")] = Field(min_length=1)
    """Rows of {id, label, score, split, prompt?, method?}: JSONL, CSV, Parquet or a glob; label is true for a factual
    claim, split is validation or test."""
    columns: Annotated[Words, Metavar("COLUMN,...")] = ("score",)
    """Columns that hold scores, each of them a method."""
    out: Annotated[Path | None, Metavar("DIR")] = None
    """Directory for results.json, detection.png and report.html."""
    hybrid_min_bacc: float = Field(default=0.7, ge=0.5, lt=1.0)
    """Balanced accuracy on validation that two thresholds must exceed."""
    hybrid_constraint: Literal["decided", "all"] = "decided"
    """Claims whose balanced accuracy that is: the decided ones, or all with the unknown ones as wrong, which limits
    their number."""
    bins: int = Field(default=10, ge=1, le=100)
    """Bins of the calibration."""
    seed: int = Field(default=0, ge=0)
    """Seed of the resampling behind the intervals."""
