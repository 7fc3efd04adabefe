"""Configuration of MAE, the masked autoencoder (arXiv 2111.06377)."""

# No `from __future__ import annotations`: `@strict` cannot check annotations that are strings.

from huggingface_hub.dataclasses import strict

from .field_ranges import check_least, check_mlp_ratio
from .objective_config import ObjectiveConfig


@strict
class MAEConfig(ObjectiveConfig):
    """Masking, decoder and target of MAE.

    Args:
        mask_ratio: Fraction of the patches that are hidden from the encoder.
        decoder_hidden_size: Width of the decoder's tokens; a multiple of 4 and of its number of
            heads.
        decoder_num_layers: Number of blocks of the decoder.
        decoder_num_attention_heads: Number of heads per block of the decoder.
        decoder_mlp_ratio: Hidden width of a decoder block's MLP, as a multiple of its width.
        norm_pix_loss: Whether to predict pixels that are normalized by mean and std of their patch
            (better features) instead of the pixels themselves (better pictures).
    """

    model_type = "selfvit_mae"
    base_config_key = "mae_config"
    weight_fields = (
        "decoder_hidden_size",
        "decoder_num_layers",
        "decoder_num_attention_heads",
        "decoder_mlp_ratio",
        "norm_pix_loss",
    )

    mask_ratio: float | int = 0.75  # Sec. 4.1, "Masking ratio"
    decoder_hidden_size: int = 512  # Table 1b
    decoder_num_layers: int = 8  # Table 1a
    decoder_num_attention_heads: int = 16  # models_mae.py, mae_vit_*_patch16_dec512d8b
    decoder_mlp_ratio: float | int = 4.0  # models_mae.py
    norm_pix_loss: bool = True  # Table 1d: better fine-tuned and linear; PRETRAIN.md uses it

    def validate_architecture(self) -> None:
        """Check the range of each field, and that the decoder's fields fit together."""
        if not 0 < self.mask_ratio < 1:
            raise ValueError(
                f"mask_ratio ({self.mask_ratio}) must be above 0 and below 1, so that the encoder "
                "sees at least one patch and the decoder predicts one; the paper uses 0.75."
            )
        sizes = ("decoder_hidden_size", "decoder_num_layers", "decoder_num_attention_heads")
        check_least(self, dict.fromkeys(sizes, 1))
        width, heads = self.decoder_hidden_size, self.decoder_num_attention_heads
        if width % heads:
            num_heads = next(n for n in range(max(1, width // 32), 0, -1) if width % n == 0)
            raise ValueError(
                f"decoder_hidden_size ({width}) must be a multiple of decoder_num_attention_heads "
                f"({heads}); use {num_heads} (the paper's heads have width 32)."
            )
        if width % 4:
            raise ValueError(
                f"decoder_hidden_size ({width}) must be a multiple of 4, because the "
                "positions are sines and cosines of rows and columns; "
                f"use {width // 4 * 4 + 4}."
            )
        check_mlp_ratio(self, "decoder_mlp_ratio", width)


__all__ = ["MAEConfig"]
