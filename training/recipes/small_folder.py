"""Recipes for a folder of your own images, from random weights, under the names of the objectives.

Each needs nothing but the images. `scale` has the sizes that were chosen from the images and the
machine (`choose_scale`). The encoder and most numbers are those of the demo recipes, which were
measured; differences have their reason beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...configuration.configuration_dino import DINOConfig
from ...configuration.configuration_dinov2 import DINOv2Config
from ...configuration.configuration_distill import DistillConfig
from ...configuration.configuration_lejepa import LeJEPAConfig
from ...configuration.configuration_mae import MAEConfig
from ...configuration.configuration_pmsn import PMSNConfig
from ...configuration.configuration_selfvit import SelfViTConfig
from ..augmentations.colored_crop import ColoredCrop
from ..augmentations.multi_crop import FocalCrops, MaskedMultiCrop, MultiCrop
from ..augmentations.single_crop import MAECrop
from ..config.run_config import RunConfig
from ..config.training_config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    PreprocessingConfig,
    ScheduleConfig,
)
from .distill import queue_size
from .scale import Scale

MEASURED: list[float] = []  # mean and std are measured on the images


def dino(num_images: int | None, batch_size: int | None, scale: Scale = Scale()) -> RunConfig:  # noqa: B008
    """Pretrain a small DINO model on your own images, with sizes chosen from the images.

    Command: `selfvit train dino --data FOLDER --output RUN`
    Time: nine minutes on two CPU cores, for 2,000 steps.
    Quality: on 802 stamps, 55.9 % k-NN (5-fold, k = 20, mean of three seeds), where the untrained
    encoder has 46.6 % and raw pixels 44.8 %; see benchmarks/results/small_folder.md.
    Status: measured here.
    """
    return RunConfig(
        recipe="dino",
        architecture="SelfViTForDINO",
        model=_encoder(
            scale,
            dino_config=DINOConfig(
                num_prototypes=_num_prototypes(num_images),
                head_hidden_size=256 if scale.is_small else 2048,
                head_bottleneck_size=64 if scale.is_small else 256,
                teacher_momentum=0.995,
                teacher_temperature=0.04,
                freeze_last_layer_ratio=0.02,
                koleo_weight=0.2,
            ),
        ),
        augmentation=MultiCrop(**_crops(scale), solarize_probability=[0.0, 0.0, 0.0]),
        **_sections(scale, batch_size, max_gradient_norm=3.0),
    )


def dinov2(num_images: int | None, batch_size: int | None, scale: Scale = Scale()) -> RunConfig:  # noqa: B008
    """Pretrain a small DINOv2 model on your own images, with sizes chosen from the images.

    Command: `selfvit train dinov2 --data FOLDER --output RUN`
    Time: at most 30 minutes on two CPU cores.
    Status: mechanics tested here; `dino` is the one to try first.
    """
    return RunConfig(
        recipe="dinov2",
        architecture="SelfViTForDINOv2",
        model=_encoder(
            scale,
            use_mask_token=True,
            dinov2_config=DINOv2Config(
                num_prototypes=_num_prototypes(num_images),
                head_hidden_size=256 if scale.is_small else 2048,
                head_bottleneck_size=64 if scale.is_small else 256,
                normalize_last_layer=True,
                teacher_momentum=0.995,
                teacher_temperature=0.04,
                freeze_last_layer_ratio=0.02,
                koleo_weight=0.1,
            ),
        ),
        augmentation=MaskedMultiCrop(**_crops(scale), solarize_probability=[0.0, 0.0, 0.0]),
        **_sections(scale, batch_size, max_gradient_norm=3.0),
    )


def distill(num_images: int | None, batch_size: int | None, scale: Scale = Scale()) -> RunConfig:  # noqa: B008
    """Distill a pretrained model into a small one on your own images, with sizes chosen from them.

    Command: `selfvit train distill --teacher TEACHER --data FOLDER --output RUN`
    Time: depends on the teacher, which embeds each view, too.
    Status: mechanics tested here.
    """
    color = _color(scale)
    return RunConfig(
        recipe="distill",
        architecture="SelfViTForDistill",
        model=_encoder(
            scale, distill_config=DistillConfig(queue_size=min(2048, queue_size(num_images)))
        ),
        augmentation=ColoredCrop(
            crop_scale=[0.5, 1.0],
            color_jitter=color["color_jitter"],
            grayscale_probability=color["grayscale_probability"],
        ),
        **_sections(scale, batch_size, max_gradient_norm=1.0),
    )


def lejepa(num_images: int | None, batch_size: int | None, scale: Scale = Scale()) -> RunConfig:  # noqa: B008
    """Pretrain a small LeJEPA model on your own images, with sizes chosen from the images.

    Command: `selfvit train lejepa --data FOLDER --output RUN`
    Time: at most 20 minutes on two CPU cores.
    Status: mechanics tested here; `dino` is the one to try first.
    """
    return RunConfig(
        recipe="lejepa",
        architecture="SelfViTForLeJEPA",
        model=_encoder(
            scale,
            lejepa_config=LeJEPAConfig(
                num_slices=256,
                head_hidden_size=256 if scale.is_small else 2048,
                head_output_size=32 if scale.is_small else 128,
            ),
        ),
        augmentation=MultiCrop(**_crops(scale), solarize_probability=[0.0, 0.0, 0.0]),
        **_sections(scale, batch_size, max_gradient_norm=3.0, weight_decay=0.05),
    )


def mae(num_images: int | None, batch_size: int | None, scale: Scale = Scale()) -> RunConfig:  # noqa: B008
    """Pretrain a small MAE model on your own images, with sizes chosen from the images.

    Command: `selfvit train mae --data FOLDER --output RUN`
    Time: at most 20 minutes on two CPU cores.
    Status: mechanics tested here; MAE needs more images than `dino` for good k-NN.
    """
    return RunConfig(
        recipe="mae",
        architecture="SelfViTForMAE",
        model=_encoder(
            scale,
            initializer_range=0.02,
            position_embedding_type="sincos",
            mae_config=MAEConfig(
                decoder_hidden_size=64 if scale.is_small else 128,
                decoder_num_layers=2,
                decoder_num_attention_heads=2,
                norm_pix_loss=False,
            ),
        ),
        augmentation=MAECrop(),
        **_sections(scale, batch_size, max_gradient_norm=1.0, weight_decay=0.05, adam_beta2=0.95),
    )


def pmsn(num_images: int | None, batch_size: int | None, scale: Scale = Scale()) -> RunConfig:  # noqa: B008
    """Pretrain a small PMSN model on your own images, with sizes chosen from the images.

    Command: `selfvit train pmsn --data FOLDER --output RUN`
    Time: at most 30 minutes on two CPU cores.
    Status: mechanics tested here; `dino` is the one to try first.
    """
    color = _color(scale)
    return RunConfig(
        recipe="pmsn",
        architecture="SelfViTForPMSN",
        model=_encoder(
            scale,
            pmsn_config=PMSNConfig(
                head_hidden_size=256 if scale.is_small else 2048,
                head_output_size=128 if scale.is_small else 256,
                teacher_momentum=0.98,
                teacher_momentum_end=0.995,
            ),
        ),
        augmentation=FocalCrops(
            num_random_views=2,
            num_focal_views=0,
            focal_view_size=_small_crop(scale),
            random_crop_scale=[0.5, 1.0],
            blur_sigma=[0.1, 1.0],
            **color,
        ),
        **_sections(scale, batch_size, max_gradient_norm=3.0),
    )


def _encoder(scale: Scale, **values: Any) -> SelfViTConfig:
    """Return the configuration of the model.

    Weights of the small encoder start four times larger than usual, otherwise the class token
    hardly depends on the image at first (see `dino_demo`).
    """
    small = {
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "initializer_range": 0.08,
    }
    large = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3}  # ViT-Ti
    return SelfViTConfig(
        **{
            **(small if scale.is_small else large),
            "image_size": scale.image_size,
            "patch_size": scale.patch_size,
            "num_channels": scale.num_channels,
            "pooling": "cls+mean",
            **values,
        }
    )


def _num_prototypes(num_images: int | None) -> int:
    """Return an eighth of the number of images, as a power of two from 128 to 4,096."""
    return 2 ** int(math.log2(min(max((num_images or 8192) / 8, 128), 4096)))


def _small_crop(scale: Scale) -> int:
    """Return the size of local views, if they are asked for: half the image, whole patches."""
    return max(1, scale.image_size // scale.patch_size // 2) * scale.patch_size


def _crops(scale: Scale) -> dict[str, Any]:
    """Return the fields of mild crops, as images of a folder often show one subject each.

    With four blocks, local views gained nothing on the stamps (one seed).
    """
    return {
        "num_local_views": 0,
        "local_view_size": _small_crop(scale),  # used with --num-local-views
        "global_crop_scale": [0.5, 1.0],
        "blur_probability": [0.5, 0.1, 0.0],
        "blur_sigma": [0.1, 1.0],
        **_color(scale),
    }


def _color(scale: Scale) -> dict[str, Any]:
    """Return the fields of color changes; gray images have strong ones of brightness instead."""
    jitter = [0.4, 0.4, 0.2, 0.1] if scale.has_color else [0.8, 0.8, 0.0, 0.0]
    return {"color_jitter": jitter, "grayscale_probability": 0.0}


def _sections(
    scale: Scale, batch_size: int | None, weight_decay: float = 0.04, **optimizer: Any
) -> dict[str, Any]:
    """Return the sections of a run that its objective does not determine."""
    return {
        "data": DataConfig(num_workers=scale.num_workers),
        "preprocessing": PreprocessingConfig(
            image_mean=MEASURED, image_std=MEASURED, resize="square"
        ),
        "schedule": ScheduleConfig(
            max_steps=scale.num_steps,
            batch_size=batch_size or scale.batch_size,
            base_learning_rate=4e-3 if scale.is_small else 1e-3,
            warmup_ratio=0.1,
            weight_decay=weight_decay,
        ),
        "optimizer": OptimizerConfig(**optimizer),
        "checkpoints": CheckpointConfig(save_steps=500),
    }


# Recipes whose sizes are chosen from the images, and the start from pretrained weights that suits
# each of them: recipe and weights. A distillation has a pretrained teacher.
SMALL_FOLDER: dict[Callable[..., RunConfig], tuple[str, str] | None] = {
    dino: ("dino_finetune", "facebook/dino-vits16"),
    dinov2: ("dinov2_finetune", "facebook/dinov2-small"),
    distill: None,
    lejepa: ("lejepa_finetune", "facebook/dinov2-small"),
    mae: ("mae_finetune", "facebook/vit-mae-base"),
    pmsn: ("pmsn_finetune", "facebook/vit-msn-small"),
}

__all__ = ["SMALL_FOLDER", "dino", "dinov2", "distill", "lejepa", "mae", "pmsn"]
