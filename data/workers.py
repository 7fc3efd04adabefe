"""Initialization of worker processes that decode images."""

from __future__ import annotations

import gc
import sys

import torch


def initialize_worker(worker_id: int = 0) -> None:
    """Prepare a worker process, the `worker_init_fn` of a DataLoader.

    A worker uses one thread, because the workers already run in parallel. Objects of the main
    process are never freed here by garbage collection. Freeing one can wait forever: an inference
    session of ONNX Runtime waits for its threads, which a forked process does not have.

    Args:
        worker_id: Index of the worker, passed by DataLoader; unused.
    """
    gc.freeze()
    gc.enable()
    torch.set_num_threads(1)
    if "cv2" in sys.modules:  # OpenCV is optional
        sys.modules["cv2"].setNumThreads(0)


__all__ = ["initialize_worker"]
