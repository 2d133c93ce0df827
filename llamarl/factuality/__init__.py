"""Hallucinations in long answers, claim by claim: labelled claims of a model's own answers, what scores are worth.

    summary = build(Build(prompts=["prompts.jsonl"], model="model/", facts=["facts.csv"], out="claims"))
    claims = score_text("Lyon is in Spain.", load_detector("detector"))        # each with its probability to be factual
    detector = train(Train(data="claims", model="model/", out="detector"))
    results = evaluate(Evaluation(scores=["scores.jsonl"]))      # threshold by validation, the rest on the test claims

Nothing here imports torch, and the package's settings load before what computes with them: help is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamarl.factuality.building import build
    from llamarl.factuality.detectors.files import load_detector
    from llamarl.factuality.evaluation import evaluate
    from llamarl.factuality.facts import FactTable
    from llamarl.factuality.judge import DetectorJudge
    from llamarl.factuality.scores import ScoredClaims, read_scores
    from llamarl.factuality.scoring import score_text
    from llamarl.factuality.settings import Build, Evaluation, Train
    from llamarl.factuality.training import train

__all__ = [
    "Build",
    "DetectorJudge",
    "Evaluation",
    "FactTable",
    "ScoredClaims",
    "Train",
    "build",
    "evaluate",
    "load_detector",
    "read_scores",
    "score_text",
    "train",
]

_HOMES = {
    "DetectorJudge": "judge",
    "FactTable": "facts",
    "ScoredClaims": "scores",
    "build": "building",
    "evaluate": "evaluation",
    "load_detector": "detectors.files",
    "read_scores": "scores",
    "score_text": "scoring",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'llamarl.factuality' has no attribute {name!r}")
    return getattr(importlib.import_module(f"llamarl.factuality.{_HOMES.get(name, 'settings')}"), name)
