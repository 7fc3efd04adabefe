"""Recipes of DINO (arXiv 2104.14294)."""

from __future__ import annotations

import math
from dataclasses import replace

from ...configuration.configuration_dino import DINOConfig
from ...configuration.configuration_selfvit import SelfViTConfig
from ..augmentations.multi_crop import MultiCrop
from ..config.run_config import RunConfig
from ..config.training_config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    PreprocessingConfig,
    ScheduleConfig,
)
from .teacher_momentum import finetuning_momentum


def dino_vits16_in1k(num_images: int | None, batch_size: int | None) -> RunConfig:
    """DINO, ViT-S/16 on ImageNet-1k, 100 epochs, 2 x 224 + 8 x 96 (arXiv 2104.14294).

    Command: `accelerate launch -m selfvit.training.train dino_vits16_in1k --data IMAGENET/train
    --output dino_vits16 --num_workers 10`
    Time: 1.75 days on 8 V100 (the repository's figure). Quality: 69.3 k-NN, 74.0 linear probe (the
    repository's, 100 epochs). Status: paper's numbers, not reproduced.
    Differs from the repository: gradients are clipped by their norm as a whole, not one parameter
    at a time.
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
    """Continue DINO from pretrained weights on a small data set of one's own.

    Command: `selfvit train dino_finetune --init_from CHECKPOINT --data FOLDER --output OUT`
    What differs from pretraining, and why:

    - Prototypes: the power of two next below a quarter of the images, 256 to 65,536. 65,536 for a
      few thousand images leaves the teacher uniform and the loss at ln 65536 = 11.09 for good.
    - Teacher momentum: the average should look back over as many images as in the paper (1,024 /
      (1 - 0.996) = 256,000), so it grows as the batch shrinks (0.99975 at 64; the authors advise
      0.9995 for small batches), but never over more than a tenth of the run: else the teacher
      would still be the pretrained one at the end.
    - A new head on good features gives useless gradients at first: the encoder is frozen for the
      first tenth of the steps, and trains at a learning rate ten times below pretraining's, with
      layer-wise decay: what is general (the lower blocks) moves least.
    - KoLeo (weight 0.1, DINOv2's) keeps class tokens spread: on few images they would come to lie
      in a few directions (`dino_demo`: 4 points of k-NN).
    - Crops are less extreme (0.25 to 1 of the area is a global view), as small sets are often of
      one subject that fills the image.

    Status: mechanics tested here; quality depends on the data, so compare k-NN before and after.
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
                teacher_temperature=0.04,  # no warm-up: a sharp teacher is safe from good features
                warmup_teacher_temperature=0.04,
                freeze_last_layer_ratio=0.0,  # the new head is warmed up with the encoder frozen
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
    """Continue DINO by low-rank adapters, for a small GPU (LoRA, arXiv 2106.09685).

    Command: `selfvit train dino_lora --init_from CHECKPOINT --data FOLDER --output OUT`
    As `dino_finetune`, but for what trains, and how fast:

    - Adapters of rank 16 on all linear layers of the encoder, 1.3 M parameters for a ViT-S/16 of
      21.6 M, which stands still. Teacher and student share it, so it is in memory once.
    - A small head: dino_finetune's (2,048 wide, 5.5 M parameters before its prototypes) would need
      more of the optimizer than all adapters. Never more than 16,384 prototypes, for the same
      reason.
    - Ten times the learning rate, the same in all blocks: adapters start at zero, and what is
      general is kept by what stands still. On the sample that gains what dino_finetune gains
      (docs/fine_tuning_dino.md), and without the frozen first tenth no more.

    Optimizer memory (ViT-S/16, 4,096 prototypes): 8 % of dino_finetune's. Status: mechanics tested
    here; quality depends on the data, so compare k-NN before and after.
    """
    run = dino_finetune(num_images, batch_size)
    dino = run.model.dino_config
    assert dino is not None
    small = {
        "head_hidden_size": 512,
        "head_bottleneck_size": 128,
        "num_prototypes": min(dino.num_prototypes, 16384),
        "lora_rank": 16,
        "base_learning_rate": 2e-3,
        "layer_decay": 1.0,
    }
    return replace(run.with_options(small), recipe="dino_lora")


def dino_demo(num_images: int | None, batch_size: int | None) -> RunConfig:
    """DINO small enough for two CPU cores: 28 x 28 gray images, minutes.

    Command: `make demo`, or `selfvit train dino_demo --data FOLDER --output OUT`. Time: under five
    minutes on two cores for the 8,000 images of `examples/fashion_mnist_sample`. Quality: README,
    "How good are they?". Status: measured here.

    What differs from the paper is what a few thousand steps and images need: an encoder of two
    blocks (more steps a minute beat more blocks); weights initialized four times larger (else the
    class token hardly depends on the image at first, and the teacher says nothing); class tokens
    spread by KoLeo (else they come to lie in a few directions: 4 points of k-NN); few prototypes;
    mild crops and no local views, as the garments are centered and their outline tells them apart;
    strong changes of brightness and contrast (gray images have no other color to give away).
    Chosen on 1,500 images held out of the training part.
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
            local_view_size=14,  # for --num_local_views
            global_crop_scale=[0.5, 1.0],
            color_jitter=[0.8, 0.8, 0.0, 0.0],
            grayscale_probability=0.0,
            blur_probability=[0.5, 0.1, 0.0],
            blur_sigma=[0.1, 1.0],
            solarize_probability=[0.0, 0.2, 0.0],
        ),
        data=DataConfig(num_workers=1),
        preprocessing=PreprocessingConfig(
            image_mean=[0.2860] * 3,  # of Fashion-MNIST's training images
            image_std=[0.3530] * 3,
            resize="square",
        ),
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
