"""Registry of the model classes."""

from __future__ import annotations

from transformers import PreTrainedModel

from .modeling_dino import SelfViTForDINO
from .modeling_mae import SelfViTForMAE
from .modeling_pmsn import SelfViTForPMSN
from .modeling_selfvit import SelfViTBackbone, SelfViTForImageClassification, SelfViTModel

ModelClass = type[PreTrainedModel]

# One class per objective; transformers selects one by `config.architectures`.
PRETRAINING_CLASSES: tuple[ModelClass, ...] = (SelfViTForDINO, SelfViTForMAE, SelfViTForPMSN)

TRAINABLE_CLASSES: dict[str, ModelClass] = {
    model_class.__name__: model_class
    for model_class in (*PRETRAINING_CLASSES, SelfViTForImageClassification)
}

MODEL_CLASSES: dict[str, ModelClass] = {
    **TRAINABLE_CLASSES,
    "SelfViTModel": SelfViTModel,
    "SelfViTBackbone": SelfViTBackbone,
}

__all__ = ["MODEL_CLASSES", "PRETRAINING_CLASSES", "TRAINABLE_CLASSES", "ModelClass"]
