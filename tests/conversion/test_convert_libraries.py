"""Conversion of models that timm, torchvision and transformers build, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from selfvit import Embedder, SelfViTConfig, build_processor
from selfvit.conversion.convert import convert
from selfvit.conversion.formats.dinov3 import read_timm_config
from selfvit.conversion.formats.timm import pretrained_preprocessing, read_config
from tests.conversion.source_files import save_weights, with_prefix

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def images_of(size: int, batch_size: int = 2) -> Tensor:
    return torch.randn(batch_size, 3, size, size, generator=torch.Generator().manual_seed(0))


def random_weights(model: nn.Module) -> nn.Module:
    """Randomize every tensor, because losing a default of zero or one would go unnoticed."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            is_scale = name.endswith(("norm.weight", "lambda1", "gamma")) or "norm" in name
            noise = torch.randn(tensor.shape, generator=generator)
            if name == "decoder.decoder_pos_embed":
                continue  # fixed
            if tensor.dim() > 1 and "token" not in name and "pos" not in name:
                tensor.copy_(noise / tensor[0].numel() ** 0.5)
            else:
                tensor.copy_(noise * 0.2 + (1 if is_scale and name.endswith("weight") else 0))
    return model.eval()


def tiny_timm(**overrides: Any) -> nn.Module:
    geometry = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4}
    return random_weights(timm.models.VisionTransformer(**{**geometry, **overrides}))


def convert_state(model: nn.Module, tmp_path: Path, **options: Any) -> Any:
    return convert(save_weights(model.state_dict(), tmp_path), tmp_path / "out", **options)


# timm


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"qkv_bias": False},
        {"init_values": 0.1},
        {"no_embed_class": True},
        {"reg_tokens": 4},
        {"reg_tokens": 4, "no_embed_class": True},
        {"mlp_ratio": 2.7},
        {"in_chans": 1},
        {"num_classes": 0},
    ],
    ids=str,
)
@torch.no_grad()
def test_timm_variants(variant, tmp_path):
    theirs = tiny_timm(**{"num_classes": 5, **variant})
    conversion = convert_state(theirs, tmp_path, num_heads=4)
    images = images_of(32)[:, : variant.get("in_chans", 3)]
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    expected = theirs.forward_features(images)
    torch.testing.assert_close(ours(images).last_hidden_state, expected, **CLOSE)
    assert ours.config.num_register_tokens == variant.get("reg_tokens", 0)
    assert ours.config.qkv_bias == variant.get("qkv_bias", True)
    if variant.get("num_classes", 5):
        assert conversion.architecture == "SelfViTForImageClassification"
        classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
        torch.testing.assert_close(classifier(images).logits, theirs(images), **CLOSE)


@torch.no_grad()
def test_timm_vit_small_at_full_size(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("vit_small_patch16_224", pretrained=False).eval()
    conversion = convert_state(theirs, tmp_path)
    assert conversion.fields["num_attention_heads"] == (6, "guess (width / 64)")
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    images = images_of(224, 1)
    torch.testing.assert_close(ours(images).logits, theirs(images), **CLOSE)
    tokens = ours.vit(images).last_hidden_state
    torch.testing.assert_close(tokens, theirs.forward_features(images), **CLOSE)


@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ({"pre_norm": True}, "norm before the first block"),
        ({"qk_norm": True}, "normalized queries and keys"),
        ({"global_pool": "map"}, "attention pooling"),
        ({"class_token": False, "global_pool": "avg"}, "cls_token"),
        ({"global_pool": "avg"}, "--pooling mean"),
    ],
    ids=str,
)
def test_unsupported_features_are_refused_with_the_reason(variant, reason, tmp_path):
    theirs = tiny_timm(num_classes=5, **variant)
    with pytest.raises(ValueError, match=reason):
        convert_state(theirs, tmp_path, num_heads=4)
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_norm_after_pooling_is_converted_only_on_request_and_reported(tmp_path):
    theirs = tiny_timm(num_classes=5, global_pool="avg")
    conversion = convert_state(theirs, tmp_path, num_heads=4, pooling="mean")
    assert conversion.architecture == "SelfViTModel"
    assert set(conversion.left_out) == {"head.weight", "head.bias"}
    assert any("fc_norm" in difference for difference in conversion.differences)
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    images = images_of(32)
    expected = theirs.fc_norm(theirs.forward_features(images))  # per token
    torch.testing.assert_close(ours(images).last_hidden_state, expected, **CLOSE)


