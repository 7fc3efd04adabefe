"""Sources that do not match raise an error that names the tensor, and nothing is written."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfvit.conversion.convert import convert
from selfvit.conversion.read_weights import read_source
from tests.conversion.source_files import (
    SUFFIXES,
    dino_checkpoint,
    golden_weights,
    heads_of,
    save_weights,
    with_prefix,
)

Weights = dict[str, Tensor]

GOLDEN = [
    "dino_vit",
    "mae",
    "torchvision_vit",
    "timm_vit_registers",
    "lightly_dino_checkpoint",
]


def refused(weights: Weights, tmp_path, suffix: str = "pth", **options: Any) -> str:
    """Return the error message of a conversion, and check that nothing was written."""
    source = save_weights(weights, tmp_path, suffix)
    with pytest.raises(ValueError) as error:
        convert(source, tmp_path / "out", **options)
    assert sorted(os.listdir(tmp_path)) == [source.name]
    return str(error.value)


def names_to_change(weights: Weights, num_blocks: int = 1) -> list[str]:
    """Return tensor names of the first blocks, and of one encoder if there are two."""
    left_out = re.compile(rf"(blocks|layer)[._][{num_blocks}-9]\.|^student_backbone\.")
    return [name for name in weights if not left_out.search(name)]


@pytest.mark.parametrize("name", GOLDEN)
def test_any_removed_tensor_is_named(name, tmp_path):
    weights = golden_weights(name)
    for removed in names_to_change(weights, num_blocks=2):
        rest = {key: tensor for key, tensor in weights.items() if key != removed}
        message = refused(rest, tmp_path, **heads_of(name))
        assert removed in message, message


@pytest.mark.parametrize("name", GOLDEN)
def test_any_renamed_tensor_is_named(name, tmp_path):
    weights = golden_weights(name)
    for renamed in names_to_change(weights):
        changed = {
            (f"{key}_other" if key == renamed else key): tensor for key, tensor in weights.items()
        }
        message = refused(changed, tmp_path, **heads_of(name))
        assert f"{renamed}_other" in message, message


@pytest.mark.parametrize("name", GOLDEN)
def test_any_tensor_with_an_unexpected_shape_is_named(name, tmp_path):
    weights = golden_weights(name)
    for changed in names_to_change(weights):
        tensor = weights[changed]
        for dimension in {0, tensor.dim() - 1}:
            larger = torch.cat([tensor, tensor.narrow(dimension, 0, 1)], dim=dimension)
            message = refused({**weights, changed: larger}, tmp_path, **heads_of(name))
            assert changed in message, message


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.float16])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_tensor_with_a_different_precision_is_named(dtype, suffix, tmp_path):
    weights = golden_weights("dino_vit")
    changed = "blocks.2.mlp.fc1.weight"
    message = refused({**weights, changed: weights[changed].to(dtype)}, tmp_path, suffix)
    assert changed in message and str(dtype) in message


def test_an_extra_tensor_is_named(tmp_path):
    weights = {**golden_weights("dino_vit"), "blocks.0.attn.relative_position_bias": torch.ones(3)}
    message = refused(weights, tmp_path, num_heads=3)
    assert "blocks.0.attn.relative_position_bias" in message and "relative positions" in message


def test_weights_of_another_architecture_have_no_known_format(tmp_path):
    message = refused({"conv1.weight": torch.zeros(8, 3, 7, 7), "fc.bias": torch.ones(3)}, tmp_path)
    assert "known weight format" in message and "conv1.weight" in message


@pytest.mark.parametrize("option", [{"norm_pix_loss": False}, {"decoder_num_heads": 3}])
def test_options_of_the_decoder_need_a_decoder(option, tmp_path):
    message = refused(golden_weights("dino_vit"), tmp_path, num_heads=3, **option)
    assert f"{next(iter(option))} ({next(iter(option.values()))}) belongs to the decoder" in message


def test_an_unknown_number_of_heads_is_requested(tmp_path):
    assert "--num-heads" in refused(golden_weights("dino_vit"), tmp_path)
    assert "must divide" in refused(golden_weights("dino_vit"), tmp_path, num_heads=5)
    weights = golden_weights("mae")
    assert "--decoder-num-heads" in refused(weights, tmp_path, num_heads=3)


def test_a_full_checkpoint_without_its_center_is_refused(tmp_path):
    checkpoint = dino_checkpoint()
    del checkpoint["dino_loss"]
    torch.save(checkpoint, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"dino_loss\.center"):
        convert(tmp_path / "weights.pth", tmp_path / "out", num_heads=3)
    assert not (tmp_path / "out").exists()


def test_config_json_must_agree_with_the_weights(tmp_path):
    import transformers

    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(path.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with pytest.raises(ValueError, match="num_hidden_layers 3, the weights 2"):
        convert(tmp_path / "theirs", tmp_path / "out")


def test_wide_encoders_do_not_have_heads_of_64_channels(tmp_path):
    theirs = {
        name: tensor.new_zeros([1280 if size == 48 else size for size in tensor.shape])
        for name, tensor in golden_weights("timm_vit").items()
        if not name.startswith("blocks.") and "patch_embed" not in name
    }
    for name, shape in (
        ("norm1.weight", [1280]),
        ("norm1.bias", [1280]),
        ("attn.qkv.weight", [3 * 1280, 1280]),
        ("attn.qkv.bias", [3 * 1280]),
        ("attn.proj.weight", [1280, 1280]),
        ("attn.proj.bias", [1280]),
        ("norm2.weight", [1280]),
        ("norm2.bias", [1280]),
        ("mlp.fc1.weight", [64, 1280]),
        ("mlp.fc1.bias", [64]),
        ("mlp.fc2.weight", [1280, 64]),
        ("mlp.fc2.bias", [1280]),
    ):
        theirs[f"blocks.0.{name}"] = torch.zeros(shape)
    theirs["patch_embed.proj.weight"] = torch.zeros(1280, 3, 16, 16)
    theirs["patch_embed.proj.bias"] = torch.zeros(1280)
    conversion = convert(save_weights(theirs, tmp_path), tmp_path / "out")
    assert conversion.config.num_attention_heads == 16  # ViT-H, arXiv 2010.11929, Table 1


# Precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_by_default(dtype, tmp_path):
    from transformers import AutoModel

    weights = {name: tensor.to(dtype) for name, tensor in golden_weights("mae").items()}
    source = save_weights(weights, tmp_path, "safetensors")
    conversion = convert(source, tmp_path / "half", **heads_of("mae"))
    # Positions are compared within the tolerance of this precision.
    assert conversion.config.position_embedding_type == "sincos"
    assert AutoModel.from_pretrained(tmp_path / "half").dtype == dtype
    convert(source, tmp_path / "full", dtype="float32", **heads_of("mae"))
    full = AutoModel.from_pretrained(tmp_path / "full")
    assert full.dtype == torch.float32
    torch.testing.assert_close(
        full.layers[0].mlp.fc1.weight,
        weights["blocks.0.mlp.fc1.weight"].float(),
        rtol=0,
        atol=0,
    )


def test_double_precision_is_cast_only_on_request(tmp_path):
    weights = {name: tensor.double() for name, tensor in golden_weights("dino_vit").items()}
    assert "--dtype float32" in refused(weights, tmp_path, num_heads=3)
    convert(tmp_path / "weights.pth", tmp_path / "out", num_heads=3, dtype="float32")


def test_a_center_stays_float32(tmp_path):
    from selfvit import SelfViTForDINO

    checkpoint = dino_checkpoint()
    torch.save(checkpoint, tmp_path / "weights.pth")
    convert(tmp_path / "weights.pth", tmp_path / "out", num_heads=3, dtype="bfloat16")
    model = SelfViTForDINO.from_pretrained(tmp_path / "out")
    assert model.head.layers[0].weight.dtype == torch.bfloat16
    expected = checkpoint["dino_loss"]["center"][0]
    torch.testing.assert_close(model.loss.center, expected, rtol=0, atol=0)


# Files


class Malicious:
    """Object that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("write", ["torch", "pickle"])
