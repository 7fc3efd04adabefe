"""Pictures of a run during training: views, and reconstructions or attention maps.

Pictures are drawn after the first step, so that a wrong augmentation is noticed early, and every
`image_steps`. Drawing takes less than a second, so pictures are on by default.
"""

# B images · V views · C channels · H, W pixels

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from accelerate import Accelerator
from torch import Tensor

from ...modeling.modeling_mae import SelfViTForMAE
from ...modeling.modeling_selfvit import SelfViTPreTrainedModel
from ...visualization.attention_maps import attention_panels
from ...visualization.figures import tile_panels
from ...visualization.inputs import denormalize
from ...visualization.reconstructions import reconstruction_panels
from ..runtime.fsdp import is_sharded
from ..state import TrainState
from .base import Callback
from .progress import ProgressLogger

NUM_IMAGES = 4
Panels = list[list[np.ndarray]]


def view_panels(processor: Any, inputs: dict[str, Tensor]) -> Panels:
    """Return the views of the first images of a batch, a row of panels for each image.

    Args:
        processor: Image processor, whose normalization is undone.
        inputs: Model inputs; views are (B, C, H, W) or (V, B, C, H, W), normalized.

    Returns:
        Rows of panels (H, W, 3) in [0, 1], larger views first.
    """
    views: list[Tensor] = []
    for value in inputs.values():
        if value.dim() >= 4:
            views += value if value.dim() == 5 else [value]
    # The sort is stable, so views of equal size keep their order.
    views.sort(key=lambda view: view.shape[-1], reverse=True)
    columns = [denormalize(view[:NUM_IMAGES], processor) for view in views]
    return [list(row) for row in zip(*columns, strict=True)]


def drawings(
    model: SelfViTPreTrainedModel | None, processor: Any, inputs: dict[str, Tensor]
) -> dict[str, Callable[[], Panels]]:
    """Return the pictures of a step by name, as functions that draw them.

    These leave the model and its training mode unchanged, and draw no random numbers.

    Args:
        model: Model, not sharded; None to leave out pictures that need it.
        processor: Image processor, whose normalization is undone.
        inputs: Model inputs of the step.
    """
    pictures: dict[str, Callable[[], Panels]] = {"views": partial(view_panels, processor, inputs)}
    if isinstance(model, SelfViTForMAE):
        values, noise = inputs["pixel_values"][:NUM_IMAGES], inputs["noise"][:NUM_IMAGES]
        pictures["reconstructions"] = partial(
            reconstruction_panels, model, processor, values, noise
        )
    elif model is not None:
        values = largest_views(inputs)[:NUM_IMAGES]
        pictures["attention"] = partial(attention_panels, model, processor, values)
    return pictures


def largest_views(inputs: dict[str, Tensor]) -> Tensor:
    """Return the largest view of each image, or the first of several, (B, C, H, W)."""
    largest = max((value for value in inputs.values() if value.dim() >= 4), key=_width)
    return largest[0] if largest.dim() == 5 else largest


def _width(views: Tensor) -> int:
    return views.shape[-1]


class ImageLogger(Callback):
    """Draws pictures every `image_steps`; main process only.

    A picture that cannot be drawn is reported once and left out from then on.

    Args:
        accelerator: Accelerator of the run.
        processor: Image processor of the checkpoint.
        logger: Logger of the pictures.
        image_steps: Steps between two drawings; 0 means none.
    """

    def __init__(
        self, accelerator: Accelerator, processor: Any, logger: ProgressLogger, image_steps: int
    ):
        # one process alone cannot run the forward pass of a sharded model
        self.can_run_model = not is_sharded(accelerator)
        self.processor = processor
        self.logger = logger
        self.image_steps = image_steps if accelerator.is_main_process else 0
        self.failed: set[str] = set()

    def on_step_end(self, state: TrainState) -> None:
        """Draw if it is due: after the first step and every `image_steps`."""
        step = state.step
        if self.image_steps == 0 or (step > 1 and step % self.image_steps):
            return
        model = state.model if self.can_run_model else None
        for name, draw in drawings(model, self.processor, state.inputs).items():
            if name in self.failed:
                continue
            try:
                self.logger.log_images(step, {name: tile_panels(draw())})
            except Exception as error:  # no matplotlib, full disk or GPU: must not end the run
                self.failed.add(name)
                self.logger.warn(f"pictures of {name} are left out from now on: {error}")


__all__ = ["ImageLogger", "drawings", "largest_views", "view_panels"]
