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
from accelerate.utils import InitProcessGroupKwargs, gather_object

from ...data.dataset_source import StreamingImageSource
from ...data.image_source import ImageSource
from ..config.tracker_names import chosen_trackers
from ..config.training_config import TrainingConfig
from .fsdp import settle_sharding


def meet(accelerator: Accelerator) -> None:
    """Wait for the other processes: who leaves while others are on their way breaks theirs.

    gloo raises in a barrier that all have reached, if another process is gone before this one has
    woken up.
    """
    with suppress(RuntimeError):
        if accelerator.num_processes > 1:
            accelerator.wait_for_everyone()
        elif dist.is_available() and dist.is_initialized():  # launched together, to train alone
            dist.barrier()


def end_together(accelerator: Accelerator) -> None:
    """Leave a run whose files are all written, with the others."""
    meet(accelerator)
    accelerator.end_training()


def build_accelerator(training: TrainingConfig) -> Accelerator:
    """Return Accelerate's handle on the processes, in the configuration that it was launched with.

    Raises:
        ValueError: if that does not go together with the run, a tracker is not installed, or
            several processes were launched that would each train alone.
    """
    # Accelerate has no argument yet for what torch 2.14 calls forward_sync_buffers
    warnings.filterwarnings("ignore", message=r"`broadcast_buffers` is deprecated")
    if training.num_workers <= TrainingConfig.num_workers:  # on fewer cores they take turns
        warnings.filterwarnings("ignore", message="This DataLoader will create")
    accelerator = Accelerator(
        cpu=training.cpu,
        mixed_precision=training.mixed_precision,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        log_with=chosen_trackers(training.tracker) or None,
        project_dir=Path(training.output),
        kwargs_handlers=[
            # buffers (the center) are equal everywhere: they are computed from reduced values
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # the others wait while one evaluates or reads a slow image; NCCL's own limit is 10 min
            InitProcessGroupKwargs(timeout=timedelta(minutes=30)),
        ],
    )
    meet(accelerator)  # so that what all refuse is not told by some as the death of the others
    launched = int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1
    if accelerator.num_processes < launched:  # they would write into one folder, too
        raise ValueError(
            f"{launched} processes were launched, and each would train alone, as there is no GPU "
            "for them here; give --cpu true to train together on the CPU."
        )
    settle_sharding(accelerator, training)
    return accelerator


def check_same_images(source: ImageSource | StreamingImageSource, accelerator: Accelerator) -> None:
    """Refuse images that differ between processes: machines that each have a copy of their own.

    Raises:
        ValueError: with what two of them have.
    """
    if accelerator.num_processes == 1:
        return
    everyone = gather_object([(platform.node(), source.description, source.fingerprint)])
    for rank, (node, description, fingerprint) in enumerate(everyone):
        if fingerprint != everyone[0][2]:
            raise ValueError(
                f"the processes do not see the same images: number 0 has {everyone[0][1]} on "
                f"{everyone[0][0]}, number {rank} has {description} on {node}. Share the folder, "
                "or copy it whole; of a data set of the Hub, give a revision (USER/NAME@REVISION)."
            )


__all__ = ["build_accelerator", "end_together", "meet"]
