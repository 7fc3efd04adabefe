"""Recipes: one function per paper's run or use case, with every number and where it comes from.

A recipe is called with the number of images and the batch size asked for (None where unknown) and
returns a `Run`; most need neither. Every value can be changed on the command line by its name.
"""

from __future__ import annotations

import math

from ..configuration.configuration_dino import DINOConfig
from ..configuration.configuration_pmsn import PMSNConfig
from ..configuration.configuration_selfvit import SelfViTConfig
from .augmentations import CropAndFlip, FocalCrops, MultiCrop
from .run import Recipe, Run, TrainingConfig


def dino_vits16_in1k(num_images: int | None, batch_size: int | None) -> Run:
    """DINO, ViT-S/16 on ImageNet-1k, 100 epochs, 2 x 224 + 8 x 96 (arXiv 2104.14294).

    Command: `accelerate launch -m selfvit.training.train dino_vits16_in1k --data IMAGENET/train
    --output dino_vits16 --num_workers 10`
    Time: 1.75 days on 8 V100 (the repository's figure). Quality: 69.3 k-NN, 74.0 linear probe (the
    repository's, 100 epochs). Status: paper's numbers, not reproduced.
    Differs from the repository: gradients are clipped by their norm as a whole, not one parameter
    at a time.
    """
    return Run(
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
        training=TrainingConfig(
            epochs=100,  # Table 8
            batch_size=1024,  # Sec. 3.2
            base_learning_rate=5e-4,  # Sec. 3.2
            min_learning_rate=1e-6,  # main_dino.py --min_lr
            warmup_ratio=10 / 100,  # Sec. 3.2: 10 epochs
            weight_decay=0.04,  # Sec. 3.2
            weight_decay_end=0.4,  # Sec. 3.2
            max_gradient_norm=3.0,  # main_dino.py --clip_grad
        ),
    )


def dino_finetune(num_images: int | None, batch_size: int | None) -> Run:
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
    paper_horizon = 1024 / (1 - 0.996)  # images
    momentum = 1 - max(batch_size / paper_horizon, min(0.1, 10 / num_steps))
    return Run(
        recipe="dino_finetune",
        architecture="SelfViTForDINO",
        model=SelfViTConfig.from_name(
            "vits16",
            drop_path_rate=0.1,
            dino_config=DINOConfig(
                num_prototypes=num_prototypes,
                teacher_momentum=round(momentum, 6),
                teacher_temperature=0.04,  # no warm-up: a sharp teacher is safe from good features
                warmup_teacher_temperature=0.04,
                freeze_last_layer_ratio=0.0,  # the new head is warmed up with the encoder frozen
            ),
        ),
        augmentation=MultiCrop(
            num_local_views=6, global_crop_scale=[0.25, 1.0], local_crop_scale=[0.05, 0.25]
        ),
        training=TrainingConfig(
            epochs=epochs,
            batch_size=batch_size,
            base_learning_rate=2e-4,
            min_learning_rate=1e-6,
            warmup_ratio=0.1,
            weight_decay=0.04,
            layer_decay=0.75,
            max_gradient_norm=1.0,
            freeze_encoder_ratio=0.1,
            save_steps=500,
        ),
    )


