"""Worker processes: they end with the process that started them, however that one ends.

With one thread each, as many as there are cores share them in peace.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process

from pipeline.errors import OutOfMemoryError


def one_thread() -> None:
    """Keep the linear algebra of this process to one thread.

    Two processes whose products take two threads each make phantoms three times as slowly on two
    cores: the threads wait for each other, spinning.
    """
    import numpy  # noqa: F401  # what is loaded later would not be limited
    import scipy.linalg  # noqa: F401
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def any_threads() -> None:
    """Leave the number of threads to the work itself."""


@contextmanager
def start_workers(
    count: int, prepare: Callable[[], None] = one_thread
) -> Iterator[ProcessPoolExecutor]:
    """Start fresh processes, each after `prepare`; CUDA would not survive a fork.

    An error in the block waits for what the workers have begun; an interruption ends them at once.

    Raises:
        OutOfMemoryError: A worker was killed.
    """
    pool = ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_begin, initargs=(prepare,)
    )
    try:
        yield pool
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            f"one of {count} worker processes was killed, as happens when memory runs out. "
            "What is done is kept: free memory or ask for fewer workers, then run this again."
        ) from error
    except Exception:
        raise
    except BaseException:  # Ctrl-C, SIGTERM, or nobody reads on
        for process in list((pool._processes or {}).values()):  # 3.14 has terminate_workers()
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(prepare: Callable[[], None]) -> None:
    """Follow the parent before anything else; Ctrl-C is for it to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
