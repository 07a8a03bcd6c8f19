"""Ranks of one launch (`accelerate launch`, torchrun, mpirun): who does what.

Rank 0 plans, checks, locks, makes and publishes everything, as a process alone would. The others
take part in its trainings, and nothing else: they wait until a training can begin, and run the
stage beside rank 0, which alone writes. They need the same data folder.
"""

import os
import time
from collections.abc import Callable

from pipeline.errors import PipelineError

# What launchers set, in the order in which accelerate looks.
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
SHARED_STAGES = frozenset({"finetune"})  # stages that all ranks run together
PAUSE_S = 0.2


def current() -> int:
    """Return this process's rank in its launch; 0 for a process alone."""
    return _first(RANKS, 0) if _first(SIZES, 1) > 1 else 0


def wait_until(is_ready: Callable[[], bool], what: str) -> None:
    """Wait for what rank 0 does.

    Raises:
        PipelineError: The launcher has ended, and rank 0 with it.
    """
    parent = os.getppid()
    while not is_ready():
        if os.getppid() != parent:
            raise PipelineError(
                f"rank {current()} waited for {what}, but the process that launched it has ended; "
                "run the same command again"
            )
        time.sleep(PAUSE_S)


def _first(names: tuple[str, ...], default: int) -> int:
    values = (os.environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdigit()), default)
