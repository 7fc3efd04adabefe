"""The plan of a run, told before it starts: `selfvit train RECIPE ... --dry_run true`."""

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

# Images of the forward passes that measure activations: two sizes tell the part that grows with
# the images from the part that does not, and both are quick on a CPU.
FEW, MORE = 2, 4
FRACTIONS = (0.0, 0.1, 0.5, 1.0)


@dataclass(frozen=True)
class Memory:
    """Bytes that one process needs, but for the activations.

    Args:
        weights: parameters, teacher included, and buffers.
        gradients: of the trained parameters; twice over several processes, as DDP keeps buckets.
        optimizer: the two moments of AdamW.
        result: the files of the trained model, but for some small ones.
        checkpoint: those of a checkpoint that a run can resume from.
        gathered: where FSDP2 divides all of this, the largest block whole, and the next one.
    """

    weights: int
    gradients: int
    optimizer: int
    result: int
    checkpoint: int
    gathered: int = 0

    @property
    def total(self) -> int:
        """All that the memory of a process holds."""
        return self.weights + self.gradients + self.optimizer + self.gathered


def exact_memory(
    model: Any,
    optimizer: torch.optim.Optimizer,
    num_processes: int,
    num_shards: int = 1,
    name: str = "adamw_torch_fused",
) -> Memory:
    """Count the bytes that follow from the parameters alone.

    Args:
        model: to train.
        optimizer: of its parameters.
        num_processes: that train together.
        num_shards: processes that FSDP2 divides the model over; 1 without it.
        name: of the optimizer, as a run calls it.
    """
    trained = optimized_parameters(optimizer)
    gradients = sum(parameter.nbytes for parameter in trained)
    states = state_bytes(trained, name)
    parameters = sum(parameter.nbytes for parameter in model.parameters())
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    unmerged = parameters + buffers if has_adapters(model) else 0
    result = result_bytes(model)
    of_all = Memory(
        weights=parameters + buffers,
        gradients=gradients * (2 if num_processes > 1 else 1),
        optimizer=states,
        result=result,
        checkpoint=result + states + unmerged,
    )
    if num_shards == 1:
        return of_all
    blocks = [
        sum(parameter.nbytes for parameter in module.parameters())
        for module in model.modules()
        if type(module).__name__ in model._no_split_modules
    ]
    own_trained = sum(_largest_share(parameter, num_shards) for parameter in trained)
    return replace(
        of_all,
        weights=buffers
        + sum(_largest_share(parameter, num_shards) for parameter in model.parameters()),
        gradients=own_trained,
        optimizer=2 * own_trained,
        gathered=2 * max(blocks),
    )


