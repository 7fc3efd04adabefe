"""MSN and PMSN: predict the cluster assignment of an unmasked view from masked views.

MSN (Masked Siamese Networks, arXiv 2204.07141) draws the mean assignment toward the uniform
distribution, PMSN (Prior Matching for Siamese Networks, arXiv 2210.07277) toward any prior. MSN is
therefore PMSN with a uniform prior, and one class implements both. It adds to the encoder a
projection head with batch norm, prototypes, and a momentum teacher. Sections refer to MSN unless
another paper is named.

Where implementations differ, this one follows the equations of the papers:

- The regularizer is KL(mean || prior). With a uniform prior it equals ln K - H(mean), the me-max
  term of Eq. 1 and of facebookresearch/msn. Lightly computes KL(prior || mean) for its power law;
  `kl_direction` selects one of them.
- Prototypes are trained (Eq. 1), as in facebookresearch/msn; Lightly's examples do not pass them to
  the optimizer. Their gradient is averaged over processes, like that of every parameter; the
  reference sums it.
- Every image has its own mask (Sec. 3); the reference draws one mask per batch. Patches of focal
  views are not dropped, because such a view is a mask itself (Sec. 3, Fig. 4); both
  implementations agree.
- The teacher's momentum increases linearly, and its temperature is 0.025 (Appendix A.1). The
  reference sharpens predictions at temperature 0.1 by 0.25, which is equivalent.
"""

# B batch · R random views · F focal views · V anchor views, R + F · N patches
# K prototypes · D hidden · E head output

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_pmsn import PMSNConfig
from ..configuration.configuration_selfvit import SelfViTConfig
from .batch_norm import BatchNorm
from .distributed import StepMetrics, all_reduce_logsumexp, all_reduce_sum
from .masking import ids_to_keep, num_to_keep
from .modeling_selfvit import SelfViTModel, SelfViTPreTrainedModel
from .momentum_teacher import MomentumTeacher
from .observations import entropy, mean_cosine
from .schedules import linear_schedule
from .teacher_targets import sinkhorn


@dataclass
class PMSNOutput(ModelOutput):
    """Output of SelfViTForPMSN. All values are float32 scalars in nats.

    Args:
        loss: Sum of the terms: cross_entropy + regularization_weight * regularizer +
            entropy_weight * entropy.
        cross_entropy: Cross-entropy between the targets and the predictions of the anchors, mean
            over anchor views and images.
        regularizer: Divergence between mean prediction and prior.
        entropy: Entropy of the predictions of the anchors, mean over anchor views and images.
        mean_entropy: Entropy of the mean prediction over all anchors and processes. Its exponential
            is the number of prototypes in use; 0 means collapse.
    """

    loss: Tensor | None = None
    cross_entropy: Tensor | None = None
    regularizer: Tensor | None = None
    entropy: Tensor | None = None
    mean_entropy: Tensor | None = None


def num_patches_kept(num_patches: int, patch_drop_ratio: float) -> int:
    """Return the number of patches of a random view that are kept.

    Raises:
        ValueError: If no patch is kept.
    """
    num_kept = num_to_keep(num_patches, patch_drop_ratio)
    if num_kept < 1:
        raise ValueError(
            f"patch_drop_ratio ({patch_drop_ratio}) leaves none of the {num_patches} patches of a "
            f"random view; use at most {math.floor(1000 * (1 - 1 / num_patches)) / 1000}."
        )
    return num_kept


def sharpen(log_probabilities: Tensor, temperature: float) -> Tensor:
    """Raise probabilities to 1/temperature and renormalize, in the log domain.

    Args:
        log_probabilities: (*, K) log-probabilities or logits; their normalization cancels.
        temperature: Unitless, above 0; values below 1 sharpen.

    Returns:
        (*, K) log-probabilities, float32.
    """
    return F.log_softmax(log_probabilities.float() / temperature, dim=-1)


def power_law_prior(
    num_prototypes: int, exponent: float, device: torch.device | None = None
) -> Tensor:
    """Return 1 / k^exponent for k = 1 to K, normalized (PMSN, arXiv 2210.07277).

    Args:
        num_prototypes: Number of prototypes (K).
        exponent: Unitless; 0 gives the uniform distribution.
        device: Device of the result.

    Returns:
        (K,) log-probabilities, float32, in decreasing order.
    """
    ranks = torch.arange(1, num_prototypes + 1, dtype=torch.float32, device=device)
    return F.log_softmax(-exponent * ranks.log(), dim=0)


