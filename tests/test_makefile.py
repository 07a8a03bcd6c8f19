"""What ends `make` ends what it started, and the folder that was to be thrown away goes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.source_code import ROOT

# Stands in for `mrisynth`: like it, SIGTERM ends it as Ctrl-C does.
COMMAND = """#!{python}
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.default_int_handler)
folder = None
if "--data-dir" in sys.argv:
    folder = pathlib.Path(sys.argv[sys.argv.index("--data-dir") + 1])
try:
    print(os.getpid(), folder, flush=True)
    time.sleep({seconds})
    sys.exit(3)
except KeyboardInterrupt:
    time.sleep(0.2)  # what it is about is ended first
    assert folder is None or folder.is_dir()
    pathlib.Path(__file__).with_name("ended").touch()
    sys.exit(130)
"""


def start(target: str, folder: Path, seconds: float) -> "subprocess.Popen[str]":
    """Start `make` with a command of our own in the place of the installed one."""
    command = folder / "mrisynth"
    command.write_text(COMMAND.format(python=sys.executable, seconds=seconds))
    command.chmod(0o755)
    words = ["make", "-o", ".venv/.installed", "-o", "setup", f"BIN={folder}", target]
    return subprocess.Popen(
        words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("target", ["all", "smoke"])
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_run_and_then_make(
    tmp_path: Path, target: str, ending: signal.Signals
) -> None:
    with start(target, tmp_path, 60) as make:
        assert make.stdout is not None
        line = make.stdout.readline()
        while not line[0].isdigit():  # make shows the command
            line = make.stdout.readline()
        pid, folder = line.split()
        if ending == signal.SIGTERM:
            make.send_signal(ending)
        else:  # as a terminal does
            os.killpg(make.pid, ending)
        make.communicate(timeout=10)
    deadline = time.monotonic() + 10
    while not (tmp_path / "ended").exists():
        assert time.monotonic() < deadline, f"{pid} was left behind"
        time.sleep(0.05)
    while folder != "None" and Path(folder).exists():
        assert time.monotonic() < deadline, f"{folder} was left behind"
        time.sleep(0.05)
    assert make.returncode


def test_run_that_fails_fails_make(tmp_path: Path) -> None:
    with start("smoke", tmp_path, 0) as make:
        output, errors = make.communicate(timeout=10)
    assert make.returncode == 2
    assert "Error 3" in errors
    assert not Path(output.split()[1]).exists()