def _largest_share(parameter: Tensor, num_shards: int) -> int:
    """Return the bytes that the first process has: parameters are cut along their first axis."""
    rows = len(parameter)
    return -(-rows // num_shards) * (parameter.nbytes // rows)


def kept_for_backward(
    model: Any, inputs: dict[str, Tensor], scheduled: dict[str, float], precision: str
) -> int:
    """Return the bytes that autograd keeps of one real forward pass, weights left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors, as a freed one's address would be used again

    def keep(tensor: Tensor) -> Tensor:
        if (address := tensor.untyped_storage().data_ptr()) not in own:
            kept[address] = tensor.detach()
        return tensor

    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=dtype, enabled=precision in ("bf16", "fp16")),
    ):
        model(**inputs, **scheduled)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def describe_plan(
    run: RunConfig,
    model: Any,
    source: ImageSource | StreamingImageSource,
    plan: BatchPlan,
    loader_from: Callable[[BatchPlan], Iterable[dict[str, Tensor]]],
    precision: str,
    num_shards: int = 1,
) -> str:
    """Return what a run would do, as text. A few images are read, and a forward pass is made.

    Args:
        run: as it would be trained.
        model: to train, on the CPU.
        source: the images.
        plan: of the batches.
        loader_from: gives the batches of a plan.
        precision: no, bf16 or fp16.
        num_shards: processes that FSDP2 divides the model over; 1 without it.
    """
    optimizer = build_optimizer(model, run.optimizer)
    num_trained = sum(parameter.numel() for parameter in optimized_parameters(optimizer))
    memory = exact_memory(model, optimizer, plan.num_processes, num_shards, run.optimizer.optimizer)
    activations, views = measure_activations(run, model, plan, loader_from, precision)
    encoder = count_parameters(model.vit)
    gathered = f", blocks gathered {_size(memory.gathered)}" if num_shards > 1 else ""
    warmup = round(run.schedule.warmup_ratio * plan.num_steps)
    num_checkpoints = -(-plan.num_steps // run.checkpoints.save_steps)
    num_kept = min(run.checkpoints.save_total_limit, num_checkpoints)
    lines = [
        f"plan of {run.recipe}, nothing is trained or written",
        f"images        {_length_of(source, plan, run.data.num_workers)}",
        f"parameters    encoder {encoder.own:,}, trained {num_trained:,}, all {_count(model):,}",
        *([f"adapters      {describe_adapters(run.lora, model)}"] if has_adapters(model) else []),
        f"steps         {plan.num_steps:,}, the first {warmup:,} of them warm-up",
        f"batch         {plan.batch_size} images a step: {plan.num_processes} processes x "
        f"{plan.accumulation_steps} micro-batches x {plan.micro_batch_size} images",
        f"views         {views}",
        f"memory        {_size(memory.total + activations)} a process: weights "
        f"{_size(memory.weights)}, gradients {_size(memory.gradients)}, AdamW "
        f"{_size(memory.optimizer)}{gathered} (exact); activations {_size(activations)}",
        f"              (activations: measured on the CPU with at most {MORE} images, precision "
        f"{precision}, and scaled to {plan.micro_batch_size}"
        + ("; less with checkpointing)" if run.runtime.activation_checkpointing else ")"),
        f"checkpoints   {num_checkpoints}, every {run.checkpoints.save_steps} steps; {num_kept} "
        f"kept, {_size(memory.checkpoint)} each; the result {_size(memory.result)}",
        f"evaluation    {_evaluation(run)}",
        f"published     {run.hub.push_to_hub or 'nowhere'}",
        "",
        *_schedule(run, model, optimizer, plan.num_steps),
    ]
    return "\n".join(lines)


def measure_activations(
    run: RunConfig,
    model: Any,
    plan: BatchPlan,
    loader_from: Callable[[BatchPlan], Iterable[dict[str, Tensor]]],
    precision: str,
) -> tuple[int, str]:
    """Return the bytes of a micro-batch's activations, and the views of an image in words."""
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
        batch.pop("skipped")
        views = _views_in_words(batch)
        inputs = to_model_inputs(batch, run.preprocessing, model.device)
        scheduled = model.scheduled_values(0, plan.num_steps)
        measured[num_images] = kept_for_backward(model, inputs, scheduled, precision)
    (small, bytes_small), (large, bytes_large) = min(measured.items()), max(measured.items())
    if small == large:
        return bytes_large, views
    an_image = (bytes_large - bytes_small) / (large - small)
    return round(bytes_large + an_image * (plan.micro_batch_size - large)), views


def _views_in_words(batch: dict[str, Tensor]) -> str:
    words = []
    for name, value in sorted(batch.items()):
        if value.dtype == torch.uint8:  # (B, C, H, W) or (V, B, C, H, W)
            number = value.shape[0] if value.dim() == 5 else 1
            words.append(f"{number} {name} of {value.shape[-2]} x {value.shape[-1]}")
    return ", ".join(words) + " of each image"


def _schedule(
    run: RunConfig, model: Any, optimizer: torch.optim.Optimizer, num_steps: int
) -> list[str]:
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


def _length_of(
    source: ImageSource | StreamingImageSource, plan: BatchPlan, num_workers: int
) -> str:
    if isinstance(source, StreamingImageSource):
        partition = partition_stream(source, plan.num_processes, num_workers)
        return f"{source.description}, a stream of unknown length: {partition}"
    epochs = plan.num_steps * plan.batch_size / len(source)
    return f"{len(source):,} of {source.description}, each seen {epochs:.3g} times (epochs)"


def _evaluation(run: RunConfig) -> str:
    config = run.evaluation
    if config.eval_steps is None:
        return "none"
    data = "the training images, without labels"
    if config.eval_train is not None:
        data = f"neighbors and linear probe of {config.eval_train} on {config.eval_test}"
    return f"every {config.eval_steps} steps: {data}"


def _count(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"


__all__ = ["Memory", "describe_plan", "exact_memory", "kept_for_backward", "measure_activations"]
