"""Recipes of MSN and PMSN (arXiv 2204.07141, 2210.07277)."""

from __future__ import annotations

import math

from ...configuration.configuration_pmsn import PMSNConfig
from ...configuration.configuration_selfvit import SelfViTConfig
from ..augmentations.multi_crop import FocalCrops
from ..config.run_config import RunConfig
from ..config.training_config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    PreprocessingConfig,
    ScheduleConfig,
)
from .teacher_momentum import finetuning_momentum


def msn_vits16_in1k(num_images: int | None, batch_size: int | None) -> RunConfig:
    """MSN, ViT-S/16 on ImageNet-1k, 800 epochs, 1 x 224 masked + 10 x 96 (arXiv 2204.07141).

    Command: `accelerate launch -m selfvit.training.train msn_vits16_in1k --data IMAGENET/train
    --output msn_vits16 --num_workers 10`
    Time: the repository's example takes 16 GPUs, and gives no figure. Quality: 66.4 top-1 with 1 %
    of the labels (Table 11, Sinkhorn); 67.2 without Sinkhorn and a weight of 5, which is
    `--sinkhorn_iterations 0 --regularization_weight 5`. Status: paper's numbers, not reproduced.
    Differs from the repository: the learning rate warms up from 0, not from 0.0002; gradients are
    clipped by their norm with the prototypes' among them; cosines end with the run, the
    repository's would go on for a quarter of it.
    """
    return RunConfig(
        recipe="msn_vits16_in1k",
        architecture="SelfViTForPMSN",
        model=SelfViTConfig.from_name(
            "vits16",
            pmsn_config=PMSNConfig(
                prior="uniform",  # Sec. 3, Eq. 1
                sinkhorn_iterations=3,  # Appendix A.1; src/losses.py: num_itr
                regularization_weight=1.0,  # Appendix A.1
                patch_drop_ratio=0.15,  # Appendix A.1
            ),
        ),
        augmentation=FocalCrops(),
        schedule=_msn_schedule(),
        optimizer=OptimizerConfig(max_gradient_norm=3.0),  # msn_vits16.yaml: clip_grad
    )


def pmsn_vits16_in1k(num_images: int | None, batch_size: int | None) -> RunConfig:
    """PMSN, ViT-S/16: MSN with a power-law prior, for data of unequal classes (arXiv 2210.07277).

    Command: `accelerate launch -m selfvit.training.train pmsn_vits16_in1k --data FOLDER --output
    pmsn_vits16 --num_workers 10`
    On ImageNet-1k, whose classes are equal, MSN is the better choice; the paper gains on
    iNaturalist-18. Everything but the prior is MSN's without Sinkhorn, which would make the targets
    uniform. Quality: none known for this size. Status: paper's numbers, not reproduced.
    """
    return RunConfig(
        recipe="pmsn_vits16_in1k",
        architecture="SelfViTForPMSN",
        model=SelfViTConfig.from_name(
            "vits16",
            pmsn_config=PMSNConfig(
                prior="power_law",
                power_law_exponent=0.25,  # PMSN, arXiv 2210.07277
                sinkhorn_iterations=0,
                regularization_weight=5.0,  # MSN, Table 11, without Sinkhorn
                patch_drop_ratio=0.15,  # MSN, Appendix A.1
            ),
        ),
        augmentation=FocalCrops(),
        schedule=_msn_schedule(),
        optimizer=OptimizerConfig(max_gradient_norm=3.0),  # msn_vits16.yaml: clip_grad
    )


def _msn_schedule() -> ScheduleConfig:
    return ScheduleConfig(
        epochs=800,  # MSN, Table 1; configs/pretrain/msn_vits16.yaml
        batch_size=1024,  # MSN, Appendix A.1
        base_learning_rate=1e-3 * 256 / 1024,  # MSN, Appendix A.1: 0.001 at 1024
        min_learning_rate=1e-6,  # msn_vits16.yaml: final_lr
        warmup_ratio=15 / 800,  # MSN, Appendix A.1: 15 epochs
        weight_decay=0.04,  # MSN, Appendix A.1
        weight_decay_end=0.4,  # MSN, Appendix A.1
    )


