"""The vision transformer (arXiv 2010.11929): encoder, classifier and backbone.

The encoder is deterministic: whoever wants patches masked hands in which ones to keep.
"""

# B batch · C channels · H, W pixels · P patch size · N patches · K patches kept
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
from .position_embeddings import sincos_position_embeddings
from .trainable import Trainable


class SelfViTPreTrainedModel(Trainable, CheckpointModel):
    """Base of all selfvit models: initialization, checkpoints, interface to the training loop."""

    config: SelfViTConfig
    config_class = SelfViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)  # a tuple, as transformers' own models have
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
        """Initialize one module, as DINO does.

        Linear weights, class, register and position embeddings: normal truncated at 2 (in absolute
        terms, so in effect not at all), standard deviation `initializer_range`. Linear biases: 0.
        Patch projection: uniform in +-1/sqrt(fan in), bias too (torch's own, which DINO leaves as
        it is). LayerNorm: 1 and 0. Batch norm: the same, running mean 0 and variance 1. LayerScale:
        `layerscale_value`. Mask token: 0. Fixed positions: sine-cosine.
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
            if module.position_embedding_type == "learned":
                init.trunc_normal_(module.position_embeddings, std=std, a=-2, b=2)
            else:
                fixed = sincos_position_embeddings(self.config.hidden_size, self.config.grid_size)
                init.copy_(module.position_embeddings, fixed)

    @classmethod
    def auto_classes(cls) -> dict[str, type]:
        """Return the classes that open what this one saves, by the Auto class that gives them."""
        classes: dict[str, type] = {
            "AutoConfig": SelfViTConfig,
            "AutoModel": SelfViTModel,
            "AutoModelForImageClassification": SelfViTForImageClassification,
            "AutoBackbone": SelfViTBackbone,
        }
        if cls.objective_field is not None:
            # not what was derived from it elsewhere: FSDP derives a class of its own, users may
            folder = __name__.rpartition(".")[0]
            classes["AutoModelForPreTraining"] = next(
                base for base in cls.__mro__ if base.__module__.rpartition(".")[0] == folder
            )
        return classes


class SelfViTModel(SelfViTPreTrainedModel):
    """The encoder.

    `pooler_output` is the image's embedding; there is no pooler with weights of its own.
    """

    # A checkpoint of any objective opens as its encoder: what lies beside `vit.*` is known, and
    # left out.
    _keys_to_ignore_on_load_unexpected = [
        r"^(head|student|decoder|loss|classifier(_norm)?|unused)\.",
        r"^prototypes$",
    ]

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        self.embeddings = SelfViTEmbeddings(config)
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
        """Load the encoder of any selfvit checkpoint, otherwise as transformers does.

        Args:
            pretrained_model_name_or_path: folder or Hub id.
            args: as for transformers' `from_pretrained`.
            network: "teacher" is the network to take features from (`vit.*`; where an objective has
                no teacher, its only encoder). "student" is the one that the optimizer trained, of a
                checkpoint that has both.
            kwargs: as for transformers' `from_pretrained`.

        Raises:
            ValueError: for another network, or the student of a checkpoint that has none.
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
                f"network ('student'): {pretrained_model_name_or_path} holds no student; "
                "use network='teacher' for its encoder."
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
            pixel_values: (B, C, H, W), normalized; H and W are multiples of the patch size, else
                any.
            ids_keep: (B, K) indices of the patches to keep, row by row from the top left; the
                others are left out before the first block.
            bool_masked_pos: (B, N), True (1) is a patch to replace by the mask token, False (0) is
                kept.
            kwargs: `output_hidden_states`, `output_attentions` (with attn_implementation="eager"),
                `return_dict`.

        Returns:
            last_hidden_state (B, T, D), normalized; pooler_output (B, E) by `config.pooling`.

        Raises:
            ValueError: if the patch size does not divide H or W, or the channels are others than
                the model's.
        """
        hidden_states = self._embed_tokens(pixel_values, ids_keep, bool_masked_pos)
        class_tokens = []
        for index, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, **kwargs)
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
        """Return `pooler_output` alone, computing only what the pooling needs.

        Args:
            pixel_values: (B, C, H, W), as for `forward`.

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
        """Return the normalized class tokens of the last blocks, without the patches' last ones.

        The last block runs for one query: patches still answer it, and are not computed themselves.

        Args:
            pixel_values: (B, C, H, W), as for `forward`.
            num_blocks: how many blocks, counted from the last.
            ids_keep: (B, K) indices of the patches to keep, as for `forward`.

        Returns:
            `num_blocks` tensors (B, D), the last block's last.
        """
        hidden_states = self._embed_tokens(pixel_values, ids_keep)
        class_tokens = []
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            hidden_states = layer(hidden_states, num_queries=1 if index == last else None)
            if index > last - num_blocks:
                class_tokens.append(self.layernorm(hidden_states[:, 0]))
        return class_tokens

    def _embed_tokens(self, pixel_values: Tensor, *masking: Tensor | None) -> Tensor:
        return self.embeddings(
            pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype), *masking
        )


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Cross-entropy with probabilities of the classes, in nats, mean over images, in float32.

    Args:
        logits: (B, L).
        probabilities: (B, L), rows sum to 1.

    Raises:
        ValueError: if the shapes differ.
    """
    if probabilities.shape != logits.shape:
        raise ValueError(
            f"labels {tuple(probabilities.shape)} of floats are probabilities of the classes, and "
            f"must have the shape of the logits, {tuple(logits.shape)}; give class indices as "
            "integers, (batch,)."
        )
    return F.cross_entropy(logits.float(), probabilities.to(logits.device).float())


class SelfViTForImageClassification(SelfViTPreTrainedModel):
    """The encoder with a linear layer on its embedding.

    With `config.classifier_batch_norm` the embedding is standardized first, by a batch norm without
    weights: of the batch in training, by running statistics in evaluation (MAE, arXiv 2111.06377,
    Appendix A.1, "Linear probing").
    """

    _keys_to_ignore_on_load_unexpected = [r"^(head|student|decoder|loss)\.", r"^prototypes$"]

    def __init__(self, config: SelfViTConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.vit = SelfViTModel(config)
        self.classifier_norm = (
            # 1e-6: MAE, main_linprobe.py; features that vary little are standardized all the same
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
        """(B, E) -> (B, L), logits."""
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
            pixel_values: (B, C, H, W).
            labels: with them the output has a loss. (B,) int64: class indices, cross-entropy.
                (B, L) floats, rows sum to 1: probabilities of the classes, as mixup, cutmix and
                label smoothing give them; cross-entropy too. `config.problem_type` changes what
                floats mean, as in transformers: "multi_label_classification" (B, L), a binary
                cross-entropy for each class; "regression" (B, L), squared error, which is also
                what a model of a single output does.
            kwargs: as for `SelfViTModel`.

        Returns:
            logits (B, L), loss (scalar) where there are labels.

        Raises:
            ValueError: if probabilities are of another shape than the logits.
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
        # transformers takes floats for several labels an image where nothing is said
        return (
            labels.is_floating_point()
            and (self.config.num_labels or 0) > 1
            and self.config.problem_type in (None, "single_label_classification")
        )


class SelfViTBackbone(BackboneMixin, SelfViTPreTrainedModel):
    """The encoder as a backbone: normalized feature maps of chosen blocks, for dense heads."""

    _keys_to_ignore_on_load_unexpected = [
        r"^(head|student|decoder|loss|classifier(_norm)?)\.",
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
            pixel_values: (B, C, H, W).
            kwargs: as for `SelfViTModel`.

        Returns:
            feature_maps: for each of `config.out_features`, (B, D, H/P, W/P); without
            `config.reshape_hidden_states` class token and patches, (B, 1 + N, D). Register tokens
            are left out.
        """
        outputs = self.vit(pixel_values, **kwargs)
        grid = self.vit.embeddings.patch_embeddings.grid_of(pixel_values)
        feature_maps: list[Any] = []  # BackboneOutput is annotated as if it had one
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
