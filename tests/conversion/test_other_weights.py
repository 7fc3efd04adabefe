"""Weights of other projects where a checkpoint is asked for."""

import logging
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from transformers import ViTConfig, ViTModel

from selfvit import Embedder, convert, train

from ..image_files import noise
from .source_files import golden_weights, save_weights


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", str(tmp_path / "cache")
    )
    return tmp_path / "cache"


def transformers_folder(folder: Path) -> Path:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128,
        image_size=32, patch_size=8,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def dino_file(folder: Path) -> Path:
    folder.mkdir()
    geometry = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
    return save_weights(
        timm.models.VisionTransformer(num_classes=0, **geometry).state_dict(), folder
    )


def timm_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put random weights of a timm model where a download of them would lie."""
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    cache = folder / f"models--timm--{name}"
    snapshot = cache / "snapshots" / ("0" * 40)
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    timm.models.save_for_hf(model, snapshot, safe_serialization=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return name


@pytest.mark.parametrize("kind", ["transformers", "dino", "timm"])
def test_vectors_are_those_of_the_converted_weights(kind, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.WARNING)
    if kind == "timm":
        source = timm_name(tmp_path / "hub", monkeypatch)
    else:
        make = {"transformers": transformers_folder, "dino": dino_file}[kind]
        source = str(make(tmp_path / "source"))
    convert(source, tmp_path / "converted")
    images = [noise(40, 50, 1), noise(60, 33, 2)]
    expected = Embedder.from_pretrained(tmp_path / "converted")(images)
    for _ in range(2):  # converts, then reads what was kept
        assert np.array_equal(Embedder.from_pretrained(source)(images), expected)
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith(f"{source} is converted:\nsource ") and "patch_size = " in first
    assert second.startswith(f"{source}: ") and "\n" not in second


def test_other_content_is_converted_again(tmp_path):
    source = transformers_folder(tmp_path / "source")
    image = noise(32, 32, 1)
    before = Embedder.from_pretrained(source)(image)
    model = ViTModel.from_pretrained(source)
    with torch.no_grad():
        model.layernorm.bias.add_(1)
    model.save_pretrained(source)
    assert not np.array_equal(Embedder.from_pretrained(source)(image), before)


def test_training_starts_from_other_weights(image_folder, tmp_path):
    source = transformers_folder(tmp_path / "source")
    convert(source, tmp_path / "converted")
    options = dict(max_steps=1, batch_size=4, num_workers=0, tracker="none", energy_meter="none")
    for start in (source, tmp_path / "converted"):
        output = tmp_path / f"run_{start.name}"
        train(
            "mae_finetune", data=image_folder, output=output, init_from=start, cpu=True, **options
        )
    first, second = (
        (tmp_path / f"run_{name}" / "model.safetensors").read_bytes()
        for name in ("source", "converted")
    )
    assert first == second


def test_what_convert_refuses_is_refused_with_its_words(tmp_path, empty_cache):
    weights = golden_weights("dino_vit")
    del weights["cls_token"]
    (tmp_path / "source").mkdir()
    source = str(save_weights(weights, tmp_path / "source"))
    with pytest.raises(ValueError) as refusal:
        convert(source, tmp_path / "converted")
    with pytest.raises(ValueError) as error:
        Embedder.from_pretrained(source)
    assert str(error.value) == str(refusal.value)
    assert not list(empty_cache.rglob("config.json"))
    with pytest.raises(FileNotFoundError, match="no such model in timm"):
        Embedder.from_pretrained("vit_nonsense")
