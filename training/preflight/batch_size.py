"""How many images fit into memory at a time: `--find_batch_size true`.

The batch of an optimizer step stays what was asked for, and with it learning rate, schedules and
length: only the micro-batches that it is cut into become smaller. What an objective computes over
the images of a micro-batch sees fewer of them then: batch norm and the mean prediction (PMSN),
KoLeo (DINO), the batch norm of a linear probe.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor

from ...modeling.distributed import without_others
from ...modeling.observations import Observations
from ...sharing.published_files import RUN_FILE
from ..checkpoints.run_folder import check_output
from ..config.run_config import Run
from ..dataloader.sampler import BatchPlan
from ..optimization import build_optimizer, optimized_parameters, set_schedules
from ..runtime.fsdp import is_sharded

NUM_STEPS = 2  # the first makes the moments of AdamW, the second is the first that has them
# Of what a trial has taken: memory fragments, and DDP, pictures and evaluations want theirs.
RESERVE = 0.1


def find_batch_size(
    run: Run,
    plan: BatchPlan,
    accelerator: Accelerator,
    build_model: Callable[[], Any],
    inputs_from: Callable[[BatchPlan], Iterator[dict[str, Tensor]]],
) -> Run:
    """Return the run with the fewest micro-batches an optimizer step that fit into memory.

    Real training steps of a model that is thrown away are made, with twice as many micro-batches
    (or the next number that divides the batch) each time that memory is full. Nothing is written.
    Every process tries by itself; all take the largest number that any of them needs. On a CPU
    memory is full where the system refuses it; where Linux ends the process instead, nothing helps.

    Args:
        run: with the largest micro-batch to try. A run that is resumed keeps that of its start.
        plan: of its batches.
        accelerator: of the run.
        build_model: returns the model, on the CPU.
        inputs_from: yields the inputs of a plan's micro-batches, on the device.

    Raises:
        FileExistsError: if the output folder is taken, as `check_output`.
        ValueError: if not even the fewest images fit that the objective can be trained with, or
            the model is sharded over processes.
    """
    training = run.training
    if training.resume:
        return as_it_was_started(run)
    check_output(run)
    if is_sharded(accelerator):
        raise ValueError(
            "find_batch_size tries each process by itself, which a model sharded by FSDP cannot "
            "do; set gradient_accumulation_steps instead."
        )
    with without_others():
        needed = _accumulation_that_fits(run, plan, accelerator, build_model, inputs_from)
    everyone = accelerator.gather(torch.tensor([needed], device=accelerator.device))
    if everyone.min() == 0:
        raise ValueError(
            "not even a micro-batch of one image (or the few that the objective needs) fits into "
            f"the memory of {accelerator.device}; "
            "try activation_checkpointing true, mixed_precision bf16, a smaller image_size or a "
            "smaller model."
        )
    found = replace(plan, accumulation_steps=int(everyone.max()))
    sees_fewer = (
        " Batch norm, the mean prediction of PMSN and KoLeo, where there are any, see the images "
        "of a micro-batch only."
    )
    accelerator.print(
        f"find_batch_size: {found.micro_batch_size} images fit at a time, so a batch of "
        f"{found.batch_size} is {found.accumulation_steps} micro-batches in each of "
        f"{found.num_processes} processes (gradient_accumulation_steps {found.accumulation_steps})."
        + (sees_fewer if found.accumulation_steps > plan.accumulation_steps else "")
    )
    return _with_accumulation(run, found.accumulation_steps)


def _with_accumulation(run: Run, accumulation_steps: int) -> Run:
    """Return the run as training.yaml has it: with what was found, and nothing left to find."""
    training = replace(
        run.training, gradient_accumulation_steps=accumulation_steps, find_batch_size=False
    )
    return replace(run, training=training)


def as_it_was_started(run: Run) -> Run:
    """Return a run with the micro-batches that training.yaml has, which were found at its start."""
    path = Path(run.training.output) / RUN_FILE
    if not path.is_file():
        return run  # which `check_output` will refuse
    started = Run.from_yaml(path.read_text(encoding="utf-8"))
    return _with_accumulation(run, started.training.gradient_accumulation_steps)


def more_micro_batches(plan: BatchPlan) -> BatchPlan | None:
    """Return a plan with at least twice as many micro-batches; None if they are single images."""
    images = plan.batch_size // plan.num_processes
    for steps in range(2 * plan.accumulation_steps, images + 1):
        if images % steps == 0:
            return replace(plan, accumulation_steps=steps)
    return None


def _accumulation_that_fits(
    run: Run,
    plan: BatchPlan,
    accelerator: Accelerator,
    build_model: Callable[[], Any],
    inputs_from: Callable[[BatchPlan], Iterator[dict[str, Tensor]]],
) -> int:
    """Return the number of micro-batches with which this process can train; 0 for none."""
    smaller: BatchPlan | None = plan
    while smaller is not None:
        clear_device_cache(garbage_collection=True)
        try:
            train_a_little(run, build_model(), inputs_from(smaller), smaller, accelerator)
            break
        except (RuntimeError, MemoryError, ValueError) as error:
            # of too few images, KoLeo and batch norm say so by ValueErrors
            too_few = isinstance(error, ValueError) and smaller != plan
            if not (is_out_of_memory(error) or too_few):
                raise
        if accelerator.is_local_main_process:
            print(f"find_batch_size: {smaller.micro_batch_size} images at a time do not fit.")
        smaller = more_micro_batches(smaller)
    clear_device_cache(garbage_collection=True)
    return 0 if smaller is None else smaller.accumulation_steps


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory is full, on a GPU or in the machine."""
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or (isinstance(error, Exception) and should_reduce_batch_size(error))
        or "std::bad_alloc" in str(error)
    )


def train_a_little(
    run: Run,
    model: Any,
    inputs: Iterator[dict[str, Tensor]],
    plan: BatchPlan,
    accelerator: Accelerator,
) -> None:
    """Make training steps that need as much memory as any of the run's."""
    training = run.training
    if training.activation_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.to(accelerator.device).train()
    optimizer = build_optimizer(model, training)
    parameters = optimized_parameters(optimizer)
    # DDP keeps every gradient a second time, in its buckets
    buckets = [torch.zeros_like(value) for value in parameters if plan.num_processes > 1]
    largest = math.inf if training.max_gradient_norm is None else training.max_gradient_norm
    middle = plan.num_steps // 2
    reserve = None
    for _ in range(NUM_STEPS):
        set_schedules(optimizer, training, middle, plan.num_steps)
        scheduled = model.scheduled_values(middle, plan.num_steps)
        model.observations = Observations()
        for _ in range(min(2, plan.accumulation_steps)):  # the second has the first one's gradients
            with accelerator.autocast():
                # kept over the next one, as in the loop
                result = model(**next(inputs), **scheduled)
            result.loss.backward()
        model.before_optimizer_step(middle, plan.num_steps)
        torch.nn.utils.clip_grad_norm_(parameters, largest)
        optimizer.step()
        optimizer.zero_grad()
        model.after_optimizer_step(middle, plan.num_steps)
        if reserve is None:
            size = round(RESERVE * memory_taken(accelerator.device))
            reserve = torch.empty(size, dtype=torch.uint8, device=accelerator.device)
    del buckets, reserve  # until here


def memory_taken(device: torch.device) -> int:
    """Return the bytes that this process has held of a GPU at most; of the machine, holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


__all__ = [
    "as_it_was_started",
    "find_batch_size",
    "is_out_of_memory",
    "more_micro_batches",
    "train_a_little",
]
