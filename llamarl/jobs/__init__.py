"""Long work that may be killed and goes on: who holds it, whether it is the same work, and what is finished of it."""

from llamarl.jobs.claim import LOCK_FILE, changed_names, lock_directory
from llamarl.jobs.journal import Journal

__all__ = ["LOCK_FILE", "Journal", "changed_names", "lock_directory"]
