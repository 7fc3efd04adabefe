"""Encoder of Lightly (a wrapper of timm's ViT) with the weights of a `SelfViTModel`."""

# B batch · C channels · H, W pixels · T tokens · D hidden

from __future__ import annotations

import torch
from lightly.models.modules import MaskedVisionTransformerTIMM
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from selfvit import SelfViTModel


def build_encoder(
    start: SelfViTModel, dynamic_img_size: bool = False
) -> MaskedVisionTransformerTIMM:
    """Return Lightly's wrapper of timm's ViT with the architecture and weights of an encoder.

    Args:
        start: Encoder that provides the architecture and the weights.
        dynamic_img_size: Whether to accept images of other sizes than in the configuration.
    """
    config = start.config
    vit = VisionTransformer(
        img_size=config.image_height_width,
        patch_size=config.patch_size,
        in_chans=config.num_channels,
        num_classes=0,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.mlp_ratio,
        dynamic_img_size=dynamic_img_size,
    )
    vit.load_state_dict(timm_state(start.state_dict()))
    encoder = MaskedVisionTransformerTIMM(
        vit,
        weight_initialization="skip",
        pos_embed_initialization="skip",
        antialias=False,  # selfvit and the DINO code resize positions without antialiasing
    )
    assert vit.pos_embed is not None
    vit.pos_embed.requires_grad_(config.position_embedding_type == "learned")
    encoder.mask_token.requires_grad_(False)  # tokens are dropped, not replaced
    return encoder


TIMM_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "position_embeddings": "pos_embed",  # decoder
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "layernorm": "norm",
    "layers": "blocks",
}


def timm_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a `SelfViTModel`, or of its blocks, to the names in timm."""
    renamed = {}
    for name, value in state.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            names = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
            name = name.replace("attention.q_proj", "attn.qkv")
            value = torch.cat([state[part] for part in names])
        for ours, theirs in TIMM_NAMES.items():
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


def embed(encoder: MaskedVisionTransformerTIMM, pixel_values: Tensor) -> Tensor:
    """Return the class token and the mean of the patch tokens, (B, 2 D): pooling "cls+mean"."""
    tokens = encoder.encode(pixel_values)  # (B, T, D), normalized
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)