def mean_prediction(log_probabilities: Tensor) -> Tensor:
    """Return the log of the mean over all rows and processes (Sec. 3), with gradient.

    Args:
        log_probabilities: (*, K).

    Returns:
        (K,) log-probabilities; finite even if the mean itself rounds to 0 in float32.
    """
    rows = log_probabilities.flatten(0, -2)
    count = all_reduce_sum(rows.new_tensor(len(rows)))
    return all_reduce_logsumexp(rows.logsumexp(dim=0)) - count.log()


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Return KL(p || q) in nats for two distributions, given as log-probabilities (K,)."""
    return (log_p.exp() * (log_p - log_q)).sum()


class PMSNHead(nn.Module):
    """Projection head: three linear layers, batch norm and GELU after the first two (Appendix A.1).

    Layers before a batch norm have no bias, because batch norm would cancel it. In training, batch
    norm uses the statistics of the rows of one call.
    """

    def __init__(self, in_features: int, config: PMSNConfig):
        super().__init__()
        hidden_size = config.head_hidden_size
        self.fc1 = nn.Linear(in_features, hidden_size, bias=False)
        self.norm1 = BatchNorm(hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size, bias=False)
        self.norm2 = BatchNorm(hidden_size)
        self.fc3 = nn.Linear(hidden_size, config.head_output_size)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, E)."""
        features = F.gelu(self.norm1(self.fc1(features)))
        features = F.gelu(self.norm2(self.fc2(features)))
        return self.fc3(features)


class PMSNLoss(nn.Module):
    """Cross-entropy between targets and anchors, plus the regularizer and an entropy (Eq. 1)."""

    def __init__(self, config: PMSNConfig):
        super().__init__()
        self.config = config

    def forward(self, anchors: Tensor, targets: Tensor, prototypes: Tensor) -> PMSNOutput:
        """Compare the anchor views of each image with its target.

        Args:
            anchors: (V, B, E) outputs of the student.
            targets: (B, E) outputs of the teacher; no gradient flows into them, nor through them
                into the prototypes.
            prototypes: (K, E).

        Raises:
            ValueError: If the shapes do not match.
        """
        if (
            anchors.dim() != 3
            or anchors.shape[1:] != targets.shape
            or anchors.shape[-1] != prototypes.shape[-1]
        ):
            raise ValueError(
                "anchors must be (views, batch, width), targets (batch, width) and prototypes "
                f"(number, width); got {tuple(anchors.shape)}, {tuple(targets.shape)} and "
                f"{tuple(prototypes.shape)}."
            )
        config = self.config
        with torch.autocast(anchors.device.type, enabled=False):
            prototypes = F.normalize(prototypes.float(), dim=-1)
            cosines = F.normalize(anchors.float(), dim=-1) @ prototypes.T  # (V, B, K)
            log_predictions = sharpen(cosines, config.student_temperature)
            log_targets = self.log_targets(targets, prototypes)

            # the views of an image share its target, so average them before the product
            agreement = (log_targets.exp() * log_predictions.mean(dim=0)).sum(dim=-1)  # (B,)
            cross_entropy = -agreement.mean()
            log_mean = mean_prediction(log_predictions)
            regularizer = self._divergence_from_prior(log_mean)
            loss = cross_entropy + config.regularization_weight * regularizer
            with torch.set_grad_enabled(torch.is_grad_enabled() and config.entropy_weight > 0):
                entropy = -(log_predictions.exp() * log_predictions).sum(dim=-1).mean()
            if config.entropy_weight > 0:
                loss = loss + config.entropy_weight * entropy
        return PMSNOutput(
            loss=loss,
            cross_entropy=cross_entropy,
            regularizer=regularizer,
            entropy=entropy,
            mean_entropy=-(log_mean.exp() * log_mean).sum(),
        )

    @torch.no_grad()
    def log_targets(self, targets: Tensor, prototypes: Tensor) -> Tensor:
        """Return the log-probabilities of targets: (B, E) and (K, E) -> (B, K) float32."""
        prototypes = F.normalize(prototypes.float(), dim=-1)
        cosines = F.normalize(targets.float(), dim=-1) @ prototypes.T  # (B, K)
        log_targets = sharpen(cosines, self.config.teacher_temperature)
        return sinkhorn(log_targets, self.config.sinkhorn_iterations)

    def _divergence_from_prior(self, log_mean: Tensor) -> Tensor:
        exponent = 0.0 if self.config.prior == "uniform" else self.config.power_law_exponent
        log_prior = power_law_prior(len(log_mean), exponent, log_mean.device)
        if self.config.kl_direction == "prior_to_mean":
            return kl_divergence(log_prior, log_mean)
        return kl_divergence(log_mean, log_prior)


class PMSNNetwork(nn.Module):
    """Encoder with projection head: the student."""

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        self.vit = SelfViTModel(config)
        self.head = PMSNHead(config.hidden_size, config.pmsn_config)


