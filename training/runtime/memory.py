"""Memory of the CPU that training steps reuse."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Parameters of mallopt(3)
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
USUAL = {M_MMAP_THRESHOLD: 2**17, M_TRIM_THRESHOLD: 2**17}  # bytes, defaults of glibc
# Larger tensors are few, and would leave gaps in the heap: a prototype matrix of DINO has 64 MiB.
# Those of activations are smaller. The heap is never trimmed.
KEPT = {M_MMAP_THRESHOLD: 2**26, M_TRIM_THRESHOLD: 2**31 - 1}


@contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[bool]:
    """Let glibc keep freed memory for the next tensor instead of returning it to the system.

    A step on a CPU frees its tensors and allocates the same sizes again in the next one. By
    default, glibc returns the end of its heap, so that the system must fill every page with zeros
    again. Tensors of 64 MiB or more are still returned. At the end, all is returned.

    Args:
        device: Device of the run.

    Yields:
        Whether it applies: only on a CPU and with glibc.
    """
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    applies = device.type == "cpu" and hasattr(library, "mallopt")  # musl has none
    if library is None or not applies:
        yield False
        return
    for name, value in KEPT.items():
        library.mallopt(name, value)
    try:
        yield True
    finally:
        for name, value in USUAL.items():
            library.mallopt(name, value)
        library.malloc_trim(0)


__all__ = ["freed_memory_kept"]
