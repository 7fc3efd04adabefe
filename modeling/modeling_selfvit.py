"""Vision transformer (arXiv 2010.11929): encoder, classifier and backbone.

The encoder is deterministic: for masking, the caller passes the indices of the patches to keep.
"""

# B batch · C channels · H, W pixels · P patch size · N patches · K kept patches
# T tokens (class, registers, patches) · D hidden · L classes · E embedding

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from ..configuration.configuration_selfvit import SelfViTConfig
from .batch_norm import BatchNorm
from .checkpoints.pretrained import CheckpointModel
from .layers import SelfViTAttention, SelfViTEmbeddings, SelfViTLayer, SelfViTLayerScale
from .pooling import pool
from .position_embeddings import RotaryPositions, Rotation, sincos_position_embeddings
from .trainable import Trainable


class SelfViTPreTrainedModel(Trainable, CheckpointModel):
    """Base of all selfvit models: initialization, checkpoints, interface to the training loop."""

    config: SelfViTConfig
    config_class = SelfViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)  # a tuple, as in transformers' own models
    supports_gradient_checkpointing = True
    _no_split_modules = ["SelfViTPatchEmbeddings", "SelfViTEmbeddings", "SelfViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": SelfViTLayer, "attentions": SelfViTAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize one module, as in DINO.

        Linear weights, class and register tokens, learned positions: normal with std
        `initializer_range`, truncated at the absolute value 2 (which has no effect in practice).
        Linear biases: 0. Patch projection, including its bias: uniform in +-1/sqrt(fan in), torch's
        default, which DINO keeps. LayerNorm: weight 1, bias 0. Batch norm: the same, running mean
        0, running variance 1. LayerScale: `layerscale_value`. Mask token: 0. Fixed positions:
        sine-cosine.
        """
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std, a=-2, b=2)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, BatchNorm):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            if module.weight is not None and module.bias is not None:
                init.ones_(module.weight)
                init.zeros_(module.bias)
        elif isinstance(module, SelfViTLayerScale):
            init.constant_(module.lambda1, self.config.layerscale_value or 0.0)
        elif isinstance(module, SelfViTEmbeddings):
            init.trunc_normal_(module.cls_token, std=std, a=-2, b=2)
            if module.register_tokens is not None:
                init.trunc_normal_(module.register_tokens, std=std, a=-2, b=2)
            if module.mask_token is not None:
                init.zeros_(module.mask_token)
            positions = module.position_embeddings  # None with rotary positions
            if positions is not None and module.position_embedding_type == "learned":
                init.trunc_normal_(positions, std=std, a=-2, b=2)
            elif positions is not None:
                fixed = sincos_position_embeddings(self.config.hidden_size, self.config.grid_size)
                init.copy_(positions, fixed)

    @classmethod
    def auto_classes(cls) -> dict[str, type]:
        """Return the classes that open a checkpoint of this class, by Auto class."""
        classes: dict[str, type] = {
            "AutoConfig": SelfViTConfig,
            "AutoModel": SelfViTModel,
            "AutoModelForImageClassification": SelfViTForImageClassification,
            "AutoBackbone": SelfViTBackbone,
        }
        if cls.objective_field is not None:
            # skip subclasses defined elsewhere: FSDP derives its own class, and users may do so
            folder = __name__.rpartition(".")[0]
            classes["AutoModelForPreTraining"] = next(
                base for base in cls.__mro__ if base.__module__.rpartition(".")[0] == folder
            )
        return classes


class SelfViTModel(SelfViTPreTrainedModel):
    """Encoder.

    `pooler_output` is the embedding of the image. The pooling has no weights.
    """

    # Checkpoints of all objectives open as an encoder, without their other weights.
    _keys_to_ignore_on_load_unexpected = [
        r"^(head|student|gram_teacher|decoder|loss|classifier(_norm)?|unused)\.",
        r"^prototypes$",
    ]

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        self.embeddings = SelfViTEmbeddings(config)
        self.rotary_positions = (
            RotaryPositions(config) if config.position_embedding_type == "rotary" else None
        )
        rates = torch.linspace(
            0, config.drop_path_rate, config.num_hidden_layers, device="cpu"
        ).tolist()
        self.layers = nn.ModuleList([SelfViTLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, network: str = "teacher", **kwargs: Any
    ):
        """Load the encoder of a selfvit checkpoint of any class.

        Args:
            pretrained_model_name_or_path: Checkpoint folder or Hub id.
            args: Arguments of transformers' `from_pretrained`.
            network: "teacher" loads the encoder that embeds images (`vit.*`), which is the only
                encoder of objectives without a teacher. "student" loads the encoder that the
                optimizer trained, from a checkpoint that has both.
            kwargs: Keyword arguments of transformers' `from_pretrained`.

        Raises:
            ValueError: If `network` is unknown, or the checkpoint has no student.
        """
        if network not in ("teacher", "student"):
            raise ValueError(f"network ({network!r}) must be 'teacher' or 'student'.")
        if network == "teacher":
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        kwargs["key_mapping"] = {r"^vit\.": "unused.", r"^student\.vit\.": "vit."}
        with_loading_info = kwargs.pop("output_loading_info", False)
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        model, loading_info = loaded
        if loading_info["missing_keys"]:
            raise ValueError(
                "network='student' needs a checkpoint with teacher and student, and "
                f"{pretrained_model_name_or_path} has no student; use network='teacher' for its "
                "encoder."
            )
        return (model, loading_info) if with_loading_info else model

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: Tensor,
        ids_keep: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Encode images.

        Args:
            pixel_values: (B, C, H, W) normalized images; H and W are any multiples of the patch
                size.
            ids_keep: (B, K) indices of the patches to keep, counted row by row from the top left;
                the others are removed before the first block.
            bool_masked_pos: (B, N); patches with True (1) are replaced by the mask token, patches
                with False (0) are kept.
            kwargs: `output_hidden_states`, `output_attentions` (with attn_implementation="eager"),
                `return_dict`.

        Returns:
            last_hidden_state (B, T, D), normalized; pooler_output (B, E), see `config.pooling`.

        Raises:
            ValueError: If H or W is not a multiple of the patch size, or the number of channels
                does not match the model.
        """
        hidden_states = self._embed_tokens(pixel_values, ids_keep, bool_masked_pos)
        rotation = self._rotation(hidden_states, pixel_values, ids_keep)
        class_tokens = []
        for index, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, rotation=rotation, **kwargs)
            if index >= len(self.layers) - self.config.num_class_blocks:
                class_tokens.append(hidden_states[:, 0])
        last_hidden_state = self.layernorm(hidden_states)
        patches = last_hidden_state[:, self.config.num_prefix_tokens :]
        class_tokens = [self.layernorm(class_token) for class_token in class_tokens]
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=pool(class_tokens, patches, self.config.pooling),
        )

    def embed(self, pixel_values: Tensor) -> Tensor:
        """Return `pooler_output` only, and compute only what the pooling needs.

        Args:
            pixel_values: (B, C, H, W) images, see `forward`.

        Returns:
            (B, E).
        """
        if self.config.pooling in ("mean", "cls+mean", "gem"):
            return self(pixel_values).pooler_output
        class_tokens = self.class_tokens(pixel_values, self.config.num_class_blocks)
        return pool(class_tokens, None, self.config.pooling)

    def class_tokens(
        self, pixel_values: Tensor, num_blocks: int = 1, ids_keep: Tensor | None = None
    ) -> list[Tensor]:
        """Return the normalized class tokens of the last blocks.

        In the last block, only the class token is a query; patches are keys and values.

        Args:
            pixel_values: (B, C, H, W) images, see `forward`.
            num_blocks: Number of blocks, counted from the last.
            ids_keep: (B, K) indices of the patches to keep, see `forward`.

        Returns:
            `num_blocks` tensors (B, D), in the order of the blocks.
        """
        hidden_states = self._embed_tokens(pixel_values, ids_keep)
        rotation = self._rotation(hidden_states, pixel_values, ids_keep)
        class_tokens = []
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            num_queries = 1 if index == last else None
            hidden_states = layer(hidden_states, num_queries=num_queries, rotation=rotation)
            if index > last - num_blocks:
                class_tokens.append(self.layernorm(hidden_states[:, 0]))
        return class_tokens

    def _embed_tokens(self, pixel_values: Tensor, *masking: Tensor | None) -> Tensor:
        return self.embeddings(
            pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype), *masking
        )

    def _rotation(
        self, tokens: Tensor, pixel_values: Tensor, ids_keep: Tensor | None
    ) -> Rotation | None:
        """Return the rotary positions of the tokens, or None if the encoder has other positions."""
        if self.rotary_positions is None:
            return None
        grid = self.embeddings.patch_embeddings.grid_of(pixel_values)
        return self.rotary_positions(tokens, grid, ids_keep)


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Return the cross-entropy with class probabilities in nats, mean over images, in float32.

    Args:
        logits: (B, L).
        probabilities: (B, L), rows sum to 1.

    Raises:
        ValueError: If the shapes differ.
    """
    if probabilities.shape != logits.shape:
        raise ValueError(
            "float labels are class probabilities and must have the shape of the logits, "
            f"{tuple(logits.shape)}; got {tuple(probabilities.shape)}. Pass class indices as "
            "integers of shape (batch,)."
        )
    return F.cross_entropy(logits.float(), probabilities.to(logits.device).float())


class SelfViTForImageClassification(SelfViTPreTrainedModel):
    """Encoder with a linear layer on its embedding.

    With `config.classifier_batch_norm`, a batch norm without weights standardizes the embedding
    first, by the statistics of the batch in training and by running statistics in evaluation (MAE,
    arXiv 2111.06377, Appendix A.1, "Linear probing").
    """

    _keys_to_ignore_on_load_unexpected = [
        r"^(head|student|gram_teacher|decoder|loss)\.",
        r"^prototypes$",
    ]

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = SelfViTModel(config)
        self.classifier_norm = (
            # 1e-6: MAE, main_linprobe.py; small enough for features of low variance
            BatchNorm(config.embedding_size, eps=1e-6, affine=False)
            if config.classifier_batch_norm
            else nn.Identity()
        )
        self.classifier = (
            nn.Linear(config.embedding_size, config.num_labels)
            if config.num_labels
            else nn.Identity()
        )
        self.post_init()

    def classify(self, embeddings: Tensor) -> Tensor:
        """Return logits: (B, E) -> (B, L)."""
        return self.classifier(self.classifier_norm(embeddings))

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (B, C, H, W) images.
            labels: Labels for the loss, or None. (B,) int64 are class indices, and (B, L) floats
                whose rows sum to 1 are class probabilities, as from mixup, cutmix and label
                smoothing; the loss is the cross-entropy. `config.problem_type` changes the meaning
                of floats, as in transformers: "multi_label_classification" (B, L) uses a binary
                cross-entropy per class, and "regression" (B, L) the squared error, which is also
                used by a model with a single output.
            kwargs: Arguments of `SelfViTModel`.

        Returns:
            Logits (B, L), and the loss (scalar) if labels are given.

        Raises:
            ValueError: If class probabilities do not have the shape of the logits.
        """
        outputs = self.vit(pixel_values, **kwargs)
        logits = self.classify(outputs.pooler_output)
        loss = None
        if labels is not None and self._are_probabilities(labels):
            loss = soft_cross_entropy(logits, labels)
        elif labels is not None:
            loss = self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _are_probabilities(self, labels: Tensor) -> bool:
        # without a problem_type, transformers treats floats as multi-label targets
        return (
            labels.is_floating_point()
            and (self.config.num_labels or 0) > 1
            and self.config.problem_type in (None, "single_label_classification")
        )


