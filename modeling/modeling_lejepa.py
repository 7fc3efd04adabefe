"""LeJEPA and VISReg: views of an image agree, and projections are normally distributed.

LeJEPA (arXiv 2511.08544) draws the projections of an image's views toward their center, while a
regularizer, SIGReg, keeps the projections of all images close to a standard normal distribution.
VISReg (arXiv 2606.02572) is the same with another regularizer. There is no teacher and there are no
prototypes: the encoder with a projection head is the only network.

The statistics of both regularizers are those of the images of all processes, with gradients, so the
loss does not depend on the number of processes.
"""

# B batch · G global views · V all views · N images of all processes · D hidden · E head output
# K slices (random directions) · J knots (frequencies)

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_lejepa import LeJEPAConfig
from ..configuration.configuration_selfvit import SelfViTConfig
from .batch_norm import BatchNorm
from .distributed import StepMetrics, all_gather, all_reduce_sum, several_processes
from .modeling_selfvit import SelfViTModel, SelfViTPreTrainedModel

STD_EPS = 1e-4  # VISReg, added to the std that the shape term divides by


@dataclass
class LeJEPAOutput(ModelOutput):
    """Output of SelfViTForLeJEPA. All values are float32 scalars.

    Args:
        loss: (1 - weight) * invariance + weight * regularizer, with the `regularizer_weight`.
        invariance: Squared distance of the views' projections from their center, mean over views,
            images and dimensions.
        regularizer: Value of SIGReg, or weighted sum of the terms of VISReg.
        center: Center term of VISReg; None with SIGReg.
        scale: Scale term of VISReg; None with SIGReg.
        shape: Shape term of VISReg; None with SIGReg.
    """

    loss: Tensor | None = None
    invariance: Tensor | None = None
    regularizer: Tensor | None = None
    center: Tensor | None = None
    scale: Tensor | None = None
    shape: Tensor | None = None


class VISRegTerms(NamedTuple):
    """Terms of VISReg, float32 scalars.

    Args:
        center: Squared mean of the projections.
        scale: Squared difference between their std and 1.
        shape: Squared difference between their quantiles and those of a normal distribution.
    """

    center: Tensor
    scale: Tensor
    shape: Tensor


