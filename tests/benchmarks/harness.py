"""How the benchmarks measure: processes of their own, where the time goes, tables, RESULTS.md."""

import datetime
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.run import provenance

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("RESULTS.md")
# MRISYNTH_BENCH=smoke: the smallest counts, to see that all runs; RESULTS.md stays as it is.
IS_SMOKE = os.environ.get("MRISYNTH_BENCH") == "smoke"
OPTIMISER = "optimiser"
WARM_STEPS = 2  # allocators, kernels and caches settle


def run_worker(kind: str, job: str) -> dict[str, Any]:
    """Run a job in a process of its own, so that its peak of memory is its own; see `worker`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.worker", kind, job],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_mib() -> float:
    """Return this process's peak of resident memory.

    Not `ru_maxrss`: a process inherits that from the one that started it.
    """
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    assert match, "Linux reports it"
    return int(match.group(1)) / 1024


@dataclass(frozen=True)
class Event:
    """A call of some part of a training, in seconds of `time.perf_counter`."""

    part: str
    began: float
    ended: float


@contextmanager
def watched(device: str, events: list[Event]) -> Iterator[None]:
    """Append to `events` when each part of a training runs, for both loops alike.

    The forward passes of the UNet and of the text encoders, encoding by the VAE, backward (with
    gradient checkpointing it includes the second forward pass), and the optimiser. On a GPU each
    part waits for the device, so that the whole is slower than a training that is not watched.
    """
    import accelerate
    import diffusers
    import torch
    import transformers

    inside: set[str] = set()  # a class's forward may call that of the class above it

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def wrap(part: str, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if part in inside:
                return function(*args, **kwargs)
            wait()
            inside.add(part)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                wait()
                inside.remove(part)
                events.append(Event(part, began, time.perf_counter()))

        # transformers reads the arguments of a forward pass from its signature
        return functools.wraps(function)(timed)

    places = [
        (diffusers.UNet2DConditionModel, "forward", "UNet"),
        (diffusers.AutoencoderKL, "encode", "VAE"),
        (transformers.CLIPTextModel, "forward", "text encoders"),
        (transformers.CLIPTextModelWithProjection, "forward", "text encoders"),
        (accelerate.Accelerator, "backward", "backward"),
        (accelerate.optimizer.AcceleratedOptimizer, "step", OPTIMISER),
    ]
    originals = [(place, name, getattr(place, name)) for place, name, _ in places]
    for (place, name, function), (_, _, part) in zip(originals, places, strict=True):
        setattr(place, name, wrap(part, function))
    try:
        yield
    finally:
        for place, name, function in originals:
            setattr(place, name, function)


def parts_of(events: Sequence[Event]) -> tuple[dict[str, float], float]:
    """Add up the seconds of each part from the end of the first optimiser step to that of the last.

    What is done once, before the training and after it, is not in there.

    Returns:
        Seconds by part, and those of the whole; nothing of fewer than two steps.
    """
    ends = [event.ended for event in events if event.part == OPTIMISER]
    parts: dict[str, float] = {}
    for event in events:
        if ends and ends[0] <= event.began and event.ended <= ends[-1]:
            parts[event.part] = parts.get(event.part, 0.0) + event.ended - event.began
    return parts, ends[-1] - ends[0] if ends else 0.0


def seconds_a_step(step_s: Sequence[float]) -> float:
    """Return the median over the steps after the first few."""
    return statistics.median(step_s[WARM_STEPS:] or step_s[-1:])


def seconds_an_image(files: Sequence[Path], first: int) -> float:
    """Return what an image took, by the times at which they were written.

    The first `first` of them (a batch, or one) are left out: before them the model was loaded.
    """
    written = sorted(path.stat().st_mtime_ns for path in files)
    return (written[-1] - written[first - 1]) / 1e9 / (len(written) - first)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table in Markdown.

    Example:
        >>> table(["a", "b"], [["1", "2"]])
        ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    lines = [f"| {' | '.join(cells)} |" for cells in [head, *rows]]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def against(ratio: float, bar: float) -> str:
    """Word a ratio beside its bar.

    Example:
        >>> against(2.345, 2.0), against(1.2, 1.4)
        ('2.35 (bar 2.0: met)', '1.20 (bar 1.4: missed)')
    """
    return f"{ratio:.2f} (bar {bar:.1f}: {'met' if ratio >= bar else 'missed'})"


def describe_machine() -> str:
    """Name processor, cores, memory, GPU and the libraries' versions."""
    found, versions = provenance.machine(), provenance.versions()
    gpu = f", {found['gpu']}" if found["gpu"] else ", no GPU"
    libraries = ", ".join(f"{name} {versions[name]}" for name in ("torch", "diffusers", "peft"))
    return (
        f"{found['cpu']}, {found['cores']} cores, {found['memory_gib']} GiB{gpu}; python "
        f"{versions['python']}, {libraries}"
    )


def renew(text: str, name: str, lines: Sequence[str]) -> str:
    """Put a benchmark's section in the place of its last one.

    Example:
        >>> renew("<!-- a -->\\nold\\n<!-- end a -->\\n", "a", ["new"])
        '<!-- a -->\\nnew\\n<!-- end a -->\\n'
    """
    begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    section = "\n".join([begin, *lines, end])
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        return f"{text.rstrip()}\n\n{section}\n"
    return pattern.sub(lambda _: section, text)


def report(name: str, title: str, command: str, lines: Sequence[str]) -> None:
    """Print a benchmark's findings, and renew its section of RESULTS.md."""
    sys.stdout.write("\n" + "\n".join([title, "", *lines]) + "\n")
    if IS_SMOKE:
        sys.stdout.write("(smallest counts; RESULTS.md is left as it is)\n")
        return
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    head = [f"## {title}", "", f"{today}, {describe_machine()}. Command: `{command}`.", ""]
    text = RESULTS.read_text(encoding="utf-8")
    RESULTS.write_text(renew(text, name, [*head, *lines]), encoding="utf-8")


def shares(parts: Mapping[str, float], total: float) -> str:
    """Word where the time of a training went.

    Example:
        >>> shares({"UNet": 2.0, "VAE": 1.0}, 4.0)
        'UNet 50 %, VAE 25 %, rest 25 %'
    """
    rows = [*parts.items(), ("rest", max(0.0, total - sum(parts.values())))]
    return ", ".join(f"{name} {seconds / total:.0%}".replace("%", " %") for name, seconds in rows)