@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_fine_tuned_mae_files_get_imagenet_statistics(global_pool, tmp_path):
    theirs = tiny_timm(num_classes=5, global_pool=global_pool)
    torch.save({"model": theirs.state_dict()}, tmp_path / "weights.pth")
    pooling = "mean" if global_pool == "avg" else None
    conversion = convert(tmp_path / "weights.pth", tmp_path / "out", num_heads=4, pooling=pooling)
    assert "fine-tuned" in conversion.kind
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert list(processor.image_mean) == [0.485, 0.456, 0.406] and processor.resample == 3


def test_the_statistics_can_be_chosen(tmp_path):
    theirs = tiny_timm(num_classes=5)
    for statistics, mean in ((None, 0.5), ("half", 0.5), ("imagenet", 0.485)):
        convert_state(theirs, tmp_path, num_heads=4, statistics=statistics, overwrite=True)
        processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
        assert processor.image_mean[0] == mean


@torch.no_grad()
def test_non_square_positions_need_the_image_size(tmp_path):
    theirs = tiny_timm(img_size=(32, 64), num_classes=0)
    with pytest.raises(ValueError, match="--image-size"):
        convert_state(theirs, tmp_path, num_heads=4)
    convert_state(theirs, tmp_path, num_heads=4, image_size=(32, 64))
    images = torch.randn(2, 3, 32, 64)
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    expected = theirs.forward_features(images)
    torch.testing.assert_close(ours(images).last_hidden_state, expected, **CLOSE)


