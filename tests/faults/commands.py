"""Commands in processes of their own, each stopped at a moment that comes again.

A moment is a file operation below the data folder, by kind and name: an audit hook meets it in the
command's process. Processes are forked from one that has loaded what the stages need.
"""

import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil

PRELOADED = ["tests.faults.commands", "tests.faults.preload"]
OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "open")
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.partial")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = [  # worker processes; of evaluate what writes files, not what computes for long
    f"--set={change}"
    for change in (
        "preprocess.source.settings.num_workers=2",
        "evaluate.location=false",
        "evaluate.memorisation=false",
        "evaluate.metrics=[kid]",
    )
]
TIMED = ("train_log.jsonl", "tensorboard/", "report.html", "facts.json", "poster.pdf", "poster.png")
LONGEST_S = 600
GRACE_S = 10  # for workers to end after their parent


@dataclass(frozen=True)
class Moment:
    """An operation that is about to happen to a path below the data folder."""

    operation: str
    path: str


def send(number: signal.Signals) -> None:
    """Let a signal reach this process alone."""
    os.kill(os.getpid(), number)


def send_to_group(number: signal.Signals) -> None:
    """Let a signal reach this process and its workers, as a terminal does."""
    os.killpg(0, number)


def refuse(number: int) -> None:
    """Let the operation fail as the system would."""
    raise OSError(number, os.strerror(number), "a path")


def run_out() -> None:
    """Let memory run out."""
    raise MemoryError


def jump() -> None:
    """Put the clock a year back, and forth again at every second look at it."""
    real, looks = time.time, itertools.cycle((-365 * 86400.0, 0.0))
    time.time = lambda: real() + next(looks)


@dataclass
class Hook:
    """Keeps the operations below a folder, each once, and acts before one of them."""

    data_dir: Path
    at: Moment | None
    action: Callable[[], None]
    seen: dict[Moment, None] = field(default_factory=dict)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in OPERATIONS or not isinstance(args[0], str | os.PathLike):
            return
        if event == "open" and not self._writes(*args[1:]):
            return
        path = os.fspath(args[0])
        below = f"{self.data_dir}{os.sep}"
        if not isinstance(path, str) or not path.startswith(below) or path.endswith("run.log"):
            return
        moment = Moment(event, TEMPORARY.sub(".TEMPORARY", path.removeprefix(below)))
        is_first = moment not in self.seen
        self.seen[moment] = None
        if moment == self.at and is_first:
            self.action()

    @staticmethod
    def _writes(mode: str | None, flags: int | None) -> bool:
        return bool(set(mode or "") & set("wax+")) or (
            mode is None and bool((flags or 0) & WRITING)
        )


def _main(
    words: list[str], data_dir: Path, output: Path, at: Moment | None, action: Callable[[], None]
) -> None:
    """Be `mrisynth`, in a process group of its own."""
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    hook = Hook(data_dir, at, action)
    sys.addaudithook(hook)
    sys.argv = ["mrisynth", *words]
    from pipeline.cli.app import main

    try:
        main()
    finally:
        rows = [[moment.operation, moment.path] for moment in hook.seen]
        output.with_suffix(".json").write_text(json.dumps(rows))


def _end_with_the_tests() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def fork(function: Callable[..., object], *args: Any) -> BaseProcess:
    """Start a process that has loaded what stages need, and call a function there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=args)
    process.start()
    return process


@dataclass(frozen=True)
class Command:
    """A command at work."""

    process: BaseProcess
    output: Path

    def wait(self) -> int:
        """Wait for its end, and for that of its workers; return its exit status as Python's."""
        self.process.join(LONGEST_S)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"still at work: {self.read()}")
        deadline = time.monotonic() + GRACE_S
        while alive := self.workers():
            assert time.monotonic() < deadline, f"left behind: {alive}"
            time.sleep(0.05)
        return self.process.exitcode

    def wait_until_stopped(self) -> None:
        """Wait until it has stopped itself with SIGSTOP."""
        while psutil.Process(self.pid).status() != psutil.STATUS_STOPPED:
            assert self.process.is_alive(), self.read()
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Its process, which leads its group."""
        assert self.process.pid is not None
        return self.process.pid

    def workers(self) -> list[psutil.Process]:
        """List the living processes of its group besides itself."""
        return [
            process
            for process in psutil.process_iter()
            if process.pid != self.pid and self._is_ours(process)
        ]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            is_alive = process.status() != psutil.STATUS_ZOMBIE
            return is_alive and os.getpgid(process.pid) == self.pid
        except (psutil.NoSuchProcess, ProcessLookupError):
            return False

    def read(self) -> str:
        """Return what it has said so far."""
        return self.output.read_text(encoding="utf-8")

    def moments(self) -> list[Moment]:
        """Return its file operations in order, each once; it must have ended by itself."""
        return [Moment(*row) for row in json.loads(self.output.with_suffix(".json").read_text())]


@dataclass
class Workshop:
    """Starts commands on one experiment in one data folder."""

    config: Path
    data_dir: Path
    count: int = 0

    def start(
        self, command: str = "run", at: Moment | None = None, action: Any = None, *options: str
    ) -> Command:
        """Start a command; before the operation `at` it does `action`."""
        self.count += 1
        output = self.data_dir.with_name(f"{self.data_dir.name}-{self.count:02}.txt")
        output.touch()
        words = [command, "--data-dir", str(self.data_dir), *options]
        if command != "clean":
            words += ["--config", str(self.config), *CHANGES]
        process = fork(_main, words, self.data_dir, output, at, action or partial(int))
        return Command(process, output)

    def finish(self, command: str = "run", *options: str) -> Command:
        """Run a command that is to succeed."""
        made = self.start(command, None, None, *options)
        assert made.wait() == 0, made.read()
        return made

    def digests(self) -> dict[str, dict[str, Any]]:
        """Return what manifests say of every file that tells no time, by artifact."""
        return {
            path.parent.relative_to(self.data_dir).as_posix(): {
                name: known
                for name, known in json.loads(path.read_text())["files"].items()
                if not name.startswith(TIMED)
            }
            for path in sorted(self.data_dir.glob("runs/*/*/*/manifest.json"))
        }
