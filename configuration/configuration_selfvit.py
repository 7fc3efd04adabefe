"""Configuration of every selfvit model: encoder, pooling, and one part per objective."""

# No `from __future__ import annotations`: `@strict` cannot check annotations that are strings.

import math
import re
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin
from transformers.configuration_utils import SubConfigSpec

from .configuration_dino import DINOConfig
from .configuration_dinov2 import DINOv2Config
from .configuration_distill import DistillConfig
from .configuration_lejepa import LeJEPAConfig
from .configuration_mae import MAEConfig
from .configuration_pmsn import PMSNConfig
from .field_ranges import check_least, check_mlp_ratio, check_positive
from .format_version import FORMAT_VERSION, VERSION, WRITTEN_BY, check_format

# hidden_size, num_hidden_layers, num_attention_heads
SIZES: dict[str, tuple[int, int, int]] = {
    "ti": (192, 12, 3),  # DeiT, arXiv 2012.12877, Table 1
    "s": (384, 12, 6),  # DeiT, Table 1
    "b": (768, 12, 12),  # ViT, arXiv 2010.11929, Table 1
    "l": (1024, 24, 16),  # ViT, Table 1
}
PATCH_SIZES = (8, 14, 16, 32)  # DINO: 8, 16; DINOv2: 14; ViT: 14, 16, 32

POOLING_PATTERN = re.compile(r"cls|mean|cls\+mean|gem|concat:[1-9][0-9]*")
SIZE_FIELDS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "patch_size",
    "num_channels",
)
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
# Fields that transformers declares. Those that describe the outputs of a backbone exclude each
# other.
INHERITED_FIELDS = ("id2label", "label2id", "problem_type")
BACKBONE_FIELDS = ("out_features", "out_indices")


