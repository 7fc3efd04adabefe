"""Recipes of distillation from a frozen teacher."""

from __future__ import annotations

import math

from ...configuration.configuration_distill import DistillConfig
from ...configuration.configuration_selfvit import SelfViTConfig
from ..augmentations.colored_crop import ColoredCrop
from ..config.run_config import RunConfig
from ..config.training_config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    PreprocessingConfig,
    ScheduleConfig,
)

OF_THE_TEACHER: list[float] = []  # mean and std that the teacher determines


def distill_vits16(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Train a ViT-S/16 from random weights to see as a larger, frozen teacher does.

    Papers: arXiv 2101.04731 (queue), 2106.05237 (same views, mixup, long schedules). Views: 1 of
    224 pixels, the same for both networks.
    Command: `selfvit train distill_vits16 --teacher facebook/dinov2-base --data IMAGES --output RUN
    --mixed-precision bf16`
    Time: depends on the teacher, which embeds each view, too.
    Quality: on 11,788 images of birds (CUB-200) without labels, 100 epochs, 60.6 % of the 10
    nearest neighbors have the species of the image for a ViT-T distilled from a DINOv3 ViT-B; 8.1 %
    before, 71.5 % for the teacher, according to LightlyStudio's tutorial (lightlytrain-embeddings).
    Status: numbers of LightlyTrain, not reproduced.

    For other students, set `--hidden-size`, `--num-hidden-layers` and `--num-attention-heads`: 192,
    12 and 3 for a ViT-Ti.

    - Queue: a quarter of the number of images, rounded to a power of two, from 16 to 8,192.
    - Learning rate: 5e-4 for a batch of 1,536, scaled by the square root of the batch.
    - Length: LightlyTrain advises 100 to 3,000 epochs, the more the fewer images there are.
    """
    batch_size = batch_size or 256
    return RunConfig(
        recipe="distill_vits16",
        architecture="SelfViTForDistill",
        model=SelfViTConfig.from_name(
            "vits16", distill_config=DistillConfig(queue_size=queue_size(num_images))
        ),
        augmentation=ColoredCrop(),
        preprocessing=PreprocessingConfig(image_mean=OF_THE_TEACHER, image_std=OF_THE_TEACHER),
        schedule=ScheduleConfig(
            epochs=100,
            batch_size=batch_size,  # LightlyTrain advises 128 to 2,048
            base_learning_rate=_base_learning_rate(batch_size),
            min_learning_rate=1e-6,  # our choice
            warmup_ratio=0.1,  # our choice
            weight_decay=0.04,  # LightlyTrain
        ),
        optimizer=OptimizerConfig(max_gradient_norm=1.0),  # LightlyTrain
    )


def queue_size(num_images: int | None) -> int:
    """Return a quarter of the number of images, as a power of two from 16 to 8,192."""
    if num_images is None:
        return 8192
    return 2 ** min(13, max(4, round(math.log2(max(num_images, 1) / 4))))


def _base_learning_rate(batch_size: int) -> float:
    """Return the rate for a batch of 256 that gives 5e-4 * sqrt(batch / 1536)."""
    return 5e-4 * math.sqrt(batch_size / 1536) * 256 / batch_size


def distill_finetune(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Make a pretrained encoder smaller on your own small dataset, without labels.

    Command: `selfvit train distill_finetune --init-from CHECKPOINT --data IMAGES --output RUN`
    Time and quality: depend on the data; compare k-NN of the student with that of CHECKPOINT.
    Status: mechanics tested here.

    The checkpoint is the teacher, and the student starts from it with half of its blocks, evenly
    spaced (as in DistilBERT, arXiv 1910.01108); `--num-hidden-layers` keeps another number. To
    improve a small checkpoint instead, name a larger teacher with `--teacher`; the student then
    starts from all blocks of the checkpoint.

    The report at the end compares the student before and after training, not with the teacher.
    """
    batch_size = batch_size or 64
    return RunConfig(
        recipe="distill_finetune",
        architecture="SelfViTForDistill",
        model=SelfViTConfig.from_name(
            "vits16", distill_config=DistillConfig(queue_size=queue_size(num_images))
        ),
        augmentation=ColoredCrop(),
        preprocessing=PreprocessingConfig(image_mean=OF_THE_TEACHER, image_std=OF_THE_TEACHER),
        schedule=ScheduleConfig(
            epochs=100,
            batch_size=batch_size,
            base_learning_rate=_base_learning_rate(batch_size),
            min_learning_rate=1e-6,
            warmup_ratio=0.1,
            weight_decay=0.04,
        ),
        optimizer=OptimizerConfig(max_gradient_norm=1.0),
        checkpoints=CheckpointConfig(save_steps=500),
    )


def distill_demo(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Distill a tiny student on 28 x 28 gray images in minutes, on two CPU cores.

    Command: `selfvit train distill_demo --teacher TEACHER --data IMAGES --output RUN`
    Time: four fifths of that of `dino_demo`.
    Quality: better than `dino_demo` with a teacher that was trained on more images; see
    benchmarks/results/demo_distill.md.
    Status: measured here; not tuned.

    Differences from `distill_vits16`, needed for a few thousand steps and images:

    - Encoder, initialization and colors: as in `dino_demo`, for the same reasons.
    - Crops: mild, as the garments are centered and differ in their outline.
    - Learning rate: that of `dino_demo`, as for other students of this size.
    """
    return RunConfig(
        recipe="distill_demo",
        architecture="SelfViTForDistill",
        model=SelfViTConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.08,
            image_size=28,
            patch_size=7,
            pooling="cls+mean",
            distill_config=DistillConfig(queue_size=min(2048, queue_size(num_images))),
        ),
        augmentation=ColoredCrop(
            crop_scale=[0.5, 1.0],
            color_jitter=[0.8, 0.8, 0.0, 0.0],
            grayscale_probability=0.0,
        ),
        data=DataConfig(num_workers=1),
        preprocessing=PreprocessingConfig(
            image_mean=OF_THE_TEACHER, image_std=OF_THE_TEACHER, resize="square"
        ),
        schedule=ScheduleConfig(
            epochs=15,
            batch_size=64,
            base_learning_rate=4e-3,
            warmup_ratio=0.1,
            weight_decay=0.04,
        ),
        optimizer=OptimizerConfig(max_gradient_norm=1.0),
        checkpoints=CheckpointConfig(save_steps=500),
    )


__all__ = ["distill_demo", "distill_finetune", "distill_vits16", "queue_size"]
