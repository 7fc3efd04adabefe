"""Conversion of facebookresearch/msn checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForPreTraining

from selfvit.conversion.convert import convert
from tests.conversion.source_files import golden_weights, with_prefix, without_prefix
from tests.golden import load_golden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def projection_head(seed: int, batch_norm: bool) -> nn.Module:
    """Return the head that `init_model` of msn_train.py builds, with random tensors."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (width, hidden) in enumerate([(48, 32), (32, 32)], start=1):
        layers[f"fc{index}"] = nn.Linear(width, hidden)
        if batch_norm:
            layers[f"bn{index}"] = nn.BatchNorm1d(hidden)
        layers[f"gelu{index}"] = nn.GELU()
    layers["fc3"] = nn.Linear(32, 16)
    head = nn.Sequential(layers)
    generator = torch.Generator().manual_seed(seed)
    for tensor in head.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return head.eval()


def msn_checkpoint(batch_norm: bool = True) -> tuple[dict[str, Any], dict[str, nn.Module]]:
    """Return a checkpoint as msn_train.py saves it, with reference encoders, and its heads."""
    stored = golden_weights("lightly_dino_checkpoint")
    heads = {
        name: projection_head(seed, batch_norm) for seed, name in enumerate(["student", "teacher"])
    }

    def network(name: str) -> dict[str, Tensor]:
        encoder = without_prefix(stored, f"{name}_backbone.")
        head = with_prefix(dict(heads[name].state_dict()), "fc.")
        return with_prefix({**encoder, **head}, "module.")

    checkpoint = {
        "encoder": network("student"),
        "target_encoder": network("teacher"),
        "prototypes": torch.randn(7, 16, generator=torch.Generator().manual_seed(2)),
        "opt": {"state": {0: {"exp_avg": torch.zeros(2)}}},
        "epoch": 1,
        "loss": 0.5,
        "temperature": 0.1,
    }
    return checkpoint, heads


@torch.no_grad()
def test_msn_keeps_both_networks_heads_and_prototypes(tmp_path):
    golden, _ = load_golden("lightly_dino_checkpoint")
    checkpoint, heads = msn_checkpoint()
    torch.save(checkpoint, tmp_path / "weights.pth.tar")
    conversion = convert(tmp_path / "weights.pth.tar", tmp_path / "out", num_heads=3)
    assert conversion.architecture == "SelfViTForPMSN" and not conversion.new
    assert conversion.config.pmsn_config.prior == "uniform"
    assert all(
        name.endswith("num_batches_tracked") or name.startswith("opt.")
        for name in conversion.left_out
    )
    model: Any = AutoModelForPreTraining.from_pretrained(tmp_path / "out").eval()
    for encoder, head, name in (
        (model.vit, model.head, "teacher"),
        (model.student.vit, model.student.head, "student"),
    ):
        features = encoder(golden["images"]).pooler_output
        torch.testing.assert_close(features, golden[f"{name}_features"], **CLOSE)
        torch.testing.assert_close(head(features), heads[name](features), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.prototypes, checkpoint["prototypes"], rtol=0, atol=0)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "CC BY-NC 4.0" in card


@torch.no_grad()
def test_without_batch_norm_only_the_target_encoder_is_converted(tmp_path):
    golden, _ = load_golden("lightly_dino_checkpoint")
    checkpoint, _ = msn_checkpoint(batch_norm=False)
    torch.save(checkpoint, tmp_path / "weights.pth.tar")
    conversion = convert(tmp_path / "weights.pth.tar", tmp_path / "out", num_heads=3)
    assert conversion.architecture == "SelfViTModel"
    assert "prototypes" in conversion.left_out and "target_encoder.fc.fc1.bias" in (
        conversion.left_out
    )
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    features = model(golden["images"]).pooler_output
    torch.testing.assert_close(features, golden["teacher_features"], **CLOSE)


@pytest.mark.parametrize(
    "removed",
    ["prototypes", "encoder.module.fc.bn2.running_mean", "target_encoder.module.norm.bias"],
)
def test_a_missing_tensor_is_named(removed, tmp_path):
    checkpoint, _ = msn_checkpoint()
    first, _, rest = removed.partition(".")
    if rest:
        del checkpoint[first][rest]
    else:
        del checkpoint[first]
    torch.save(checkpoint, tmp_path / "weights.pth.tar")
    with pytest.raises(ValueError, match=removed.replace("module.", "")):
        convert(tmp_path / "weights.pth.tar", tmp_path / "out", num_heads=3)
    assert not (tmp_path / "out").exists()
