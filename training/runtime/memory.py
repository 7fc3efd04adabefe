"""Memory of the CPU that training steps reuse."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3)
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST = 2**31 - 1  # bytes; mallopt takes a C int


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor instead of returning it to the system.

    A step on a CPU frees its tensors and allocates the same sizes again in the next one. By
    default, glibc maps tensors above 32 MiB one by one and returns the end of its heap, so that
    the system must fill every page with zeros again.

    Returns:
        Whether it applies: only with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    return all(mallopt(name, LARGEST) == 1 for name in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))


__all__ = ["keep_freed_memory"]
