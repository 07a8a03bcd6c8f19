"""Worker processes with one thread each: as many as there are cores, they share them in peace."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def one_thread() -> None:
    """Keep the linear algebra of this process to one thread.

    Two processes whose products take two threads each make phantoms three times as slowly on two
    cores: the threads wait for each other, spinning.
    """
    import numpy  # noqa: F401  # what is loaded later would not be limited
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def start_workers(count: int) -> ProcessPoolExecutor:
    """Start fresh processes, each with one thread; close the pool when done."""
    return ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=one_thread)