class SelfViTBackbone(BackboneMixin, SelfViTPreTrainedModel):
    """Encoder as a backbone: normalized feature maps of selected blocks, for dense heads."""

    _keys_to_ignore_on_load_unexpected = [
        r"^(head|student|gram_teacher|decoder|loss|classifier(_norm)?)\.",
        r"^prototypes$",
    ]

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.vit = SelfViTModel(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Encode images to feature maps.

        Args:
            pixel_values: (B, C, H, W) images.
            kwargs: Arguments of `SelfViTModel`.

        Returns:
            feature_maps: (B, D, H/P, W/P) for each of `config.out_features`, or class token and
            patches (B, 1 + N, D) without `config.reshape_hidden_states`. Register tokens are not
            included.
        """
        outputs = self.vit(pixel_values, **kwargs)
        grid = self.vit.embeddings.patch_embeddings.grid_of(pixel_values)
        feature_maps: list[Any] = []  # BackboneOutput is annotated as a tuple of one
        for stage, hidden_state in zip(self.stage_names, outputs.hidden_states, strict=True):
            if stage in self.out_features:
                tokens = self.vit.layernorm(hidden_state)
                patches = tokens[:, self.config.num_prefix_tokens :]
                if self.config.reshape_hidden_states:
                    feature_maps.append(patches.transpose(1, 2).unflatten(2, grid).contiguous())
                else:
                    feature_maps.append(torch.cat([tokens[:, :1], patches], dim=1))
        return BackboneOutput(
            feature_maps=tuple(feature_maps),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = [
    "SelfViTBackbone",
    "SelfViTForImageClassification",
    "SelfViTModel",
    "SelfViTPreTrainedModel",
]
