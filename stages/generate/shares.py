"""Shares of work, dealt by index to several processes of this machine."""

from collections.abc import Callable
from concurrent.futures import Executor, as_completed
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol, TypeVar

import torch

from pipeline.contracts import Context
from pipeline.workers import any_threads, start_workers

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
    pool: Callable[[int], AbstractContextManager[Executor]] | None = None,
) -> list[ResultT]:
    """Do all parts: in this process if it is one, else each in a process of its own.

    What a part raises is raised here, when the other parts have ended.

    Raises:
        OutOfMemoryError: A process was killed.
    """
    if num_shards == 1:
        return [share(0, 1, context)]
    results: list[ResultT] = []
    with (pool or spawning)(num_shards) as executor:
        running = [
            executor.submit(share, shard, num_shards, shard_context(context, shard, num_shards))
            for shard in range(num_shards)
        ]
        for number, future in enumerate(as_completed(running), start=1):
            results.append(future.result())
            context.progress(f"{number} of {num_shards} shares")
    return results


def spawning(num_shards: int) -> AbstractContextManager[Executor]:
    """Start fresh processes, each with its part of the cores."""
    return start_workers(num_shards, any_threads)


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
