"""Sections of a run's configuration: the fields that all recipes share.

Field names are the option names of `selfvit train`, so they are unique across the sections.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...option_help import HELP
from ...pixel_scale import declared_range
from ..options import check_fields, option
from .tracker_names import read_trackers

# Metrics that can judge a run: higher is better. Uniformity is missing, as noise has the best.
BEST_METRICS = ("accuracy", "knn_20", "knn_10", "linear_probe", "view_retrieval", "rankme")
# Names as in transformers' TrainingArguments (`optim`). All but the first are from bitsandbytes.
OPTIMIZERS = ("adamw_torch_fused", "adamw_bnb_8bit", "paged_adamw_32bit", "paged_adamw_8bit")
# All linear layers of the encoder's blocks; fc1 and fc2 are the first and second layer of the MLP.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2")


class Section:
    """Base of the sections: checks its fields when it is created.

    Attributes:
        _argument_group_name: Title of the section in `selfvit train RECIPE --help`.
    """

    _argument_group_name: ClassVar[str]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class DataConfig(Section):
    """Images to train on, and how they are read."""

    _argument_group_name = "data"

    # Resumable, because the folder may have moved; the fingerprint of the dataset is compared.
    data: str | list[str] = option("", HELP["data"], resumable=True)
    split: str | None = option(None, HELP["split"])
    streaming: bool = option(False, HELP["streaming"])
    image_column: str | None = option(None, HELP["image_column"])
    label_column: str | None = option(None, HELP["label_column"])
    strict: bool = option(False, HELP["strict"], resumable=True)
    num_workers: int = option(4, HELP["num_workers"], minimum=0, resumable=True)
    data_timeout: float = option(
        600.0,
        "Seconds that a worker may take to read one image before the run fails; 0 means no limit",
        minimum=0,
        resumable=True,
    )
    shuffle_buffer: int = option(
        1000, "Number of images that each worker shuffles a stream within", minimum=0
    )

    @property
    def name(self) -> str:
        """The data in one text, for cards and messages."""
        return self.data if isinstance(self.data, str) else " ".join(self.data)


@dataclass(frozen=True)
class PreprocessingConfig(Section):
    """Normalization in training, and resizing in embedding; the image processor stores both."""

    _argument_group_name = "preprocessing"

    image_mean: list[float] = option(
        IMAGENET_DEFAULT_MEAN,
        HELP["image_mean"],
        minimum=0,
        maximum=1,
        any_length=True,
    )
    image_std: list[float] = option(
        IMAGENET_DEFAULT_STD,
        HELP["image_std"],
        above=0,
        any_length=True,
    )
    pixel_range: list[float] | None = option(None, HELP["pixel_range"])
    bits: int | None = option(None, HELP["bits"], minimum=1, maximum=32)
    resize: Literal["shortest_edge", "square"] = option(
        "shortest_edge",
        "Resizing in embedding: shortest_edge (followed by a center crop) or square (direct)",
        choices=("shortest_edge", "square"),
    )
    crop_ratio: float = option(
        256 / 224,  # as in `build_processor`
        "Shorter side before the center crop of embedding, as a multiple of the image size",
        minimum=1,
    )
    resample: Literal["nearest", "bilinear", "bicubic"] = option(
        "bicubic",
        "Interpolation of resizing in embedding",
        choices=("nearest", "bilinear", "bicubic"),  # others depend on the version of torch
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        declared_range(self.pixel_range, self.bits)

    @property
    def declared_range(self) -> tuple[float, float] | None:
        """Values of black and white in files of more than eight bits; None if not declared."""
        return declared_range(self.pixel_range, self.bits)


@dataclass(frozen=True)
class StartConfig(Section):
    """Weights that a run starts from, and the folder that it writes."""

    _argument_group_name = "start and output"

    output: str = option("", HELP["output"], resumable=True)
    init_from: str | None = option(
        None,
        "Checkpoint to start from: a folder, Hub id or USER/NAME@REVISION; or weights to convert",
    )
    init_scope: Literal["encoder", "all"] = option(
        "encoder",
        "Weights to take from --init-from: encoder, or all (also heads and teacher)",
        choices=("encoder", "all"),
    )
    resume: bool = option(False, HELP["resume"], resumable=True)
    overwrite: bool = option(False, HELP["overwrite"], resumable=True)
    dry_run: bool = option(
        False, "Check the run and print its plan, without training or writing", resumable=True
    )
    seed: int = option(0, HELP["seed"])


@dataclass(frozen=True)
class ScheduleConfig(Section):
    """Length of the run, batch size, learning rate and weight decay."""

    _argument_group_name = "schedule"

    epochs: float = option(100.0, "Passes over the data; --max-steps takes precedence", above=0)
    max_steps: int | None = option(None, "Number of optimizer steps", minimum=1)
    batch_size: int = option(256, HELP["batch_size"], minimum=1)
    base_learning_rate: float = option(
        5e-4, "Learning rate for a batch of 256; scaled linearly with the batch size", minimum=0
    )
    min_learning_rate: float = option(
        1e-6, "Learning rate at the end of the cosine; constant if its peak is lower", minimum=0
    )
    warmup_ratio: float = option(
        0.1, "Fraction of the steps in which the learning rate rises from 0", minimum=0, maximum=1
    )
    weight_decay: float = option(
        0.04, "Weight decay at the start; biases and norms are never decayed", minimum=0
    )
    weight_decay_end: float | None = option(
        None, "Weight decay at the end of its cosine; constant by default", minimum=0
    )
    freeze_encoder_ratio: float = option(
        0.0,
        "Fraction of the steps, from the first, in which only heads train; 1 is a linear probe",
        minimum=0,
        maximum=1,
    )

    @property
    def final_learning_rate(self) -> float:
        """Learning rate at the end of the run: `min_learning_rate`, but never above the peak."""
        return min(self.min_learning_rate, self.learning_rate)

    @property
    def learning_rate(self) -> float:
        """Peak learning rate (linear scaling rule, arXiv 1706.02677, Sec. 2.1)."""
        return self.base_learning_rate * self.batch_size / 256

    def num_steps(self, num_images: int | None) -> int:
        """Return the number of optimizer steps of the run.

        Args:
            num_images: Size of the dataset; None for a stream.

        Raises:
            ValueError: If the data is a stream and `max_steps` is not set.
        """
        if self.max_steps is not None:
            return self.max_steps
        if num_images is None:
            raise ValueError("a stream has no known length; set --max-steps.")
        return max(1, round(self.epochs * (num_images // self.batch_size)))


@dataclass(frozen=True)
class OptimizerConfig(Section):
    """Optimizer and gradient clipping."""

    _argument_group_name = "optimizer"

    optimizer: str = option(
        "adamw_torch_fused",
        "Optimizer. Those of bitsandbytes store their state in a quarter of the memory (8bit), or "
        "move it to CPU memory when GPU memory is full (paged)",
        choices=OPTIMIZERS,
    )
    adam_beta1: float = option(0.9, "First beta of AdamW", minimum=0, maximum=1)
    adam_beta2: float = option(0.999, "Second beta of AdamW", minimum=0, maximum=1)
    layer_decay: float = option(
        1.0, "Factor of the learning rate from each block to the block below", above=0, maximum=1
    )
    max_gradient_norm: float | None = option(
        None, "Norm that gradients are clipped to; not clipped by default", above=0
    )


@dataclass(frozen=True)
class LoRAConfig(Section):
    """Low-rank adapters."""

    _argument_group_name = "LoRA"

    lora_rank: int | None = option(
        None,
        "Rank of LoRA adapters that train in place of the encoder's weights; needs --init-from",
        minimum=1,
    )
    lora_alpha: int | None = option(
        None,
        "Scale of adapter outputs, which are multiplied by lora_alpha / lora_rank; by default the "
        "rank",
        minimum=1,
    )
    lora_targets: list[str] = option(
        LORA_TARGETS,
        f"Linear layers of the encoder that get adapters, among {', '.join(LORA_TARGETS)} (fc1 is "
        "both first layers of a gated MLP)",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.lora_targets) - set(LORA_TARGETS))
        if unknown or not self.lora_targets:
            raise ValueError(
                f"lora_targets ({', '.join(unknown) or 'none'}) must be some of: "
                f"{', '.join(LORA_TARGETS)}."
            )


@dataclass(frozen=True)
class RuntimeConfig(Section):
    """Memory, precision and device."""

    _argument_group_name = "memory and device"

    gradient_accumulation_steps: int = option(
        1, "Number of micro-batches of an optimizer step", minimum=1
    )
    find_batch_size: bool = option(
        False,
        "Raise --gradient-accumulation-steps until a micro-batch fits into memory; --batch-size "
        "stays the same",
        resumable=True,
    )
    mixed_precision: str | None = option(
        None,
        "Precision: auto, no, bf16 or fp16; auto is bf16 on devices with instructions for it, "
        "otherwise no (float32). Accelerate's setting by default",
        choices=(None, "auto", "no", "bf16", "fp16"),
    )
    activation_checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass: less memory, about a third more time",
        resumable=True,
    )
    compile: bool = option(
        False,
        "Compile the encoders with torch.compile, which takes a minute or more at the start; for "
        "long runs on GPUs",
        resumable=True,
    )
    cpu: bool = option(False, "Train on the CPU, even if there is a GPU")


@dataclass(frozen=True)
class CheckpointConfig(Section):
    """Checkpoints that a run can resume from."""

    _argument_group_name = "checkpoints"

    save_steps: int = option(1000, "Steps between two checkpoints", minimum=1, resumable=True)
    save_total_limit: int = option(2, "Number of checkpoints to keep", minimum=1, resumable=True)
    save_code: bool = option(
        True,
        HELP["save_code"],
        resumable=True,
    )


@dataclass(frozen=True)
class EvaluationConfig(Section):
    """Evaluation during training."""

    _argument_group_name = "evaluation"

    eval_steps: int | None = option(
        None, "Steps between two evaluations; no evaluation by default", minimum=1, resumable=True
    )
    eval_train: str | None = option(
        None, "Labeled images that k-NN and the linear probe learn from", resumable=True
    )
    eval_test: str | None = option(
        None, "Labeled images for the k-NN and linear-probe test", resumable=True
    )
    eval_limit: int = option(
        10000, "Maximum number of images to use from each dataset", minimum=2, resumable=True
    )
    report_images: int | None = option(
        None,
        "Number of images in the report at the end of the run, 0 for no report; by default as many "
        "as a tenth of the training time allows",
        minimum=0,
        resumable=True,
    )
    best_metric: str | None = option(
        None,
        "Metric that chooses the best evaluation and judges the run; by default accuracy for a "
        "classifier, knn_20 if there are labels, else view_retrieval",
        choices=(None, *BEST_METRICS),
        resumable=True,
    )
    require_improvement: bool = option(
        False,
        "Fail if the metric did not rise above that of the initial weights; the model is saved, "
        "but not published",
        resumable=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.eval_train is None) != (self.eval_test is None):
            raise ValueError("--eval-train and --eval-test go together; give both or neither.")


@dataclass(frozen=True)
class MonitoringConfig(Section):
    """Logging, collapse monitors and trackers."""

    _argument_group_name = "monitoring"

    log_steps: int = option(10, "Steps between two lines of log.jsonl", minimum=1, resumable=True)
    monitor_steps: int = option(
        10, "Steps between two readings of the collapse monitors", minimum=1, resumable=True
    )
    on_collapse: Literal["warn", "stop", "rollback"] = option(
        "warn",
        "Reaction to a collapse: warn, stop, or rollback (once, to the last checkpoint before it, "
        "at half the learning rate)",
        choices=("warn", "stop", "rollback"),
        resumable=True,
    )
    image_steps: int = option(
        1000,
        "Steps between two pictures of views and of reconstructions or attention, in OUTPUT/images "
        "and the trackers; also drawn after the first step; 0 means none",
        minimum=0,
        resumable=True,
    )
    tracker: str = option(
        "tensorboard",
        "Trackers: tensorboard, wandb, trackio, mlflow, several separated by commas, or none; they "
        "write into --output unless their environment variables say otherwise",
        resumable=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        read_trackers(self.tracker)


@dataclass(frozen=True)
class HubConfig(Section):
    """Publishing; not written to training.yaml, so that running a published file pushes nothing."""

    _argument_group_name = "Hub"

    push_to_hub: str | None = option(
        None, "Repository USER/NAME to publish the finished model to", resumable=True, private=True
    )
    push_steps: int | None = option(
        None,
        "Steps between two pushes of a checkpoint; only the finished model is pushed by default",
        minimum=1,
        resumable=True,
        private=True,
    )
    hub_private_repo: bool = option(
        False,
        "Publish to a private repository only; a new one is created private",
        resumable=True,
        private=True,
    )
    hub_revision: str | None = option(
        None, "Branch to push to; main by default", resumable=True, private=True
    )


@dataclass(frozen=True)
class CardConfig(Section):
    """Model card."""

    _argument_group_name = "model card"

    license: str | None = option(
        None,
        "License of the checkpoint as the Hub writes it; by default that of --init-from",
        resumable=True,
    )
    card_picture: bool = option(
        False,
        "Show attention maps of four training images in the model card, and publish them with it",
        resumable=True,
    )
    energy_meter: str = option(
        "codecarbon",
        "Energy meter: codecarbon (if it is installed) or none",
        choices=("codecarbon", "none"),
        resumable=True,
    )


SECTIONS: dict[str, type[Section]] = {
    "data": DataConfig,
    "preprocessing": PreprocessingConfig,
    "start": StartConfig,
    "schedule": ScheduleConfig,
    "optimizer": OptimizerConfig,
    "lora": LoRAConfig,
    "runtime": RuntimeConfig,
    "checkpoints": CheckpointConfig,
    "evaluation": EvaluationConfig,
    "monitoring": MonitoringConfig,
    "hub": HubConfig,
    "card": CardConfig,
}

# Section of each field.
SECTION_OF: dict[str, str] = {
    entry.name: name
    for name, section in SECTIONS.items()
    for entry in fields(section)  # type: ignore[arg-type]
}

__all__ = [
    "BEST_METRICS",
    "LORA_TARGETS",
    "OPTIMIZERS",
    "SECTIONS",
    "SECTION_OF",
    "CardConfig",
    "CheckpointConfig",
    "DataConfig",
    "EvaluationConfig",
    "HubConfig",
    "LoRAConfig",
    "MonitoringConfig",
    "OptimizerConfig",
    "PreprocessingConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "Section",
    "StartConfig",
]
