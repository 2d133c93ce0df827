"""Ranks as real processes of this machine: each runs a function of its own `Ranks`."""

import multiprocessing
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import torch

from llamarl.training.ranks import LOOPBACK, Address, Meeting, Ranks

SECONDS = 280.0
"""Only there to end a hang, a little before pytest would; a busy machine may need most of it."""


def run_ranks(function: Callable[..., Any], *args: Any, fsdp: int = 1, tp: int = 1) -> list[Any]:
    """What `function(ranks, *args)` returns on each of `fsdp * tp` ranks; both must be importable and pickle."""
    # A fork of a process that has the libraries already: a fresh one would take seconds to import them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "llamarl.training.trainer", "torch.distributed.fsdp"])
    meeting = Meeting(LOOPBACK, fsdp * tp, SECONDS)
    pipes, processes = [], []
    for rank in range(fsdp * tp):
        mine, theirs = context.Pipe()
        process = context.Process(
            target=_work, args=(theirs, function, args, fsdp, tp, rank, meeting.address), daemon=True
        )
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    results: dict[Any, Any] = {}
    deadline = time.monotonic() + SECONDS
    try:
        while len(results) < len(pipes):  # the first that fails is named, while the others wait for it in a collective
            ready = wait([pipe for pipe in pipes if pipe not in results], deadline - time.monotonic())
            assert ready, f"ranks {[i for i, pipe in enumerate(pipes) if pipe not in results]} have not finished"
            for pipe in ready:
                is_good, results[pipe] = pipe.recv()
                assert is_good, results[pipe]
        return [results[pipe] for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _work(pipe: Any, function: Any, args: Any, fsdp: int, tp: int, rank: int, address: Address) -> None:
    torch.set_num_threads(1)
    try:
        ranks = Ranks.join(fsdp, tp, rank, address, seconds=SECONDS)
        pipe.send((True, function(ranks, *args)))
        ranks.close()
    except BaseException:
        pipe.send((False, traceback.format_exc()))
