"""Provenance of an artifact: library versions, machine, memory."""

import importlib.metadata
import os
import platform
import re
import resource
import sys
from functools import cache
from pathlib import Path
from typing import Any

DISTRIBUTIONS = (
    "mrisynth", "accelerate", "bitsandbytes", "diffusers", "nibabel", "nilearn", "numpy", "peft",
    "pillow", "scikit-learn", "scipy", "torch", "transformers",
)  # fmt: skip


@cache
def versions(distributions: tuple[str, ...] = DISTRIBUTIONS) -> dict[str, str]:
    """Versions of Python and of the libraries whose arithmetic reaches a result."""
    numbers = {"python": platform.python_version()}
    for name in distributions:
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            numbers[name] = "absent"
    return numbers


@cache
def machine() -> dict[str, Any]:
    """The machine in words: system, processor, cores, memory, GPU; no host name and no user."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
    }


def usable_cores() -> int:
    """Cores that this process may use; fewer than the machine has where it is confined."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def peak_rss_mib() -> int:
    """Peak resident memory of this process and its children since it started, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    this_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return int(max(this_process, children) / unit)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        if match:
            return match.group(1).strip()
    return platform.processor() or "unknown"


def _gpu() -> str | None:
    """Name the GPUs if torch is loaded and sees any; never load torch to find out."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return f"{torch.cuda.device_count()} x {', '.join(sorted(names))}"
