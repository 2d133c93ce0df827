"""Hallucinations in long answers, claim by claim: labelled claims of a model's own answers, what scores are worth.

    summary = build(Build(prompts=["prompts.jsonl"], model="model/", facts=["facts.csv"], out="claims"))
    results = evaluate(Evaluation(scores=["scores.jsonl"]))      # threshold by validation, the rest on the test claims

Nothing here imports torch, and the package's settings load before what computes with them: help is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamarl.factuality.building import build
    from llamarl.factuality.evaluation import evaluate
    from llamarl.factuality.facts import FactTable
    from llamarl.factuality.scores import ScoredClaims, read_scores
    from llamarl.factuality.settings import Build, Evaluation

__all__ = ["Build", "Evaluation", "FactTable", "ScoredClaims", "build", "evaluate", "read_scores"]

_HOMES = {
    "FactTable": "facts",
    "ScoredClaims": "scores",
    "build": "building",
    "evaluate": "evaluation",
    "read_scores": "scores",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'llamarl.factuality' has no attribute {name!r}")
    return getattr(importlib.import_module(f"llamarl.factuality.{_HOMES.get(name, 'settings')}"), name)
