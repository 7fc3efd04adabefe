"""Dry run: print what a run would do, without training or writing (`selfvit train --dry-run`)."""

# B images · V views · C channels · H, W pixels

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...data.dataset_source import StreamingImageSource
from ...data.image_source import ImageSource
from ..config.run_config import RunConfig
from ..dataloader.collate import to_model_inputs
from ..dataloader.sampler import BatchPlan
from ..dataloader.streaming import partition_stream
from ..lora import count_parameters, describe_adapters, has_adapters, result_bytes
from ..optimization import build_optimizer, optimized_parameters, set_schedules, state_bytes

# Numbers of images of the two forward passes that measure activations. Two sizes separate the bytes
# per image from the constant part, and both passes are quick on a CPU.
FEW, MORE = 2, 4
FRACTIONS = (0.0, 0.1, 0.5, 1.0)  # points of the run at which schedules are shown


@dataclass(frozen=True)
class Memory:
    """Memory of one process without activations, and files, all in bytes.

    Args:
        weights: Parameters, teacher included, and buffers.
        gradients: Gradients; twice with several processes, because DDP keeps a copy in buckets.
        optimizer: The two moments of AdamW.
        result: Files of the trained model, except small ones.
        checkpoint: Files of a checkpoint to resume from.
        outside: Networks that are used, but not trained or saved, such as a frozen teacher.
        gathered: Gathered parameters of one block and the prefetched next one, with FSDP2; else 0.
    """

    weights: int
    gradients: int
    optimizer: int
    result: int
    checkpoint: int
    outside: int = 0
    gathered: int = 0

    @property
    def total(self) -> int:
        """Memory of one process without activations."""
        return self.weights + self.gradients + self.optimizer + self.outside + self.gathered


def memory_without_activations(
    model: Any,
    optimizer: torch.optim.Optimizer,
    num_processes: int,
    num_shards: int = 1,
    name: str = "adamw_torch_fused",
) -> Memory:
    """Compute the memory that follows from the parameters alone.

    Args:
        model: Model to train.
        optimizer: Optimizer of the model.
        num_processes: Number of processes of the run.
        num_shards: Number of processes that FSDP2 shards the model over; 1 without FSDP2.
        name: Value of --optimizer.
    """
    trained = optimized_parameters(optimizer)
    gradients = sum(parameter.nbytes for parameter in trained)
    states = state_bytes(trained, name)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    unmerged = parameters + buffers if has_adapters(model) else 0
    result = result_bytes(model)
    unsharded = Memory(
        weights=parameters + buffers,
        gradients=gradients * (2 if num_processes > 1 else 1),
        optimizer=states,
        result=result,
        checkpoint=result + states + unmerged,
        outside=sum(parameter.nbytes for parameter in model.outside_parameters()),
    )
    if num_shards == 1:
        return unsharded
    blocks = [
        sum(parameter.nbytes for parameter in module.parameters())
        for module in model.modules()
        if type(module).__name__ in model._no_split_modules
    ]
    trained_shards = sum(_largest_shard(parameter, num_shards) for parameter in trained)
    return replace(
        unsharded,
        weights=buffers
        + sum(_largest_shard(parameter, num_shards) for parameter in model.parameters()),
        gradients=trained_shards,
        optimizer=2 * trained_shards,
        gathered=2 * max(blocks),
    )


