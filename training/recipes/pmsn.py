"""Recipes of MSN and PMSN (arXiv 2204.07141, 2210.07277)."""

from __future__ import annotations

import math

from ...configuration.configuration_pmsn import PMSNConfig
from ...configuration.configuration_selfvit import SelfViTConfig
from ..augmentations.multi_crop import FocalCrops
from ..config.run_config import RunConfig
from ..config.teacher_momentum import finetuning_momentum
from ..config.training_config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from .fashion_mnist import fashion_mnist_preprocessing


def msn_vits16_in1k(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Pretrain a ViT-S/16 with MSN on ImageNet-1k for 800 epochs, as in the paper.

    Paper: arXiv 2204.07141. Views: 1 masked of 224 and 10 of 96 pixels.
    Command: `accelerate launch -m selfvit.training.train msn_vits16_in1k --data IMAGENET/train
    --output RUN --num-workers 10`
    Time: unknown; the example of the authors' repository uses 16 GPUs.
    Quality: 66.4 % top-1 with 1 % of the labels (Table 11, Sinkhorn); 67.2 % without Sinkhorn and
    with a weight of 5: `--sinkhorn-iterations 0 --regularization-weight 5`.
    Status: paper's numbers, not reproduced.
    Differences from the repository: the learning rate warms up from 0, not from 0.0002; the norm
    that gradients are clipped by includes the prototypes; cosines end with the run, while those of
    the repository are a quarter longer than the run.
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
    """Pretrain a ViT-S/16 with PMSN, for data with classes of unequal size.

    Paper: arXiv 2210.07277.
    Command: `accelerate launch -m selfvit.training.train pmsn_vits16_in1k --data IMAGES
    --output RUN --num-workers 10`
    Time: unknown.
    Quality: unknown for this model size.
    Status: paper's numbers, not reproduced.

    PMSN is MSN with a power-law prior. On ImageNet-1k, whose classes have equal size, MSN is the
    better choice; the paper shows gains on iNaturalist-18. All other settings are those of MSN
    without Sinkhorn, which would make the targets uniform.
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
    """Continue PMSN training from pretrained weights on your own small dataset.

    Command: `selfvit train pmsn_finetune --init-from CHECKPOINT --data IMAGES --output RUN`
    Time and quality: depend on the data; compare k-NN before and after.
    Status: mechanics tested here.

    Differences from pretraining, with their reasons:

    - Prior: a power law, as classes of your own images seldom have equal size. If they do, use
      `--prior uniform`.
    - Prototypes: an eighth of the number of images, rounded down to a power of two, from 64 to
      1,024. The regularizer pulls the mean prediction of a batch to the prior, which is impossible
      with many more prototypes than anchors in a batch.
    - Teacher momentum and frozen start: as in `dino_finetune`, for the same reasons. The teacher
      averages over as many images as in the paper, but over no more than a tenth of the run. The
      new head is warmed up before it can damage good features.
    - Focal views: fewer and larger (0.1 to 0.4 of the area), as images of small datasets often
      show one subject that fills the image.

    Batch norm needs at least 2 images in a micro-batch, and its statistics are better with 32.
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
    """Pretrain a tiny PMSN model on 28 x 28 gray images in minutes, on two CPU cores.

    Command: `make demo OBJECTIVE=pmsn`, or `selfvit train pmsn_demo --data IMAGES --output RUN`
    Time: under five minutes on two cores for the 8,000 images of `examples/fashion_mnist_sample`.
    Quality: see docs/evaluation.md.
    Status: measured here.

    Differences from the paper, besides those of `dino_demo`, which have the same reasons (two
    blocks, larger initial weights, brightness and contrast); accuracies are k-NN, in %:

    - Views: two masked views and no focal views: 75.5 after 600 steps. One masked view and two
      focal views, with a head half as wide, gave 72.7.
    - Crops: at least half of the image.
    - Teacher: averages over 50 to 200 steps.

    The 1,024 prototypes are those of the paper; with the focal views, 4,096 gave 72.1. The settings
    were chosen on 1,500 images held out of the training part, where raw pixels have 80.7 and an
    untrained encoder 69.1.
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
            focal_view_size=14,  # used with --num-focal-views
            random_crop_scale=[0.5, 1.0],
            color_jitter=[0.8, 0.8, 0.0, 0.0],
            grayscale_probability=0.0,
            blur_sigma=[0.1, 1.0],
        ),
        data=DataConfig(num_workers=1),
        preprocessing=fashion_mnist_preprocessing(),
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
