"""Worker processes that decode images."""

from __future__ import annotations

import sys

import torch


def use_one_thread(worker_id: int) -> None:
    """Initialize a worker of a DataLoader: the workers are the parallelism, so each has one thread.

    Args:
        worker_id: Number of the worker, which DataLoader passes; unused.
    """
    torch.set_num_threads(1)
    if "cv2" in sys.modules:  # OpenCV is optional
        sys.modules["cv2"].setNumThreads(0)


__all__ = ["use_one_thread"]
