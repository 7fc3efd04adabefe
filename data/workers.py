"""Initialization of worker processes that decode images."""

from __future__ import annotations

import sys

import torch


def use_one_thread(worker_id: int) -> None:
    """Limit a DataLoader worker to one thread, because the workers already run in parallel.

    Args:
        worker_id: Index of the worker, passed by DataLoader; unused.
    """
    torch.set_num_threads(1)
    if "cv2" in sys.modules:  # OpenCV is optional
        sys.modules["cv2"].setNumThreads(0)


__all__ = ["use_one_thread"]
