"""The training loop, the same for every objective."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .callbacks.base import Callback, notify
from .checkpoints.rollback import check_finite
from .dataloader.collate import to_model_inputs
from .optimization import set_schedules
from .state import TrainState

Batch = dict[str, Any]


def fit(state: TrainState, batches: Iterator[Batch], callbacks: Sequence[Callback]) -> None:
    """Train from `state.step` to `state.num_steps`, or until a signal asks to stop.

    Args:
        state: State of the run, new or resumed.
        batches: Micro-batches from that step on.
        callbacks: Callbacks, notified of each event in this order.

    Raises:
        NonFiniteError: If the loss or the gradient norm is infinite or not a number.
    """
    notify(callbacks, "on_train_begin", state)
    while state.step < state.num_steps and state.stop_signal is None:
        state.evaluation, state.checkpoint = {}, None  # those of earlier weights
        state.metrics = train_step(state, batches)
        state.step += 1
        notify(callbacks, "on_step_end", state)
    if state.step == state.num_steps:
        notify(callbacks, "on_train_end", state)


def train_step(state: TrainState, batches: Iterator[Batch]) -> dict[str, float]:
    """Make one optimizer step; collective.

    Returns:
        Metrics of the step by name: loss, learning rate, scheduled values, gradient norm, and the
        values that the model returns from `after_optimizer_step`.
    """
    run, model, step, num_steps = state.run, state.model, state.step, state.num_steps

    # --- schedules
    learning_rate = set_schedules(state.optimizer, run.schedule, step, num_steps)
    scheduled = model.scheduled_values(step, num_steps)
    model.train()
    if step < state.num_frozen_steps:
        model.trained_encoder.eval()

    # --- forward, backward
    local_loss = forward_backward(state, batches, scheduled)
    loss = state.accelerator.reduce(local_loss, "mean").item()
    check_finite("loss", loss, run, step + 1)

    # --- clip, step, teacher
    gradient_norm = optimizer_step(state)
    updates = model.after_optimizer_step(step, num_steps)
    return {
        "loss": loss,
        "learning_rate": learning_rate,
        **scheduled,
        "gradient_norm": gradient_norm,
        **updates,
    }


def forward_backward(
    state: TrainState, batches: Iterator[Batch], scheduled: dict[str, float]
) -> Tensor:
    """Accumulate the gradients of a step's micro-batches.

    Returns:
        Mean loss of this process, a detached scalar.
    """
    accelerator, losses = state.accelerator, []
    state.skipped, state.findings = [], []
    for _ in range(state.run.runtime.gradient_accumulation_steps):
        batch = next(batches)
        state.skipped += batch["skipped"]
        state.findings += batch["findings"]
        state.inputs = to_model_inputs(batch, state.run.preprocessing, accelerator.device)
        with accelerator.accumulate(state.wrapped):
            with accelerator.autocast():  # Accelerate does not apply it to sharded models
                result = state.wrapped(**state.inputs, **scheduled)
            accelerator.backward(result.loss)
        losses.append(result.loss.detach())
    return torch.stack(losses).mean()


def optimizer_step(state: TrainState) -> float:
    """Clip the gradients and update the parameters; return the norm before clipping.

    With fp16, the gradient scaler itself leaves out a step whose gradients are not finite.
    """
    model, step = state.model, state.step
    model.before_optimizer_step(step, state.num_steps)
    if step < state.num_frozen_steps:
        for parameter in model.trained_encoder.parameters():
            parameter.grad = None
    max_norm = state.run.optimizer.max_gradient_norm
    max_norm = math.inf if max_norm is None else max_norm
    gradient_norm = float(state.accelerator.clip_grad_norm_(model.parameters(), max_norm))
    if state.accelerator.scaler is None:
        check_finite("gradient norm", gradient_norm, state.run, step + 1)
    state.optimizer.step()
    state.optimizer.zero_grad()
    return gradient_norm


__all__ = ["Batch", "fit", "forward_backward", "optimizer_step", "train_step"]