class SelfViTForPMSN(MomentumTeacher, SelfViTPreTrainedModel):
    """MSN and PMSN with a teacher (the target network) and a student (the anchor network).

    `vit` and `head` are the teacher, which embeds images; `student` and `prototypes` are trained.
    """

    main_input_name = "target_view"
    objective_field = "pmsn_config"
    _no_split_modules = ["SelfViTPatchEmbeddings", "SelfViTEmbeddings", "SelfViTLayer", "PMSNHead"]
    undecayed_parameters = ("prototypes",)  # msn_train.py, init_opt: WD_exclude

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        pmsn = config.pmsn_config
        # raises an error here instead of at the first step
        num_patches_kept(math.prod(config.grid_size), pmsn.patch_drop_ratio)
        self.vit = SelfViTModel(config)
        self.head = PMSNHead(config.hidden_size, pmsn)
        self.student = PMSNNetwork(config)
        self.prototypes = nn.Parameter(torch.empty(pmsn.num_prototypes, pmsn.head_output_size))
        self.loss = PMSNLoss(pmsn)
        self._metrics = StepMetrics()
        self.post_init()
        self.init_teacher_from_student()
        self.train()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module, as in the encoder except for the following.

        Prototypes: uniform in +-1/sqrt(E), as in the reference.
        """
        super()._init_weights(module)
        if isinstance(module, SelfViTForPMSN):
            bound = 1 / math.sqrt(module.prototypes.shape[1])
            init.uniform_(module.prototypes, -bound, bound)

    def train(self, mode: bool = True) -> SelfViTForPMSN:
        """Set the mode of the student and of the teacher's head.

        The teacher has no gradients, and its encoder stays in evaluation mode. Its head follows the
        student's mode, as in the reference: in training, its batch norm uses the statistics of the
        targets. The running statistics of the teacher are therefore those of its own features, not
        an average of the student's, which sees masked views.
        """
        super().train(mode)
        self.vit.train(False).requires_grad_(False)
        self.head.requires_grad_(False)
        self.prototypes.requires_grad_(not self.config.pmsn_config.freeze_prototypes)
        return self

    @can_return_tuple
    def forward(
        self,
        target_view: Tensor,
        random_views: Tensor,
        focal_views: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> PMSNOutput:
        """Compute the loss of one (micro-)batch of views.

        Args:
            target_view: (B, C, H, W) unmasked views for the teacher.
            random_views: (R, B, C, H, W) anchor views whose patches are dropped at random.
            focal_views: (F, B, C, h, w) smaller crops, anchor views without dropped patches, or
                None.
            noise: (R, B, N) float32 noise; the patches of a random view with the largest noise are
                dropped. Drawn uniformly if None.

        Returns:
            Loss and its terms.

        Raises:
            ValueError: If shapes do not match, no patch is left, or the batch has a single image in
                training, for which batch norm is undefined.
        """
        with torch.no_grad():
            (features,) = self.vit.class_tokens(target_view)
            targets = self.head(features)  # (B, E)

        # one batch per size of views, for the encoder and for the batch norm of the head
        ids_keep = self._patches_to_keep(random_views, noise)
        anchors = [self._project(random_views, ids_keep)]
        if focal_views is not None and len(focal_views):
            anchors.append(self._project(focal_views))
        output = self.loss(torch.cat(anchors), targets, self.prototypes)
        if self.training:
            terms = ("cross_entropy", "regularizer", "mean_entropy")
            self._metrics.add(**{name: output[name] for name in terms})
        if self.training and self.observations is not None:
            with torch.no_grad(), torch.autocast(targets.device.type, enabled=False):
                log_targets = self.loss.log_targets(targets, self.prototypes)
                self.observations.record(
                    features,
                    log_targets,
                    kl_teacher_student=output.cross_entropy - entropy(log_targets).mean(),
                    student_teacher_cosine=mean_cosine(anchors[0][0], targets),
                )
        return output

    def _project(self, views: Tensor, ids_keep: Tensor | None = None) -> Tensor:
        """(V, B, C, H, W) -> (V, B, E)."""
        num_views, batch_size = views.shape[:2]
        (features,) = self.student.vit.class_tokens(views.flatten(0, 1), ids_keep=ids_keep)
        return self.student.head(features).unflatten(0, (num_views, batch_size))

    def _patches_to_keep(self, views: Tensor, noise: Tensor | None) -> Tensor | None:
        """Return ids_keep (R * B, K) of the random views, or None if no patch is dropped."""
        ratio = self.config.pmsn_config.patch_drop_ratio
        if ratio == 0:
            return None
        grid = self.vit.embeddings.patch_embeddings.grid_of(views.flatten(0, 1))
        shape = (*views.shape[:2], math.prod(grid))  # (R, B, N)
        if noise is None:
            noise = torch.rand(shape, device=views.device)
        elif noise.shape != shape:
            raise ValueError(
                f"noise must be (random views, batch, patches), {shape}, got {tuple(noise.shape)}; "
                "pass one random number per patch, or None."
            )
        return ids_to_keep(noise.flatten(0, 1), num_patches_kept(shape[-1], ratio)).ids_keep

    def trained_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Return names and parameters of the student, and the prototypes unless frozen."""
        yield from self.student.named_parameters(prefix="student")
        if self.prototypes.requires_grad:
            yield "prototypes", self.prototypes

    def after_optimizer_step(self, step: int, num_steps: int) -> dict[str, float]:
        """Update the teacher, with linearly increasing momentum (Appendix A.1)."""
        pmsn = self.config.pmsn_config
        momentum = linear_schedule(
            step, num_steps + 1, pmsn.teacher_momentum, pmsn.teacher_momentum_end
        )
        self.update_teacher(momentum)
        return {"teacher_momentum": momentum} | self._metrics.take()


__all__ = ["PMSNHead", "PMSNLoss", "PMSNOutput", "SelfViTForPMSN"]
