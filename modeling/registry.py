"""Registry of the model classes."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForPreTraining, PreTrainedModel

from ..configuration.configuration_selfvit import SelfViTConfig
from .modeling_dino import SelfViTForDINO
from .modeling_dinov2 import SelfViTForDINOv2
from .modeling_distill import SelfViTForDistill
from .modeling_lejepa import SelfViTForLeJEPA
from .modeling_mae import SelfViTForMAE
from .modeling_pmsn import SelfViTForPMSN
from .modeling_selfvit import SelfViTBackbone, SelfViTForImageClassification, SelfViTModel

ModelClass = type[PreTrainedModel]

# One class per objective; transformers selects one by `config.architectures`.
PRETRAINING_CLASSES: tuple[ModelClass, ...] = (
    SelfViTForDINO,
    SelfViTForDINOv2,
    SelfViTForDistill,
    SelfViTForLeJEPA,
    SelfViTForMAE,
    SelfViTForPMSN,
)

TRAINABLE_CLASSES: dict[str, ModelClass] = {
    model_class.__name__: model_class
    for model_class in (*PRETRAINING_CLASSES, SelfViTForImageClassification)
}

MODEL_CLASSES: dict[str, ModelClass] = {
    **TRAINABLE_CLASSES,
    "SelfViTModel": SelfViTModel,
    "SelfViTBackbone": SelfViTBackbone,
}
BUILT_IN = frozenset(MODEL_CLASSES)


def register_objective(model_class: ModelClass) -> ModelClass:
    """Register the model class of an objective that is defined outside of selfvit; a decorator.

    `train` then accepts the class as `architecture` of a run, and `AutoModelForPreTraining` opens
    its checkpoints.

    Raises:
        ValueError: If another class has this name.
    """
    name = model_class.__name__
    if MODEL_CLASSES.get(name, model_class) is not model_class:
        raise ValueError(f"there is a model class {name!r} already; give the class another name.")
    TRAINABLE_CLASSES[name] = MODEL_CLASSES[name] = model_class
    classes = (*PRETRAINING_CLASSES, *(c for n, c in MODEL_CLASSES.items() if n not in BUILT_IN))
    mapping: Any = AutoModelForPreTraining._model_mapping
    mapping.register(SelfViTConfig, classes, exist_ok=True)
    return model_class


__all__ = [
    "MODEL_CLASSES",
    "PRETRAINING_CLASSES",
    "TRAINABLE_CLASSES",
    "ModelClass",
    "register_objective",
]
