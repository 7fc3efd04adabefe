"""Base class of the objectives' configurations."""

from dataclasses import fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ObjectiveConfig(PreTrainedConfig):
    """Configuration of an objective, which serializes its own fields only.

    `PreTrainedConfig.to_dict` also writes the fields of every transformers model (`id2label`,
    `dtype`, ...). They mean nothing for an objective and would appear twice in config.json.

    Attributes:
        weight_fields: Names of the fields that the weights of heads and decoders depend on, by
            their shape or by their meaning.
    """

    weight_fields: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self, **kwargs: Any) -> None:
        """Check that there is no other field, which would be a typing error.

        Raises:
            ValueError: If there is an unknown field.
        """
        shared = {field.name for field in fields(PreTrainedConfig)} | {"num_labels", "model_type"}
        if unknown := sorted(kwargs.keys() - shared):
            known = sorted(self.to_dict().keys() - {"model_type", "transformers_version"})
            raise ValueError(
                f"{unknown[0]} is not a field of {self.model_type}; the fields are "
                f"{', '.join(known)}."
            )
        super().__post_init__(**kwargs)

    def resolved_fields(self) -> dict[str, Any]:
        """Return the values in use of fields that may be None, by name."""
        return {}

    def contradictions(self) -> list[str]:
        """Return sentences on values that work against each other, for warnings of a run."""
        return []

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the configuration from a dict, and check the fields among `kwargs`, too.

        Raises:
            StrictDataclassClassValidationError: If a value is out of range.
        """
        loaded: Any = super().from_dict(config_dict, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate()
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that the objective declares, and its `model_type`."""
        inherited = {field.name for field in fields(PreTrainedConfig)}
        own = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in inherited
        }
        # PreTrainedConfig.to_dict removes `transformers_version` from nested configurations, and
        # fails if it is missing
        return {**own, "model_type": self.model_type, "transformers_version": None}


__all__ = ["ObjectiveConfig"]