@pytest.mark.parametrize("suffix", ["pth", "ckpt", "safetensors"])
def test_a_malicious_pickle_is_refused_and_never_executed(write, suffix, protocol, tmp_path):
    trap = tmp_path / "trap"
    content = {"model": golden_weights("dino_vit"), "extra": Malicious(trap)}
    path = tmp_path / f"weights.{suffix}"
    if write == "torch":
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    with pytest.raises(ValueError, match="refused") as error:
        convert(path, tmp_path / "out", num_heads=3)
    assert "Nothing was executed" in str(error.value)
    if write == "torch" and protocol == 2:
        assert "mkdir" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == [path.name]


def test_command_line_arguments_are_read_but_other_objects_in_them_are_refused(tmp_path):
    weights = golden_weights("dino_vit")
    content: dict[str, Any] = {"model": weights, "args": argparse.Namespace(lr=0.1)}
    torch.save(content, tmp_path / "good.pth")
    convert(tmp_path / "good.pth", tmp_path / "out", num_heads=3)
    content["args"] = argparse.Namespace(lr=Malicious(tmp_path / "trap"))
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="refused"):
        convert(tmp_path / "bad.pth", tmp_path / "other", num_heads=3)
    assert not (tmp_path / "trap").exists() and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"no weights at all",
        lambda content: b"\x00" * 100,
    ],
    ids=["half", "empty", "text", "zeros"],
)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_raises(suffix, damage: Callable[[bytes], bytes], tmp_path):
    source = save_weights(golden_weights("dino_vit"), tmp_path, suffix)
    source.write_bytes(damage(source.read_bytes()))
    with pytest.raises(ValueError, match=str(source)):
        convert(source, tmp_path / "out", num_heads=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [640, 19280])
