"""Self-supervised vision transformers, as transformers models.

Importing this package registers its classes with transformers' Auto classes; it imports no training
code.
"""

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from .configuration.configuration_dino import DINOConfig
from .configuration.configuration_mae import MAEConfig
from .configuration.configuration_pmsn import PMSNConfig
from .configuration.configuration_selfvit import SelfViTConfig
from .configuration.format_version import VERSION
from .modeling.modeling_dino import SelfViTForDINO
from .modeling.modeling_mae import SelfViTForMAE
from .modeling.modeling_pmsn import SelfViTForPMSN
from .modeling.modeling_selfvit import (
    SelfViTBackbone,
    SelfViTForImageClassification,
    SelfViTModel,
)
from .modeling.registry import PRETRAINING_CLASSES

__version__ = VERSION


AutoConfig.register("selfvit", SelfViTConfig)
AutoModel.register(SelfViTConfig, SelfViTModel)
AutoModelForImageClassification.register(SelfViTConfig, SelfViTForImageClassification)
AutoBackbone.register(SelfViTConfig, SelfViTBackbone)
AutoModelForPreTraining._model_mapping.register(SelfViTConfig, PRETRAINING_CLASSES)  # type: ignore[arg-type]

__all__ = [
    "DINOConfig",
    "MAEConfig",
    "PMSNConfig",
    "SelfViTBackbone",
    "SelfViTConfig",
    "SelfViTForDINO",
    "SelfViTForImageClassification",
    "SelfViTForMAE",
    "SelfViTForPMSN",
    "SelfViTModel",
    "__version__",
]
