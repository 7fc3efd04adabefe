"""How a run trains: the fields that are the same for every recipe, and what they may be."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..options import ABOVE_0, check_limits, option
from .tracker_names import read_trackers

# Higher is better of these. Uniformity is not one of them: noise has the best.
BEST_METRICS = ("accuracy", "knn_20", "knn_10", "linear_probe", "view_retrieval", "rankme")
# Called as transformers' TrainingArguments calls them (`optim`); all but the first are those of
# bitsandbytes.
OPTIMIZERS = ("adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit")
# All linear layers of the encoder's blocks.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")


# Least and most of what is a number, and of each where there are several.
LIMITS: dict[str, tuple[float, float]] = {
    "num_workers": (0, math.inf), "data_timeout": (0, math.inf), "shuffle_buffer": (0, math.inf),
    "image_mean": (0, 1), "image_std": (ABOVE_0, math.inf),
    "epochs": (ABOVE_0, math.inf), "max_steps": (1, math.inf), "batch_size": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf), "log_steps": (1, math.inf),
    "save_steps": (1, math.inf), "save_total_limit": (1, math.inf), "monitor_steps": (1, math.inf),
    "eval_steps": (1, math.inf), "eval_limit": (2, math.inf), "image_steps": (0, math.inf),
    "base_learning_rate": (0, math.inf), "min_learning_rate": (0, math.inf),
    "weight_decay": (0, math.inf), "weight_decay_end": (0, math.inf),
    "adam_beta1": (0, 1), "adam_beta2": (0, 1), "layer_decay": (ABOVE_0, 1),
    "max_gradient_norm": (ABOVE_0, math.inf), "warmup_ratio": (0, 1),
    "freeze_encoder_ratio": (0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class TrainingConfig:
    """How a run trains: data, length, optimizer, precision, saving, evaluation."""

    # data
    data: str = option("", "folder, parquet, tars, saved dataset or Hub id to train on")
    split: str | None = option(None, "split of a data set that has several")
    streaming: bool = option(
        False, "read Parquet, WebDataset tars or a Hub data set as a stream; needs max_steps"
    )
    image_column: str | None = option(None, "column of the images, where it is not the only one")
    label_column: str | None = option(None, "column of the labels")
    num_workers: int = option(4, "processes that decode and augment")
    data_timeout: float = option(
        600.0, "seconds that a worker may take to read one image before the run ends; 0 is for ever"
    )
    shuffle_buffer: int = option(1000, "images that each worker shuffles a stream within")
    image_mean: list[float] = option(IMAGENET_DEFAULT_MEAN, "mean of the channels, 0 to 1")
    image_std: list[float] = option(IMAGENET_DEFAULT_STD, "deviation of the channels, 0 to 1")
    resize: Literal["shortest_edge", "square"] = option(
        "shortest_edge",
        "how embedding will resize: shortest_edge (and center crop) or square (direct)",
    )
    # start and place
    output: str = option("", "folder of the run")
    init_from: str | None = option(
        None, "selfvit checkpoint to start from: folder, Hub id or USER/NAME@REVISION"
    )
    init_scope: Literal["encoder", "all"] = option(
        "encoder", "what to take of it: encoder, or all (heads, teacher)"
    )
    resume: bool = option(False, "go on from the newest checkpoint in output")
    overwrite: bool = option(False, "delete an earlier run in output")
    dry_run: bool = option(False, "check and print the plan; train and write nothing")
    seed: int = option(0, "of initialization, data order and augmentation")
    # length
    epochs: float = option(100.0, "passes over the data; max_steps goes before")
    max_steps: int | None = option(None, "optimizer steps of the whole run")
    batch_size: int = option(256, "images an optimizer step, over all processes")
    gradient_accumulation_steps: int = option(1, "micro-batches an optimizer step")
    find_batch_size: bool = option(
        False,
        "raise gradient_accumulation_steps until a micro-batch fits into memory; batch_size stays",
    )
    # optimizer
    optimizer: str = option(
        "adamw_torch_fused",
        "adamw_torch_fused; of bitsandbytes adamw_bnb_8bit, paged_adamw_32bit or paged_adamw_8bit: "
        "a quarter of the optimizer's memory (8bit), or that of the machine when the GPU's is full",
    )
    base_learning_rate: float = option(5e-4, "at a batch of 256; scales linearly with batch_size")
    min_learning_rate: float = option(1e-6, "at the end of the cosine")
    warmup_ratio: float = option(0.1, "fraction of the steps in which the rate rises from 0")
    weight_decay: float = option(0.04, "at the start; never on biases and norms")
    weight_decay_end: float | None = option(
        None, "at the end of its cosine; as at the start if None"
    )
    adam_beta1: float = option(0.9, "of AdamW")
    adam_beta2: float = option(0.999, "of AdamW")
    layer_decay: float = option(1.0, "factor of the learning rate from each block to the one below")
    max_gradient_norm: float | None = option(None, "gradients are clipped to this norm")
    freeze_encoder_ratio: float = option(
        0.0, "fraction of the steps, from the first, in which only heads train; 1 is a linear probe"
    )
    # adapters
    lora_rank: int | None = option(
        None, "rank of LoRA adapters that train in place of the encoder; needs init_from"
    )
    lora_alpha: int | None = option(
        None, "what the adapters add is scaled by lora_alpha / lora_rank; as lora_rank if None"
    )
    lora_targets: list[str] = option(
        LORA_TARGETS, f"linear layers of the encoder that get one, of: {', '.join(LORA_TARGETS)}"
    )
    # machine
    mixed_precision: str | None = option(None, "no, bf16 or fp16; Accelerate's setting if None")
    activation_checkpointing: bool = option(False, "less memory, about a third more time")
    cpu: bool = option(False, "train on the CPU where there is a GPU too")
    # reports and checkpoints
    log_steps: int = option(10, "steps between two lines of log.jsonl")
    save_steps: int = option(1000, "steps between two checkpoints that a run can resume from")
    save_total_limit: int = option(2, "how many of these are kept")
    save_code: bool = option(
        True, "lay the model's code beside the weights: they open without selfvit, too"
    )
    eval_steps: int | None = option(None, "steps between two evaluations; none if None")
    eval_train: str | None = option(None, "labeled data: neighbors and linear probe train on it")
    eval_test: str | None = option(None, "labeled data: they are tested on it")
    eval_limit: int = option(10000, "images of each that are used")
    best_metric: str | None = option(
        None,
        "figure that chooses the best of the evaluations and judges the run; if None, accuracy for "
        "a classifier, knn_20 where there are labels, else view_retrieval",
    )
    require_improvement: bool = option(
        False,
        "a run from init_from whose figure did not rise ends as an error, saved but not published",
    )
    monitor_steps: int = option(10, "steps between two readings of the collapse monitors")
    on_collapse: Literal["warn", "stop", "rollback"] = option(
        "warn", "stop, or roll back: from the last checkpoint before it, at half the rate, once"
    )
    image_steps: int = option(
        1000,
        "steps between two drawings of views and reconstructions or attention, to OUT/images and "
        "the trackers, beside that of the first step; 0 is never",
    )
    tracker: str = option(
        "tensorboard",
        "tensorboard, wandb, trackio, mlflow, several by commas, or none; they write into output, "
        "unless the environment says otherwise",
    )
    # the Hub; not in training.yaml, see PLACE_ON_HUB
    push_to_hub: str | None = option(None, "USER/NAME to publish the result to, when it is there")
    push_steps: int | None = option(
        None, "steps between two pushes of a checkpoint before the end; none if None"
    )
    hub_private_repo: bool = option(False, "it has to be private; a new one is made so")
    hub_revision: str | None = option(None, "branch to push to; main if None")
    # the card
    license: str | None = option(
        None, "of the checkpoint, as the Hub writes it; that of init_from if None"
    )
    card_picture: bool = option(
        False, "attention maps of four training images in the card, published with it"
    )
    energy_meter: str = option("codecarbon", "codecarbon, where it is installed, or none")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in LIMITS and value is not None:
                check_limits(entry, value, *LIMITS[entry.name])
        for name, choices in {
            "resize": ("shortest_edge", "square"),
            "init_scope": ("encoder", "all"),
            "mixed_precision": (None, "no", "bf16", "fp16"),
            "on_collapse": ("warn", "stop", "rollback"),
            "optimizer": OPTIMIZERS,
            "energy_meter": ("codecarbon", "none"),
            "best_metric": (None, *BEST_METRICS),
        }.items():
            if getattr(self, name) not in choices:
                known = ", ".join(str(choice) for choice in choices)
                raise ValueError(f"{name} ({getattr(self, name)!r}) must be one of: {known}.")
        read_trackers(self.tracker)
        if (self.eval_train is None) != (self.eval_test is None):
            raise ValueError("eval_train and eval_test go together; give both or none.")
        if self.require_improvement and not self.compares_with_start:
            raise ValueError(
                "require_improvement compares the encoder with the one that the run starts from; "
                "give init_from, and a freeze_encoder_ratio below 1."
            )
        self._check_adapters()
        if self.push_steps is not None:
            if self.push_to_hub is None:
                raise ValueError(f"push_steps ({self.push_steps}) needs push_to_hub, USER/NAME.")
            if self.require_improvement:
                raise ValueError(
                    f"push_steps ({self.push_steps}) would publish checkpoints that nobody knows "
                    "to be better yet; leave it out, or require_improvement."
                )
            if self.push_steps < 1 or self.push_steps % self.save_steps:
                raise ValueError(
                    f"push_steps ({self.push_steps}) must be a multiple of save_steps "
                    f"({self.save_steps}): what is pushed is a checkpoint that was saved."
                )

    def _check_adapters(self) -> None:
        for name in ("lora_rank", "lora_alpha"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1, or None for none.")
        unknown = sorted(set(self.lora_targets) - set(LORA_TARGETS))
        if unknown or not self.lora_targets:
            raise ValueError(
                f"lora_targets ({', '.join(unknown) or 'none'}) must be some of: "
                f"{', '.join(LORA_TARGETS)}."
            )
        if self.lora_rank is not None and self.freeze_encoder_ratio == 1:
            raise ValueError(
                f"lora_rank ({self.lora_rank}) adapts the encoder, and freeze_encoder_ratio (1) "
                "never trains it; leave one of them out."
            )

    @property
    def compares_with_start(self) -> bool:
        """Whether the run ends with a report on before and after: it has weights to change."""
        return self.init_from is not None and self.freeze_encoder_ratio < 1

    @property
    def learning_rate(self) -> float:
        """Peak learning rate (linear scaling rule, arXiv 1706.02677, Sec. 2.1)."""
        return self.base_learning_rate * self.batch_size / 256

    def num_steps(self, num_images: int | None) -> int:
        """Optimizer steps of the whole run, given the size of the data set (None for a stream)."""
        if self.max_steps is not None:
            return self.max_steps
        if num_images is None:
            raise ValueError("a stream has no known length; give --max_steps.")
        return max(1, round(self.epochs * (num_images // self.batch_size)))


TRAINING_FIELDS = {entry.name for entry in fields(TrainingConfig)}

__all__ = ["BEST_METRICS", "LORA_TARGETS", "OPTIMIZERS", "TRAINING_FIELDS", "TrainingConfig"]
