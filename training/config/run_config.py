"""A run: all that decides what training does, and its written form, `training.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import yaml
from transformers import PreTrainedConfig

from ...configuration.configuration_selfvit import SelfViTConfig
from ...configuration.format_version import WRITTEN_BY
from ..augmentations.base import Augmentation
from ..augmentations.registry import AUGMENTATIONS
from .training_config import TRAINING_FIELDS, TrainingConfig


@dataclass(frozen=True)
class Run:
    """A recipe made concrete; `training.yaml` is its written form.

    Args:
        recipe: the name it started from.
        architecture: class that is trained, as in `config.architectures`.
        model: geometry of the encoder, and the objective's part.
        augmentation: how images become views.
        training: everything else.
    """

    recipe: str
    architecture: str
    model: SelfViTConfig
    augmentation: Augmentation
    training: TrainingConfig

    def __post_init__(self) -> None:
        patch_size = self.model.patch_size
        for size in self.augmentation.view_sizes(self.model.image_height_width):
            if size[0] % patch_size or size[1] % patch_size:
                nearest = max(1, round(size[0] / patch_size)) * patch_size
                raise ValueError(
                    f"view size ({size[0]} x {size[1]}) must be a multiple of patch_size "
                    f"({patch_size}); the nearest is {nearest}."
                )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, section by section."""
        model = self.model.to_diff_dict()
        for name in ("architectures", "dtype", *DERIVED_FIELDS, *OF_A_CHECKPOINT):
            model.pop(name, None)
        kinds = {kind: name for name, kind in AUGMENTATIONS.items()}
        augmentation = {"kind": kinds[type(self.augmentation)], **asdict(self.augmentation)}
        training = asdict(self.training)
        for name in PLACE_ON_HUB:
            del training[name]
        return {
            "recipe": self.recipe,
            "architecture": self.architecture,
            "model": model,
            "augmentation": augmentation,
            "training": training,
        }

    def to_yaml(self) -> str:
        """Return the text of `training.yaml`."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> Run:
        """Read what `to_yaml` wrote.

        Raises:
            ValueError: if a section is missing, or a name in it is unknown.
        """
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"the run's YAML cannot be read: {error}") from error
        sections = ("recipe", "architecture", "model", "augmentation", "training")
        if not isinstance(content, dict) or set(content) != set(sections):
            raise ValueError(f"a run's YAML has exactly the sections {', '.join(sections)}.")
        augmentation = dict(content["augmentation"])
        kind = augmentation.pop("kind", None)
        if kind not in AUGMENTATIONS:
            known = ", ".join(AUGMENTATIONS)
            raise ValueError(f"augmentation kind ({kind!r}) must be one of: {known}.")
        try:
            return cls(
                recipe=content["recipe"],
                architecture=content["architecture"],
                model=SelfViTConfig(**content["model"]),
                augmentation=AUGMENTATIONS[kind](**augmentation),
                training=TrainingConfig(**content["training"]),
            )
        except TypeError as error:
            raise ValueError(f"a name in the run's YAML is unknown: {error}.") from error

    @property
    def is_classifier(self) -> bool:
        """Whether it learns from labels."""
        return self.architecture == "SelfViTForImageClassification"

    def objectives(self) -> dict[str, PreTrainedConfig]:
        """Return the objectives' parts of `model` by name: one, or none for a classifier."""
        parts = {name: getattr(self.model, name) for name in SelfViTConfig.sub_configs_defaults}
        return {name: part for name, part in parts.items() if part is not None}

    def with_options(self, options: dict[str, Any], encoder: SelfViTConfig | None = None) -> Run:
        """Return the run with some values changed, whichever section they belong to.

        Args:
            options: values by name; names of no section are left out.
            encoder: configuration to take the geometry of the encoder from; the objective's part
                and what a run decides of the model (RUN_DECIDES) stay those of the run.
        """
        model = (self.model if encoder is None else encoder).to_diff_dict()
        for name in ("architectures", "id2label", "label2id", *DERIVED_FIELDS, *OF_A_CHECKPOINT):
            model.pop(name, None)
        model |= {name: getattr(self.model, name) for name in RUN_DECIDES}
        model |= chosen(options, model_fields())
        parts = self.objectives()
        for name in SelfViTConfig.sub_configs_defaults:
            part = parts.get(name)
            if part is None:
                model[name] = None
            else:
                changed = {**part.to_dict(), **chosen(options, own_fields(part))}
                model[name] = type(part)(**changed)
        config = SelfViTConfig(**model)
        augmentation = self.augmentation.for_images(
            self.model.image_height_width, config.image_height_width, config.patch_size
        )
        augmentation_fields = {entry.name for entry in fields(augmentation)}
        return replace(
            self,
            model=config,
            augmentation=replace(augmentation, **chosen(options, augmentation_fields)),
            training=replace(self.training, **chosen(options, TRAINING_FIELDS)),
        )


# Fields of the model that a run sets anew, whatever the checkpoint was trained with.
RUN_DECIDES = ("drop_path_rate", "classifier_batch_norm")
# Where a run is published is no part of how it came about. Whoever runs a published training.yaml
# again must not push over the model that it came with.
PLACE_ON_HUB = ("push_to_hub", "push_steps", "hub_private_repo", "hub_revision")
# What a configuration works out from the others.
DERIVED_FIELDS = ("out_features", "out_indices", "stage_names")
# What config.json says of the folder it lies in.
OF_A_CHECKPOINT = ("auto_map", "transformers_version", *WRITTEN_BY)


def chosen(options: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return those of some values whose names are among others."""
    return {name: value for name, value in options.items() if name in names}


def own_fields(config: PreTrainedConfig) -> set[str]:
    """Return the names of the fields that a configuration adds to transformers' own."""
    inherited = {entry.name for entry in fields(PreTrainedConfig)}
    return {entry.name for entry in fields(config)} - inherited


def model_fields() -> set[str]:
    """Return the names of the encoder's fields that a run may set."""
    hidden = {"_out_features", "_out_indices", *SelfViTConfig.sub_configs_defaults}
    return own_fields(SelfViTConfig()) - hidden


Recipe = Callable[[int | None, int | None], Run]


__all__ = ["Recipe", "Run", "chosen", "model_fields", "own_fields"]