def dino_demo(num_images: int | None, batch_size: int | None) -> Run:
    """DINO small enough for two CPU cores: 28 x 28 grey images, minutes.

    Command: `make demo`, or `selfvit train dino_demo --data FOLDER --output OUT`. Time: under five
    minutes on two cores for the 8,000 images of `examples/fashion_mnist_sample`. Quality: README,
    "How good are they?". Status: measured here.

    What differs from the paper is what a few thousand steps need: an encoder of two blocks (more
    steps a minute beat more blocks); weights initialised four times larger (else the class token
    hardly depends on the image at first, and the teacher says nothing); strong changes of
    brightness and contrast (grey images have no other color to give away); two local views, which
    are not so small (four of half the width cost twice the time and taught no more); a teacher that
    follows within a hundred steps. Chosen on 1,500 images held out of the training part.
    """
    return Run(
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
                num_prototypes=1024,
                head_hidden_size=256,
                head_bottleneck_size=64,
                teacher_momentum=0.99,
                teacher_temperature=0.04,
                freeze_last_layer_ratio=0.02,
            ),
        ),
        augmentation=MultiCrop(
            num_local_views=2,
            local_view_size=21,
            global_crop_scale=[0.3, 1.0],
            local_crop_scale=[0.15, 0.6],
            color_jitter=[0.8, 0.8, 0.0, 0.0],
            grayscale_probability=0.0,
            blur_probability=[0.5, 0.1, 0.0],
            blur_sigma=[0.1, 1.0],
            solarize_probability=[0.0, 0.2, 0.0],
        ),
        training=TrainingConfig(
            epochs=12,
            batch_size=64,
            base_learning_rate=4e-3,
            warmup_ratio=0.1,
            weight_decay=0.04,
            max_gradient_norm=3.0,
            image_mean=[0.2860] * 3,  # of Fashion-MNIST's training images
            image_std=[0.3530] * 3,
            resize="square",
            num_workers=1,
            save_steps=500,
        ),
    )


def msn_vits16_in1k(num_images: int | None, batch_size: int | None) -> Run:
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
    return Run(
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
        training=_msn_training(),
    )


def pmsn_vits16_in1k(num_images: int | None, batch_size: int | None) -> Run:
    """PMSN, ViT-S/16: MSN with a power-law prior, for data of unequal classes (arXiv 2210.07277).

    Command: `accelerate launch -m selfvit.training.train pmsn_vits16_in1k --data FOLDER --output
    pmsn_vits16 --num_workers 10`
    On ImageNet-1k, whose classes are equal, MSN is the better choice; the paper gains on
    iNaturalist-18. Everything but the prior is MSN's without Sinkhorn, which would make the targets
    uniform. Quality: none known for this size. Status: paper's numbers, not reproduced.
    """
    return Run(
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
        training=_msn_training(),
    )


def _msn_training() -> TrainingConfig:
    return TrainingConfig(
        epochs=800,  # MSN, Table 1; configs/pretrain/msn_vits16.yaml
        batch_size=1024,  # MSN, Appendix A.1
        base_learning_rate=1e-3 * 256 / 1024,  # MSN, Appendix A.1: 0.001 at 1024
        min_learning_rate=1e-6,  # msn_vits16.yaml: final_lr
        warmup_ratio=15 / 800,  # MSN, Appendix A.1: 15 epochs
        weight_decay=0.04,  # MSN, Appendix A.1
        weight_decay_end=0.4,  # MSN, Appendix A.1
        max_gradient_norm=3.0,  # msn_vits16.yaml: clip_grad
    )