def _largest_shard(parameter: Tensor, num_shards: int) -> int:
    """Return the bytes of the first process's shard; parameters are split along the first axis."""
    rows = len(parameter)
    return -(-rows // num_shards) * (parameter.nbytes // rows)


def saved_for_backward(
    model: Any, inputs: dict[str, Tensor], scheduled: dict[str, float], precision: str
) -> int:
    """Return the bytes that autograd saves in a real forward pass, without the weights.

    Args:
        model: Model in training, on the CPU.
        inputs: Model inputs of a micro-batch.
        scheduled: Scheduled values of a step, further arguments of `forward`.
        precision: "no", "bf16" or "fp16".
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    saved: dict[int, Tensor] = {}  # keeps the tensors alive, so that no address is used twice

    def save(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in own:
            saved[address] = tensor.detach()
        return tensor

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with (
        torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=precision in ("bf16", "fp16")),
    ):
        model(**inputs, **scheduled)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def describe_plan(
    run: RunConfig,
    model: Any,
    source: ImageSource | StreamingImageSource,
    plan: BatchPlan,
    loader_from: Callable[[BatchPlan], Iterable[dict[str, Tensor]]],
    precision: str,
    num_shards: int = 1,
) -> str:
    """Return the text that describes what a run would do.

    A few images are read and passed through the model, to measure activations.

    Args:
        run: Configuration of the run.
        model: Model to train, on the CPU.
        source: Training images.
        plan: Batches of the run.
        loader_from: Function that returns the micro-batches of a plan.
        precision: "no", "bf16" or "fp16".
        num_shards: Number of processes that FSDP2 shards the model over; 1 without FSDP2.
    """
    optimizer = build_optimizer(model, run.optimizer)
    num_trained = sum(parameter.numel() for parameter in optimized_parameters(optimizer))
    memory = memory_without_activations(
        model, optimizer, plan.num_processes, num_shards, run.optimizer.optimizer
    )
    activations, views = measure_activations(run, model, plan, loader_from, precision)
    encoder = count_parameters(model.vit)
    outside = f", frozen teacher {_mebibytes(memory.outside)}" if memory.outside else ""
    gathered = f", gathered blocks {_mebibytes(memory.gathered)}" if num_shards > 1 else ""
    warmup = round(run.schedule.warmup_ratio * plan.num_steps)
    num_checkpoints = -(-plan.num_steps // run.checkpoints.save_steps)
    num_kept = min(run.checkpoints.save_total_limit, num_checkpoints)
    recomputed = (
        "; activation checkpointing needs less" if run.runtime.activation_checkpointing else ""
    )
    lines = [
        f"Plan of recipe {run.recipe} (dry run: nothing is trained or written)",
        f"images        {_describe_images(source, plan, run.data.num_workers)}",
        f"parameters    encoder {encoder.own:,}, trained {num_trained:,}, "
        f"total {_num_parameters(model):,}",
        *([f"adapters      {describe_adapters(run.lora, model)}"] if has_adapters(model) else []),
        f"steps         {plan.num_steps:,}, warm-up for the first {warmup:,}",
        f"batch         {plan.batch_size} images per step: {plan.num_processes} processes x "
        f"{plan.accumulation_steps} micro-batches x {plan.micro_batch_size} images",
        f"views         {views}",
        f"memory        {_mebibytes(memory.total + activations)} per process: weights "
        f"{_mebibytes(memory.weights)}, gradients {_mebibytes(memory.gradients)}, AdamW "
        f"{_mebibytes(memory.optimizer)}{outside}{gathered} (exact); activations "
        f"{_mebibytes(activations)}",
        f"              (activations are measured on the CPU with at most {MORE} images and mixed "
        f"precision {precision}, and scaled to {plan.micro_batch_size}{recomputed})",
        f"checkpoints   {num_checkpoints}, one every {run.checkpoints.save_steps} steps, the last "
        f"{num_kept} kept, {_mebibytes(memory.checkpoint)} each; trained model "
        f"{_mebibytes(memory.result)}",
        f"evaluation    {_describe_evaluation(run)}",
        f"published     {run.hub.push_to_hub or 'no'}",
        "",
        *_schedule_table(run, model, optimizer, plan.num_steps),
    ]
    return "\n".join(lines)


def measure_activations(
    run: RunConfig,
    model: Any,
    plan: BatchPlan,
    loader_from: Callable[[BatchPlan], Iterable[dict[str, Tensor]]],
    precision: str,
) -> tuple[int, str]:
    """Return the bytes of a micro-batch's activations, and a description of an image's views.

    The bytes are measured with a few images and extrapolated linearly to the micro-batch.
    """
    measured: dict[int, int] = {}
    views = ""
    model.train()
    for num_images in sorted({min(FEW, plan.micro_batch_size), min(MORE, plan.micro_batch_size)}):
        few = replace(
            plan,
            num_steps=1,
            batch_size=num_images,
            accumulation_steps=1,
            num_processes=1,
            rank=0,
        )
        batch = dict(next(iter(loader_from(few))))
        views = _describe_views(batch)
        inputs = to_model_inputs(batch, run.preprocessing, model.device)
        scheduled = model.scheduled_values(0, plan.num_steps)
        measured[num_images] = saved_for_backward(model, inputs, scheduled, precision)
    (small, bytes_small), (large, bytes_large) = min(measured.items()), max(measured.items())
    if small == large:
        return bytes_large, views
    bytes_per_image = (bytes_large - bytes_small) / (large - small)
    return round(bytes_large + bytes_per_image * (plan.micro_batch_size - large)), views


def _describe_views(batch: dict[str, Any]) -> str:
    descriptions = []
    for name, value in sorted(batch.items()):
        if isinstance(value, Tensor) and value.dim() >= 4:  # (B, C, H, W) or (V, B, C, H, W)
            number = value.shape[0] if value.dim() == 5 else 1
            descriptions.append(f"{number} {name} of {value.shape[-2]} x {value.shape[-1]}")
    return ", ".join(descriptions) + " pixels for each image"


def _schedule_table(
    run: RunConfig, model: Any, optimizer: torch.optim.Optimizer, num_steps: int
) -> list[str]:
    """Return the lines of a table of the scheduled values at `FRACTIONS` of the run."""
    rows: dict[str, list[float]] = {}
    for fraction in FRACTIONS:
        step = min(round(fraction * num_steps), num_steps - 1)
        learning_rate = set_schedules(optimizer, run.schedule, step, num_steps)
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        values = {
            "learning_rate": learning_rate,
            "weight_decay": max(decays, default=0.0),
            **model.scheduled_values(step, num_steps),
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(float(value))
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{fraction:>12.0%}" for fraction in FRACTIONS)]
    for name, row in rows.items():
        lines.append(f"{name:<{width}}" + "".join(f"{value:>12.4g}" for value in row))
    return lines


def _describe_images(
    source: ImageSource | StreamingImageSource, plan: BatchPlan, num_workers: int
) -> str:
    if isinstance(source, StreamingImageSource):
        partition = partition_stream(source, plan.num_processes, num_workers)
        return f"{source.description}, a stream of unknown length: {partition}"
    epochs = plan.num_steps * plan.batch_size / len(source)
    return f"{len(source):,} ({source.description}), {epochs:.3g} epochs"


def _describe_evaluation(run: RunConfig) -> str:
    config = run.evaluation
    if config.eval_steps is None:
        return "none"
    data = "the training images"
    if config.eval_train is not None:
        data = f"{config.eval_test}; k-NN and linear probe learn from {config.eval_train}"
    return f"every {config.eval_steps} steps, on {data}"


def _num_parameters(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _mebibytes(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


__all__ = [
    "Memory",
    "describe_plan",
    "measure_activations",
    "memory_without_activations",
    "saved_for_backward",
]
