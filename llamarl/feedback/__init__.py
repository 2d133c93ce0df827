"""Learning from users' reactions: a simulator of users, the store of logged messages, and what a store says.

    simulate(Simulation(out="log", users=1000))              # users with a hidden preference, and what they did
    store = ingest(Ingest(logs=["log/logs.jsonl"], out="store"))    # checked, pseudonymous messages
    describe(Description(store="store"))                     # base rates, and candidate signals compared

Nothing here imports torch, and the package's settings load before what computes with them: help is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamarl.feedback.description import describe
    from llamarl.feedback.ingestion import ingest
    from llamarl.feedback.settings import Description, Ingest, Simulation
    from llamarl.feedback.simulation import simulate
    from llamarl.feedback.store import Store, hash_user

__all__ = ["Description", "Ingest", "Simulation", "Store", "describe", "hash_user", "ingest", "simulate"]

_HOMES = {
    "describe": "description",
    "ingest": "ingestion",
    "simulate": "simulation",
    "Store": "store",
    "hash_user": "store",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'llamarl.feedback' has no attribute {name!r}")
    return getattr(importlib.import_module(f"llamarl.feedback.{_HOMES.get(name, 'settings')}"), name)
