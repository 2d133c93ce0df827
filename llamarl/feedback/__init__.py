"""Learning from users' reactions: a simulator of users, the store of logged messages, and what a store says.

    simulate(Simulation(out="log", users=1000))              # users with a hidden preference, and what they did
    store = ingest(Ingest(logs=["log/logs.jsonl"], out="store"))    # checked, pseudonymous messages
    describe(Description(store="store"))                     # base rates, and candidate signals compared

Nothing here imports torch.
"""

from llamarl.feedback.describe import Description, describe
from llamarl.feedback.ingest import Ingest, ingest
from llamarl.feedback.simulation import Simulation, simulate
from llamarl.feedback.store import Store, hash_user

__all__ = [
    "Description",
    "Ingest",
    "Simulation",
    "Store",
    "describe",
    "hash_user",
    "ingest",
    "simulate",
]
