"""MAE: a decoder predicts the pixels of patches that are hidden from the encoder.

Masked autoencoder, arXiv 2111.06377. MAE adds to the encoder a decoder with mask tokens and a loss
on pixels. The encoder processes visible patches only. In training, the decoder's last block and its
prediction are computed for masked patches only, because the loss needs no others.
"""

# B batch · C channels · H, W pixels · P patch size · N patches · K visible patches
# M masked patches · T prefix tokens (class, registers) · D hidden · E decoder hidden

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_selfvit import SelfViTConfig
from .layers import SelfViTLayer
from .masking import PatchSplit, gather_patches, ids_to_keep, num_to_keep
from .modeling_selfvit import SelfViTModel, SelfViTPreTrainedModel
from .position_embeddings import interpolate_position_embeddings, sincos_position_embeddings

VARIANCE_EPS = 1e-6  # models_mae.py, forward_loss


@dataclass
class MAEOutput(ModelOutput):
    """Output of SelfViTForMAE.

    Args:
        loss: Scalar, float32; squared error, mean over the pixels of the masked patches.
        prediction: (B, N, P*P*C) float32 predicted pixels in the order of the image, normalized per
            patch if `norm_pix_loss`. None in training, unless requested.
        mask: (B, N) float32; 0 is keep, 1 is remove.
        ids_restore: (B, N); see `PatchSplit`.
        hidden_states: Hidden states of the encoder for visible patches, each (B, T + K, D). None
            unless requested.
        attentions: Attentions of the encoder, each (B, heads, T + K, T + K). None unless requested.
    """

    loss: Tensor | None = None
    prediction: Tensor | None = None
    mask: Tensor | None = None
    ids_restore: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches.

    Args:
        images: (B, C, H, W); H and W are multiples of the patch size.
        patch_size: Side of a patch in pixels.

    Returns:
        (B, N, P*P*C); patches row by row, pixels of a patch row by row, channels last.
    """
    cells = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))
    cells = cells.permute(0, 2, 4, 3, 5, 1)  # (B, H/P, W/P, P, P, C)
    return cells.flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, patch_size: int, grid_size: tuple[int, int]) -> Tensor:
    """Assemble images from patches, the inverse of `patchify`.

    Args:
        patches: (B, N, P*P*C).
        patch_size: Side of a patch in pixels.
        grid_size: (rows, columns) of patches.

    Returns:
        (B, C, H, W).
    """
    cells = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, grid_size)
    cells = cells.permute(0, 5, 1, 3, 2, 4)  # (B, C, H/P, P, W/P, P)
    return cells.flatten(4).flatten(2, 3)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and std (unbiased) of the pixels of each patch (Sec. 3, "target").

    Args:
        patches: (B, N, P*P*C).

    Returns:
        Mean (B, N, 1) and std (B, N, 1). The std is 0.001 for a patch of one color.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    # in two steps, because torch.var_mean takes ten times as long on a CPU
    variance = (patches - mean).square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)
    return mean, (variance + VARIANCE_EPS).sqrt()


def mae_loss(prediction: Tensor, patches: Tensor, norm_pix_loss: bool) -> Tensor:
    """Return the mean squared error of predicted patches, in float32 (Sec. 3).

    Args:
        prediction: (B, M, P*P*C) predictions for the masked patches.
        patches: (B, M, P*P*C) pixels of these patches.
        norm_pix_loss: Whether the target is each patch normalized by its mean and std.

    Returns:
        Scalar. All images have the same number of masked patches, so it is the mean over images,
        too.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        target = patches.float()
        if norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        return F.mse_loss(prediction.float(), target)


@torch.no_grad()
def variance_between_images(patches: Tensor, norm_pix_loss: bool) -> Tensor:
    """Return the loss of predicting the mean image of the batch.

    This is the lowest loss of a prediction that does not depend on the image. It is 0 for one
    image.

    Args:
        patches: (B, N, P*P*C) all patches of the images.
        norm_pix_loss: Whether to normalize each patch by its mean and std first.

    Returns:
        Scalar, float32; unbiased with respect to the number of images.
    """
    patches = patches.float()
    if norm_pix_loss:
        mean, std = patch_statistics(patches)
        patches = (patches - mean) / std
    centered = patches - patches.mean(dim=0)
    return centered.square().mean() * len(patches) / max(1, len(patches) - 1)


