"""Weights that users have, as small files: timm, DINOv2, transformers, and damaged ones."""

from __future__ import annotations

import gzip
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

SHAPE = {"embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0}


def timm_vit(name: str = "vit_tiny_patch16_224", **options: Any) -> torch.nn.Module:
    """Return a small timm ViT with random weights, also where timm starts at 0 or 1."""
    torch.manual_seed(0)
    model = timm.create_model(name, **(SHAPE | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def vit_weights(name: str = "vit_tiny_patch16_224", **options: Any) -> dict[str, Tensor]:
    """Return the weights of `timm_vit`."""
    return dict(timm_vit(name, **options).state_dict())


def prefixed(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in weights.items()}


def dinov2_model(**options: Any) -> torch.nn.Module:
    """Return a timm ViT of the geometry of DINOv2's release."""
    return timm_vit(**({"img_size": 518, "patch_size": 14, "init_values": 1e-5} | options))


def dinov2_backbone(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return weights named as in dinov2_vits14_pretrain.pth, or with registers, `_reg4_`."""
    weights = dict(model.state_dict())
    weights["mask_token"] = torch.zeros(1, weights["cls_token"].shape[-1])
    if "reg_token" in weights:  # timm adds positions to registers, or has none for them
        weights["register_tokens"] = weights.pop("reg_token")
    return weights


def in_chunks(weights: Mapping[str, Tensor], size: int = 1) -> dict[str, Tensor]:
    """Return weights with the blocks in chunks: `blocks.CHUNK.BLOCK.`."""
    renamed = {}
    for name, tensor in weights.items():
        before, found, after = name.partition("blocks.")
        if found:
            index = int(after.partition(".")[0])
            name = f"{before}blocks.{index // size}.{after}"
        renamed[name] = tensor
    return renamed


def dinov2_teacher(backbone: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the content of DINOv2's teacher_checkpoint.pth."""
    heads = {
        "dino_head.mlp.0.weight": torch.randn(8, 64),
        "dino_head.mlp.0.bias": torch.zeros(8),
        "dino_head.last_layer.weight_v": torch.randn(8, 8),
        "ibot_head.mlp.0.weight": torch.randn(8, 64),
    }
    return {"teacher": {**prefixed(backbone, "backbone."), **heads}}


def dinov2_training(backbone: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the content of a checkpoint of DINOv2's trainer, with student and teacher."""
    teacher = dinov2_teacher(backbone)["teacher"]
    student = {name: torch.zeros_like(tensor) for name, tensor in teacher.items()}
    losses = {"dino_loss.center": torch.zeros(1, 8), "ibot_patch_loss.center": torch.zeros(1, 1, 8)}
    model = {**prefixed(student, "student."), **prefixed(teacher, "teacher."), **losses}
    return {"model": model, "iteration": 7, "optimizer": {"state": {}}}


def with_weights(change: Callable[[Tensor], Tensor], *names: str) -> dict[str, Tensor]:
    """Return the weights of a ViT, some (or all) of them changed."""
    weights = vit_weights()
    return {
        name: change(tensor) if not names or name in names else tensor
        for name, tensor in weights.items()
    }


def write_damaged_files(folder: Path) -> list[Path]:
    """Write files that hold no weights, or not all of them, and return them."""
    weights = vit_weights(depth=1)
    torch.save(weights, folder / "sound.pth")
    torch.save(weights, folder / "old.pth", _use_new_zipfile_serialization=False)
    save_file({k: v.contiguous() for k, v in weights.items()}, folder / "sound.safetensors")
    sound, old, safe = (
        (folder / name).read_bytes() for name in ("sound.pth", "old.pth", "sound.safetensors")
    )
    content = {
        "half.pth": sound[: len(sound) // 2],
        "start.pth": sound[:50],
        "without_end.pth": sound[:-30],
        "half_of_old.pth": old[: len(old) // 2],
        "start_of_old.pth": old[:200],
        "two_bytes.pth": b"\x80",
        "text.pth": b"these are no weights\n" * 5,
        "numbers.pth": b'{"a": 1}',
        "empty.pth": b"",
        "page.safetensors": b"<!DOCTYPE html><html>404</html>",
        "pointer.safetensors": b"version https://git-lfs.github.com/spec/v1\nsize 9\n",
        "compressed.pth": gzip.compress(sound),
        "half.safetensors": safe[: len(safe) // 2],
        "huge_header.safetensors": struct.pack("<Q", 2**62) + safe[8:],
        "long_header.safetensors": struct.pack("<Q", 10**8) + safe[8:],
        "no_json.safetensors": struct.pack("<Q", 10) + b"{abcdefghi",
        "no_utf8.safetensors": struct.pack("<Q", 10) + b"{\xff\xfe\x00aaaaaa",
        "list.safetensors": struct.pack("<Q", 2) + b"[]" + bytes(20),
        "plain_pickle.pth": pickle.dumps({"a": print}),
    }
    for name, written in content.items():
        (folder / name).write_bytes(written)
    with zipfile.ZipFile(folder / "zip.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    np.save(folder / "array.npy", np.zeros(3))
    torch.save({"a": print, **weights}, folder / "function.pth")
    torch.save(timm_vit(depth=1), folder / "module.pth")
    circle: dict[str, Any] = dict(weights)
    circle["circle"] = circle
    torch.save(circle, folder / "circle.pth")
    torch.save({}, folder / "no_tensors.pth")
    torch.save(torch.zeros(3), folder / "tensor.pth")
    torch.save({("a", 1): {None: weights}}, folder / "odd_keys.pth")
    torch.save({"first": weights, "second": weights}, folder / "two_networks.pth")
    for name in ("sound.pth", "old.pth", "sound.safetensors"):
        (folder / name).unlink()
    return sorted(folder.iterdir())


def write_bands(folder: Path, bands: int, count: int = 3) -> Path:
    """Write TIFF files of any number of bands of eight bits."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        pixels = generator.integers(0, 256, (40, 50, bands), dtype=np.uint8)
        tifffile.imwrite(
            folder / f"{index}.tif",
            pixels[:, :, 0] if bands == 1 else pixels,
            photometric="minisblack",
            planarconfig=None if bands == 1 else "contig",
        )
    return folder