def random_slices(num_features: int, num_slices: int, seed: int) -> Tensor:
    """Draw directions uniformly from the unit sphere.

    They are drawn on the CPU, so that a seed gives the same directions on any device.

    Args:
        num_features: Dimensions of the space (E).
        num_slices: Number of directions (K).
        seed: Random seed.

    Returns:
        (E, K) float32; columns have norm 1.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(
        num_slices, num_features, generator=generator, device="cpu", dtype=torch.float32
    )
    return F.normalize(directions, dim=-1).T.contiguous()


def invariance(projections: Tensor, num_global_views: int) -> Tensor:
    """Return the squared distance of an image's views from the center of its global views.

    Gradients flow into the center, too (LeJEPA, arXiv 2511.08544).

    Args:
        projections: (V, B, E) float32; the global views come first.
        num_global_views: Number of global views (G).

    Returns:
        Scalar, mean over views, images of this process, and dimensions.
    """
    center = projections[:num_global_views].mean(dim=0)  # (B, E)
    return (projections - center).square().mean()


def sigreg(
    projections: Tensor, slices: Tensor, num_knots: int = 17, max_frequency: float = 3.0
) -> Tensor:
    """Return SIGReg: a test of normality along random directions (LeJEPA, arXiv 2511.08544).

    Along each direction, it is the statistic of Epps and Pulley: N times the integral of the
    squared difference between the empirical characteristic function and that of a standard normal
    distribution, weighted by the latter, from -`max_frequency` to `max_frequency`. The integral is
    computed by the trapezoidal rule; it is symmetric, so knots are needed on one side only.

    Args:
        projections: (V, B, E) float32 projections of this process. Each view is a sample of its
            own, with the images of all processes.
        slices: (E, K) directions of norm 1, the same in all processes.
        num_knots: Number of frequencies from 0 to `max_frequency` (J).
        max_frequency: Largest frequency; unitless.

    Returns:
        Scalar, mean over views and directions; the same in all processes. For a normal sample, it
        does not grow with N (1.05 on average); for one that has collapsed, it does (0.4 N).
    """
    values = projections @ slices  # (V, B, K)
    spacing = max_frequency / (num_knots - 1)
    # without the frequency 0, where both functions are 1
    frequencies = spacing * torch.arange(1, num_knots, device=values.device, dtype=values.dtype)
    target = (-frequencies.square() / 2).exp()  # (J - 1,)
    weights = 2 * spacing * target  # 2: both signs of the frequency
    weights = torch.cat([weights[:-1], weights[-1:] / 2])

    angles = values.unsqueeze(-1) * frequencies  # (V, B, K, J - 1)
    sums = torch.stack([angles.cos().sum(dim=1), angles.sin().sum(dim=1)])  # (2, V, K, J - 1)
    count = all_reduce_sum(values.new_tensor(values.shape[1]))
    real, imaginary = all_reduce_sum(sums) / count
    distance = (real - target).square() + imaginary.square()  # (V, K, J - 1)
    return count * (distance @ weights).mean()


def visreg(projections: Tensor, slices: Tensor, eps: float = STD_EPS) -> VISRegTerms:
    """Return the terms of VISReg (arXiv 2606.02572), each the mean over views.

    The shape term compares the sorted values along each direction with the quantiles of a standard
    normal distribution, a sliced Wasserstein distance. It divides by the std without its gradient,
    so that it depends on the shape of the distribution only, and has a gradient if all projections
    are equal.

    Args:
        projections: (V, B, E) float32 projections of this process. Each view is a sample of its
            own, with the images of all processes.
        slices: (E, K) directions of norm 1, the same in all processes.
        eps: Value added to the std.

    Returns:
        Terms, which are the same in all processes.
    """
    everyone, _ = all_gather(projections, dim=1)  # (V, N, E)
    num_images = everyone.shape[1]
    mean = everyone.mean(dim=1, keepdim=True)
    std = everyone.std(dim=1, keepdim=True, correction=0)  # gradient 0 where the std is 0

    standardized = (everyone - mean) / (std.detach() + eps)
    values = (standardized @ slices).sort(dim=1).values  # (V, N, K)
    ranks = torch.arange(1, num_images + 1, device=values.device, dtype=values.dtype)
    quantiles = torch.special.ndtri(ranks / (num_images + 1))  # (N,)
    return VISRegTerms(
        center=mean.square().mean(),
        scale=(1 - std).square().mean(),
        shape=(values - quantiles[:, None]).square().mean(),
    )


class LeJEPAHead(nn.Module):
    """Projection head: three linear layers, batch norm and activation after the first two.

    Layers before a batch norm have no bias, because batch norm would cancel it. In training, batch
    norm uses the statistics of the rows of one call, in all processes.
    """

    def __init__(self, in_features: int, config: LeJEPAConfig):
        super().__init__()
        hidden_size = config.head_hidden_size
        self.activation = config.head_activation
        self.fc1 = nn.Linear(in_features, hidden_size, bias=False)
        self.norm1 = BatchNorm(hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm2 = BatchNorm(hidden_size)
        self.fc3 = nn.Linear(hidden_size, config.head_output_size)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, E)."""
        activation = F.gelu if self.activation == "gelu" else F.relu
        features = activation(self.norm1(self.fc1(features)))
        features = activation(self.norm2(self.fc2(features)))
        return self.fc3(features)


class LeJEPALoss(nn.Module):
    """Invariance of the views plus SIGReg or VISReg.

    The loss owns the slices. `draw_slices` replaces them once per optimizer step, so the
    micro-batches of a step use the same ones. They are saved with the model, and a resumed run
    continues with them.

    The statistics of the regularizer, like those of the head's batch norm, are those of one
    micro-batch of all processes. Gradient accumulation is therefore not exactly equivalent to a
    larger batch. SIGReg grows with the number of images as long as projections are not normally
    distributed, so it weighs less in smaller micro-batches.
    """

    slices: Tensor  # (E, K) float32

    def __init__(self, config: LeJEPAConfig):
        super().__init__()
        self.config = config
        slices = random_slices(config.head_output_size, config.num_slices, seed=0)
        self.register_buffer("slices", slices.to(torch.get_default_device()))

    def forward(self, projections: Tensor, num_global_views: int) -> LeJEPAOutput:
        """Compute the loss of the images of a (micro-)batch.

        Args:
            projections: (V, B, E) outputs of the head; the global views come first.
            num_global_views: Number of global views (G).

        Raises:
            ValueError: If the shapes do not match, or there are fewer than two views.
        """
        if (
            projections.dim() != 3
            or projections.shape[-1] != len(self.slices)
            or not 1 <= num_global_views <= len(projections)
            or len(projections) < 2
        ):
            raise ValueError(
                f"projections must be (views, batch, {len(self.slices)}) with at least 2 views, "
                f"global views first; got {tuple(projections.shape)} and {num_global_views} global "
                "views. Pass at least two global views, or one and local views."
            )
        config = self.config
        terms = None
        with torch.autocast(projections.device.type, enabled=False):
            projections, slices = projections.float(), self.slices.float()
            distance = invariance(projections, num_global_views)
            if config.regularizer == "visreg":
                terms = visreg(projections, slices)
                regularizer = (
                    config.visreg_center_weight * terms.center
                    + config.visreg_scale_weight * terms.scale
                    + config.visreg_shape_weight * terms.shape
                )
            else:
                regularizer = sigreg(
                    projections, slices, config.sigreg_num_knots, config.sigreg_max_frequency
                )
            weight = config.regularizer_weight
            loss = (1 - weight) * distance + weight * regularizer
        return LeJEPAOutput(
            loss=loss,
            invariance=distance,
            regularizer=regularizer,
            **({} if terms is None else terms._asdict()),
        )

    @torch.no_grad()
    def draw_slices(self, seed: int) -> None:
        """Replace the slices; the same seed gives the same ones in all processes."""
        num_features, num_slices = self.slices.shape
        self.slices.copy_(random_slices(num_features, num_slices, seed))


