"""The model card beside a detector: what it is made of, what it is worth, what it is not for."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llamarl.factuality.detectors.method import Method
from llamarl.factuality.labelled import Data
from llamarl.report.files import write_text

CARD_FILE = "README.md"
TEMPLATE = Path(__file__).parent / "model_card.md"
_FIELD = re.compile(r"\{\{(\w+)\}\}")
_PEFT = """
The adapter is in PEFT layout and not merged: `peft.PeftModel.from_pretrained(base, "DIR")`, or vLLM's
`--enable-lora --lora-modules detector=DIR`.
"""


def write_model_card(out: Path, detector: Method, data: Data, summary: Mapping[str, Any]) -> Path:
    """Writes `README.md` into a detector's directory; returns its path.

    Args:
        out: the directory.
        detector: trained, with its threshold.
        data: what it was trained from.
        summary: of `training.train`.
    """
    backbone, test = detector.backbone, summary["test"]
    fields = {
        "base": backbone.path,
        "library": "library_name: peft\n" if detector.has_adapter else "",
        "peft": _PEFT if detector.has_adapter else "",
        "method": detector.name,
        "weights": backbone.fingerprint,
        "tokenizer": backbone.tokenizer.fingerprint,
        "threshold": f"{detector.threshold:.4f}",
        **{split: f"{count:,}" for split, count in summary["claims"].items()},
        "unscored": ", ".join(f"{count} {reason}" for reason, count in summary["unscored"].items()) or "0",
        "low_mass": str(summary["low_mass"]),
        "canary": _describe_canaries(data),
        "data": str(data.place),
        "digest": data.digest,
        **dict.fromkeys(("auc", "bacc", "recall_factual", "recall_hallucinated", "calibration"), "not measured"),
    }
    if test is not None:
        fields |= {name: _describe(test[name], test[f"{name}_interval"]) for name in ("auc", "bacc")}
        fields |= {f"recall_{name}": f"{value:.3f}" for name, value in test["recall"].items()}
        fields["calibration"] = f"{test['calibration']['error']:.3f}"
    text = _FIELD.sub(lambda match: fields[match[1]], TEMPLATE.read_text(encoding="utf-8"))
    write_text(out / CARD_FILE, text)
    return out / CARD_FILE


def _describe_canaries(data: Data) -> str:
    """Says whether data were trained on whose owner asks that nobody does."""
    if not data.canaries:
        return "No training claim carries a do-not-train canary."
    return (
        f"{data.canaries} training claims answer prompts that carry a do-not-train canary; whoever built the data made "
        "that exception (`--train-on-canary`)."
    )


def _describe(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.3f}" if interval is None else f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