def timm_folder(folder: Path, model: nn.Module, **pretrained: Any) -> Path:
    """Write a folder as timm's `save_for_hf` does: model.safetensors and config.json."""
    folder.mkdir()
    save_weights(model.state_dict(), folder, "safetensors").rename(folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "global_pool": "token",
        "pretrained_cfg": {
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "interpolation": "bilinear",
            "crop_pct": 0.8,
            "input_size": [3, 32, 32],
            **pretrained,
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_stored_timm_preprocessing_is_kept(tmp_path):
    folder = timm_folder(tmp_path / "theirs", tiny_timm(num_classes=0))
    conversion = convert(folder, tmp_path / "out", num_heads=4)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert "timm" in conversion.kind and "pretrained_cfg" in conversion.preprocessing
    assert list(processor.image_mean) == [0.1, 0.2, 0.3]
    assert list(processor.image_std) == [0.4, 0.5, 0.6]
    assert processor.resample == 2 and processor.size["shortest_edge"] == 40


@torch.no_grad()
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("size", [96, 224, 384])
def test_the_shorter_side_before_the_crop_is_that_of_timm(size, crop_pct):
    stored = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": crop_pct}
    found = pretrained_preprocessing({"pretrained_cfg": {**stored, "input_size": [3, size, size]}})
    config = SelfViTConfig(image_size=size, patch_size=16)
    processor = build_processor(config, crop_ratio=found.crop_ratio)
    resize = timm.data.create_transform((3, size, size), crop_pct=crop_pct).transforms[0]
    assert processor.size["shortest_edge"] == resize.size


@pytest.mark.parametrize(
    "settings",
    [{"crop_mode": "border"}, {"crop_mode": "squash"}, {"input_size": [3, 64, 96]}],
)
def test_a_preprocessing_of_timm_that_no_processor_has_is_an_error(settings):
    stored = {"mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, **settings}
    with pytest.raises(ValueError, match="crop_mode"):
        pretrained_preprocessing({"pretrained_cfg": stored})


def test_the_mean_of_timm_over_all_tokens_is_an_error():
    with pytest.raises(ValueError, match="pool_include_prefix"):
        read_config({"model_args": {"pool_include_prefix": True}})


def test_rotary_arguments_of_timm_are_read():
    arguments = {"rope_temperature": 20.0, "rope_rescale_coords": None}
    fields = read_timm_config({"model_args": arguments})
    assert fields == {"rope_theta": 20.0, "pos_embed_rescale": None}


def test_the_kind_of_problem_of_a_classifier_is_kept(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        image_size=32, patch_size=8, num_labels=3, problem_type="multi_label_classification",
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out")
    kept = SelfViTConfig.from_pretrained(tmp_path / "out")
    assert kept.problem_type == "multi_label_classification"


def test_a_timm_name_is_found_in_the_hub_cache(tmp_path, monkeypatch):
    cache = tmp_path / "hub" / "models--timm--vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    (cache / "refs").mkdir(parents=True)
    (cache / "snapshots").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    theirs = random_weights(timm.create_model("vit_tiny_patch16_224", num_classes=0))
    timm_folder(cache / "snapshots" / ("0" * 40), theirs)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    convert("vit_tiny_patch16_224.augreg_in21k_ft_in1k", tmp_path / "out")
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    images = images_of(224, 1)
    expected = theirs.forward_features(images)
    torch.testing.assert_close(ours(images).last_hidden_state, expected, **CLOSE)
    with pytest.raises(FileNotFoundError, match="neither in the cache"):
        convert("vit_small_patch16_224.dino", tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="no such model in timm"):
        convert("nonsense", tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("dinov2_vits14", "dinov2_vits14 of torch.hub is facebook/dinov2-small on the Hub."),
        ("dinov3_vitb16", "is facebook/dinov3-vitb16-pretrain-lvd1689m on the Hub."),
        ("my_modell", "Did you mean my_model?"),
        ("vit_small_patch16_224.dinoo", "Did you mean vit_small_patch16_224.dino"),
        ("nonsense", "has weights on the Hub. Give a path."),
    ],
)
def test_a_name_that_stands_for_nothing_gets_a_suggestion(name, hint, tmp_path, monkeypatch):
    (tmp_path / "my_model").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such model in timm") as error:
        convert(name, "out")
    assert hint in str(error.value)


# torchvision


@torch.no_grad()
def test_torchvision_vit_s_32_at_full_size(tmp_path):
    theirs = torchvision.models.VisionTransformer(224, 32, 12, 6, 384, 4 * 384)
    with torch.no_grad():
        nn.init.normal_(theirs.heads.head.weight, std=0.02)  # zero by default
    theirs.eval()
    conversion = convert_state(theirs, tmp_path)
    assert conversion.config.patch_size == 32 and conversion.config.num_attention_heads == 6
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    images = images_of(224, 1)
    torch.testing.assert_close(ours(images).logits, theirs(images), **CLOSE)


def test_larger_torchvision_weights_have_their_own_preset(tmp_path):
    for size, edge, resample in ((224, 256, 2), (384, 384, 3)):  # 384 was 439 and bilinear
        theirs = tiny_torchvision(image_size=size, patch_size=32)
        conversion = convert_state(theirs, tmp_path, num_heads=4, overwrite=True)
        processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
        assert processor.size["shortest_edge"] == edge and processor.resample == resample
        assert processor.crop_size == {"height": size, "width": size}
        assert ("size, resample" in conversion.guesses) == (size != 224)


def tiny_torchvision(**overrides: Any) -> nn.Module:
    geometry = {
        "image_size": 32,
        "patch_size": 8,
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 64,
        "mlp_dim": 96,
        "num_classes": 5,
    }
    return random_weights(torchvision.models.VisionTransformer(**{**geometry, **overrides}))


def test_a_classifier_with_a_hidden_layer_is_left_out_and_reported(tmp_path):
    conversion = convert_state(tiny_torchvision(representation_size=7), tmp_path, num_heads=4)
    assert conversion.architecture == "SelfViTModel"
    assert {"heads.pre_logits.weight", "heads.head.weight"} <= set(conversion.left_out)


# Lightly: its masked transformers wrap timm's and torchvision's as `vit` and add a mask token.


@pytest.mark.parametrize("library", ["timm", "torchvision"])
@pytest.mark.parametrize("around", ["", "backbone."])
@torch.no_grad()
def test_lightly_masked_vision_transformers(library, around, tmp_path):
    theirs = tiny_timm(num_classes=0) if library == "timm" else tiny_torchvision()
    mask_token = torch.randn(1, 1, 64)
    weights = with_prefix(theirs.state_dict(), f"{around}vit.")
    weights[f"{around}mask_token"] = mask_token
    if around:  # a Lightning module of an MAE
        weights["decoder.decoder_embed.weight"] = torch.randn(32, 64)
        torch.save(
            {"state_dict": weights, "pytorch-lightning_version": "2.0", "callbacks": {}},
            tmp_path / "weights.ckpt",
        )
    source = tmp_path / "weights.ckpt" if around else save_weights(weights, tmp_path)
    conversion = convert(source, tmp_path / "out", num_heads=4)
    assert "MaskedVisionTransformer" in conversion.kind and library in conversion.kind
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    images = images_of(32)
    class_token = ours(images).last_hidden_state[:, 0]
    if library == "timm":
        torch.testing.assert_close(class_token, theirs.forward_features(images)[:, 0], **CLOSE)
    else:
        logits = theirs.heads(class_token)
        torch.testing.assert_close(logits, theirs(images), **CLOSE)
    torch.testing.assert_close(ours.embeddings.mask_token, mask_token, rtol=0, atol=0)
    assert ("decoder.decoder_embed.weight" in conversion.left_out) == bool(around)


# transformers

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
MAE = {
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
}
# An epsilon that is large enough to change the outputs, if it were lost.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViTModel": ("ViTConfig", {"intermediate_size": 96, "layer_norm_eps": 0.1}),
    "ViTForImageClassification": ("ViTConfig", {"intermediate_size": 96, "num_labels": 5}),
    "ViTForMaskedImageModeling": ("ViTConfig", {"encoder_stride": 8}),
    "ViTMSNModel": ("ViTMSNConfig", {"qkv_bias": False}),
    "ViTMSNForImageClassification": ("ViTMSNConfig", {"num_labels": 5}),
    "ViTMAEForPreTraining": ("ViTMAEConfig", {**MAE, "norm_pix_loss": True}),
    "Dinov2Model": ("Dinov2Config", {"layer_norm_eps": 0.1}),
    "Dinov2ForImageClassification": ("Dinov2Config", {"num_labels": 5}),
    "Dinov2WithRegistersModel": ("Dinov2WithRegistersConfig", {"num_register_tokens": 3}),
    "Dinov2WithRegistersForImageClassification": (
        "Dinov2WithRegistersConfig",
        {"num_register_tokens": 3, "num_labels": 5},
    ),
}


def tiny_transformers(name: str, **changed: Any) -> Any:
    config_name, overrides = TRANSFORMERS[name]
    config = getattr(transformers, config_name)(**{**TINY, **overrides, **changed})
    return random_weights(getattr(transformers, name)(config))


@pytest.mark.parametrize("names", ["saved", "modules"])
@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_transformers_folders_with_old_and_new_names(name, names, tmp_path):
    theirs = tiny_transformers(name)
    theirs.save_pretrained(tmp_path / "theirs")  # writes the names of v4
    if names == "modules":  # the names of v5
        path = save_weights(theirs.state_dict(), tmp_path / "theirs", "safetensors")
        path.replace(tmp_path / "theirs" / "model.safetensors")
    conversion = convert(tmp_path / "theirs", tmp_path / "out")
    assert name in conversion.kind
    images = images_of(32)
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    encoder = theirs.base_model
    if name.startswith("ViTMAE"):
        theirs.config.mask_ratio = 0.0  # ViTMAE masks in evaluation mode, too
        inputs = {"noise": torch.arange(16.0).expand(2, -1)}  # keeps the order of the patches
    else:
        inputs = {}
    expected = encoder(images, **inputs).last_hidden_state
    torch.testing.assert_close(ours(images).last_hidden_state, expected, **CLOSE)
    if "Classification" in name:
        classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
        torch.testing.assert_close(classifier(images).logits, theirs(images).logits, **CLOSE)
    if name == "ViTModel":
        assert set(conversion.left_out) == {"pooler.dense.weight", "pooler.dense.bias"}
    if name.startswith("Dinov2"):
        assert ours.embeddings.mask_token.shape == (1, 1, 64)


@torch.no_grad()
def test_vitmae_keeps_its_decoder_and_loss(tmp_path):
    theirs = tiny_transformers("ViTMAEForPreTraining")
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "out")
    ours = AutoModelForPreTraining.from_pretrained(tmp_path / "out").eval()
    images = images_of(32)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    expected = theirs(images, noise=noise)
    output = ours(images, noise=noise)
    torch.testing.assert_close(output.loss, expected.loss, **CLOSE)
    torch.testing.assert_close(output.prediction, expected.logits, **CLOSE)


@torch.no_grad()
def test_transformers_vit_s_32_at_full_size(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        patch_size=32, hidden_size=384, num_attention_heads=6, intermediate_size=4 * 384
    )
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    conversion = convert(tmp_path / "theirs", tmp_path / "out")
    assert conversion.fields["num_attention_heads"] == (6, "config.json")
    assert conversion.fields["layer_norm_eps"] == (1e-12, "config.json")
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    images = images_of(224, 1)
    expected = theirs(images).last_hidden_state
    torch.testing.assert_close(ours(images).last_hidden_state, expected, **CLOSE)


def test_a_stored_processor_is_kept(tmp_path):
    theirs = tiny_transformers("ViTModel")
    theirs.save_pretrained(tmp_path / "theirs")
    stored = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], resample=2
    )
    stored.save_pretrained(tmp_path / "theirs")
    conversion = convert(tmp_path / "theirs", tmp_path / "out")
    assert conversion.preprocessing == "preprocessor_config.json of the source"
    kept = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert kept.to_dict() == AutoImageProcessor.from_pretrained(tmp_path / "theirs").to_dict()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("options", [{"statistics": "half"}, {}])
