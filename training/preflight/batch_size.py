"""Find how many images fit into memory at a time: `--find-batch-size`.

The batch of an optimizer step stays the same, and with it learning rate, schedules and length. Only
the micro-batches become smaller. What an objective computes over the images of a micro-batch then
sees fewer of them: batch norm and the mean prediction (PMSN), KoLeo (DINO), and the batch norm of a
linear probe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from ...modeling.distributed import without_others
from ...modeling.observations import Observations
from ...sharing.published_files import RUN_FILE
from ..checkpoints.run_folder import check_run_folder
from ..config.run_config import RunConfig
from ..dataloader.sampler import BatchPlan
from ..loop import Batch, forward_backward, optimizer_step
from ..optimization import build_optimizer, optimized_parameters, set_schedules
from ..runtime.fsdp import is_sharded
from ..state import TrainState

NUM_STEPS = 2  # the first step creates the moments of AdamW, the second has them
# Fraction of a trial's memory that stays free, for fragmentation, DDP, pictures and evaluations.
RESERVE = 0.1

BatchesOf = Callable[[BatchPlan], Iterator[Batch]]


def find_batch_size(
    run: RunConfig,
    plan: BatchPlan,
    accelerator: Accelerator,
    build_model: Callable[[], Any],
    batches_of: BatchesOf,
) -> RunConfig:
    """Return the run with the fewest micro-batches per optimizer step that fit into memory.

    A model that is discarded afterwards makes real training steps, with at least twice as many
    micro-batches each time memory is full. Nothing is written. Every process tries by itself, and
    all use the largest number that any of them needs. On a CPU, memory is full when the system
    refuses to allocate it; if Linux kills the process instead, the search fails.

    Args:
        run: Configuration of the run, with the largest micro-batch to try. A resumed run keeps the
            number of micro-batches of its start.
        plan: Batches of the run.
        accelerator: Accelerator of the run.
        build_model: Function that returns a new model on the CPU.
        batches_of: Function that returns the micro-batches of a plan.

    Raises:
        FileExistsError: If the run folder is not empty and may not be used (`check_run_folder`).
        ValueError: If not even the fewest images fit that the objective can train with, or the
            model is sharded.
    """
    if run.start.resume:
        return with_saved_accumulation(run)
    check_run_folder(run)
    if is_sharded(accelerator):
        raise ValueError(
            "--find-batch-size tries each process by itself, which is impossible for a model that "
            "FSDP shards; set --gradient-accumulation-steps instead."
        )
    with without_others():
        needed = _accumulation_that_fits(run, plan, accelerator, build_model, batches_of)
    everyone = accelerator.gather(torch.tensor([needed], device=accelerator.device))
    if everyone.min() == 0:
        raise ValueError(
            "not even a micro-batch of one image (or the few that the objective needs) fits into "
            f"the memory of {accelerator.device}; try --activation-checkpointing, "
            "--mixed-precision bf16, a smaller --image-size or a smaller model."
        )
    found = replace(plan, accumulation_steps=int(everyone.max()))
    fewer = (
        " Batch norm, the mean prediction of PMSN and KoLeo, where used, only see the images of a "
        "micro-batch."
    )
    accelerator.print(
        f"find-batch-size: {found.micro_batch_size} images fit at a time, so a batch of "
        f"{found.batch_size} is {found.accumulation_steps} micro-batches in each of "
        f"{found.num_processes} processes (gradient_accumulation_steps {found.accumulation_steps})."
        + (fewer if found.accumulation_steps > plan.accumulation_steps else "")
    )
    return run.replace(gradient_accumulation_steps=found.accumulation_steps, find_batch_size=False)


def with_saved_accumulation(run: RunConfig) -> RunConfig:
    """Return a run with the micro-batches of its training.yaml, which were found at its start."""
    path = Path(run.start.output) / RUN_FILE
    if not path.is_file():
        return run  # `check_run_folder` will refuse it
    started = RunConfig.from_yaml(path.read_text(encoding="utf-8"))
    return run.replace(
        gradient_accumulation_steps=started.runtime.gradient_accumulation_steps,
        find_batch_size=False,
    )


def more_micro_batches(plan: BatchPlan) -> BatchPlan | None:
    """Return a plan with at least twice as many micro-batches, or None if each is one image."""
    images = plan.batch_size // plan.num_processes
    for steps in range(2 * plan.accumulation_steps, images + 1):
        if images % steps == 0:
            return replace(plan, accumulation_steps=steps)
    return None


def _accumulation_that_fits(
    run: RunConfig,
    plan: BatchPlan,
    accelerator: Accelerator,
    build_model: Callable[[], Any],
    batches_of: BatchesOf,
) -> int:
    """Return the number of micro-batches with which this process can train, or 0."""
    smaller: BatchPlan | None = plan
    while smaller is not None:
        clear_device_cache(garbage_collection=True)
        try:
            run_trial_steps(run, build_model(), batches_of(smaller), smaller, accelerator)
            break
        except (RuntimeError, MemoryError, ValueError) as error:
            # KoLeo and batch norm raise ValueErrors for too few images
            too_few = isinstance(error, ValueError) and smaller != plan
            if not (is_out_of_memory(error) or too_few):
                raise
        if accelerator.is_local_main_process:
            print(f"find-batch-size: {smaller.micro_batch_size} images at a time do not fit.")
        smaller = more_micro_batches(smaller)
    clear_device_cache(garbage_collection=True)
    return 0 if smaller is None else smaller.accumulation_steps


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the memory of a GPU or of the machine is full."""
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or (isinstance(error, Exception) and should_reduce_batch_size(error))
        or "std::bad_alloc" in str(error)
    )


