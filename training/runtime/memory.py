"""Memory of the CPU that training steps reuse."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3)
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Bytes. Larger tensors are few, and would leave gaps in the heap: a prototype matrix of DINO has 64
# MiB. Those of activations are smaller.
LARGEST_KEPT = 2**26
NEVER_TRIM = 2**31 - 1  # the largest C int


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor instead of returning it to the system.

    A step on a CPU frees its tensors and allocates the same sizes again in the next one. By
    default, glibc returns the end of its heap, so that the system must fill every page with zeros
    again. Tensors of 64 MiB or more are still returned.

    Returns:
        Whether it applies: only with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library, such as musl
        return False
    settings = {M_MMAP_THRESHOLD: LARGEST_KEPT, M_TRIM_THRESHOLD: NEVER_TRIM}
    return all([mallopt(name, value) == 1 for name, value in settings.items()])


__all__ = ["keep_freed_memory"]