class MAEDecoder(nn.Module):
    """Predict pixels from the tokens of visible patches and mask tokens for the others."""

    position_embeddings: Tensor  # (1, 1 + N, E), fixed

    def __init__(self, config: SelfViTConfig):
        super().__init__()
        mae = config.mae_config
        geometry = SelfViTConfig(
            hidden_size=mae.decoder_hidden_size,
            num_hidden_layers=mae.decoder_num_layers,
            num_attention_heads=mae.decoder_num_attention_heads,
            mlp_ratio=mae.decoder_mlp_ratio,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            image_size=config.image_size,
            patch_size=config.patch_size,
        )
        self.grid_size = geometry.grid_size
        self.num_prefix_tokens = config.num_prefix_tokens
        self.embedding = nn.Linear(config.hidden_size, geometry.hidden_size)
        self.mask_token = nn.Parameter(torch.empty(1, 1, geometry.hidden_size))
        fixed = sincos_position_embeddings(geometry.hidden_size, self.grid_size)
        self.register_buffer("position_embeddings", fixed)
        layers = [SelfViTLayer(geometry) for _ in range(geometry.num_hidden_layers)]
        for layer in layers:
            # config of the model, so that its attention implementation applies to the decoder, too
            layer.attention.config = config
        self.layers = nn.ModuleList(layers)
        self.layernorm = nn.LayerNorm(geometry.hidden_size, eps=geometry.layer_norm_eps)
        self.prediction = nn.Linear(
            geometry.hidden_size, config.patch_size**2 * config.num_channels
        )

    def forward(
        self, latent: Tensor, split: PatchSplit, grid_size: tuple[int, int], masked_only: bool
    ) -> Tensor:
        """Predict the pixels of patches.

        Blocks depend on the position embeddings of tokens, not on their order. Masked patches
        therefore come first: the last block computes only the first tokens as queries, and the
        tokens need not be unshuffled before.

        Args:
            latent: (B, T + K, D) tokens of the encoder.
            split: Indices of visible and masked patches.
            grid_size: (rows, columns) of patches of the images.
            masked_only: Whether to skip the predictions for visible patches.

        Returns:
            (B, M, P*P*C) for the masked patches in the order of `split.ids_removed`, or
            (B, N, P*P*C) in the order of the image.
        """
        # interpolated as in the encoder, so that both encode the same place (2026-11-23: the loss
        # on images enlarged by a factor of 2 is 0.34, but 1.40 with positions computed for the
        # larger grid; it is 0.46 at the training size)
        positions = interpolate_position_embeddings(
            self.position_embeddings, self.grid_size, grid_size
        )[0, 1:]  # (N, E); class token and registers have no position
        prefix, visible = self.embedding(latent).tensor_split([self.num_prefix_tokens], dim=1)
        masked = self.mask_token + positions[split.ids_removed]  # (B, M, E)
        visible = visible + positions[split.ids_keep]  # (B, K, E)
        hidden_states = torch.cat([masked, visible, prefix.to(visible.dtype)], dim=1)

        num_masked, num_patches = masked.shape[1], len(positions)
        num_wanted = num_masked if masked_only else num_patches
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states)
        hidden_states = self.layers[-1](hidden_states, num_queries=num_wanted)
        prediction = self.prediction(self.layernorm(hidden_states))
        if masked_only:
            return prediction
        masked, visible = prediction.tensor_split([num_masked], dim=1)
        return gather_patches(torch.cat([visible, masked], dim=1), split.ids_restore)


class MAEPreTrainedModel(SelfViTPreTrainedModel):
    """Base class with the initialization of MAE, for the full model and its encoder.

    transformers initializes a nested model by its own `_init_weights`, so both derive from this
    class.
    """

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module, as in the encoder except for the following (Appendix A.1).

        Linear weights: Xavier uniform, separately for query, key and value. Weight of the patch
        projection: the same, as a linear layer with P*P*C inputs. Mask token of the decoder: normal
        with std `initializer_range`, as class and register tokens. Fixed positions of the decoder:
        sine-cosine.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Conv2d):  # a view would lose the "already loaded" flag
            bound = math.sqrt(6 / (module.weight.shape[0] + module.weight[0].numel()))
            init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, MAEDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            width = module.mask_token.shape[-1]
            fixed = sincos_position_embeddings(width, module.grid_size)
            init.copy_(module.position_embeddings, fixed)


class MAEEncoder(MAEPreTrainedModel, SelfViTModel):
    """Encoder with the initialization of MAE."""


