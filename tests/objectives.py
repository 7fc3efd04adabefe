"""Tiny models of every objective. The contract tests run for each entry of `OBJECTIVES`."""

# B batch · C channels · H, W pixels

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from selfvit import (
    DINOConfig,
    DINOv2Config,
    DistillConfig,
    LeJEPAConfig,
    MAEConfig,
    PMSNConfig,
    SelfViTConfig,
    SelfViTForDINO,
    SelfViTForDINOv2,
    SelfViTForDistill,
    SelfViTForLeJEPA,
    SelfViTForMAE,
    SelfViTForPMSN,
)

# Options of DINOv3's encoder
DINOV3: dict[str, Any] = {
    "position_embedding_type": "rotary",
    "num_register_tokens": 2,
    "use_gated_mlp": True,
    "hidden_act": "silu",
    "key_bias": False,
    "layerscale_value": 0.5,
}
# Dinov2 with registers of transformers, one block, random weights, width 24, patches of 16 pixels
# (those of the students have 8); `python -m tests.fixtures.write_tiny_teacher` wrote it.
TINY_TEACHER = str(Path(__file__).parent / "fixtures" / "tiny_teacher")


def tiny_config(**overrides: Any) -> SelfViTConfig:
    """Return the configuration of a tiny encoder with 4 x 4 patches and 3 blocks."""
    geometry = {
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return SelfViTConfig(**{**geometry, **overrides})


def tiny_dino_config(**overrides: Any) -> DINOConfig:
    """Return the configuration of a small head."""
    sizes = {"num_prototypes": 24, "head_hidden_size": 32, "head_bottleneck_size": 16}
    return DINOConfig(**{**sizes, **overrides})


def tiny_dinov2_config(**overrides: Any) -> DINOv2Config:
    """Return the configuration of two small heads, with every term of the loss."""
    sizes = {"num_prototypes": 24, "head_hidden_size": 32, "head_bottleneck_size": 16}
    terms = {"separate_patch_head": True, "gram_weight": 1.0, "koleo_weight": 0.1}
    return DINOv2Config(**{**sizes, **terms, **overrides})


def tiny_distill_config(**overrides: Any) -> DistillConfig:
    """Return the configuration of a small queue with the tiny teacher."""
    sizes = {"teacher": TINY_TEACHER, "teacher_hidden_size": 24, "queue_size": 12}
    return DistillConfig(**{**sizes, **overrides})


def tiny_lejepa_config(**overrides: Any) -> LeJEPAConfig:
    """Return the configuration of a small head and a few slices."""
    sizes = {"num_slices": 32, "head_hidden_size": 32, "head_output_size": 16}
    return LeJEPAConfig(**{**sizes, **overrides})


def tiny_pmsn_config(**overrides: Any) -> PMSNConfig:
    """Return the configuration of a small head; half of the patches are dropped."""
    sizes = {
        "num_prototypes": 24,
        "head_hidden_size": 32,
        "head_output_size": 16,
        "patch_drop_ratio": 0.5,
    }
    return PMSNConfig(**{**sizes, **overrides})


def anchor_and_target_views(
    generator: torch.Generator,
    batch_size: int,
    num_random_views: int = 2,
    num_focal_views: int = 2,
) -> dict[str, Tensor]:
    """Return target and random views of 32 pixels, noise for masks, and focal views of 16."""
    views = {
        "target_view": torch.randn(batch_size, 3, 32, 32, generator=generator),
        "random_views": torch.randn(num_random_views, batch_size, 3, 32, 32, generator=generator),
        "noise": torch.rand(num_random_views, batch_size, 16, generator=generator),
    }
    if num_focal_views:
        views["focal_views"] = torch.randn(
            num_focal_views, batch_size, 3, 16, 16, generator=generator
        )
    return views


def random_views(
    generator: torch.Generator, batch_size: int, num_local_views: int = 2
) -> dict[str, Tensor]:
    """Return 2 global views of 32 pixels and local views of 16 pixels."""
    views = {"global_views": torch.randn(2, batch_size, 3, 32, 32, generator=generator)}
    if num_local_views:
        views["local_views"] = torch.randn(
            num_local_views, batch_size, 3, 16, 16, generator=generator
        )
    return views


def masked_views(
    generator: torch.Generator, batch_size: int, num_local_views: int = 2
) -> dict[str, Tensor]:
    """Return the views of `random_views`; in half of the global ones, 6 patches are masked."""
    views = random_views(generator, batch_size, num_local_views)
    order = torch.rand(2, batch_size, 16, generator=generator).argsort(dim=-1)
    masked = order < 6
    masked[0, 1::2] = masked[1, ::2] = False
    return {**views, "bool_masked_pos": masked}


def tiny_mae_config(**overrides: Any) -> MAEConfig:
    """Return the configuration of a decoder with two small blocks."""
    sizes = {"decoder_hidden_size": 16, "decoder_num_layers": 2, "decoder_num_attention_heads": 2}
    return MAEConfig(**{**sizes, **overrides})


def random_images_and_noise(generator: torch.Generator, batch_size: int) -> dict[str, Tensor]:
    """Return images of 32 pixels and noise for their patches."""
    return {
        "pixel_values": torch.randn(batch_size, 3, 32, 32, generator=generator),
        "noise": torch.rand(batch_size, 16, generator=generator),
    }


def random_images_to_mix(generator: torch.Generator, batch_size: int) -> dict[str, Tensor]:
    """Return images of 32 pixels and random numbers for mixup."""
    return {
        "pixel_values": torch.randn(batch_size, 3, 32, 32, generator=generator),
        "mixing": torch.rand(batch_size, 2, generator=generator),
    }


@dataclass(frozen=True)
class Objective:
    """Model class, configuration and inputs of an objective for the contract tests.

    Args:
        name: Name of the objective.
        model_class: Class of the model.
        config: Function that returns a configuration; keyword arguments override its fields.
        inputs: Function that returns the arguments of `forward` for a generator and a batch size.
    """

    name: str
    model_class: type[PreTrainedModel]
    config: Callable[..., SelfViTConfig]
    inputs: Callable[[torch.Generator, int], dict[str, Tensor]]


OBJECTIVES = [
    Objective(
        name="dino",
        model_class=SelfViTForDINO,
        # 0.2 is about 1 / sqrt(width), as 0.02 is for real widths. With 0.02, features would be
        # 0.005 before their normalization, and gradients in the hundreds
        config=lambda **overrides: tiny_config(
            initializer_range=0.2, dino_config=tiny_dino_config(), **overrides
        ),
        inputs=random_views,
    ),
    Objective(
        name="dinov2",
        model_class=SelfViTForDINOv2,
        config=lambda **overrides: tiny_config(
            initializer_range=0.2,
            use_mask_token=True,
            dinov2_config=tiny_dinov2_config(),
            **overrides,
        ),
        inputs=masked_views,
    ),
    Objective(
        name="distill",
        model_class=SelfViTForDistill,
        config=lambda **overrides: tiny_config(
            initializer_range=0.2, distill_config=tiny_distill_config(), **overrides
        ),
        inputs=random_images_to_mix,
    ),
    Objective(
        name="lejepa",
        model_class=SelfViTForLeJEPA,
        config=lambda **overrides: tiny_config(
            initializer_range=0.2, lejepa_config=tiny_lejepa_config(), **overrides
        ),
        inputs=random_views,
    ),
    Objective(
        name="mae",
        model_class=SelfViTForMAE,
        config=lambda **overrides: tiny_config(
            position_embedding_type="sincos", mae_config=tiny_mae_config(), **overrides
        ),
        inputs=random_images_and_noise,
    ),
    Objective(
        name="pmsn",
        model_class=SelfViTForPMSN,
        # Batch norm over four images spreads features so far that at temperature 0.025 rounding to
        # bf16 changes the targets
        config=lambda **overrides: tiny_config(
            initializer_range=0.2,
            pmsn_config=tiny_pmsn_config(teacher_temperature=0.1),
            **overrides,
        ),
        inputs=anchor_and_target_views,
    ),
]