class SelfViTForLeJEPA(SelfViTPreTrainedModel):
    """LeJEPA and VISReg: `vit` is trained and embeds images; `head` is used in pretraining."""

    main_input_name = "global_views"
    objective_field = "lejepa_config"
    run_buffers = ("loss.slices",)
    _no_split_modules = [
        "SelfViTPatchEmbeddings",
        "SelfViTEmbeddings",
        "SelfViTLayer",
        "LeJEPAHead",
    ]
    _keep_in_fp32_modules_strict = ["loss"]  # directions have norm 1

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        lejepa = config.lejepa_config
        pooled = lejepa.head_input == "pooled"
        self.vit = SelfViTModel(config)
        self.head = LeJEPAHead(config.embedding_size if pooled else config.hidden_size, lejepa)
        self.loss = LeJEPALoss(lejepa)
        self._metrics = StepMetrics()
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module, as in the encoder except for the following.

        Slices: those of seed 0, which the first step uses.
        """
        super()._init_weights(module)
        if isinstance(module, LeJEPALoss):
            num_features, num_slices = module.slices.shape
            init.copy_(module.slices, random_slices(num_features, num_slices, seed=0))

    @can_return_tuple
    def forward(self, global_views: Tensor, local_views: Tensor | None = None) -> LeJEPAOutput:
        """Compute the loss of one (micro-)batch of views.

        Args:
            global_views: (G, B, C, H, W) views; their projections define the center of an image.
            local_views: (V - G, B, C, h, w) smaller crops, or None.

        Returns:
            Loss and its terms.

        Raises:
            ValueError: If there are fewer than two views, or all processes together have a single
                image in training.
        """
        num_global_views, batch_size = global_views.shape[:2]
        if self.training and batch_size < 2 and not several_processes():
            raise ValueError(
                f"the regularizer needs at least 2 images in each micro-batch and got {batch_size};"
                " use a larger --batch-size or fewer --gradient-accumulation-steps."
            )
        crops = [global_views]
        if local_views is not None and len(local_views):
            crops.append(local_views)
        # one batch per size of crops for the encoder, one batch of all crops for the head
        features = [self._features(views.flatten(0, 1)) for views in crops]
        projections = self.head(torch.cat(features)).unflatten(0, (-1, batch_size))  # (V, B, E)
        output = self.loss(projections, num_global_views)
        if self.training:
            self._metrics.add(**{name: output[name] for name in output if name != "loss"})
        if self.training and self.observations is not None:
            with torch.no_grad():
                values = projections.float()
                variance = values.var(dim=1, correction=0)  # (V, E)
                self.observations.record(
                    features[0][:batch_size],  # one view per image
                    projection_std=variance.sqrt().mean(),
                    shared_variance=1 - output.invariance / variance.mean().clamp(min=STD_EPS),
                )
        return output

    def _features(self, pixel_values: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D), the input of the head."""
        if self.config.lejepa_config.head_input == "pooled":
            return self.vit(pixel_values).pooler_output
        return self.vit.class_tokens(pixel_values)[0]

    def start_new_run(self) -> None:
        """Draw the slices of the first step."""
        self.loss.draw_slices(seed=0)

    def after_optimizer_step(self, step: int, num_steps: int) -> dict[str, float]:
        """Draw the slices of the next step."""
        self.loss.draw_slices(seed=step + 1)
        return self._metrics.take()


__all__ = [
    "LeJEPAHead",
    "LeJEPALoss",
    "LeJEPAOutput",
    "SelfViTForLeJEPA",
    "VISRegTerms",
    "invariance",
    "sigreg",
    "visreg",
]
