"""Recipes of DINOv2 (arXiv 2304.07193)."""

from __future__ import annotations

import math

from ...configuration.configuration_dinov2 import DINOv2Config
from ...configuration.configuration_selfvit import SelfViTConfig
from ..augmentations.multi_crop import MaskedMultiCrop
from ..config.run_config import RunConfig
from ..config.teacher_momentum import finetuning_momentum
from ..config.training_config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
    StartConfig,
)
from .fashion_mnist import fashion_mnist_preprocessing


def dinov2_vits16_in1k(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Pretrain a ViT-S/16 with DINOv2 on ImageNet-1k for 100 epochs.

    Paper: arXiv 2304.07193; numbers of ssl_default_config.yaml, which train/vitl16_short.yaml uses.
    Views: 2 of 224 and 8 of 96 pixels.
    Command: `accelerate launch -m selfvit.training.train dinov2_vits16_in1k --data IMAGENET/train
    --output RUN --num-workers 10 --mixed-precision bf16`
    Time: unknown. The authors' ViT-L/16 takes one day on 4 nodes with A100 GPUs.
    Quality: unknown. The authors' ViT-L/16 reaches 81.6 % k-NN and 82.9 % linear probe.
    Status: paper's numbers, not reproduced.

    Differences from the repository: gradients are clipped by their total norm, the patch embedding
    has the learning rate of its layer (there a fifth of it), drop path increases with depth (there
    it is the same in all blocks), and the learning rate is proportional to the batch size (there to
    its square root; equal at 1,024).

    For the long setup of the paper (train/vitl14.yaml), add `--separate-patch-head --num-prototypes
    131072 --head-bottleneck-size 384 --sinkhorn-iterations 3 --teacher-momentum 0.994
    --weight-decay-end 0.2 --layer-decay 1 --base-learning-rate 0.00005 --epochs 500 --warmup-ratio
    0.16 --teacher-temperature-warmup-ratio 0.06 --freeze-last-layer-ratio 0.002`.
    """
    return RunConfig(
        recipe="dinov2_vits16_in1k",
        architecture="SelfViTForDINOv2",
        model=SelfViTConfig.from_name(
            "vits16",
            drop_path_rate=0.1,  # our choice for ViT-S, as in DINO; ViT-L has 0.3
            layerscale_value=1e-5,  # student.layerscale
            use_mask_token=True,
            dinov2_config=DINOv2Config(
                freeze_last_layer_ratio=1 / 100,  # optim.freeze_last_layer_epochs
                warmup_teacher_temperature=0.04,  # teacher.warmup_teacher_temp
                teacher_temperature=0.07,  # teacher.teacher_temp
                teacher_temperature_warmup_ratio=30 / 100,  # teacher.warmup_teacher_temp_epochs
            ),
        ),
        augmentation=MaskedMultiCrop(),
        schedule=ScheduleConfig(
            epochs=100,  # optim.epochs
            batch_size=1024,  # optim.base_lr is for 1,024
            base_learning_rate=4e-3 * 256 / 1024,  # optim.base_lr
            min_learning_rate=1e-6,  # optim.min_lr
            warmup_ratio=10 / 100,  # optim.warmup_epochs
            weight_decay=0.04,  # optim.weight_decay
            weight_decay_end=0.4,  # optim.weight_decay_end
        ),
        optimizer=OptimizerConfig(
            layer_decay=0.9,  # optim.layerwise_decay
            max_gradient_norm=3.0,  # optim.clip_grad
        ),
    )


def dinov2_high_resolution(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Continue a DINOv2 run for a short time with larger images, and Gram anchoring.

    Papers: arXiv 2304.07193, "Adapting the resolution"; arXiv 2508.10104, Sec. 4.
    Command: `selfvit train dinov2_high_resolution --init-from RUN --image-size 448 --data IMAGES
    --output LARGE`; the image size is that of RUN without `--image-size`.
    Time and quality: depend on the data; evaluate both checkpoints at the new size.
    Status: mechanics tested here.

    The run continues student, teacher, heads and centers; the sizes of the heads are those of RUN.
    Position embeddings are resized. The Gram teacher is the encoder of RUN, on the same large
    views. The warm-up of the teacher's temperature is short, and its momentum high.
    """
    return RunConfig(
        recipe="dinov2_high_resolution",
        architecture="SelfViTForDINOv2",
        model=SelfViTConfig.from_name(
            "vits16",
            drop_path_rate=0.1,
            layerscale_value=1e-5,
            use_mask_token=True,
            dinov2_config=DINOv2Config(
                gram_weight=1.5,  # DINOv3, in adaptation to a resolution
                warmup_teacher_temperature=0.06,  # 0.6 times that of the student at most
                teacher_temperature_warmup_ratio=0.1,
                teacher_momentum=0.999,  # our choice
                freeze_last_layer_ratio=0.0,
            ),
        ),
        augmentation=MaskedMultiCrop(),
        start=StartConfig(init_scope="all"),
        schedule=ScheduleConfig(
            max_steps=10_000,  # arXiv 2304.07193, "Adapting the resolution"
            batch_size=batch_size or 256,
            base_learning_rate=1e-4,  # our choice
            min_learning_rate=1e-6,
            warmup_ratio=0.1,
            weight_decay=0.04,
        ),
        optimizer=OptimizerConfig(layer_decay=0.9, max_gradient_norm=3.0),
        checkpoints=CheckpointConfig(save_steps=500),
    )


def dinov2_finetune(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Continue DINOv2 training from pretrained weights on your own small dataset.

    Command: `selfvit train dinov2_finetune --init-from CHECKPOINT --data IMAGES --output RUN`
    Time and quality: depend on the data; compare k-NN before and after.
    Status: mechanics tested here.

    Prototypes, teacher momentum, frozen start, learning rate and crops differ from pretraining as
    in `dino_finetune`, for the same reasons. An encoder without a mask token gets a new one.
    `--gram-weight 1` anchors patches to the checkpoint.
    """
    batch_size = batch_size or 64
    epochs = 30
    num_prototypes = 4096
    num_steps = 10_000
    if num_images is not None:
        num_prototypes = 2 ** int(math.log2(min(max(num_images / 4, 256), 65536)))
        num_steps = max(1, epochs * (num_images // batch_size))
    return RunConfig(
        recipe="dinov2_finetune",
        architecture="SelfViTForDINOv2",
        model=SelfViTConfig.from_name(
            "vits16",
            drop_path_rate=0.1,
            use_mask_token=True,
            dinov2_config=DINOv2Config(
                num_prototypes=num_prototypes,
                normalize_last_layer=True,
                teacher_momentum=finetuning_momentum(batch_size, num_steps),
                teacher_temperature=0.04,  # no warmup: with good features, a sharp teacher is safe
                warmup_teacher_temperature=0.04,
                freeze_last_layer_ratio=0.0,  # the frozen start warms up the new head
            ),
        ),
        augmentation=MaskedMultiCrop(
            num_local_views=6, global_crop_scale=[0.25, 1.0], local_crop_scale=[0.05, 0.25]
        ),
        schedule=ScheduleConfig(
            epochs=epochs,
            batch_size=batch_size,
            base_learning_rate=2e-4,
            min_learning_rate=1e-6,
            warmup_ratio=0.1,
            weight_decay=0.04,
            freeze_encoder_ratio=0.1,
        ),
        optimizer=OptimizerConfig(layer_decay=0.75, max_gradient_norm=1.0),
        checkpoints=CheckpointConfig(save_steps=500),
    )


def dinov2_demo(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Pretrain a tiny DINOv2 model on 28 x 28 gray images in minutes, on two CPU cores.

    Command: `make demo OBJECTIVE=dinov2`, or `selfvit train dinov2_demo --data IMAGES --output RUN`
    Time: seven minutes on one busy core for the 8,000 images of `examples/fashion_mnist_sample`.
    Quality: 77.8 % k-NN and 79.6 % linear probe on the test images of the sample; an untrained
    encoder has 70.0 and 76.8. `dino_demo` reaches more (79.0 and 81.0).
    Status: measured here, three seeds; the settings were not tuned.

    Encoder, initialization, prototypes, crops and colors are those of `dino_demo`, for the same
    reasons. A view has 16 patches; half of the views have up to 8 masked.
    """
    return RunConfig(
        recipe="dinov2_demo",
        architecture="SelfViTForDINOv2",
        model=SelfViTConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.08,
            image_size=28,
            patch_size=7,
            use_mask_token=True,
            pooling="cls+mean",
            dinov2_config=DINOv2Config(
                num_prototypes=128,
                head_hidden_size=256,
                head_bottleneck_size=64,
                normalize_last_layer=True,
                teacher_momentum=0.995,
                teacher_temperature=0.04,
                freeze_last_layer_ratio=0.02,
                koleo_weight=0.1,
            ),
        ),
        augmentation=MaskedMultiCrop(
            num_local_views=0,
            local_view_size=14,  # used with --num-local-views
            global_crop_scale=[0.5, 1.0],
            color_jitter=[0.8, 0.8, 0.0, 0.0],
            grayscale_probability=0.0,
            blur_probability=[0.5, 0.1, 0.0],
            blur_sigma=[0.1, 1.0],
            solarize_probability=[0.0, 0.2, 0.0],
        ),
        data=DataConfig(num_workers=1),
        preprocessing=fashion_mnist_preprocessing(),
        schedule=ScheduleConfig(
            epochs=12,
            batch_size=64,
            base_learning_rate=4e-3,
            warmup_ratio=0.1,
            weight_decay=0.04,
        ),
        optimizer=OptimizerConfig(max_gradient_norm=3.0),
        checkpoints=CheckpointConfig(save_steps=500),
    )


__all__ = ["dinov2_demo", "dinov2_finetune", "dinov2_high_resolution", "dinov2_vits16_in1k"]
