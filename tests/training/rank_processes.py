"""Ranks as real processes of this machine: each runs a function of its own `Ranks`."""

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any

import torch

from llamarl.training.ranks import LOOPBACK, Address, Meeting, Ranks

SECONDS = 120.0


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
    try:
        return [_receive(pipe) for pipe in pipes]
    finally:
        for process in processes:
            process.kill()
            process.join()


def _receive(pipe: Any) -> Any:
    assert pipe.poll(SECONDS), "a rank has not finished"
    is_good, value = pipe.recv()
    assert is_good, value
    return value


def _work(pipe: Any, function: Any, args: Any, fsdp: int, tp: int, rank: int, address: Address) -> None:
    torch.set_num_threads(1)
    try:
        ranks = Ranks.join(fsdp, tp, rank, address, seconds=SECONDS)
        pipe.send((True, function(ranks, *args)))
        ranks.close()
    except BaseException:
        pipe.send((False, traceback.format_exc()))