def run_trial_steps(
    run: RunConfig,
    model: Any,
    batches: Iterator[Batch],
    plan: BatchPlan,
    accelerator: Accelerator,
) -> None:
    """Make training steps that need as much memory as any of the run's.

    Args:
        run: Configuration of the run.
        model: New model, on the CPU; it is moved to the device and trained.
        batches: Micro-batches of the plan.
        plan: Batches to try.
        accelerator: Accelerator of the run; its counter of micro-batches is restored.

    Raises:
        RuntimeError: If memory is full. Other types of errors are possible, see `is_out_of_memory`.
    """
    if run.runtime.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.to(accelerator.device).train()
    optimizer = build_optimizer(model, run.optimizer)
    # two micro-batches: the second one has the gradients of the first
    trial = run.replace(gradient_accumulation_steps=min(2, plan.accumulation_steps))
    state = TrainState(
        trial, accelerator, model, model, optimizer, plan.num_steps, step=plan.num_steps // 2
    )
    # DDP keeps every gradient a second time, in its buckets
    parameters = optimized_parameters(optimizer) if plan.num_processes > 1 else []
    buckets = [torch.zeros_like(value) for value in parameters]
    reserve = None
    counter = accelerator.step
    try:
        for _ in range(NUM_STEPS):
            set_schedules(optimizer, run.schedule, state.step, plan.num_steps)
            scheduled = model.scheduled_values(state.step, plan.num_steps)
            model.observations = Observations()
            forward_backward(state, batches, scheduled)
            optimizer_step(state)
            model.after_optimizer_step(state.step, plan.num_steps)
            if reserve is None:
                size = round(RESERVE * memory_in_use(accelerator.device))
                reserve = torch.empty(size, dtype=torch.uint8, device=accelerator.device)
    finally:
        accelerator.step = counter
    del buckets, reserve  # they must occupy memory until here


def memory_in_use(device: torch.device) -> int:
    """Return the peak GPU memory of this process, or its current memory on a CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


__all__ = [
    "NUM_STEPS",
    "find_batch_size",
    "is_out_of_memory",
    "more_micro_batches",
    "run_trial_steps",
    "with_saved_accumulation",
]