class SelfViTForMAE(MAEPreTrainedModel):
    """MAE: `vit` is the encoder, which embeds images; `decoder` is used in pretraining."""

    objective_field = "mae_config"
    _no_split_modules = [
        "SelfViTPatchEmbeddings",
        "SelfViTEmbeddings",
        "SelfViTLayer",
        "MAEDecoder",
    ]

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        self.vit = MAEEncoder(config)
        self.decoder = MAEDecoder(config)
        self.num_visible(math.prod(config.grid_size))  # fails here instead of at the first step
        self.post_init()

    def num_visible(self, num_patches: int) -> int:
        """Return the number of visible patches.

        Raises:
            ValueError: If no patch is visible or no patch is masked.
        """
        mask_ratio = self.config.mae_config.mask_ratio
        num_keep = num_to_keep(num_patches, mask_ratio)
        if 0 < num_keep < num_patches:
            return num_keep
        if num_patches < 2:
            fix = "use larger images or a smaller patch_size"
        else:  # rounded such that both limits are valid
            least, most = math.ceil(1e3 / num_patches), math.floor(1e3 * (1 - 1 / num_patches))
            fix = f"use {least / 1e3} to {most / 1e3}"
        raise ValueError(
            f"mask_ratio ({mask_ratio}) leaves none of {num_patches} patches "
            f"{'to predict' if num_keep else 'visible'}; {fix}."
        )

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        noise: Tensor | None = None,
        output_prediction: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MAEOutput:
        """Compute the loss of one (micro-)batch of images.

        Args:
            pixel_values: (B, C, H, W) normalized images; H and W are multiples of the patch size.
            noise: (B, N) noise; the patches with the smallest noise are visible. Drawn uniformly
                from 0 to 1 if None.
            output_prediction: Whether to predict all patches, including the visible ones, and
                return them. If None, only in evaluation mode.
            kwargs: Arguments of the encoder, see `SelfViTModel`.

        Raises:
            ValueError: If no patch is visible or none is masked, or the shape of the noise does not
                match the images.
        """
        if output_prediction is None:
            output_prediction = not self.training
        grid_size = self.vit.embeddings.patch_embeddings.grid_of(pixel_values)
        split = self._split(pixel_values, noise, math.prod(grid_size))
        encoded = self.vit(pixel_values, ids_keep=split.ids_keep, **kwargs)
        masked_only = not output_prediction
        prediction = self.decoder(encoded.last_hidden_state, split, grid_size, masked_only)

        all_patches = patchify(pixel_values, self.config.patch_size)  # (B, N, P*P*C)
        patches = gather_patches(all_patches, split.ids_removed)  # (B, M, P*P*C)
        loss = mae_loss(
            prediction if masked_only else gather_patches(prediction, split.ids_removed),
            patches,
            self.config.mae_config.norm_pix_loss,
        )
        if self.training and self.observations is not None:
            metrics = {}
            if len(all_patches) > 1:  # the mean of a single image is the image
                norm_pix_loss = self.config.mae_config.norm_pix_loss
                variance = variance_between_images(all_patches, norm_pix_loss)
                metrics["explained"] = 1 - loss.detach() / variance.clamp(min=VARIANCE_EPS)
            self.observations.record(encoded.pooler_output, **metrics)
        return MAEOutput(
            loss=loss,
            prediction=None if masked_only else prediction.float(),
            mask=split.mask,
            ids_restore=split.ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def _split(self, pixel_values: Tensor, noise: Tensor | None, num_patches: int) -> PatchSplit:
        batch_size = pixel_values.shape[0]
        if noise is None:
            noise = torch.rand(batch_size, num_patches, device=pixel_values.device)
        if noise.shape != (batch_size, num_patches):
            raise ValueError(
                f"noise must be (batch, patches), ({batch_size}, {num_patches}), got "
                f"{tuple(noise.shape)}; pass one random number per patch, or None."
            )
        return ids_to_keep(noise, self.num_visible(num_patches))

    @torch.no_grad()
    def reconstruct(
        self, pixel_values: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Fill in the masked patches.

        With `norm_pix_loss`, the decoder predicts neither brightness nor contrast, so each masked
        patch gets mean and std of the original patch.

        Args:
            pixel_values: (B, C, H, W) normalized images.
            noise: (B, N) noise, see `forward`.

        Returns:
            Images (B, C, H, W) float32, normalized as `pixel_values`, with the original visible
            patches. Mask (B, N), 1 for removed patches.
        """
        output = self(pixel_values, noise, output_prediction=True)
        patch_size = self.config.patch_size
        patches = patchify(pixel_values.float(), patch_size)
        prediction = output.prediction
        if self.config.mae_config.norm_pix_loss:
            mean, std = patch_statistics(patches)
            prediction = prediction * std + mean
        filled = torch.where(output.mask.bool().unsqueeze(-1), prediction, patches)
        grid_size = self.vit.embeddings.patch_embeddings.grid_of(pixel_values)
        return unpatchify(filled, patch_size, grid_size), output.mask


__all__ = [
    "MAEDecoder",
    "MAEEncoder",
    "MAEOutput",
    "SelfViTForMAE",
    "mae_loss",
    "patchify",
    "unpatchify",
]
