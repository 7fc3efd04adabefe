"""Recipes of classifiers with a pretrained encoder."""

from __future__ import annotations

import math

from ...configuration.configuration_selfvit import SelfViTConfig
from ..augmentations.single_crop import CropAndFlip, MixedCrop
from ..config.run_config import RunConfig
from ..config.training_config import CheckpointConfig, OptimizerConfig, ScheduleConfig


def classify(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Train a classifier on labeled images, from a pretrained encoder.

    Command: `selfvit train classify --init-from CHECKPOINT --data IMAGES --output RUN`
    Time and quality: depend on the data.
    Status: mechanics tested here.

    Layer-wise decay is in the range of BEiT and MAE (arXiv 2111.06377, Table 9: 0.65 to 0.75). The
    learning rate is higher than theirs, as runs on small datasets have few steps.
    """
    return RunConfig(
        recipe="classify",
        architecture="SelfViTForImageClassification",
        model=SelfViTConfig.from_name("vits16", drop_path_rate=0.1),
        augmentation=CropAndFlip(),
        schedule=ScheduleConfig(
            epochs=30,
            batch_size=64,
            base_learning_rate=4e-3,  # small datasets have few steps; MAE, Table 9: 1e-3
            min_learning_rate=1e-6,
            warmup_ratio=0.05,  # MAE, Table 9: 5 epochs of 100
            weight_decay=0.05,  # MAE, Table 9
        ),
        optimizer=OptimizerConfig(
            layer_decay=0.75,  # MAE, Table 9
            max_gradient_norm=1.0,
        ),
        checkpoints=CheckpointConfig(save_steps=500),
    )


def mae_classify(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Fine-tune a classifier with strong regularization, as in the MAE paper.

    Paper: arXiv 2111.06377, Table 9.
    Command: `selfvit train mae_classify --init-from CHECKPOINT --data IMAGES --output RUN`. The
    settings are for a ViT-B on ImageNet-1k; for a ViT-L, add `--base-learning-rate 1e-3
    --layer-decay 0.75 --epochs 50 --drop-path-rate 0.2` (FINETUNE.md).
    Time: 7.2 hours on 32 V100 GPUs.
    Quality: 83.6 % on ImageNet-1k (FINETUNE.md, mean of four seeds, pretrained for 1,600 epochs).
    Status: paper's numbers, not reproduced; mechanics tested here.

    Pooling is that of the checkpoint, mean for those of MAE. The batch size is that of the paper if
    this gives at least 16 batches per epoch. Otherwise, it is the largest power of two that does,
    and at least 16, so that small datasets still have enough steps. The learning rate scales with
    the batch size.

    Differences from the repository: patches are normalized before they are averaged, not after;
    erased boxes have uniformly random levels (arXiv 1708.04896), not normally distributed ones; the
    partners in a batch are random, not the first with the last.
    """
    if batch_size is None:
        batch_size = 1024  # Table 9
        if num_images is not None:
            batch_size = 2 ** int(math.log2(min(max(num_images / 16, 16), 1024)))
    return RunConfig(
        recipe="mae_classify",
        architecture="SelfViTForImageClassification",
        model=SelfViTConfig.from_name(
            "vitb16",
            pooling="mean",  # FINETUNE.md: --global_pool is the default
            drop_path_rate=0.1,  # Table 9
        ),
        augmentation=MixedCrop(
            crop_scale=[0.08, 1.0],  # RandomResizedCrop, arXiv 1409.4842, Sec. 6
            rand_augment_magnitude=9.0,  # Table 9: RandAug (9, 0.5)
            rand_augment_std=0.5,  # Table 9
            random_erasing_probability=0.25,  # FINETUNE.md --reprob
            mixup_alpha=0.8,  # Table 9
            cutmix_alpha=1.0,  # Table 9
            label_smoothing=0.1,  # Table 9
        ),
        schedule=ScheduleConfig(
            epochs=100,  # Table 9, ViT-B
            batch_size=batch_size,
            base_learning_rate=5e-4,  # FINETUNE.md --blr, ViT-B; Table 9 has 1e-3
            min_learning_rate=1e-6,  # main_finetune.py --min_lr
            warmup_ratio=5 / 100,  # Table 9: 5 epochs
            weight_decay=0.05,  # Table 9
        ),
        optimizer=OptimizerConfig(
            adam_beta1=0.9,  # Table 9
            adam_beta2=0.999,  # Table 9
            layer_decay=0.65,  # FINETUNE.md --layer_decay, ViT-B; Table 9 has 0.75
        ),
    )


def linear_probe(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Train a linear classifier on the embeddings of a frozen encoder.

    Command: `selfvit train linear_probe --init-from CHECKPOINT --data IMAGES --output RUN`
    Time: short per image, as the encoder is frozen, but each epoch runs it on all images.
    Quality: 78.5 %, where the probe of scikit-learn (`selfvit evaluate`) has 78.9 % (same encoder,
    6,500 training images, 1,500 held out, one seed).
    Status: measured here.

    A batch norm without weights standardizes the embeddings (MAE, arXiv 2111.06377, Appendix A.1,
    "Linear probing"). MAE uses LARS with a batch size of 16,384, too large for small datasets, so
    this recipe uses AdamW. Pooling is that of the checkpoint.

    Images are neither flipped nor cropped at random: the largest undistorted part in the center is
    used, close to inference. With an encoder of 300 steps, 5,200 training and 1,300 test images of
    clothes, flips cost 1 to 2 points, and crops of half to all of the area 12; on 500 images, they
    gained nothing either. For photos, try `--crop-scale 0.5 1 --flip-probability 0.5`. Peak
    learning rates from 0.016 to 0.05 at a batch size of 64 gave similar results; a quarter of 0.016
    is too slow.
    """
    return RunConfig(
        recipe="linear_probe",
        architecture="SelfViTForImageClassification",
        model=SelfViTConfig.from_name(
            "vits16",
            classifier_batch_norm=True,  # MAE, Appendix A.1
        ),
        augmentation=CropAndFlip(crop_scale=[1.0, 1.0], flip_probability=0.0),
        schedule=ScheduleConfig(
            epochs=30,
            batch_size=64,
            base_learning_rate=0.1,
            min_learning_rate=0.0,  # MAE, main_linprobe.py --min_lr
            warmup_ratio=0.1,  # MAE, Table 10: 10 epochs of 90
            weight_decay=0.0,  # MAE, Table 10
            freeze_encoder_ratio=1.0,
        ),
        checkpoints=CheckpointConfig(save_steps=500),
    )


__all__ = ["classify", "linear_probe", "mae_classify"]
