"""Interface between a model and the training loop."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from .observations import Observations


class Trainable(nn.Module):
    """Hooks that the training loop calls; an objective overrides the ones that it needs.

    In each optimizer step, the loop passes `scheduled_values` to `forward`, calls
    `before_optimizer_step` after the last backward pass, and `after_optimizer_step` after the
    optimizer's step. Steps are counted from 0.

    Attributes:
        vit: Encoder that embeds images (the teacher's, for objectives with a teacher).
        uses_mask_token: Whether the objective replaces patches by the encoder's mask token. If not,
            a token that a checkpoint has is not trained: DistributedDataParallel refuses parameters
            without a gradient.
        undecayed_parameters: Names of parameters without weight decay, in addition to biases and
            other vectors.
        run_buffers: Names of buffers that belong to a run rather than to the model. Their shape may
            change when a run starts from a whole checkpoint, and `start_new_run` resets them.
        observations: Statistics for the collapse monitors, which `forward` records; None in steps
            without monitoring.
    """

    vit: Any
    uses_mask_token = False
    undecayed_parameters: tuple[str, ...] = ()
    run_buffers: tuple[str, ...] = ()
    observations: Observations | None = None

    @property
    def trained_encoder(self) -> Any:
        """Encoder that the optimizer trains: the student's, for objectives with a teacher."""
        return self.vit

    def init_student_from_teacher(self) -> None:
        """Update the other networks after pretrained weights were loaded into `vit`.

        Does nothing for models with a single encoder.
        """

    def start_new_run(self) -> None:
        """Reset what belongs to a run rather than the model, after a whole checkpoint was loaded.

        Does nothing by default.
        """

    def trained_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return names and parameters that the optimizer trains."""
        return (
            (name, parameter)
            for name, parameter in self.named_parameters()
            if parameter.requires_grad
        )

    def outside_parameters(self) -> Iterable[nn.Parameter]:
        """Return the parameters of networks that `forward` uses, but that are not saved or trained.

        A frozen teacher is such a network. It is opened if it is not yet.
        """
        return ()

    def scheduled_values(self, step: int, num_steps: int) -> dict[str, float]:
        """Return the keyword arguments that `forward` takes in this step.

        Args:
            step: Index of the optimizer step.
            num_steps: Number of optimizer steps of the run.
        """
        return {}

    def before_optimizer_step(self, step: int, num_steps: int) -> None:
        """Change accumulated gradients before they are clipped.

        Args:
            step: Index of the optimizer step.
            num_steps: Number of optimizer steps of the run.
        """

    def after_optimizer_step(self, step: int, num_steps: int) -> dict[str, float]:
        """Update what the optimizer does not train, such as a teacher or a center.

        Args:
            step: Index of the optimizer step.
            num_steps: Number of optimizer steps of the run.

        Returns:
            Values to log.
        """
        return {}


__all__ = ["Trainable"]