@strict
class SelfViTConfig(BackboneConfigMixin, PreTrainedConfig):
    """Geometry of the encoder, its pooling, and the configuration of its objective.

    Args:
        hidden_size: Width of the tokens (D).
        num_hidden_layers: Number of blocks.
        num_attention_heads: Number of heads per block; divides `hidden_size`.
        mlp_ratio: Hidden width of a block's MLP, as a multiple of `hidden_size`.
        hidden_act: Activation function of the MLP, or of its gate.
        use_gated_mlp: Whether the hidden layer of the MLP is multiplied by a gate
            (arXiv 2002.05202). With `hidden_act` "silu" this is SwiGLU, as in DINOv2's giant and in
            DINOv3.
        layer_norm_eps: Epsilon of every LayerNorm.
        initializer_range: Std of the truncated normal distribution that initializes weights.
        image_size: Image size in pixels, one number or (height, width), for which position
            embeddings are stored. They are interpolated for other sizes.
        patch_size: Side of a patch in pixels; divides `image_size`.
        num_channels: Number of channels of `pixel_values`.
        qkv_bias: Whether the query, key and value projections have a bias.
        query_bias: Whether the query projection has a bias; None for `qkv_bias`.
        key_bias: Whether the key projection has a bias; None for `qkv_bias`. DINOv3 has none.
        value_bias: Whether the value projection has a bias; None for `qkv_bias`.
        num_register_tokens: Number of extra tokens after the class token (arXiv 2309.16588), called
            storage tokens in DINOv3.
        layerscale_value: Initial value of LayerScale (arXiv 2103.17239); None for no LayerScale.
        drop_path_rate: Probability of stochastic depth in the last block; increases linearly from 0
            in the first block.
        position_embedding_type: Type of position embeddings: "learned", "sincos" (fixed, 2-D), or
            "rotary", which rotates queries and keys of the patches in every block (DINOv3, arXiv
            2508.10104, Sec. 3.2).
        interpolate_antialias: Whether stored positions are resized to smaller grids with
            antialiasing, as in DINOv2 with registers.
        rope_theta: Base of the periods of rotary positions.
        pos_embed_shift: Largest shift of rotary coordinates along each axis in training, in half
            images. None for no shift.
        pos_embed_jitter: Largest factor by which rotary coordinates of an axis are scaled in
            training, at least 1; the smallest is its inverse. None for no jitter.
        pos_embed_rescale: Largest factor by which rotary coordinates of both axes are scaled
            together in training, at least 1; the smallest is its inverse. DINOv3 has 2. None for no
            rescaling.
        use_mask_token: Whether the encoder has a learned token that replaces masked patches.
        pooling: Definition of `pooler_output`. "cls": class token; "mean": mean of the patch
            tokens; "cls+mean": both, concatenated; "gem": generalized mean of the patch tokens;
            "concat:n": class tokens of the last n blocks. Means exclude register tokens. "auto" is
            replaced by "mean" if there is a `mae_config` and by "cls" otherwise.
        reshape_hidden_states: Whether the backbone returns feature maps (B, D, rows, columns)
            instead of tokens (B, 1 + N, D) with the class token first, which transformers' DPT
            needs.
        classifier_batch_norm: Whether the classifier standardizes the embedding first, by a batch
            norm without weights (MAE's linear probe, arXiv 2111.06377, Appendix A.1).
        dino_config: Configuration of DINO, or None.
        dinov2_config: Configuration of DINOv2, or None.
        distill_config: Configuration of distillation, or None.
        lejepa_config: Configuration of LeJEPA and VISReg, or None.
        mae_config: Configuration of MAE, or None.
        pmsn_config: Configuration of MSN and PMSN, or None.

    Raises:
        StrictDataclassClassValidationError: If a value is out of range or two fields do not fit
            together (raised by `@strict` of huggingface_hub).

    Example:
        >>> from selfvit import SelfViTConfig, SelfViTModel
        >>> model = SelfViTModel(SelfViTConfig.from_name("vits16"))
    """

    model_type = "selfvit"
    sub_configs_defaults = {
        "dino_config": SubConfigSpec(DINOConfig, optional=True),
        "dinov2_config": SubConfigSpec(DINOv2Config, optional=True),
        "distill_config": SubConfigSpec(DistillConfig, optional=True),
        "lejepa_config": SubConfigSpec(LeJEPAConfig, optional=True),
        "mae_config": SubConfigSpec(MAEConfig, optional=True),
        "pmsn_config": SubConfigSpec(PMSNConfig, optional=True),
    }

    hidden_size: int = 384
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu"
    use_gated_mlp: bool = False
    layer_norm_eps: float = 1e-6  # timm and DINO; transformers' ViT has 1e-12
    initializer_range: float | int = 0.02
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    qkv_bias: bool = True
    query_bias: bool | None = None
    key_bias: bool | None = None
    value_bias: bool | None = None
    num_register_tokens: int = 0
    layerscale_value: float | int | None = None
    drop_path_rate: float | int = 0.0
    position_embedding_type: Literal["learned", "sincos", "rotary"] = "learned"
    interpolate_antialias: bool = False
    rope_theta: float | int = 100.0  # DINOv3, Sec. 3.2
    pos_embed_shift: float | int | None = None
    pos_embed_jitter: float | int | None = None
    pos_embed_rescale: float | int | None = None
    use_mask_token: bool = False
    pooling: str = "auto"
    reshape_hidden_states: bool = True
    classifier_batch_norm: bool = False
    dino_config: Any = None  # DINOConfig, or its fields as a dict, or None
    dinov2_config: Any = None  # DINOv2Config, or its fields as a dict, or None
    distill_config: Any = None  # DistillConfig, or its fields as a dict, or None
    lejepa_config: Any = None  # LeJEPAConfig, or its fields as a dict, or None
    mae_config: Any = None  # MAEConfig, or its fields as a dict, or None
    pmsn_config: Any = None  # PMSNConfig, or its fields as a dict, or None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_format(kwargs, kwargs.get("name_or_path"))
        for name in WRITTEN_BY:
            kwargs.pop(name, None)  # `to_dict` writes the current values
        kwargs.pop("stage_names", None)  # follow from the number of blocks
        self._check_parts(kwargs.get("num_labels"))
        if self.pooling == "auto":
            # MAE's class token is a dummy, average pooling works as well (arXiv 2111.06377, A.1)
            self.pooling = "cls" if self.mae_config is None else "mean"
        self.stage_names = ["stem"] + [
            f"stage{index}" for index in range(1, self.num_hidden_layers + 1)
        ]
        outputs = {name: kwargs.pop(name, None) for name in ("out_indices", "out_features")}
        if self.num_hidden_layers >= 1:  # otherwise the checks below refuse it
            self.set_output_features_output_indices(**outputs)
        super().__post_init__(**kwargs)

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> "SelfViTConfig":
        """Return the configuration of a named size: "vits16" is ViT-S/16.

        Args:
            name: "vit", then "ti", "s", "b" or "l", then the patch size 8, 14, 16 or 32. For
                example "vits16" or "vitb8".
            overrides: Other fields of the configuration.

        Raises:
            ValueError: If the name is unknown.
        """
        match = re.fullmatch(r"vit(ti|s|b|l)([0-9]+)", name)
        if match is None or int(match[2]) not in PATCH_SIZES:
            known = ", ".join(f"vit{size}{patch}" for size in SIZES for patch in PATCH_SIZES)
            raise ValueError(f"encoder name ({name!r}) is unknown; use one of {known}.")
        hidden_size, num_hidden_layers, num_attention_heads = SIZES[match[1]]
        geometry = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "patch_size": int(match[2]),
        }
        return cls(**{**geometry, **overrides})

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read config.json as transformers does.

        Raises:
            ValueError: If a newer version of selfvit wrote it in an incompatible format.
        """
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        check_format(config_dict, str(pretrained_model_name_or_path))
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "SelfViTConfig":
        """Build the configuration from the content of config.json, as transformers does.

        Every Auto class and `from_pretrained` end here. transformers sets fields among `kwargs`
        after it has validated the others; here they are validated together.

        Raises:
            ValueError: If a newer version of selfvit wrote it in an incompatible format.
            StrictDataclassClassValidationError: If a value is out of range or two fields do not fit
                together.
        """
        # before any field is validated: a newer format may use other types
        check_format(config_dict, kwargs.get("name_or_path"))
        own = {field.name for field in fields(cls)} - {
            field.name for field in fields(PreTrainedConfig)
        }
        passed = {
            name: kwargs.pop(name)
            for name in (*own, *BACKBONE_FIELDS, *INHERITED_FIELDS)
            if name in kwargs
        }
        content = _merge_fields(config_dict, passed)
        if (
            content.get("architectures", []) is None
        ):  # AutoModelForPreTraining would iterate over it
            content = {**content, "architectures": []}
        loaded: Any = super().from_dict(content, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        config.check_fields()
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """Return all fields, the format version and the version of selfvit."""
        return {
            **super().to_dict(),
            "format_version": FORMAT_VERSION,
            "selfvit_version": VERSION,
        }

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Do nothing: `save_pretrained` of a model writes its code without registration."""

    @property
    def image_height_width(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    @property
    def grid_size(self) -> tuple[int, int]:
        """(rows, columns) of patches at `image_size`."""
        height, width = self.image_height_width
        return height // self.patch_size, width // self.patch_size

    @property
    def intermediate_size(self) -> int:
        """Hidden width of a block's MLP."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def projection_biases(self) -> tuple[bool, bool, bool]:
        """Whether the query, key and value projections have a bias."""
        query, key, value = (
            self.qkv_bias if bias is None else bias
            for bias in (self.query_bias, self.key_bias, self.value_bias)
        )
        return query, key, value

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.num_register_tokens

    @property
    def num_class_blocks(self) -> int:
        """Number of last blocks whose class tokens are pooled; 0 if only patches are pooled."""
        if self.pooling.startswith("concat:"):
            return int(self.pooling.removeprefix("concat:"))
        return 1 if self.pooling.startswith("cls") else 0

    @property
    def embedding_size(self) -> int:
        """Length of `pooler_output`."""
        return self.hidden_size * (
            self.num_class_blocks + (self.pooling in ("mean", "cls+mean", "gem"))
        )

    def check_fields(self) -> None:
        """Check all fields that the models read, also those that were assigned later.

        Raises:
            StrictDataclassClassValidationError: If a value is out of range or two fields do not fit
                together, as when the configuration is created.
        """
        try:
            self._check_parts()
            self.validate_architecture()
        except ValueError as error:
            raise StrictDataclassClassValidationError("validate_architecture", error) from error

    def validate_architecture(self) -> None:
        """Check that the fields fit together."""
        super().validate_architecture()
        check_least(self, {**dict.fromkeys(SIZE_FIELDS, 1), "num_register_tokens": 0})
        check_mlp_ratio(self, "mlp_ratio", self.hidden_size)
        check_positive(self, ["layer_norm_eps"], "the usual values are 1e-12 to 1e-5")
        check_positive(self, ["initializer_range"], "the usual choice is 0.02")
        if self.layerscale_value is not None and not math.isfinite(self.layerscale_value):
            raise ValueError(
                f"layerscale_value ({self.layerscale_value}) must be a finite number, or None for "
                "no LayerScale."
            )
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(
                f"drop_path_rate ({self.drop_path_rate}) must be at least 0 and below 1."
            )
        self._check_activation()
        self._check_geometry()
        self._check_rotary_positions()
        self._check_pooling()
        self.verify_out_features_out_indices()
        for name in self.sub_configs_defaults:
            if getattr(self, name) is not None:
                getattr(self, name).validate_architecture()

    def _check_parts(self, num_labels: Any = None) -> None:
        """Check the types that `@strict` cannot: objectives and labels."""
        for name, spec in self.sub_configs_defaults.items():
            part, wanted = getattr(self, name), spec.config_class
            # by `model_type`: code of a checkpoint defines classes of its own
            fits = isinstance(part, PreTrainedConfig) and part.model_type == wanted.model_type
            if part is not None and not isinstance(part, dict) and not fits:
                found = type(part).__name__ if isinstance(part, PreTrainedConfig) else repr(part)
                raise ValueError(
                    f"{name} ({found}) must be a {wanted.__name__}, its fields as a dict, or None."
                )
        if self.id2label is not None and not isinstance(self.id2label, dict):
            raise ValueError(
                f"id2label ({self.id2label!r}) must be a dict from class indices to names."
            )
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"problem_type ({self.problem_type!r}) must be one of {', '.join(PROBLEM_TYPES)}, "
                "or None."
            )
        is_number = isinstance(num_labels, int) and not isinstance(num_labels, bool)
        if num_labels is not None and (not is_number or num_labels < 0):
            raise ValueError(f"num_labels ({num_labels!r}) must be an integer, 0 or more.")

    def _check_activation(self) -> None:
        if self.hidden_act == "gelu":
            return
        from transformers.activations import ACT2FN  # needs torch

        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"hidden_act ({self.hidden_act!r}) must be one of {', '.join(sorted(ACT2FN))}."
            )

    def _check_geometry(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            usual = max(1, self.hidden_size // 64)
            num_heads = next(n for n in range(usual, 0, -1) if self.hidden_size % n == 0)
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}); use {num_heads} (the usual width of a head is 64)."
            )
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(
                f"image_size ({self.image_size}) must be one number or (height, width), in pixels."
            )
        for size in self.image_height_width:
            if size < 1 or size % self.patch_size:
                below = size // self.patch_size * self.patch_size
                choices = [str(choice) for choice in (below, below + self.patch_size) if choice > 0]
                raise ValueError(
                    f"image_size ({size}) must be a multiple of patch_size ({self.patch_size}); "
                    f"use {' or '.join(choices)}."
                )
        if self.position_embedding_type == "sincos" and self.hidden_size % 4:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of 4 for sincos positions; "
                f"use {self.hidden_size // 4 * 4 + 4}, or learned positions."
            )

    def _check_rotary_positions(self) -> None:
        check_positive(self, ["rope_theta"], "DINOv3 has 100")
        augmentations = {
            name: getattr(self, name)
            for name in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale")
            if getattr(self, name) is not None
        }
        if self.position_embedding_type != "rotary":
            for name, value in augmentations.items():
                raise ValueError(
                    f"{name} ({value}) is for rotary positions, but position_embedding_type is "
                    f"{self.position_embedding_type!r}; use 'rotary', or set {name} to None."
                )
            return
        head_dim = self.hidden_size // self.num_attention_heads
        if head_dim % 4:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) / num_attention_heads "
                f"({self.num_attention_heads}), which is {head_dim}, must be a multiple of 4 for "
                "rotary positions; use another number of heads."
            )
        least = {name: 0 if name == "pos_embed_shift" else 1 for name in augmentations}
        check_least(self, least)

    def _check_pooling(self) -> None:
        if POOLING_PATTERN.fullmatch(self.pooling) is None:
            raise ValueError(
                f"pooling ({self.pooling!r}) must be cls, mean, cls+mean, gem, or concat:n "
                "(for example concat:4)."
            )
        if self.num_class_blocks > self.num_hidden_layers:
            raise ValueError(
                f"pooling ({self.pooling!r}) asks for more blocks than num_hidden_layers "
                f"({self.num_hidden_layers}); use at most concat:{self.num_hidden_layers}."
            )


def _merge_fields(stored: dict[str, Any], passed: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of config.json with those that replace them.

    Args:
        stored: Content of config.json.
        passed: Fields that were passed to `from_pretrained`. A dict for an objective replaces only
            the fields of the objective that it has.
    """
    merged = dict(stored)
    for name, value in passed.items():
        earlier = merged.get(name)
        if name in SelfViTConfig.sub_configs_defaults and isinstance(value, dict) and earlier:
            earlier = earlier.to_dict() if isinstance(earlier, PreTrainedConfig) else earlier
            value = {**earlier, **value}
        merged[name] = value
    last = [stored.get("num_hidden_layers")]
    follows_depth = "num_hidden_layers" in passed and stored.get("out_indices") == last
    if follows_depth or any(name in passed for name in BACKBONE_FIELDS):
        for name in BACKBONE_FIELDS:
            if name not in passed:
                merged.pop(name, None)
    if "id2label" in passed and "label2id" not in passed:
        merged.pop("label2id", None)
    return merged


__all__ = ["PATCH_SIZES", "SIZES", "SelfViTConfig"]
