"""How the C library hands memory back: hardly, once a network is trained on the CPU."""

import ctypes
import sys

# malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
BLOCKS = (2**30, 2**25)  # bytes; glibc before 2.35 takes no more than the second
HELD = 2**30  # bytes that may lie free


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
    # This one first: once the other is set, glibc no longer adapts this one by itself.
    if not any(mallopt(M_MMAP_THRESHOLD, size) == 1 for size in BLOCKS):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, HELD) == 1)
