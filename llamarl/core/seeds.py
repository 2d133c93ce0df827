"""Seeds that depend on what is sampled, never on who samples it or when.

A sample's seed is a hash of (run seed, epoch, prompt id, sample index), so one worker and four workers, a fresh run
and a resumed one, draw the same random numbers for the same sample.
"""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed hashed from `parts`; equal parts give equal seeds on every machine and Python version."""
    text = "\x1f".join([f"{type(part).__name__}:{part}" for part in parts])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def sample_seed(run_seed: int, epoch: int, prompt_id: str, sample_index: int) -> int:
    """The seed of one completion's random numbers, in [0, 2**63)."""
    return derive_seed("sample", run_seed, epoch, prompt_id, sample_index)
