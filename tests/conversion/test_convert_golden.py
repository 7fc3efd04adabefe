"""Converted models give the outputs that the authors' code computed."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from selfvit import SelfViTForDINO, SelfViTForMAE
from selfvit.conversion.convert import convert
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.modeling.modeling_selfvit import SelfViTModel
from tests.conversion.source_files import (
    SUFFIXES,
    dino_checkpoint,
    golden_weights,
    heads_of,
    save_weights,
    without_prefix,
)
from tests.golden import load_golden

CLOSE = {"rtol": 1e-5, "atol": 1e-5}

# Reference file: (name of its tokens or None, name of its class token or None, pooling)
ENCODERS = {
    "dino_vit": ("intermediate.3", "cls", "cls"),
    "mae": ("unmasked_tokens", None, "mean"),
    "torchvision_vit": ("tokens", "lightly_mae_backbone_cls", "cls"),
    "lightly_mae_backbone": (None, "cls", "cls"),
    "timm_vit": ("tokens", None, "cls"),
    "timm_vit_registers": ("tokens", None, "cls"),
    "lightly_dino_checkpoint": (None, "teacher_features", "cls"),
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_encoder_outputs_match_the_source(name, suffix, tmp_path):
    golden, reference = load_golden(name)
    source = save_weights(golden_weights(name), tmp_path, suffix)
    conversion = convert(source, tmp_path / "out", **heads_of(name))
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    output = model(golden["images"])
    tokens, class_token, pooling = ENCODERS[name]
    if tokens is not None:
        torch.testing.assert_close(output.last_hidden_state, golden[tokens], **CLOSE)
    if class_token is not None:
        torch.testing.assert_close(output.last_hidden_state[:, 0], golden[class_token], **CLOSE)
    assert model.config.pooling == conversion.config.pooling == pooling
    depth = reference.get("depth", reference.get("num_layers"))
    assert (model.config.num_hidden_layers, model.config.patch_size) == (depth, 16)
    assert model.config.image_size == 64
    load_strictly(SelfViTModel, tmp_path / "out")  # as `selfvit embed` does
    AutoImageProcessor.from_pretrained(tmp_path / "out")


@torch.no_grad()
def test_torchvision_logits_match(tmp_path):
    golden, _ = load_golden("torchvision_vit")
    source = save_weights(golden_weights("torchvision_vit"), tmp_path)
    conversion = convert(source, tmp_path / "out", num_heads=3)
    assert conversion.architecture == "SelfViTForImageClassification"
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(model(golden["images"]).logits, golden["logits"], **CLOSE)


@pytest.mark.parametrize("suffix", SUFFIXES)
@torch.no_grad()
def test_lightly_dino_keeps_both_networks_and_heads(suffix, tmp_path):
    golden, _ = load_golden("lightly_dino_checkpoint")
    source = save_weights(golden_weights("lightly_dino_checkpoint"), tmp_path, suffix)
    conversion = convert(source, tmp_path / "out", num_heads=3)
    assert conversion.new == {
        "loss.center": "the file has no center; it starts at zero, as in a new run"
    }
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out").eval()
    assert isinstance(model, SelfViTForDINO)
    for encoder, head, name in (
        (model.vit, model.head, "teacher"),
        (model.student.vit, model.student.head, "student"),
    ):
        features = encoder(golden["images"]).last_hidden_state[:, 0]
        torch.testing.assert_close(features, golden[f"{name}_features"], **CLOSE)
        torch.testing.assert_close(head(features), golden[f"{name}_logits"], **CLOSE)
    student = AutoModel.from_pretrained(tmp_path / "out", network="student").eval()
    features = student(golden["images"]).last_hidden_state[:, 0]
    torch.testing.assert_close(features, golden["student_features"], **CLOSE)


@torch.no_grad()
def test_full_dino_checkpoint_keeps_its_center_and_loss(tmp_path):
    golden, _ = load_golden("lightly_dino_checkpoint")
    checkpoint = dino_checkpoint()
    torch.save(checkpoint, tmp_path / "weights.pth")
    conversion = convert(tmp_path / "weights.pth", tmp_path / "out", num_heads=3)
    assert conversion.architecture == "SelfViTForDINO" and not conversion.new
    assert set(conversion.left_out) == {"optimizer.state.0.exp_avg"}
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out").eval()
    center = checkpoint["dino_loss"]["center"][0]
    torch.testing.assert_close(model.loss.center, center, rtol=0, atol=0)

    # DINO, Algorithm 1, for one view of the teacher and one of the student.
    images = golden["images"].unsqueeze(0)
    both = torch.cat([images, images])
    loss = model(both, teacher_temperature=0.05).loss
    targets = ((golden["teacher_logits"] - center) / 0.05).softmax(dim=-1)
    log_predictions = (golden["student_logits"] / 0.1).log_softmax(dim=-1)
    expected = -(targets * log_predictions).sum(dim=-1).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)


def test_lightning_checkpoint_of_lightly_dino_keeps_everything(tmp_path):
    weights = golden_weights("lightly_dino_checkpoint")
    center = torch.randn(1, 1, 96, generator=torch.Generator().manual_seed(0))
    unused = torch.zeros(5, 48)
    checkpoint = {
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "state_dict": {
            **weights,
            "criterion.center": center,
            "student_backbone.head.weight": unused,
        },
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": []}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5)}},
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(checkpoint, tmp_path / "weights.ckpt")
    conversion = convert(tmp_path / "weights.ckpt", tmp_path / "out", num_heads=3)
    assert not conversion.new and set(conversion.left_out) == {
        "student_backbone.head.weight",
        "optimizer_states.0.state.0.exp_avg",
        "callbacks.ModelCheckpoint.best_model_score",
    }
    model = SelfViTForDINO.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(model.loss.center, center.flatten(), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["mae", "mae_norm_pix"])
@torch.no_grad()
def test_mae_keeps_its_decoder_and_loss(name, suffix, tmp_path):
    golden, _ = load_golden(name)
    weights = golden_weights(name)
    source = save_weights(weights, tmp_path, suffix)
    convert(source, tmp_path / "out", norm_pix_loss=name == "mae_norm_pix", **heads_of(name))
    model = AutoModelForPreTraining.from_pretrained(tmp_path / "out").eval()
    assert isinstance(model, SelfViTForMAE)
    output = model(golden["images"], noise=golden["noise"])
    torch.testing.assert_close(output.prediction, golden["pred"], **CLOSE)
    torch.testing.assert_close(output.mask, golden["mask"], **CLOSE)
    torch.testing.assert_close(output.loss, golden["loss"][0], **CLOSE)
    assert model.config.position_embedding_type == "sincos"
    stored = model.vit.embeddings.position_embeddings
    torch.testing.assert_close(stored, weights["pos_embed"], rtol=0, atol=0)


def test_mae_encoder_file_is_detected_by_its_positions(tmp_path):
    decoder = ("decoder", "mask_token")
    weights = {
        name: tensor
        for name, tensor in golden_weights("mae").items()
        if not name.startswith(decoder)
    }
    torch.save({"model": weights}, tmp_path / "weights.pth")
    conversion = convert(tmp_path / "weights.pth", tmp_path / "out", num_heads=3)
    assert "mae" in conversion.kind and conversion.config.pooling == "mean"
    assert conversion.config.position_embedding_type == "sincos"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "CC BY-NC 4.0" in card and "cc-by-nc-4.0" in card

    weights["pos_embed"] = weights["pos_embed"] + 0.01  # no longer sine-cosine
    torch.save({"model": weights}, tmp_path / "weights.pth")
    conversion = convert(tmp_path / "weights.pth", tmp_path / "out", num_heads=3, overwrite=True)
    assert conversion.config.position_embedding_type == "learned"
    assert (
        conversion.config.pooling == "cls"
        and "Apache" in (tmp_path / "out" / "README.md").read_text()
    )


@torch.no_grad()
def test_backbone_file_of_the_lightly_tutorial_is_an_encoder(tmp_path):
    golden, _ = load_golden("lightly_dino_checkpoint")
    backbone = without_prefix(golden_weights("lightly_dino_checkpoint"), "student_backbone.")
    convert(save_weights(backbone, tmp_path), tmp_path / "out", num_heads=3)
    model = AutoModel.from_pretrained(tmp_path / "out").eval()
    features = model(golden["images"]).pooler_output
    torch.testing.assert_close(features, golden["student_features"], **CLOSE)
