"""Worker processes leave the other cores alone, and nobody alone behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from threadpoolctl import threadpool_info

from pipeline.errors import OutOfMemoryError
from pipeline.source_code import ROOT
from pipeline.workers import any_threads, start_workers

PARENT = """
import multiprocessing, signal, time
from pipeline.workers import any_threads, start_workers

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with start_workers(2, any_threads) as pool:
        for _ in range(2):
            pool.submit(time.sleep, 0).result()
            pool.submit(time.sleep, 600)
        print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        pool.submit(time.sleep, 600).result()
"""


def test_a_worker_has_one_thread() -> None:
    with start_workers(1) as pool:
        found = pool.submit(threadpool_info).result()
    assert found
    assert {library["num_threads"] for library in found} == {1}


def test_a_worker_that_is_killed_is_one_clear_line() -> None:
    with (
        pytest.raises(OutOfMemoryError, match=r"one of 1 worker processes was killed.*memory"),
        start_workers(1, any_threads) as pool,
    ):
        pool.submit(os._exit, 9).result()


def test_an_error_waits_for_what_was_begun(tmp_path: Path) -> None:
    def fail() -> None:
        with start_workers(1, any_threads) as pool:
            pool.submit(time.sleep, 0.5)
            begun = pool.submit((tmp_path / "made").mkdir)
            while not begun.running():
                time.sleep(0.01)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert (tmp_path / "made").is_dir()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, ending: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as parent:
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(workers) == 2
        parent.send_signal(ending)
        try:
            _, alive = psutil.wait_procs([*workers], timeout=10)
            assert [worker for worker in alive if worker.status() != psutil.STATUS_ZOMBIE] == []
            parent.wait(timeout=10)
        finally:
            parent.kill()  # where it has not ended: leaving waits for it
        assert parent.stderr.read().count(b"Traceback") == (ending != signal.SIGKILL)
