"""The base of the objectives' sub-configurations."""

from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ObjectiveConfig(PreTrainedConfig):
    """A sub-configuration that serializes its own fields only.

    `PreTrainedConfig.to_dict` also writes what every transformers model has (`id2label`, `dtype`,
    ...), which means nothing for an objective and would double each of these entries in
    config.json.
    """

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that the objective declares, and its `model_type`."""
        inherited = {field.name for field in fields(PreTrainedConfig)}
        own = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in inherited
        }
        # `transformers_version` is what PreTrainedConfig.to_dict removes from every
        # sub-configuration it nests.
        return {**own, "model_type": self.model_type, "transformers_version": None}


__all__ = ["ObjectiveConfig"]
