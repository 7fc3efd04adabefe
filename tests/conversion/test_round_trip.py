"""Converting and exporting weights, in both orders, changes no bit."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor

from selfvit import SelfViTConfig, SelfViTModel
from selfvit.conversion.convert import convert
from selfvit.conversion.exporters.export import export
from selfvit.embedding.preprocessing import build_processor
from tests.conversion.source_files import save_weights


def assert_identical(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name


def test_timm_vit_s_16_survives_conversion_and_export(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0).state_dict()
    convert(save_weights(theirs, tmp_path), tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "again", to="timm")
    assert_identical(load_file(tmp_path / "again" / "model.safetensors"), theirs)


@pytest.mark.parametrize("num_register_tokens", [0, 3])
@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_selfvit_checkpoint_survives_export_and_conversion(to, num_register_tokens, tmp_path):
    torch.manual_seed(0)
    config = SelfViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        image_size=32,
        patch_size=8,
        num_register_tokens=num_register_tokens,
        layerscale_value=0.5,
        layer_norm_eps=1e-6,
        use_mask_token=to == "transformers",  # Dinov2 always has a mask token, timm never
    )
    model = SelfViTModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "ours")
    processor = build_processor(config, mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs", to=to)
    conversion = convert(tmp_path / "theirs", tmp_path / "again")
    assert not conversion.left_out and not conversion.new
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert_identical(again, load_file(tmp_path / "ours" / "model.safetensors"))
    kept = AutoImageProcessor.from_pretrained(tmp_path / "again")
    assert kept.size == processor.size and list(kept.image_mean) == [0.1, 0.2, 0.3]
