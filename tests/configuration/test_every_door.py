"""Every field of the configuration is checked in every way to open a checkpoint, with one error."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    pipeline,
)

from selfvit import (
    DINOConfig,
    MAEConfig,
    SelfViTBackbone,
    SelfViTConfig,
    SelfViTForDINO,
    SelfViTModel,
)
from selfvit.embedding.embedder import Embedder
from selfvit.errors import one_line
from tests.objectives import tiny_config

# A part of the message, and fields with at least one invalid value each. The checkpoint has width
# 32, 3 blocks, 2 heads and images of 32 pixels in patches of 8.
INVALID = [
    ("hidden_size (0)", {"hidden_size": 0}),
    ("hidden_size", {"hidden_size": "32"}),
    ("hidden_size", {"hidden_size": True}),
    ("multiple of num_attention_heads (3)", {"num_attention_heads": 3}),
    ("multiple of num_attention_heads (2)", {"hidden_size": 33}),
    ("num_attention_heads (0)", {"num_attention_heads": 0}),
    ("num_hidden_layers (0)", {"num_hidden_layers": 0}),
    ("mlp_ratio (0)", {"mlp_ratio": 0}),
    ("mlp_ratio (-4.0)", {"mlp_ratio": -4.0}),
    ("mlp_ratio (nan)", {"mlp_ratio": math.nan}),
    ("mlp_ratio (0.01)", {"mlp_ratio": 0.01}),
    ("hidden_act ('gelo')", {"hidden_act": "gelo"}),
    ("layer_norm_eps (0.0)", {"layer_norm_eps": 0.0}),
    ("layer_norm_eps (-1e-06)", {"layer_norm_eps": -1e-6}),
    ("initializer_range (0)", {"initializer_range": 0}),
    ("initializer_range (inf)", {"initializer_range": math.inf}),
    ("image_size (30)", {"image_size": 30}),
    ("image_size ([32])", {"image_size": [32]}),
    ("image_size (36)", {"image_size": [32, 36]}),
    ("image_size", {"image_size": "32"}),
    ("patch_size (0)", {"patch_size": 0}),
    ("multiple of patch_size (5)", {"patch_size": 5}),
    ("num_channels (0)", {"num_channels": 0}),
    ("num_channels", {"num_channels": 4.0}),
    ("qkv_bias", {"qkv_bias": "no"}),
    ("num_register_tokens (-1)", {"num_register_tokens": -1}),
    ("layerscale_value (nan)", {"layerscale_value": math.nan}),
    ("layerscale_value", {"layerscale_value": "small"}),
    ("drop_path_rate (1.0)", {"drop_path_rate": 1.0}),
    ("drop_path_rate (-0.1)", {"drop_path_rate": -0.1}),
    ("query_bias", {"query_bias": "no"}),
    ("key_bias", {"key_bias": 0}),
    ("value_bias", {"value_bias": "no"}),
    ("use_gated_mlp", {"use_gated_mlp": "silu"}),
    ("position_embedding_type", {"position_embedding_type": "rotated"}),
    ("interpolate_antialias", {"interpolate_antialias": None}),
    ("rope_theta (-100.0)", {"rope_theta": -100.0}),
    ("pos_embed_shift (0.1) is for rotary positions", {"pos_embed_shift": 0.1}),
    (
        "pos_embed_jitter (nan)",
        {"pos_embed_jitter": math.nan, "position_embedding_type": "rotary"},
    ),
    (
        "pos_embed_rescale (0.5)",
        {"pos_embed_rescale": 0.5, "position_embedding_type": "rotary"},
    ),
    ("multiple of 4 for sincos", {"hidden_size": 34, "position_embedding_type": "sincos"}),
    ("use_mask_token", {"use_mask_token": 1}),
    (
        "pooling ('concat:99') asks for more blocks than num_hidden_layers (3); use at most "
        "concat:3.",
        {"pooling": "concat:99"},
    ),
    ("pooling ('max')", {"pooling": "max"}),
    ("pooling ('concat:3') asks", {"pooling": "concat:3", "num_hidden_layers": 2}),
    ("reshape_hidden_states", {"reshape_hidden_states": "yes"}),
    ("classifier_batch_norm", {"classifier_batch_norm": None}),
    ("dino_config (MAEConfig)", {"dino_config": MAEConfig()}),
    ("dino_config ('none')", {"dino_config": "none"}),
    ("num_prototypes (1)", {"dino_config": {"num_prototypes": 1}}),
    ("temperature is not a field of", {"dino_config": {"temperature": 0.1}}),
    ("koleo_weight (nan)", {"dino_config": {"koleo_weight": math.nan}}),
    ("teacher_temperature (0)", {"dino_config": {"teacher_temperature": 0}}),
    ("dinov2_config (3)", {"dinov2_config": 3}),
    ("gram_weight (nan)", {"dinov2_config": {"gram_weight": math.nan}}),
    ("distill_config (3)", {"distill_config": 3}),
    ("queue_size (0)", {"distill_config": {"queue_size": 0}}),
    ("temperature (0)", {"distill_config": {"temperature": 0}}),
    ("lejepa_config (3)", {"lejepa_config": 3}),
    ("num_slices (0)", {"lejepa_config": {"num_slices": 0}}),
    ("mae_config (3)", {"mae_config": 3}),
    ("mask_ratio (1)", {"mae_config": {"mask_ratio": 1}}),
    ("decoder_mlp_ratio (inf)", {"mae_config": {"decoder_mlp_ratio": math.inf}}),
    ("pmsn_config ([])", {"pmsn_config": []}),
    ("student_temperature (-0.1)", {"pmsn_config": {"student_temperature": -0.1}}),
    ("patch_drop_ratio (nan)", {"pmsn_config": {"patch_drop_ratio": math.nan}}),
    ("out_indices", {"out_indices": [99]}),
    ("out_features", {"out_features": ["stage4"]}),
    ("id2label ('cat')", {"id2label": "cat"}),
    ("num_labels (-1)", {"num_labels": -1}),
    ("problem_type ('ranking')", {"problem_type": "ranking"}),
]
DOORS: dict[str, Any] = {
    "SelfViTConfig": SelfViTConfig.from_pretrained,
    "AutoConfig": AutoConfig.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "AutoModelForPreTraining": AutoModelForPreTraining.from_pretrained,
    "AutoModelForImageClassification": AutoModelForImageClassification.from_pretrained,
    "SelfViTBackbone": SelfViTBackbone.from_pretrained,
    "SelfViTForDINO": SelfViTForDINO.from_pretrained,
    "pipeline": lambda checkpoint, **fields: pipeline(
        "image-feature-extraction", model=checkpoint, model_kwargs=fields
    ),
}
ERRORS = (StrictDataclassError, ValueError)


@pytest.fixture(scope="module")
def stored(tiny_checkpoint):
    return json.loads((tiny_checkpoint / "config.json").read_text())


def message_of(function, *args, **kwargs) -> str:
    with pytest.raises(ERRORS) as error:
        function(*args, **kwargs)
    return one_line(error.value)


@pytest.mark.parametrize(("part", "fields"), INVALID, ids=[part for part, _ in INVALID])
def test_an_invalid_field_has_the_same_error_in_every_door(
    part, fields, stored, tiny_checkpoint, tmp_path
):
    messages = {
        name: message_of(door, str(tiny_checkpoint), **fields) for name, door in DOORS.items()
    }
    assert part in messages["SelfViTConfig"]
    assert set(messages.values()) == {messages["SelfViTConfig"]}

    if any(isinstance(value, str | dict | list | MAEConfig) for value in fields.values()):
        return  # stored and passed parts are merged
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shutil.copy(tiny_checkpoint / "model.safetensors", folder)
    (folder / "config.json").write_text(json.dumps({**stored, **fields}))
    if fields.get("num_hidden_layers", 0) == 0:  # out_features of three blocks is stored
        assert message_of(AutoModel.from_pretrained, str(folder)) == messages["AutoModel"]


def test_every_field_has_an_invalid_value():
    own = {name for name in SelfViTConfig.__annotations__ if not name.startswith("_")}
    assert own <= {name for _, fields in INVALID for name in fields}


@pytest.mark.parametrize(
    ("name", "value"), [("pooling", "concat:99"), ("drop_path_rate", 2), ("mlp_ratio", -1)]
)
def test_a_field_that_was_assigned_later_is_checked_by_the_model(name, value):
    config = tiny_config()
    setattr(config, name, value)
    for model_class in (SelfViTModel, SelfViTBackbone):
        assert name in message_of(model_class, config)


def test_a_field_of_an_objective_that_was_assigned_later_is_checked():
    config = tiny_config(dino_config=DINOConfig())
    config.dino_config.student_temperature = -1.0
    assert "student_temperature (-1.0)" in message_of(SelfViTForDINO, config)
    assert "num_prototypes (0)" in message_of(DINOConfig.from_dict, {}, num_prototypes=0)


def test_valid_fields_are_applied(tiny_checkpoint):
    config, unused = AutoConfig.from_pretrained(
        tiny_checkpoint,
        pooling="auto",
        num_hidden_layers=2,
        dino_config={"student_temperature": 0.2},
        num_labels=7,
        revison="main",
        return_unused_kwargs=True,
    )
    assert (config.pooling, config.num_labels) == ("cls", 7)
    assert config.stage_names == ["stem", "stage1", "stage2"]
    assert (config.out_indices, config.out_features) == ([2], ["stage2"])
    assert config.dino_config.student_temperature == 0.2
    assert config.dino_config.num_prototypes == 16  # as stored
    assert unused == {"revison": "main"}


def test_labels_replace_the_stored_ones(tiny_checkpoint):
    config = AutoConfig.from_pretrained(tiny_checkpoint, id2label={0: "cat", 1: "dog", 2: "owl"})
    assert config.num_labels == 3


def test_a_backbone_takes_its_blocks_from_either_argument(tiny_checkpoint):
    assert SelfViTBackbone.from_pretrained(tiny_checkpoint, out_indices=[1, 2]).out_features == [
        "stage1",
        "stage2",
    ]
    assert SelfViTBackbone.from_pretrained(tiny_checkpoint, out_features=["stem"]).out_indices == [
        0
    ]


def test_an_embedder_has_the_same_error(tiny_checkpoint):
    expected = message_of(AutoConfig.from_pretrained, tiny_checkpoint, pooling="concat:99")
    assert message_of(Embedder.from_pretrained, tiny_checkpoint, pooling="concat:99") == expected
