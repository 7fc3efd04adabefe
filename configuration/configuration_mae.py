"""MAE: masked autoencoders are scalable vision learners (arXiv 2111.06377)."""

# No `from __future__ import annotations` here: `@strict` checks types, not strings of them.

from huggingface_hub.dataclasses import strict

from .objective_config import ObjectiveConfig


@strict
class MAEConfig(ObjectiveConfig):
    """What MAE adds to an encoder: how much is masked, the decoder, and what it predicts.

    Args:
        mask_ratio: fraction of the patches that the encoder does not see.
        decoder_hidden_size: width of the decoder's tokens; a multiple of 4 and of its heads.
        decoder_num_layers: blocks of the decoder.
        decoder_num_attention_heads: heads per block of the decoder.
        decoder_mlp_ratio: hidden width of a decoder block's MLP, as a multiple of its width.
        norm_pix_loss: predict pixels normalized by their own patch's mean and deviation (better
            features), or as they are (better pictures).
    """

    model_type = "selfvit_mae"
    base_config_key = "mae_config"

    mask_ratio: float | int = 0.75  # Sec. 4.1, "Masking ratio"
    decoder_hidden_size: int = 512  # Table 1b
    decoder_num_layers: int = 8  # Table 1a
    decoder_num_attention_heads: int = 16  # models_mae.py, mae_vit_*_patch16_dec512d8b
    decoder_mlp_ratio: float | int = 4.0  # models_mae.py
    norm_pix_loss: bool = True  # Table 1d: better fine-tuned and linear; PRETRAIN.md uses it

    def validate_architecture(self) -> None:
        """Check the ranges, and that the decoder's fields fit together."""
        if not 0 < self.mask_ratio < 1:
            raise ValueError(
                f"mask_ratio ({self.mask_ratio}) must be above 0 and below 1: the encoder needs a "
                "patch to see and the decoder one to predict; the paper uses 0.75."
            )
        for name in ("decoder_hidden_size", "decoder_num_layers", "decoder_num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        width, heads = self.decoder_hidden_size, self.decoder_num_attention_heads
        if width % heads:
            raise ValueError(
                f"decoder_hidden_size ({width}) must be a multiple of decoder_num_attention_heads "
                f"({heads}); the paper's decoder has heads of 32: {max(1, width // 32)} heads."
            )
        if width % 4:
            raise ValueError(
                f"decoder_hidden_size ({width}) must be a multiple of 4, for sine and cosine of "
                f"rows and columns; use {width // 4 * 4 + 4}."
            )
        if int(width * self.decoder_mlp_ratio) < 1:
            raise ValueError(
                f"decoder_mlp_ratio ({self.decoder_mlp_ratio}) must leave the MLP a width of at "
                "least 1; the usual choice is 4."
            )


__all__ = ["MAEConfig"]