def test_other_statistics_keep_the_size_of_a_stored_processor(options, channels, tmp_path):
    tiny_transformers("ViTModel", num_channels=channels).save_pretrained(tmp_path / "theirs")
    crop, size = {"height": 24, "width": 24}, {"shortest_edge": 30}  # were 32 without a crop
    stored = transformers.BitImageProcessor(size=size, crop_size=crop, resample=0)
    stored.save_pretrained(tmp_path / "theirs")
    mean, std = [0.5] * channels, [0.5] * channels
    if not options:
        mean, std = [0.1] * channels, [0.2] * channels
        options = {"image_mean": mean, "image_std": std}
    conversion = convert(tmp_path / "theirs", tmp_path / "out", **options)
    assert conversion.preprocessing.endswith("; preprocessor_config.json of the source")
    kept: Any = Embedder.from_pretrained(tmp_path / "out").processor
    assert (dict(kept.size), dict(kept.crop_size), kept.resample) == (size, crop, 0)
    assert (list(kept.image_mean), list(kept.image_std)) == (mean, std)


def test_label_names_are_kept(tmp_path):
    theirs = tiny_transformers("ViTForImageClassification")
    theirs.config.id2label = dict(enumerate("abcde"))
    theirs.save_pretrained(tmp_path / "theirs")
    convert(tmp_path / "theirs", tmp_path / "out")
    ours = AutoModelForImageClassification.from_pretrained(tmp_path / "out")
    assert ours.config.id2label == dict(enumerate("abcde"))
    assert ours.config.label2id == {label: index for index, label in enumerate("abcde")}


@torch.no_grad()
def test_a_folder_with_a_pickle_is_converted(tmp_path):
    theirs = tiny_transformers("ViTMSNModel")
    theirs.save_pretrained(tmp_path / "theirs")
    stored = load_file(tmp_path / "theirs" / "model.safetensors")
    torch.save(stored, tmp_path / "theirs" / "pytorch_model.bin")
    (tmp_path / "theirs" / "model.safetensors").unlink()
    convert(tmp_path / "theirs", tmp_path / "out")
    ours = AutoModel.from_pretrained(tmp_path / "out").eval()
    images = images_of(32)
    expected = theirs(images).last_hidden_state
    torch.testing.assert_close(ours(images).last_hidden_state, expected, **CLOSE)


def test_a_sharded_folder_is_read_completely(tmp_path):
    theirs = tiny_transformers("Dinov2Model")
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    convert(tmp_path / "theirs", tmp_path / "out")
    shard = sorted((tmp_path / "theirs").glob("model-*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="which is not in its folder"):
        convert(tmp_path / "theirs", tmp_path / "other")
