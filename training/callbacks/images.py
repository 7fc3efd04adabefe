"""What a run looks like while it trains: views, reconstructions, attention, as pictures.

Drawn after the first step, when a wrong augmentation costs nothing yet, and every `image_steps`.
On by default, as a thousand steps take minutes and a drawing less than a second.
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
from .progress import Reporter

NUM_IMAGES = 4
Panels = list[list[np.ndarray]]


def view_panels(processor: Any, inputs: dict[str, Tensor]) -> Panels:
    """Return a row of panels for each of the first images of a batch: its views.

    Args:
        processor: whose normalization is undone.
        inputs: of a step; views are (B, C, H, W) or (V, B, C, H, W), normalized.

    Returns:
        rows of panels (H, W, 3), in [0, 1], larger views first.
    """
    views: list[Tensor] = []
    for value in inputs.values():
        if value.dim() >= 4:
            views += value if value.dim() == 5 else [value]
    views.sort(key=lambda view: view.shape[-1], reverse=True)  # stable: global views stay in order
    columns = [denormalize(view[:NUM_IMAGES], processor) for view in views]
    return [list(row) for row in zip(*columns, strict=True)]


def drawings(
    model: SelfViTPreTrainedModel | None, processor: Any, inputs: dict[str, Tensor]
) -> dict[str, Callable[[], Panels]]:
    """Return what can be drawn of a step, by name, as functions that draw it.

    The model is left as it was, its training or evaluation mode too, and no random number is drawn.

    Args:
        model: whole, not a sharded one; None for no picture that needs it.
        processor: whose normalization is undone.
        inputs: of the step.
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
    """Return the largest view of each image, (B, C, H, W): the first of those of that size."""
    largest = max((value for value in inputs.values() if value.dim() >= 4), key=_width)
    return largest[0] if largest.dim() == 5 else largest


def _width(views: Tensor) -> int:
    return views.shape[-1]


class LoggedImages:
    """Draws every so many steps, on the main process; what fails is said once, and left out.

    Args:
        accelerator: tells which process this is, and whether the model is whole.
        model: in training.
        processor: image processor of the checkpoint to come.
        reporter: takes the pictures.
        image_steps: steps between two drawings; 0 is never.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: SelfViTPreTrainedModel,
        processor: Any,
        reporter: Reporter,
        image_steps: int,
    ):
        # of a sharded model, one process alone cannot make a forward pass
        self.model = None if is_sharded(accelerator) else model
        self.processor = processor
        self.reporter = reporter
        self.image_steps = image_steps if accelerator.is_main_process else 0
        self.failed: set[str] = set()

    def step(self, done: int, inputs: dict[str, Tensor]) -> None:
        """Draw after a step, counted from 1, if it is one of those; `inputs` are its last ones."""
        if self.image_steps == 0 or (done > 1 and done % self.image_steps):
            return
        for name, draw in drawings(self.model, self.processor, inputs).items():
            if name in self.failed:
                continue
            try:
                self.reporter.show(done, {name: tile_panels(draw())})
            except Exception as error:  # no matplotlib, a full disk or GPU: the run is worth more
                self.failed.add(name)
                self.reporter.warn(f"pictures of {name} are left out from here on: {error}")


__all__ = ["LoggedImages", "drawings", "largest_views", "view_panels"]
