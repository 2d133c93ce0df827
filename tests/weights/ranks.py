"""A few real processes that run functions together as ranks of process groups."""

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def _work(pipe) -> None:
    torch.set_num_threads(1)
    while (job := pipe.recv()) is not None:
        try:
            pipe.send((True, _run(*job)))
        except BaseException as error:
            told = pickle.loads(pickle.dumps(error)) if isinstance(error, RuntimeError | ValueError) else None
            pipe.send((False, told or RuntimeError(traceback.format_exc())))


def _run(function: Callable, rank: int, size: int, store: str | None, args: tuple) -> Any:
    if store is None:
        return function(rank, *args)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    try:
        return function(rank, *args)
    finally:
        dist.destroy_process_group()


class Ranks:
    """Processes that live as long as this object; jobs name module-level functions `f(rank, *args)`."""

    def __init__(self, number: int, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"])
        self._folder, self._count = folder, 0
        self._pipes, self._processes = [], []
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        for _ in range(number):
            ours, theirs = context.Pipe()
            self._processes.append(context.Process(target=_work, args=(theirs,), daemon=True))
            self._pipes.append(ours)
            self._processes[-1].start()

    def begin(self, first: int, size: int, function: Callable, *args: Any, is_group: bool = True) -> None:
        """Starts `function` on processes `first` to `first + size`, as ranks 0 to `size` of a group of their own."""
        self._count += 1
        store = str(self._folder / f"store{self._count}") if is_group else None
        for rank in range(size):
            self._pipes[first + rank].send((function, rank, size, store, args))

    def end(self, first: int, size: int) -> list[Any]:
        """Their results; raises the first error."""
        replies = [self._reply(first + rank) for rank in range(size)]
        for is_good, value in replies:
            if not is_good:
                raise value
        return [value for _, value in replies]

    def run(self, size: int, function: Callable, *args: Any) -> list[Any]:
        """Both, on the first processes."""
        self.begin(0, size, function, *args)
        return self.end(0, size)

    def _reply(self, index: int) -> tuple[bool, Any]:
        assert self._pipes[index].poll(120), f"process {index} does not answer"
        return self._pipes[index].recv()

    def close(self) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send(None)
            process.join(10)
            process.kill()
