"""How the C library hands memory back: not at all while a network is trained on the CPU."""

import ctypes
import sys

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**30  # bytes; glibc refuses more than half of the address space of a heap


def keep_freed_memory() -> bool:
    """Keep what is freed for the next step, which asks for the same again; return whether it does.

    By default glibc returns large blocks to the system at once and takes them back page by page:
    5,000 page faults and 3 % of a step of the benchmark's training. Only glibc has these knobs.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return all(mallopt(knob, LARGEST) == 1 for knob in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD))