def pmsn_finetune(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Continue PMSN from pretrained weights on a small data set of one's own.

    Command: `selfvit train pmsn_finetune --init_from CHECKPOINT --data FOLDER --output OUT`
    What differs from pretraining, and why:

    - Prior: a power law, as one's own images are seldom sorted into classes of one size; for those
      that are, `--prior uniform`.
    - Prototypes: the power of two next below an eighth of the images, 64 to 1,024. The regularizer
      asks the mean prediction of one batch to follow the prior: many more prototypes than anchors
      in a batch cannot.
    - Teacher momentum and the frozen first tenth are `dino_finetune`'s, for the same reasons: look
      back over as many images as the paper does, but over no more than a tenth of the run; and
      warm the new head up before it bends good features.
    - Focal views are fewer and less small (0.1 to 0.4 of the area): small sets are often of one
      subject that fills the image.

    Batch norm needs 2 images in a micro-batch, and tells more of 32. Status: mechanics tested here;
    quality depends on the data, so compare k-NN before and after.
    """
    batch_size = batch_size or 64
    epochs = 30
    num_prototypes = 1024  # MSN, Appendix A.1
    num_steps = 10_000
    if num_images is not None:
        num_prototypes = 2 ** int(math.log2(min(max(num_images / 8, 64), 1024)))
        num_steps = max(1, epochs * (num_images // batch_size))
    return RunConfig(
        recipe="pmsn_finetune",
        architecture="SelfViTForPMSN",
        model=SelfViTConfig.from_name(
            "vits16",
            drop_path_rate=0.1,
            pmsn_config=PMSNConfig(
                num_prototypes=num_prototypes,
                teacher_momentum=finetuning_momentum(batch_size, num_steps),
            ),
        ),
        augmentation=FocalCrops(num_focal_views=6, focal_crop_scale=[0.1, 0.4]),
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


def pmsn_demo(num_images: int | None, batch_size: int | None) -> RunConfig:
    """PMSN small enough for two CPU cores: 28 x 28 gray images, minutes.

    Command: `make demo OBJECTIVE=pmsn`, or `selfvit train pmsn_demo --data FOLDER --output OUT`.
    Time: under five minutes on two cores for the 8,000 images of `examples/fashion_mnist_sample`.
    Quality: README, "How good are they?". Status: measured here.

    What differs from the paper, beside what `dino_demo` changes for the same reasons (two blocks,
    larger initial weights, brightness and contrast): two masked views and no focal ones (after
    600 steps 75.5 by k-NN; one masked and two focal ones, with a head half as wide, 72.7); crops of
    at least half the image; a teacher that follows within 50 to 200 steps. 1,024 prototypes are the
    paper's; with the focal views, 4,096 gave 72.1. Chosen on 1,500 images held out of the training
    part, where raw pixels have 80.7 by k-NN and an untrained encoder 69.1.
    """
    return RunConfig(
        recipe="pmsn_demo",
        architecture="SelfViTForPMSN",
        model=SelfViTConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            initializer_range=0.08,
            image_size=28,
            patch_size=7,
            pooling="cls+mean",
            pmsn_config=PMSNConfig(
                head_hidden_size=256,
                head_output_size=128,
                teacher_momentum=0.98,
                teacher_momentum_end=0.995,
            ),
        ),
        augmentation=FocalCrops(
            num_random_views=2,
            num_focal_views=0,
            focal_view_size=14,  # for --num_focal_views
            random_crop_scale=[0.5, 1.0],
            color_jitter=[0.8, 0.8, 0.0, 0.0],
            grayscale_probability=0.0,
            blur_sigma=[0.1, 1.0],
        ),
        data=DataConfig(num_workers=1),
        preprocessing=PreprocessingConfig(
            image_mean=[0.2860] * 3,  # of Fashion-MNIST's training images
            image_std=[0.3530] * 3,
            resize="square",
        ),
        schedule=ScheduleConfig(
            epochs=24,
            batch_size=64,
            base_learning_rate=4e-3,
            warmup_ratio=0.1,
            weight_decay=0.04,
        ),
        optimizer=OptimizerConfig(max_gradient_norm=3.0),
        checkpoints=CheckpointConfig(save_steps=500),
    )


__all__ = ["msn_vits16_in1k", "pmsn_demo", "pmsn_finetune", "pmsn_vits16_in1k"]
