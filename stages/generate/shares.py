"""Shares of work, dealt by index to several processes of this machine."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Protocol, TypeVar

import torch

from pipeline.contracts import Context
from pipeline.errors import TrainingError

ResultT = TypeVar("ResultT", covariant=True)


class Share(Protocol[ResultT]):
    """A picklable function that does the `shard`-th of `num_shards` parts of some work."""

    def __call__(self, shard: int, num_shards: int, context: Context) -> ResultT:
        """Do it."""
        ...


def run_shares(
    share: Share[ResultT],
    num_shards: int,
    context: Context,
    pool: Callable[[int], ProcessPoolExecutor] | None = None,
) -> list[ResultT]:
    """Do all parts: in this process if it is one, else each in a process of its own.

    What a part raises is raised here, when the other parts have ended.

    Raises:
        TrainingError: A process ended without saying why.
    """
    if num_shards == 1:
        return [share(0, 1, context)]
    results: list[ResultT] = []
    with (pool or spawning)(num_shards) as executor:
        running = [
            executor.submit(share, shard, num_shards, shard_context(context, shard, num_shards))
            for shard in range(num_shards)
        ]
        try:
            for number, future in enumerate(as_completed(running), start=1):
                results.append(future.result())
                context.progress(f"{number} of {num_shards} shares")
        except BrokenProcessPool as error:
            raise TrainingError(
                f"one of {num_shards} processes ended without saying why, as when memory runs out. "
                "What is done is kept; lower num_shards, then rerun."
            ) from error
    return results


def spawning(num_shards: int) -> ProcessPoolExecutor:
    """Start fresh processes: CUDA does not survive a fork."""
    return ProcessPoolExecutor(num_shards, mp_context=multiprocessing.get_context("spawn"))


def shard_context(context: Context, shard: int, num_shards: int) -> Context:
    """Give a process its part of the machine: GPUs in turn, and a share of the cores."""
    device = context.device
    if device == "cuda":
        device = f"cuda:{shard % torch.cuda.device_count()}"
    threads = max(1, context.num_threads // num_shards)
    return replace(context, device=device, num_threads=threads, progress=silent)


def silent(line: str) -> None:
    """Say nothing: what a process of its own has for `Context.progress`."""
    del line


def is_orphan() -> bool:
    """Tell whether the process that started this one has ended; another may go on in its place."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()
