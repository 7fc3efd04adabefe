"""Recipes of MAE (arXiv 2111.06377)."""

from __future__ import annotations

from ...configuration.configuration_mae import MAEConfig
from ...configuration.configuration_selfvit import SelfViTConfig
from ..augmentations.single_crop import MAECrop
from ..config.run_config import RunConfig
from ..config.training_config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from .fashion_mnist import fashion_mnist_preprocessing


def mae_vitb16_in1k(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Pretrain a ViT-B/16 with MAE on ImageNet-1k for 800 epochs, as in the paper.

    Paper: arXiv 2111.06377. For its longer run, add `--epochs 1600 --warmup-ratio 0.025`.
    Command: `accelerate launch -m selfvit.training.train mae_vitb16_in1k --data IMAGENET/train
    --output RUN --mixed-precision bf16 --num-workers 10`
    Time: unknown.
    Quality: 83.6 % fine-tuned, after 1,600 epochs (Table 3).
    Status: paper's numbers, not reproduced.
    Differences from the repository: query, key and value are initialized separately, not as one
    matrix of three times the width; the learning rate follows its cosine step by step.
    """
    return RunConfig(
        recipe="mae_vitb16_in1k",
        architecture="SelfViTForMAE",
        model=SelfViTConfig.from_name(
            "vitb16",
            position_embedding_type="sincos",  # Appendix A.1
            mae_config=MAEConfig(
                mask_ratio=0.75,  # Sec. 4.1
                decoder_hidden_size=512,  # Table 1b
                decoder_num_layers=8,  # Table 1a
                norm_pix_loss=True,  # Table 1d; PRETRAIN.md --norm_pix_loss
            ),
        ),
        augmentation=MAECrop(),
        schedule=ScheduleConfig(
            epochs=800,  # Sec. 4.1, ablations
            batch_size=4096,  # Table 8
            base_learning_rate=1.5e-4,  # Table 8
            min_learning_rate=0.0,  # main_pretrain.py --min_lr
            warmup_ratio=40 / 800,  # Table 8: 40 epochs
            weight_decay=0.05,  # Table 8
        ),
        optimizer=OptimizerConfig(
            adam_beta1=0.9,  # Table 8
            adam_beta2=0.95,  # Table 8
        ),
    )


def mae_finetune(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Continue MAE training from pretrained weights on your own small dataset.

    Command: `selfvit train mae_finetune --init-from CHECKPOINT --data IMAGES --output RUN`. To keep
    training the decoder of a MAE checkpoint, too, add `--init-scope all --freeze-encoder-ratio 0`.
    Time and quality: depend on the data; compare k-NN before and after.
    Status: mechanics tested here.

    Differences from pretraining, with their reasons:

    - Frozen start: a new decoder gives the encoder useless gradients at first, so the encoder is
      frozen for the first tenth of the steps.
    - Layer-wise decay: the lower blocks, which are the most general, change least.
    - Decoder: two blocks, as few images must train it from scratch. For an encoder that is
      fine-tuned afterwards, its depth hardly matters (Table 1a: 84.8 with one block, 84.9 with
      eight). For frozen features, a deeper one is better (linear probe: 70.0 with two, 73.5 with
      eight).
    - Length: 200 epochs, as MAE gains from long schedules (Fig. 7), and small datasets have few
      steps per epoch. Each epoch has new crops and masks, so inputs hardly repeat.

    Crops and mask ratio are those of the paper, as MAE needs no stronger augmentation (Table 1e).
    """
    return RunConfig(
        recipe="mae_finetune",
        architecture="SelfViTForMAE",
        model=SelfViTConfig.from_name(
            "vitb16", position_embedding_type="sincos", mae_config=MAEConfig(decoder_num_layers=2)
        ),
        augmentation=MAECrop(),
        schedule=ScheduleConfig(
            epochs=200,
            batch_size=batch_size or 64,
            base_learning_rate=1e-3,
            min_learning_rate=1e-6,
            warmup_ratio=0.1,
            weight_decay=0.05,
            freeze_encoder_ratio=0.1,
        ),
        optimizer=OptimizerConfig(
            adam_beta2=0.95,
            layer_decay=0.75,
            max_gradient_norm=1.0,
        ),
        checkpoints=CheckpointConfig(save_steps=500),
    )


def mae_demo(num_images: int | None, batch_size: int | None) -> RunConfig:
    """Pretrain a tiny MAE model on 28 x 28 gray images in minutes, on two CPU cores.

    Command: `make demo OBJECTIVE=mae`, or `selfvit train mae_demo --data IMAGES --output RUN`
    Time: under five minutes on two cores for the 8,000 images of `examples/fashion_mnist_sample`.
    Quality: see docs/evaluation.md.
    Status: measured here.

    Differences from the paper, needed for small images and few steps; accuracies are k-NN and
    linear probe, in %:

    - Patches: 7 pixels, so 4 of 16 are visible. With patches of 4 pixels, a step takes 2.5 times as
      long: in about equal time 73.4 and 81.4, against 75.9 and 80.7.
    - Targets: unnormalized pixels. With patches of 4 pixels and 500 steps, 72.3 and 79.6 with
      `norm_pix_loss`, 73.4 and 81.4 without.
    - Decoder: small.

    Twice the learning rate gave 74.6 and 82.1 after 1,000 steps. Each number is from one run. The
    settings were chosen on 1,500 images held out of the training part, where raw pixels have 80.7
    k-NN, and an untrained encoder 70.0 and 76.5.
    """
    return RunConfig(
        recipe="mae_demo",
        architecture="SelfViTForMAE",
        model=SelfViTConfig(
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=28,
            patch_size=7,
            position_embedding_type="sincos",
            pooling="cls+mean",
            mae_config=MAEConfig(
                decoder_hidden_size=64,
                decoder_num_layers=2,
                decoder_num_attention_heads=2,
                norm_pix_loss=False,
            ),
        ),
        augmentation=MAECrop(),
        data=DataConfig(num_workers=1),
        preprocessing=fashion_mnist_preprocessing(),
        schedule=ScheduleConfig(
            epochs=20,
            batch_size=64,
            base_learning_rate=4e-3,
            warmup_ratio=0.1,
            weight_decay=0.05,
        ),
        optimizer=OptimizerConfig(
            adam_beta2=0.95,
            max_gradient_norm=1.0,
        ),
        checkpoints=CheckpointConfig(save_steps=1000),
    )


__all__ = ["mae_demo", "mae_finetune", "mae_vitb16_in1k"]
