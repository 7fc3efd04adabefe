"""Create the Accelerator and synchronize its processes."""

from __future__ import annotations

import os
import platform
import warnings
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, gather_object

from ...data.dataset_source import StreamingImageSource
from ...data.image_source import ImageSource
from ..config.run_config import RunConfig
from ..config.tracker_names import chosen_trackers
from ..config.training_config import DataConfig
from .fsdp import configure_fsdp
from .precision import mixed_precision_of


def build_accelerator(run: RunConfig) -> Accelerator:
    """Return the Accelerator of a run, configured as the processes were launched.

    Raises:
        ValueError: If the launch configuration contradicts the run, a tracker is not installed, or
            several processes were launched that would each train alone.
    """
    # Accelerate has no argument yet for what torch 2.14 calls forward_sync_buffers
    warnings.filterwarnings("ignore", message=r"`broadcast_buffers` is deprecated")
    if run.data.num_workers <= DataConfig.num_workers:  # more workers than cores take turns
        warnings.filterwarnings("ignore", message="This DataLoader will create")
    # Otherwise a run takes precision and device of an earlier one in the same process, or fails.
    AcceleratorState._reset_state(
        reset_partial_state=not (dist.is_available() and dist.is_initialized())
    )
    accelerator = Accelerator(
        cpu=run.runtime.cpu,
        mixed_precision=mixed_precision_of(run.runtime),
        gradient_accumulation_steps=run.runtime.gradient_accumulation_steps,
        log_with=chosen_trackers(run.monitoring.tracker) or None,
        project_dir=Path(run.start.output),
        kwargs_handlers=[
            # Buffers (the center) are computed from reduced values, so they are equal everywhere.
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # Others wait while one process evaluates or reads a slow image. NCCL's limit is 10 min.
            InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
        ],
    )
    # If all processes refuse a run, none of them must report the exit of another as the reason.
    synchronize(accelerator)
    launched = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if accelerator.num_processes < launched:
        raise ValueError(
            f"{launched} processes were launched, and each would train alone, because there is no "
            "GPU for them; give --cpu to train together on the CPU."
        )
    configure_fsdp(accelerator, run.optimizer.optimizer)
    return accelerator


def check_same_images(source: ImageSource | StreamingImageSource, accelerator: Accelerator) -> None:
    """Check that all processes see the same images, because machines may have copies; collective.

    Raises:
        ValueError: If the data of two processes differs.
    """
    if accelerator.num_processes == 1:
        return
    everyone = gather_object([(platform.node(), source.description, source.fingerprint)])
    for rank, (node, description, fingerprint) in enumerate(everyone):
        if fingerprint != everyone[0][2]:
            raise ValueError(
                f"the processes do not see the same images: rank 0 has {everyone[0][1]} on "
                f"{everyone[0][0]}, rank {rank} has {description} on {node}. Share the folder, or "
                "copy it completely; for a Hub dataset, give a revision (USER/NAME@REVISION)."
            )


def synchronize(accelerator: Accelerator) -> None:
    """Barrier that tolerates processes exiting while others still wait.

    In a barrier that all processes have reached, gloo raises an error if one of them exits before
    another one continues.
    """
    with suppress(RuntimeError):
        if accelerator.num_processes > 1:
            accelerator.wait_for_everyone()
        elif dist.is_available() and dist.is_initialized():  # launched together, to train alone
            dist.barrier()


def shut_down(accelerator: Accelerator) -> None:
    """End distributed training when all files are written; collective."""
    synchronize(accelerator)
    accelerator.end_training()


__all__ = ["build_accelerator", "check_same_images", "shut_down", "synchronize"]
