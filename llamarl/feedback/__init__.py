"""Learning from users' reactions: simulated users, the store of logged messages, what is learned from one, A/B tests.

    simulate(Simulation(out="log", users=1000))              # users with a hidden preference, and what they did
    store = ingest(Ingest(logs=["log/logs.jsonl"], out="store"))    # checked, pseudonymous messages
    describe(Description(store="store"))                     # base rates, and candidate signals compared
    fit(Fit(store="store", model="model", out="love"))       # P[Love], measured on later messages of other users
    score_policies({"new": "new.json", "control": "control.json"}, "love")    # how often users would love their replies
    monitor("new.json", Monitoring(control="control.json"))      # what they do more often: farewells, questions, ...
    run_gate(Gate(candidate="new.json", control="control.json", reward_model="love"))    # may it be released?
    compare_arms(AbTest(files=["test.parquet"], control="base"))    # relative change of the love rate, with intervals

Nothing here imports torch before something is trained or scored, and the package's settings load before what computes
with them: help is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamarl.feedback.ab import compare_arms, plan_test
    from llamarl.feedback.ab_settings import AbPlan, AbTest
    from llamarl.feedback.description import describe
    from llamarl.feedback.gate import run_gate
    from llamarl.feedback.gate_settings import Gate, Monitoring
    from llamarl.feedback.ingestion import ingest
    from llamarl.feedback.love import fit
    from llamarl.feedback.monitoring import monitor, monitor_in_turn
    from llamarl.feedback.policies import PolicyScores, correlate_online, evaluate, score_policies
    from llamarl.feedback.settings import Description, Evaluate, Fit, Ingest, Simulation
    from llamarl.feedback.simulation import simulate
    from llamarl.feedback.store import Store, hash_user

__all__ = [
    "AbPlan",
    "AbTest",
    "Description",
    "Evaluate",
    "Fit",
    "Gate",
    "Ingest",
    "Monitoring",
    "PolicyScores",
    "Simulation",
    "Store",
    "compare_arms",
    "correlate_online",
    "describe",
    "evaluate",
    "fit",
    "hash_user",
    "ingest",
    "monitor",
    "monitor_in_turn",
    "plan_test",
    "run_gate",
    "score_policies",
    "simulate",
]

_HOMES = {
    "PolicyScores": "policies",
    "correlate_online": "policies",
    "AbPlan": "ab_settings",
    "AbTest": "ab_settings",
    "compare_arms": "ab",
    "plan_test": "ab",
    "describe": "description",
    "evaluate": "policies",
    "fit": "love",
    "score_policies": "policies",
    "Gate": "gate_settings",
    "Monitoring": "gate_settings",
    "monitor": "monitoring",
    "monitor_in_turn": "monitoring",
    "run_gate": "gate",
    "ingest": "ingestion",
    "simulate": "simulation",
    "Store": "store",
    "hash_user": "store",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'llamarl.feedback' has no attribute {name!r}")
    return getattr(importlib.import_module(f"llamarl.feedback.{_HOMES.get(name, 'settings')}"), name)
