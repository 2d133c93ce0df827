"""The one asyncio program that drives a run: loop, staleness budget, ledger, checkpoints, run directory, resume."""