def test_a_header_of_any_size_is_read(size, tmp_path):
    # bytes of these sizes look like the start of a pickle or zip file, which were refused
    weights = golden_weights("dino_vit")

    def write(padding: int) -> int:
        save_file(weights, tmp_path / "weights", {"padding": "-" * padding})
        return int.from_bytes((tmp_path / "weights").read_bytes()[:8], "little")

    assert write((size - write(0)) % 2**16) % 2**16 == size
    assert read_source(tmp_path / "weights").tensors.keys() == weights.keys()


@pytest.mark.parametrize("around", ["", "model.", "module.", "state_dict.model.", "_orig_mod."])
def test_the_format_is_detected_from_the_tensors_inside_any_wrapper(around, tmp_path):
    weights = with_prefix(golden_weights("timm_vit_registers"), around)
    source = save_weights(weights, tmp_path).rename(tmp_path / "torchvision_dino_mae.pth")
    conversion = convert(source, tmp_path / "out", num_heads=3)
    assert conversion.kind.endswith("timm VisionTransformer") or around == "model."
    assert conversion.config.num_register_tokens == 4


def test_the_averaged_weights_of_timm_training_are_used(tmp_path):
    weights = golden_weights("timm_vit_registers")
    average = {name: tensor + 1 for name, tensor in weights.items()}
    torch.save({"state_dict": weights, "state_dict_ema": average}, tmp_path / "weights.pth")
    conversion = convert(tmp_path / "weights.pth", tmp_path / "out", num_heads=3)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(stored["layernorm.bias"], average["norm.bias"], rtol=0, atol=0)
    assert "state_dict.norm.bias" in conversion.left_out


# Output


def test_only_an_earlier_conversion_is_replaced_and_only_on_request(tmp_path):
    source = save_weights(golden_weights("dino_vit"), tmp_path)
    output = tmp_path / "out"
    convert(source, output, num_heads=3)
    with pytest.raises(FileExistsError, match="--overwrite"):
        convert(source, output, num_heads=3)
    before = (output / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="must divide"):
        convert(source, output, num_heads=5, overwrite=True)
    assert (output / "model.safetensors").read_bytes() == before
    convert(source, output, num_heads=6, overwrite=True)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        convert(source, output, num_heads=3, overwrite=True)
    assert (output / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["out", source.name]


@pytest.mark.parametrize("name", ["model_notes.txt", "model_finetuned.pt", "models/", "code.py"])
def test_a_file_of_the_user_is_never_taken_for_one_of_a_conversion(name, tmp_path):
    # files and folders whose names begin with "model" were deleted
    source = save_weights(golden_weights("dino_vit"), tmp_path)
    convert(source, tmp_path / "out", num_heads=3)
    added = tmp_path / "out" / name
    added.mkdir() if name.endswith("/") else added.touch()
    with pytest.raises(FileExistsError, match=f"{added.name}, which 'selfvit convert' did not"):
        convert(source, tmp_path / "out", num_heads=3, overwrite=True)
    assert added.exists()


def test_a_selfvit_checkpoint_is_not_converted(tmp_path):
    source = save_weights(golden_weights("dino_vit"), tmp_path)
    convert(source, tmp_path / "out", num_heads=3)
    with pytest.raises(ValueError, match="selfvit checkpoint already"):
        convert(tmp_path / "out", tmp_path / "again")
