"""Shards of phantom slices, one subject each: made in processes, whole or absent."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

from pipeline.files import read_arrays, read_or_make
from pipeline.workers import start_workers
from stages.components.phantoms.source_digest import generator_digest

REPORT_EVERY = 20  # shards


class Shard(Protocol):
    """One shard to make."""

    @property
    def path(self) -> Path:
        """Where it will lie."""
        ...


ShardT = TypeVar("ShardT", bound=Shard)


def shard_folder(cache_dir: Path) -> Path:
    """Return where shards lie; those of another generator lie elsewhere, and are never read."""
    return cache_dir / f"phantoms-{generator_digest()[:12]}"


def build_shards(
    shards: Sequence[ShardT],
    make: Callable[[ShardT], None],
    what: str,
    workers: int,
    progress: Callable[[str], None],
) -> None:
    """Make the shards that are not there yet, in worker processes.

    Args:
        shards: All shards of a split.
        make: Makes one; a function of a module, which new processes can import.
        what: Names them in the progress, e.g. "phantoms for base".
        workers: Processes.
        progress: Takes a line now and then.
    """
    todo = [shard for shard in shards if not shard.path.exists()]
    if not todo:
        return
    with start_workers(max(1, workers)) as pool:
        for done, _ in enumerate(pool.map(make, todo), start=1):
            if done % REPORT_EVERY == 0 or done == len(todo):
                progress(f"{what}: {done} of {len(todo)} subjects")


def read_shard(shard: ShardT, make: Callable[[ShardT], None]) -> dict[str, NDArray[Any]]:
    """Read all arrays of a shard; one that is damaged is made again."""
    return read_or_make(shard.path, read_arrays, lambda: make(shard))