def pmsn_finetune(num_images: int | None, batch_size: int | None) -> Run:
    """Continue PMSN from pretrained weights on a small data set of one's own.

    Command: `selfvit train pmsn_finetune --init_from CHECKPOINT --data FOLDER --output OUT`
    What differs from pretraining, and why:

    - Prior: a power law, as one's own images are seldom sorted into classes of one size; for those
      that are, `--prior uniform`.
    - Prototypes: the power of two next below an eighth of the images, 64 to 1,024. The regulariser
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
    paper_horizon = 1024 / (1 - 0.996)  # images
    momentum = 1 - max(batch_size / paper_horizon, min(0.1, 10 / num_steps))
    return Run(
        recipe="pmsn_finetune",
        architecture="SelfViTForPMSN",
        model=SelfViTConfig.from_name(
            "vits16",
            drop_path_rate=0.1,
            pmsn_config=PMSNConfig(
                num_prototypes=num_prototypes, teacher_momentum=round(momentum, 6)
            ),
        ),
        augmentation=FocalCrops(num_focal_views=6, focal_crop_scale=[0.1, 0.4]),
        training=TrainingConfig(
            epochs=epochs,
            batch_size=batch_size,
            base_learning_rate=2e-4,
            min_learning_rate=1e-6,
            warmup_ratio=0.1,
            weight_decay=0.04,
            layer_decay=0.75,
            max_gradient_norm=1.0,
            freeze_encoder_ratio=0.1,
            save_steps=500,
        ),
    )


def pmsn_demo(num_images: int | None, batch_size: int | None) -> Run:
    """PMSN small enough for two CPU cores: 28 x 28 grey images, minutes.

    Command: `selfvit train pmsn_demo --data FOLDER --output OUT`. Time: 1,212 steps took 118 CPU
    seconds of one thread, the worker's not counted. Quality, on 1,500 images held out of the
    training part, trained on the other 6,500, one seed: k-NN 69.1 untrained, 76.9 after 12 epochs;
    linear probe 76.3, 81.9; raw pixels have 75.5 by k-NN. Status: measured here.

    What differs from the paper, beside what `dino_demo` changes for the same reasons (two blocks,
    larger initial weights, brightness and contrast): two masked views and no focal ones (after
    600 steps 75.5 by k-NN; one masked and two focal ones, with a head half as wide, 72.7); crops of
    at least half the image; a teacher that follows within 50 to 200 steps. 1,024 prototypes are the
    paper's; with the focal views, 4,096 gave 72.1.
    """
    return Run(
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
        training=TrainingConfig(
            epochs=12,
            batch_size=64,
            base_learning_rate=4e-3,
            warmup_ratio=0.1,
            weight_decay=0.04,
            max_gradient_norm=3.0,
            image_mean=[0.2860] * 3,  # of Fashion-MNIST's training images
            image_std=[0.3530] * 3,
            resize="square",
            num_workers=1,
            save_steps=500,
        ),
    )


def classify(num_images: int | None, batch_size: int | None) -> Run:
    """Train a classifier on a labelled folder, from a pretrained encoder.

    Command: `selfvit train classify --init_from CHECKPOINT --data FOLDER --output OUT`; with
    `--freeze_encoder_ratio 1 --base_learning_rate 0.2 --weight_decay 0` it is a linear probe.
    Layer-wise decay is BEiT's and MAE's (arXiv 2111.06377, Table 9: 0.65 to 0.75); the learning
    rate is above theirs, as runs on small sets have few steps. Status: mechanics tested here.
    """
    return Run(
        recipe="classify",
        architecture="SelfViTForImageClassification",
        model=SelfViTConfig.from_name("vits16", drop_path_rate=0.1),
        augmentation=CropAndFlip(),
        training=TrainingConfig(
            epochs=30,
            batch_size=64,
            base_learning_rate=4e-3,  # small sets have few steps; MAE, Table 9, has 1e-3
            min_learning_rate=1e-6,
            warmup_ratio=0.05,  # MAE, Table 9: 5 epochs of 100
            weight_decay=0.05,  # MAE, Table 9
            layer_decay=0.75,  # MAE, Table 9
            max_gradient_norm=1.0,
            save_steps=500,
        ),
    )


RECIPES: dict[str, Recipe] = {
    "dino_vits16_in1k": dino_vits16_in1k,
    "dino_finetune": dino_finetune,
    "dino_demo": dino_demo,
    "msn_vits16_in1k": msn_vits16_in1k,
    "pmsn_vits16_in1k": pmsn_vits16_in1k,
    "pmsn_finetune": pmsn_finetune,
    "pmsn_demo": pmsn_demo,
    "classify": classify,
}

__all__ = [
    "RECIPES",
    "classify",
    "dino_demo",
    "dino_finetune",
    "dino_vits16_in1k",
    "msn_vits16_in1k",
    "pmsn_demo",
    "pmsn_finetune",
    "pmsn_vits16_in1k",
]
