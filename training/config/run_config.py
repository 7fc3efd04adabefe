"""The configuration of a run, and its written form, `training.yaml`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import yaml
from transformers import PreTrainedConfig

from ...configuration.configuration_selfvit import INHERITED_FIELDS, SelfViTConfig
from ...configuration.format_version import WRITTEN_BY
from ...configuration.objective_config import ObjectiveConfig
from ...data.pixel_format import PixelFormat
from ..augmentations.base import Augmentation
from ..augmentations.registry import AUGMENTATIONS
from .training_config import (
    SECTION_OF,
    SECTIONS,
    CardConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    HubConfig,
    LoRAConfig,
    MonitoringConfig,
    OptimizerConfig,
    PreprocessingConfig,
    RuntimeConfig,
    ScheduleConfig,
    StartConfig,
)

# Model fields that a run sets itself, instead of taking them from the checkpoint it starts from.
RUN_FIELDS = ("drop_path_rate", "classifier_batch_norm")
# Fields of the preprocessing with a number for each channel. An empty list is measured on the data.
STATISTICS = ("image_mean", "image_std")
# Model fields that are derived from others.
DERIVED_FIELDS = ("out_features", "out_indices", "stage_names")
# Fields of config.json that describe the saved checkpoint, not the model.
CHECKPOINT_KEYS = ("auto_map", "transformers_version", *WRITTEN_BY)
# Fields of augmentations that had other names in version 0.1.
RENAMED_FIELDS = {"rand_augment_deviation": "rand_augment_std"}
# Sections that are not written to training.yaml: running a published file must not push over it.
PRIVATE_SECTIONS = ("hub",)


@dataclass(frozen=True)
class RunConfig:
    """Complete configuration of a run; `training.yaml` is its written form.

    Args:
        recipe: Name of the recipe that the run is based on.
        architecture: Class to train, as in `config.architectures`.
        model: Configuration of the encoder and the objective.
        augmentation: Augmentation that turns images into views.
        data: Images, and how they are read.
        preprocessing: Normalization and resizing.
        start: Weights to start from, and the folder to write.
        schedule: Length, batch size, learning rate and weight decay.
        optimizer: Optimizer and gradient clipping.
        lora: Low-rank adapters.
        runtime: Memory, precision and device.
        checkpoints: Checkpoints to resume from.
        evaluation: Evaluation during training.
        monitoring: Logging, collapse monitors and trackers.
        hub: Publishing.
        card: Model card.

    Raises:
        ValueError: If values contradict each other.
    """

    recipe: str
    architecture: str
    model: SelfViTConfig
    augmentation: Augmentation
    data: DataConfig = field(default_factory=DataConfig)
    preprocessing: PreprocessingConfig = field(default_factory=PreprocessingConfig)
    start: StartConfig = field(default_factory=StartConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpoints: CheckpointConfig = field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    monitoring: MonitoringConfig = field(default_factory=MonitoringConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    card: CardConfig = field(default_factory=CardConfig)

    def __post_init__(self) -> None:
        self._check_view_sizes()
        self.augmentation.check_model(self.model)
        self._check_statistics()
        self._check_pushes()
        if self.evaluation.require_improvement and not self.compares_with_start:
            raise ValueError(
                "--require-improvement needs a report that compares the encoder with its initial "
                "weights; give a --freeze-encoder-ratio below 1, and not --report-images 0."
            )
        if self.lora.lora_rank is not None and self.schedule.freeze_encoder_ratio == 1:
            raise ValueError(
                f"lora_rank ({self.lora.lora_rank}) adapts the encoder, but freeze_encoder_ratio "
                "(1) never trains it; leave one of them out."
            )

    def _check_view_sizes(self) -> None:
        patch_size = self.model.patch_size
        for size in self.augmentation.view_sizes(self.model.image_height_width):
            if size[0] % patch_size or size[1] % patch_size:
                nearest = max(1, round(size[0] / patch_size)) * patch_size
                raise ValueError(
                    f"view size ({size[0]} x {size[1]}) must be a multiple of patch_size "
                    f"({patch_size}); the nearest is {nearest}."
                )

    def _check_statistics(self) -> None:
        for name in ("image_mean", "image_std"):
            values, num_channels = getattr(self.preprocessing, name), self.model.num_channels
            if values and len(values) != num_channels:
                raise ValueError(
                    f"{name} ({values}) must be {num_channels} numbers, one for each of "
                    f"num_channels; leave it out to measure it on the training images."
                )

    def _check_pushes(self) -> None:
        push_steps, save_steps = self.hub.push_steps, self.checkpoints.save_steps
        if push_steps is None:
            return
        if self.hub.push_to_hub is None:
            raise ValueError(f"push_steps ({push_steps}) needs --push-to-hub USER/NAME.")
        if self.evaluation.require_improvement:
            raise ValueError(
                f"push_steps ({push_steps}) would publish checkpoints before it is known whether "
                "they are better; leave out --push-steps or --require-improvement."
            )
        if push_steps % save_steps:
            raise ValueError(
                f"push_steps ({push_steps}) must be a multiple of save_steps ({save_steps}), since "
                "saved checkpoints are pushed."
            )

    @property
    def is_classifier(self) -> bool:
        """Whether the run trains a classifier, from labels."""
        return self.architecture == "SelfViTForImageClassification"

    @property
    def pixel_format(self) -> PixelFormat:
        """Pixels that the model reads."""
        return PixelFormat(self.model.num_channels, self.preprocessing.declared_range)

    @property
    def compares_with_start(self) -> bool:
        """Whether the run ends with a before/after report: it changes the encoder."""
        return self.schedule.freeze_encoder_ratio < 1 and self.evaluation.report_images != 0

    @property
    def measures_accuracy(self) -> bool:
        """Whether the run is a classifier with images to measure its accuracy on."""
        return self.is_classifier and self.evaluation.eval_test is not None

    @property
    def evaluates_result(self) -> bool:
        """Whether the accuracy is measured at the end, and no report does it."""
        return self.measures_accuracy and not self.compares_with_start

    def to_dict(self) -> dict[str, Any]:
        """Return plain values by section, without the private ones."""
        model = self.model.to_diff_dict()
        for name in ("architectures", "dtype", *DERIVED_FIELDS, *CHECKPOINT_KEYS):
            model.pop(name, None)
        kinds = {kind: name for name, kind in AUGMENTATIONS.items()}
        return {
            "recipe": self.recipe,
            "architecture": self.architecture,
            "model": model,
            "augmentation": {"kind": kinds[type(self.augmentation)], **asdict(self.augmentation)},
            **{
                name: asdict(getattr(self, name))
                for name in SECTIONS
                if name not in PRIVATE_SECTIONS
            },
        }

    def to_yaml(self) -> str:
        """Return the text of `training.yaml`."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> RunConfig:
        """Read what `to_yaml` wrote, here or in version 0.1, whose fields were not in sections.

        Raises:
            ValueError: If the text is not YAML, a section is missing, or a name is unknown.
        """
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"the run's YAML cannot be read: {error}") from error
        if isinstance(content, dict) and isinstance(content.get("training"), dict):
            content |= by_section(content.pop("training"))
        wanted = {"recipe", "architecture", "model", "augmentation", *SECTIONS}
        wanted -= {*PRIVATE_SECTIONS}
        if not isinstance(content, dict) or set(content) != wanted:
            raise ValueError(f"a run's YAML has exactly the sections {', '.join(sorted(wanted))}.")
        augmentation = dict(content["augmentation"])
        for old, new in RENAMED_FIELDS.items():
            if old in augmentation:
                augmentation[new] = augmentation.pop(old)
        kind = augmentation.pop("kind", None)
        if kind not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise ValueError(f"augmentation kind ({kind!r}) must be one of: {known}.")
        try:
            sections: dict[str, Any] = {
                name: section(**content[name])
                for name, section in SECTIONS.items()
                if name not in PRIVATE_SECTIONS
            }
            return cls(
                recipe=content["recipe"],
                architecture=content["architecture"],
                model=SelfViTConfig(**content["model"]),
                augmentation=AUGMENTATIONS[kind](**augmentation),
                **sections,
            )
        except TypeError as error:
            raise ValueError(f"a name in the run's YAML is unknown: {error}.") from error

    def objectives(self) -> dict[str, ObjectiveConfig]:
        """Return the objective's part of `model` by its name; empty for a classifier."""
        parts = {name: getattr(self.model, name) for name in SelfViTConfig.sub_configs_defaults}
        return {name: part for name, part in parts.items() if part is not None}

    def replace(self, **values: Any) -> RunConfig:
        """Return the run with some fields of the sections changed, by field name.

        Args:
            values: Values by field name, as on the command line.

        Raises:
            ValueError: If a value is not allowed, or no section has the field.
        """
        sections = {
            name: replace(getattr(self, name), **changed)
            for name, changed in by_section(values).items()
            if changed
        }
        return replace(self, **sections)

    def with_options(
        self, options: dict[str, Any], encoder: SelfViTConfig | None = None
    ) -> RunConfig:
        """Return the run with some values of sections, model and augmentation changed.

        Args:
            options: Values by name. Names that belong to none of these are ignored.
            encoder: Configuration to take the geometry of the encoder from. The objective's fields
                and RUN_FIELDS stay those of the run.
        """
        model = (self.model if encoder is None else encoder).to_diff_dict()
        for name in ("architectures", *INHERITED_FIELDS, *DERIVED_FIELDS, *CHECKPOINT_KEYS):
            model.pop(name, None)
        model |= {name: getattr(self.model, name) for name in RUN_FIELDS}
        if self.model.use_mask_token:  # also if the checkpoint has none
            model["use_mask_token"] = True
        model |= select(options, model_fields())
        parts = self.objectives()
        for name in SelfViTConfig.sub_configs_defaults:
            part = parts.get(name)
            if part is None:
                model[name] = None
            else:
                changed = {**part.to_dict(), **select(options, own_fields(part))}
                model[name] = type(part)(**changed)
        config = SelfViTConfig(**model)
        augmentation = self.augmentation.for_image_size(
            self.model.image_height_width, config.image_height_width, config.patch_size
        )
        unfit: dict[str, Any] = {
            name: []  # to be measured
            for name in STATISTICS
            if len(getattr(self.preprocessing, name)) != config.num_channels
        }
        chosen = select(options, {entry.name for entry in fields(augmentation)})
        if config.num_channels != self.model.num_channels:
            augmentation = augmentation.for_num_channels(config.num_channels, chosen)
        changed_run = replace(
            self,
            model=config,
            augmentation=replace(augmentation, **chosen),
            preprocessing=replace(self.preprocessing, **unfit),
        )
        return changed_run.replace(**select(options, SECTION_OF))


