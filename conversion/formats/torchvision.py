"""torchvision's `VisionTransformer`, and Lightly's `MAEBackbone`, which derives from it."""

from __future__ import annotations

from ..key_mapping import add_prefixes
from ..weight_format import BICUBIC, BILINEAR, Draft, Preprocessing, WeightFormat

ENCODER = {
    "class_token": "embeddings.cls_token",
    "encoder.pos_embedding": "embeddings.position_embeddings",
    "conv_proj.*": "embeddings.patch_embeddings.projection.*",
    "encoder.layers.encoder_layer_#.ln_1.*": "layers.#.layernorm_before.*",
    "encoder.layers.encoder_layer_#.self_attention.in_proj_*": (
        "layers.#.attention.{q,k,v}_proj.*"
    ),
    "encoder.layers.encoder_layer_#.self_attention.out_proj.*": "layers.#.attention.o_proj.*",
    "encoder.layers.encoder_layer_#.ln_2.*": "layers.#.layernorm_after.*",
    "encoder.layers.encoder_layer_#.mlp.0.*": "layers.#.mlp.fc1.*",
    "encoder.layers.encoder_layer_#.mlp.3.*": "layers.#.mlp.fc2.*",
    # Names in files of torchvision before 0.13.
    "encoder.layers.encoder_layer_#.mlp.linear_1.*": "layers.#.mlp.fc1.*",
    "encoder.layers.encoder_layer_#.mlp.linear_2.*": "layers.#.mlp.fc2.*",
    "encoder.ln.*": "layernorm.*",
}
HEADS = {"heads.head.*": "classifier.*"}
HIDDEN_LAYER = "the classifier has a hidden layer, which selfvit's classifier does not have"

# torchvision/transforms/_presets.py, `ImageClassification`
PREPROCESSING = Preprocessing(
    resample=BILINEAR,
    origin="convention: torchvision's preset, ImageNet mean and std, bilinear",
)
# torchvision/models/vision_transformer.py, SWAG_E2E_V1: 384, 512 or 518 pixels
OTHER_SIZES = Preprocessing(
    crop_ratio=1.0,
    resample=BICUBIC,
    origin="convention: torchvision's preset of its larger weights, ImageNet mean and std, bicubic",
    guess="weights for other sizes than 224 have torchvision's preset of its larger ones, without "
    "margins around the crop and bicubic. If the source has another one, correct "
    "preprocessor_config.json",
)


def adapt(draft: Draft) -> None:
    """Choose the preprocessing, and keep the classifier if it is linear on the class token."""
    if draft.fields["image_size"] != 224:
        draft.preprocessing = OTHER_SIZES
    if not draft.has_weights("classifier."):
        return
    if any(".pre_logits." in f".{name}" for name in draft.left_out):
        draft.leave_out(r"classifier\.", HIDDEN_LAYER)
    else:
        draft.architecture = "SelfViTForImageClassification"


FORMAT = WeightFormat(
    name="torchvision VisionTransformer (or Lightly MAEBackbone)",
    key_mapping={**add_prefixes(ENCODER, target="vit."), **HEADS},
    extras={r"^heads\.pre_logits\.": HIDDEN_LAYER},
    adapt=adapt,
    preprocessing=PREPROCESSING,
)
