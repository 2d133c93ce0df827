"""Learning from users' reactions: a simulator of users, the store of logged messages, and what a store says.

    llamarl feedback simulate    users with a hidden preference, and what they did
    llamarl feedback ingest      logs -> one store of checked, pseudonymous messages
    llamarl feedback describe    base rates, and candidate signals compared

Nothing here imports torch.
"""

from llamarl.feedback.simulation import Simulation, simulate

__all__ = [
    "Simulation",
    "simulate",
]