# Called with the number of images and the batch size; None for a value that is not known.
Recipe = Callable[[int | None, int | None], RunConfig]


def by_section(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Sort values by the section that their fields belong to.

    Raises:
        ValueError: If no section has a field of that name.
    """
    sections: dict[str, dict[str, Any]] = {
        name: {} for name in SECTIONS if name not in PRIVATE_SECTIONS
    }
    for name, value in values.items():
        if name not in SECTION_OF:
            raise ValueError(f"a name in the run's configuration is unknown: {name}.")
        sections.setdefault(SECTION_OF[name], {})[name] = value
    return sections


def select(options: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return the options whose names are among `names`."""
    names = set(names)
    return {name: value for name, value in options.items() if name in names}


def own_fields(config: PreTrainedConfig) -> set[str]:
    """Return the names of the fields that a configuration adds to transformers' own."""
    inherited = {entry.name for entry in fields(PreTrainedConfig)}
    return {entry.name for entry in fields(config)} - inherited


def model_fields() -> set[str]:
    """Return the names of the encoder's fields that a run may set."""
    hidden = {"_out_features", "_out_indices", *SelfViTConfig.sub_configs_defaults}
    return own_fields(SelfViTConfig()) - hidden


__all__ = [
    "STATISTICS",
    "Recipe",
    "RunConfig",
    "by_section",
    "model_fields",
    "own_fields",
    "select",
]
