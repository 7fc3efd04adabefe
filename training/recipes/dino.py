"""Recipes of DINO (arXiv 2104.14294)."""

from __future__ import annotations

import math
from dataclasses import replace

from ...configuration.configuration_dino import DINOConfig
from ...configuration.configuration_selfvit import SelfViTConfig
from ..augmentations.multi_crop import MultiCrop
from ..config.run_config import RunConfig
from ..config.teacher_momentum import finetuning_momentum
from ..config.training_config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from .fashion_mnist import fashion_mnist_preprocessing


def dino_vits16_in1k(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Pretrain a ViT-S/16 with DINO on ImageNet-1k for 100 epochs, as in the paper.

    Paper: arXiv 2104.14294. Views: 2 of 224 and 8 of 96 pixels.
    Command: `accelerate launch -m selfvit.training.train dino_vits16_in1k --data IMAGENET/train
    --output RUN --num-workers 10`
    Time: 1.75 days on 8 V100 GPUs, according to the authors' repository.
    Quality: 69.3 % k-NN and 74.0 % linear probe, according to the repository, for 100 epochs.
    Status: paper's numbers, not reproduced.
    Difference from the repository: gradients are clipped by their total norm, not parameter by
    parameter.
    """
    return RunConfig(
        recipe="dino_vits16_in1k",
        architecture="SelfViTForDINO",
        model=SelfViTConfig.from_name(
            "vits16",
            drop_path_rate=0.1,  # main_dino.py --drop_path_rate
            dino_config=DINOConfig(
                normalize_last_layer=False,  # README, ViT-S: "norm_last_layer false"
                freeze_last_layer_ratio=1 / 100,  # main_dino.py: 1 epoch of 100
                warmup_teacher_temperature=0.04,  # Appendix D
                teacher_temperature=0.07,  # Appendix D
                teacher_temperature_warmup_ratio=30 / 100,  # Appendix D: 30 epochs
            ),
        ),
        augmentation=MultiCrop(),
        schedule=ScheduleConfig(
            epochs=100,  # Table 8
            batch_size=1024,  # Sec. 3.2
            base_learning_rate=5e-4,  # Sec. 3.2
            min_learning_rate=1e-6,  # main_dino.py --min_lr
            warmup_ratio=10 / 100,  # Sec. 3.2: 10 epochs
            weight_decay=0.04,  # Sec. 3.2
            weight_decay_end=0.4,  # Sec. 3.2
        ),
        optimizer=OptimizerConfig(
            max_gradient_norm=3.0,  # main_dino.py --clip_grad
        ),
    )


def dino_finetune(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Continue DINO training from pretrained weights on your own small dataset.

    Command: `selfvit train dino_finetune --init-from CHECKPOINT --data IMAGES --output RUN`
    Time and quality: depend on the data; compare k-NN before and after.
    Status: mechanics tested here.

    Differences from pretraining, with their reasons:

    - Prototypes: a quarter of the number of images, rounded down to a power of two, from 256 to
      65,536. With 65,536 prototypes for a few thousand images, the teacher stays uniform and the
      loss stays at ln 65536 = 11.09.
    - Teacher momentum: the teacher should average over as many images as in the paper (1,024 /
      (1 - 0.996) = 256,000), so the momentum is higher for a smaller batch: 0.99975 at 64 (the
      authors recommend 0.9995 for small batches). The average never spans more than a tenth of
      the run, otherwise the teacher would still be close to the pretrained weights at the end.
    - Frozen start: a new head gives the encoder useless gradients at first, so the encoder is
      frozen for the first tenth of the steps.
    - Learning rate: ten times lower than in pretraining, with layer-wise decay, so that the lower
      blocks, which are the most general, change least.
    - KoLeo (from DINOv2) with a weight of 0.1 keeps class tokens spread out. With few images, they
      would otherwise concentrate in a few directions (4 points of k-NN in `dino_demo`).
    - Crops: less extreme, with global views of 0.25 to 1 of the area, as images of small datasets
      often show one subject that fills the image.
    """
    batch_size = batch_size or 64
    epochs = 30
    num_prototypes = 4096
    num_steps = 10_000
    if num_images is not None:
        num_prototypes = 2 ** int(math.log2(min(max(num_images / 4, 256), 65536)))
        num_steps = max(1, epochs * (num_images // batch_size))
    return RunConfig(
        recipe="dino_finetune",
        architecture="SelfViTForDINO",
        model=SelfViTConfig.from_name(
            "vits16",
            drop_path_rate=0.1,
            dino_config=DINOConfig(
                num_prototypes=num_prototypes,
                teacher_momentum=finetuning_momentum(batch_size, num_steps),
                teacher_temperature=0.04,  # no warmup: with good features, a sharp teacher is safe
                warmup_teacher_temperature=0.04,
                freeze_last_layer_ratio=0.0,  # the frozen start warms up the new head
                koleo_weight=0.1,
            ),
        ),
        augmentation=MultiCrop(
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
        optimizer=OptimizerConfig(
            layer_decay=0.75,
            max_gradient_norm=1.0,
        ),
        checkpoints=CheckpointConfig(save_steps=500),
    )


def dino_lora(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Continue DINO training with low-rank adapters (LoRA), for a small GPU.

    Paper: arXiv 2106.09685.
    Command: `selfvit train dino_lora --init-from CHECKPOINT --data IMAGES --output RUN`
    Memory: the optimizer needs 8 % of what it needs in `dino_finetune` (ViT-S/16, 4,096
    prototypes).
    Quality: on the sample, the same gain as `dino_finetune` (docs/fine_tuning_dino.md). It depends
    on the data; compare k-NN before and after.
    Status: mechanics tested here.

    Differences from `dino_finetune`, with their reasons:

    - Adapters: rank 16 on all linear layers of the encoder, 1.3 M parameters for the 21.6 M of a
      ViT-S/16, which stay frozen. Teacher and student share the frozen weights, so these are in
      memory only once.
    - Head: smaller, as the head of `dino_finetune` (2,048 wide, 5.5 M parameters without
      prototypes) would need more optimizer memory than all adapters. For the same reason, there
      are at most 16,384 prototypes.
    - Learning rate: ten times higher and the same in all blocks, as adapters start at zero and the
      frozen weights preserve what is general. Leaving out the frozen first tenth of the run gains
      nothing more.
    """
    run = dino_finetune(num_images, batch_size)
    dino = run.model.dino_config
    assert dino is not None
    changes = {
        "head_hidden_size": 512,
        "head_bottleneck_size": 128,
        "num_prototypes": min(dino.num_prototypes, 16384),
        "lora_rank": 16,
        "base_learning_rate": 2e-3,
        "layer_decay": 1.0,
    }
    return replace(run.with_options(changes), recipe="dino_lora")


def dino_demo(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Pretrain a tiny DINO model on 28 x 28 gray images in minutes, on two CPU cores.

    Command: `make demo`, or `selfvit train dino_demo --data IMAGES --output RUN`
    Time: under five minutes on two cores for the 8,000 images of `examples/fashion_mnist_sample`.
    Quality: see docs/evaluation.md.
    Status: measured here.

    Differences from the paper, needed for a few thousand steps and images:

    - Encoder: two blocks, as more steps per minute help more than more blocks.
    - Initialization: weights are four times larger, otherwise the class token hardly depends on the
      image at first, and the teacher gives no signal.
    - KoLeo: keeps class tokens spread out, otherwise they concentrate in a few directions (4 points
      of k-NN).
    - Prototypes: few.
    - Crops: mild and without local views, as the garments are centered and differ in their outline.
    - Color: strong changes of brightness and contrast; gray images have no other color cue.

    The settings were chosen on 1,500 images held out of the training part.
    """
    return RunConfig(
        recipe="dino_demo",
        architecture="SelfViTForDINO",
        model=SelfViTConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.08,
            image_size=28,
            patch_size=7,
            pooling="cls+mean",
            dino_config=DINOConfig(
                num_prototypes=128,
                head_hidden_size=256,
                head_bottleneck_size=64,
                teacher_momentum=0.995,
                teacher_temperature=0.04,
                freeze_last_layer_ratio=0.02,
                koleo_weight=0.2,
            ),
        ),
        augmentation=MultiCrop(
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
            epochs=15,
            batch_size=64,
            base_learning_rate=4e-3,
            warmup_ratio=0.1,
            weight_decay=0.04,
        ),
        optimizer=OptimizerConfig(max_gradient_norm=3.0),
        checkpoints=CheckpointConfig(save_steps=500),
    )


__all__ = ["dino_demo", "dino_finetune", "dino_lora", "dino_vits16_in1k"]
