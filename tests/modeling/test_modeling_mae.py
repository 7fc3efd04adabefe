"""MAE: patches, loss, decoder, and model."""

# B batch · C channels · P patch size · N patches · K visible patches · D hidden

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModel, ViTMAEConfig, ViTMAEForPreTraining

from selfvit import MAEConfig, SelfViTConfig, SelfViTForMAE, SelfViTModel
from selfvit.modeling.masking import gather_patches, ids_to_keep
from selfvit.modeling.modeling_mae import mae_loss, patch_statistics, patchify, unpatchify
from selfvit.modeling.position_embeddings import (
    interpolate_position_embeddings,
    sincos_position_embeddings,
)
from tests.golden import load_golden, weights_of
from tests.modeling.test_modeling_selfvit import assert_statistics, rename_dino_weights
from tests.objectives import tiny_config, tiny_mae_config

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
GRADIENTS_CLOSE = {"rtol": 1e-4, "atol": 1e-6}


def make_model(seed: int = 0, mae: dict[str, Any] | None = None, **overrides: Any) -> SelfViTForMAE:
    """Return a tiny model in evaluation mode."""
    torch.manual_seed(seed)
    config = {"position_embedding_type": "sincos", "mae_config": tiny_mae_config(**(mae or {}))}
    return SelfViTForMAE(tiny_config(**{**config, **overrides})).eval()


def make_inputs(height: int = 32, width: int = 32, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "pixel_values": torch.randn(2, 3, height, width, generator=generator),
        "noise": torch.rand(2, height * width // 64, generator=generator),
    }


def masked_patches(images: Tensor, mask: Tensor, patch_size: int = 8) -> Tensor:
    """Return the pixels of the masked patches of all images, (M, P*P*C)."""
    return patchify(images, patch_size)[mask.bool()]


# Patches


def test_patches_match_hand_computed_values():
    # 2 channels, 2 x 4 pixels, patches of 2: the second channel is the first plus 100
    first = torch.tensor([[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]])
    patches = patchify(torch.stack([first, first + 100]).unsqueeze(0), 2)
    assert patches.tolist() == [
        [[0, 100, 1, 101, 4, 104, 5, 105], [2, 102, 3, 103, 6, 106, 7, 107]],
    ]


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 40), (48, 16)])
def test_unpatchify_inverts_patchify(height, width):
    images = torch.randn(2, 3, height, width)
    patches = patchify(images, 8)
    assert patches.shape == (2, height * width // 64, 192)
    assert torch.equal(unpatchify(patches, 8, (height // 8, width // 8)), images)


def test_patches_are_in_the_order_of_the_encoders_tokens():
    images = torch.zeros(1, 3, 16, 24)
    images[:, :, 8:, 8:16] = 1  # second row, second column of a grid of 2 x 3
    assert patchify(images, 8).mean(dim=-1).tolist() == [[0, 0, 0, 0, 1, 0]]


# The loss


def test_the_loss_matches_hand_computed_values():
    prediction = torch.tensor([[[1.0, 2.0], [0.0, 0.0]]])
    patches = torch.tensor([[[1.0, 4.0], [3.0, 1.0]]])
    assert mae_loss(prediction, patches, False).item() == (0 + 4 + 9 + 1) / 4
    # (3, 5) has mean 4 and unbiased std sqrt(2), and is normalized to (-1, 1) / sqrt(2)
    normalized = mae_loss(torch.zeros(1, 1, 2), torch.tensor([[[3.0, 5.0]]]), True)
    assert normalized.item() == pytest.approx(0.5, rel=1e-5)


def test_normalized_targets_ignore_brightness_and_contrast_of_a_patch():
    prediction, patches = torch.randn(2, 5, 48), torch.randn(2, 5, 48)
    gain, shift = torch.rand(2, 5, 1) + 0.5, torch.randn(2, 5, 1)
    close = {"rtol": 1e-4, "atol": 1e-5}
    changed = mae_loss(prediction, patches * gain + shift, True)
    torch.testing.assert_close(changed, mae_loss(prediction, patches, True), **close)
    assert not torch.allclose(
        mae_loss(prediction, patches * gain + shift, False), mae_loss(prediction, patches, False)
    )


def test_a_patch_of_one_color_has_a_finite_target():
    prediction = torch.zeros(1, 1, 48, requires_grad=True)
    loss = mae_loss(prediction, torch.full((1, 1, 48), 0.7), True)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert prediction.grad.isfinite().all()


def test_the_loss_is_float32_under_autocast():
    prediction, patches = torch.randn(1, 4, 48).bfloat16(), torch.randn(1, 4, 48)
    expected = mae_loss(prediction.float(), patches, True)
    with torch.autocast("cpu", torch.bfloat16):
        loss = mae_loss(prediction, patches, True)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


# The authors' model


def rename_mae_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state dict of facebookresearch/mae under our names."""
    renamed = {}
    for name, tensor in rename_dino_weights(weights).items():
        name = re.sub(r"^decoder_layers\.", "decoder.layers.", name)
        replacements = {
            "decoder_embed.": "decoder.embedding.",
            "decoder_embeddings.position_embeddings": "decoder.position_embeddings",
            "decoder_norm.": "decoder.layernorm.",
            "decoder_pred.": "decoder.prediction.",
            "decoder_pos_embed": "decoder.position_embeddings",
        }
        for old, new in replacements.items():
            name = name.replace(old, new)
        name = "decoder.mask_token" if name == "mask_token" else name
        renamed[name if name.startswith("decoder.") else f"vit.{name}"] = tensor
    return renamed


def golden_model(name: str) -> tuple[SelfViTForMAE, dict[str, Tensor]]:
    """Return our model with the weights of the reference, and the reference values."""
    golden, reference = load_golden(name)
    config = SelfViTConfig(
        hidden_size=reference["embed_dim"],
        num_hidden_layers=reference["depth"],
        num_attention_heads=reference["num_heads"],
        image_size=reference["img_size"],
        patch_size=reference["patch_size"],
        position_embedding_type="sincos",
        mae_config=MAEConfig(
            decoder_hidden_size=reference["decoder_embed_dim"],
            decoder_num_layers=reference["decoder_depth"],
            decoder_num_attention_heads=reference["decoder_num_heads"],
            norm_pix_loss=name == "mae_norm_pix",
        ),
    )
    model = SelfViTForMAE(config).eval()
    for positions in ("vit.embeddings.position_embeddings", "decoder.position_embeddings"):
        expected = rename_mae_weights(weights_of(golden))[positions]
        torch.testing.assert_close(model.state_dict()[positions], expected, rtol=0, atol=1e-6)
    model.load_state_dict(rename_mae_weights(weights_of(golden)), strict=True)
    return model, golden


@pytest.mark.parametrize("name", ["mae", "mae_norm_pix"])
def test_outputs_and_loss_match_the_reference(name):
    model, golden = golden_model(name)
    ids_keep = ids_to_keep(golden["noise"], 4).ids_keep
    with torch.no_grad():
        output = model(golden["images"], golden["noise"])
        latent = model.vit(golden["images"], ids_keep=ids_keep).last_hidden_state
        unmasked = model.vit(golden["images"]).last_hidden_state
    torch.testing.assert_close(latent, golden["latent"], **CLOSE)
    torch.testing.assert_close(unmasked, golden["unmasked_tokens"], **CLOSE)
    torch.testing.assert_close(output.prediction, golden["pred"], **CLOSE)
    torch.testing.assert_close(output.loss, golden["loss"][0], rtol=1e-5, atol=0)
    assert torch.equal(output.mask, golden["mask"])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["mae", "mae_norm_pix"])
def test_gradients_match_the_reference(name, training):
    model, golden = golden_model(name)
    output = model.train(training)(golden["images"], golden["noise"])
    torch.testing.assert_close(output.loss, golden["loss"][0], rtol=1e-5, atol=0)
    output.loss.backward()
    embeddings = model.vit.embeddings
    close = {"rtol": 1e-4, "atol": 1e-6}
    for gradient, expected in (
        (embeddings.cls_token.grad, golden["grad.cls_token"]),
        (
            embeddings.patch_embeddings.projection.weight.grad,
            golden["grad.patch_embed.proj.weight"],
        ),
    ):
        torch.testing.assert_close(gradient, expected, **close)


# transformers' ViTMAE


def stock_of(model: SelfViTForMAE) -> ViTMAEForPreTraining:
    """Return transformers' model with our weights."""
    config, mae = model.config, model.config.mae_config
    stock = ViTMAEForPreTraining(
        ViTMAEConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            layer_norm_eps=config.layer_norm_eps,
            image_size=config.image_size,
            patch_size=config.patch_size,
            decoder_hidden_size=mae.decoder_hidden_size,
            decoder_num_hidden_layers=mae.decoder_num_layers,
            decoder_num_attention_heads=mae.decoder_num_attention_heads,
            decoder_intermediate_size=4 * mae.decoder_hidden_size,
            mask_ratio=mae.mask_ratio,
            norm_pix_loss=mae.norm_pix_loss,
        )
    ).eval()
    replacements = {  # positions, too: they are zero in a new stock model
        "decoder.embedding.": "decoder.decoder_embed.",
        "decoder.position_embeddings": "decoder.decoder_pos_embed",
        "decoder.layers.": "decoder.decoder_layers.",
        "decoder.layernorm.": "decoder.decoder_norm.",
        "decoder.prediction.": "decoder.decoder_pred.",
    }
    weights = model.state_dict()
    for old, new in replacements.items():
        weights = {name.replace(old, new): tensor for name, tensor in weights.items()}
    stock.load_state_dict(weights, strict=True)
    return stock


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.5])
def test_outputs_match_transformers_vit_mae(mask_ratio, norm_pix_loss):
    model = make_model(mae={"mask_ratio": mask_ratio, "norm_pix_loss": norm_pix_loss})
    stock, inputs = stock_of(model), make_inputs()
    with torch.no_grad():
        output, expected = model(**inputs), stock(**inputs)
        latent = stock.vit(**inputs).last_hidden_state
        ids_keep = ids_to_keep(inputs["noise"], int(16 * (1 - mask_ratio))).ids_keep
        ours = model.vit(inputs["pixel_values"], ids_keep=ids_keep).last_hidden_state
    torch.testing.assert_close(ours, latent, **CLOSE)
    torch.testing.assert_close(output.prediction, expected.logits, **CLOSE)
    torch.testing.assert_close(output.loss, expected.loss, rtol=1e-5, atol=0)
    assert torch.equal(output.mask, expected.mask)
    assert torch.equal(output.ids_restore, expected.ids_restore)


# Predicting the masked patches only


@pytest.mark.parametrize("decoder_num_layers", [1, 2])
@pytest.mark.parametrize("num_register_tokens", [0, 2])
def test_predicting_masked_patches_only_keeps_loss_and_gradients(
    num_register_tokens, decoder_num_layers
):
    mae = {"decoder_num_layers": decoder_num_layers}
    model = make_model(mae=mae, num_register_tokens=num_register_tokens).train()
    losses, gradients = [], []
    for output_prediction in (None, True):
        output = model(**make_inputs(), output_prediction=output_prediction)
        assert (output.prediction is None) == (output_prediction is None)
        losses.append(output.loss)
        gradients.append(torch.autograd.grad(output.loss, list(model.parameters())))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, **GRADIENTS_CLOSE)


def test_masked_predictions_equal_those_among_all_predictions():
    model, inputs = make_model(), make_inputs()
    split = ids_to_keep(inputs["noise"], 4)
    latent = model.vit(inputs["pixel_values"], ids_keep=split.ids_keep).last_hidden_state
    some, everything = (model.decoder(latent, split, (4, 4), only) for only in (True, False))
    assert (some.shape, everything.shape) == ((2, 12, 192), (2, 16, 192))
    torch.testing.assert_close(some, gather_patches(everything, split.ids_removed), **CLOSE)


def test_predictions_are_returned_in_evaluation_or_on_request():
    model, inputs = make_model(), make_inputs()
    assert model(**inputs).prediction.shape == (2, 16, 192)
    assert model(**inputs, output_prediction=False).prediction is None
    assert model.train()(**inputs).prediction is None
    assert model(**inputs, output_prediction=True).prediction.shape == (2, 16, 192)


# Influence of pixels and masks


def test_masked_pixels_affect_the_loss_as_target_only():
    model, inputs = make_model(mae={"norm_pix_loss": False}), make_inputs()
    output = model(**inputs)
    other = patchify(inputs["pixel_values"], 8)
    other[output.mask.bool()] = torch.randn(24, 192)
    changed = model(unpatchify(other, 8, (4, 4)), inputs["noise"])
    assert torch.equal(changed.prediction, output.prediction)
    assert not torch.equal(changed.loss, output.loss)


def test_the_loss_is_the_mean_over_masked_patches_only():
    model, inputs = make_model(mae={"norm_pix_loss": False}), make_inputs()
    output = model(**inputs)
    target = masked_patches(inputs["pixel_values"], output.mask)
    error = (output.prediction[output.mask.bool()] - target).square().mean()
    torch.testing.assert_close(output.loss, error)


def test_masks_are_drawn_from_the_seed_if_no_noise_is_given():
    model, images = make_model(), make_inputs()["pixel_values"]
    torch.manual_seed(3)
    first, second = model(images), model(images)
    torch.manual_seed(3)
    assert torch.equal(model(images).mask, first.mask)
    assert not torch.equal(second.mask, first.mask)
    assert torch.equal(first.mask.sum(dim=1), torch.full((2,), 12.0))


def test_a_checkpoint_opens_as_an_encoder_without_masking(tmp_path):
    trained, images = make_model(), make_inputs()["pixel_values"]
    trained.save_pretrained(tmp_path)
    encoder, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is SelfViTModel
    assert not any(report.values()), report
    assert encoder.config.pooling == "mean"
    with torch.no_grad():
        tokens = encoder(images).last_hidden_state
        assert torch.equal(encoder(images).last_hidden_state, tokens)
        expected = trained.vit(images).last_hidden_state
    assert tokens.shape == (2, 17, 32)
    assert torch.equal(tokens, expected)
    assert torch.equal(encoder(images).pooler_output, tokens[:, 1:].mean(dim=1))


# Sizes


@pytest.mark.parametrize(("height", "width"), [(48, 16), (16, 40)])
@pytest.mark.parametrize("configured", [True, False])
def test_rectangular_images_can_be_trained_on_and_reconstructed(height, width, configured):
    model = make_model(image_size=(height, width) if configured else 32)
    inputs = make_inputs(height, width)
    output = model.train()(**inputs)
    output.loss.backward()
    assert output.mask.shape == (2, height * width // 64)
    images, _ = model.eval().reconstruct(**inputs)
    assert images.shape == inputs["pixel_values"].shape
    assert images.isfinite().all()


def test_the_decoders_positions_use_rows_then_columns():
    model = make_model(image_size=(48, 16))
    assert torch.equal(model.decoder.position_embeddings, sincos_position_embeddings(16, (6, 2)))


def test_encoder_and_decoder_interpolate_positions_alike():
    # positions computed for the larger grid would be outside the range of training
    model, inputs = make_model(), make_inputs(48, 64)
    output = model(**inputs)
    larger = make_model(image_size=(48, 64))
    for positions in ("vit.embeddings.position_embeddings", "decoder.position_embeddings"):
        ours, theirs = model.get_buffer(positions), larger.get_buffer(positions)
        theirs.copy_(interpolate_position_embeddings(ours, (4, 4), (6, 8)))
    torch.testing.assert_close(larger(**inputs).prediction, output.prediction, **CLOSE)


def test_positions_determine_the_places_of_predictions():
    # a decoder that swaps rows and columns would predict at wrong places
    model = make_model(image_size=(48, 16), mae={"norm_pix_loss": False})
    inputs = make_inputs(48, 16)
    order = torch.arange(12).unflatten(0, (6, 2)).flip(0).flatten()
    flipped = patchify(inputs["pixel_values"], 8)[:, order]
    changed = model(unpatchify(flipped, 8, (6, 2)), inputs["noise"][:, order])
    plain = model(**inputs)
    assert torch.equal(changed.mask, plain.mask[:, order])
    assert not torch.allclose(changed.prediction, plain.prediction[:, order], atol=1e-3)
    for positions in (model.vit.embeddings.position_embeddings, model.decoder.position_embeddings):
        positions[:, 1:] = positions[:, 1:][:, order]  # permuted alike
    turned = model(unpatchify(flipped, 8, (6, 2)), inputs["noise"][:, order])
    torch.testing.assert_close(turned.prediction, plain.prediction[:, order], **CLOSE)


# Extreme mask ratios


def test_a_ratio_without_visible_patches_is_an_error_that_suggests_valid_ratios():
    with pytest.raises(ValueError, match=r"mask_ratio \(0.95\) leaves none of 16 patches visible"):
        make_model(mae={"mask_ratio": 0.95})
    with pytest.raises(ValueError, match=r"use 0.063 to 0.937\."):
        make_model(mae={"mask_ratio": 0.95})
    for mask_ratio, num_masked in ((0.063, 2), (0.937, 15)):
        model = make_model(mae={"mask_ratio": mask_ratio})
        assert model(**make_inputs()).mask.sum().item() == 2 * num_masked


def test_a_ratio_without_masked_patches_is_an_error():
    with pytest.raises(ValueError, match=r"leaves none of 16 patches to predict; use 0.063"):
        make_model(mae={"mask_ratio": 1e-9})


def test_an_image_of_one_patch_is_an_error():
    with pytest.raises(ValueError, match="use larger images or a smaller patch_size"):
        make_model(image_size=8)
    with pytest.raises(ValueError, match="leaves none of 1 patches visible"):
        make_model()(torch.randn(2, 3, 8, 8))


@pytest.mark.parametrize("shape", [(2, 15), (1, 16), (16,)])
def test_noise_of_a_wrong_shape_is_an_error(shape):
    with pytest.raises(ValueError, match=r"noise must be \(batch, patches\), \(2, 16\)"):
        make_model()(make_inputs()["pixel_values"], torch.rand(shape))


def test_a_missing_mae_config_is_an_error():
    with pytest.raises(ValueError, match=r"mae_config=MAEConfig\(\)"):
        SelfViTForMAE(tiny_config())


# Reconstruction


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 16)])
def test_reconstruction_keeps_visible_patches_and_replaces_the_others(height, width, norm_pix_loss):
    model = make_model(mae={"norm_pix_loss": norm_pix_loss}, image_size=(height, width))
    inputs = make_inputs(height, width)
    images, mask = model.reconstruct(**inputs)
    assert not images.requires_grad
    assert torch.equal(mask, model(**inputs).mask)
    ours, given = patchify(images, 8), patchify(inputs["pixel_values"], 8)
    assert torch.equal(ours[~mask.bool()], given[~mask.bool()])
    assert ((ours - given).abs().amax(dim=-1)[mask.bool()] > 0).all()


def test_a_perfect_prediction_of_normalized_pixels_restores_the_image():
    model, inputs = make_model(), make_inputs()
    images = inputs["pixel_values"] * 3 + 1
    patches = patchify(images, 8)
    mean, std = patch_statistics(patches)
    perfect = (patches - mean) / std  # the target of the loss
    split = ids_to_keep(inputs["noise"], 4)

    def predict(module: Any, arguments: Any, output: Tensor) -> Tensor:
        return perfect

    handle = model.decoder.register_forward_hook(predict)
    assert model(images, inputs["noise"]).loss.item() == pytest.approx(0, abs=1e-10)
    filled, mask = model.reconstruct(images, inputs["noise"])
    handle.remove()
    assert torch.equal(mask, split.mask)
    torch.testing.assert_close(filled, images, rtol=0, atol=1e-5)


def test_without_normalization_predictions_are_pixels():
    model, inputs = make_model(mae={"norm_pix_loss": False}), make_inputs()
    images, mask = model.reconstruct(**inputs)
    prediction = model(**inputs).prediction
    assert torch.equal(patchify(images, 8)[mask.bool()], prediction[mask.bool()])


# Initialization and loading


def xavier_std(fan_in: int, fan_out: int) -> float:
    return (2 / (fan_in + fan_out)) ** 0.5


@pytest.mark.parametrize("initializer_range", [0.02, 0.1])
def test_every_parameter_and_buffer_is_initialized_as_documented(initializer_range):
    model = make_model(
        hidden_size=128,
        initializer_range=initializer_range,
        num_register_tokens=4,
        mae={"decoder_hidden_size": 64},
    )
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if name == "vit.embeddings.position_embeddings":
            assert torch.equal(value, sincos_position_embeddings(128, (4, 4)))
        elif name == "decoder.position_embeddings":
            assert torch.equal(value, sincos_position_embeddings(64, (4, 4)))
        elif name.endswith(("cls_token", "register_tokens", "mask_token")):
            assert_statistics(name, value, 0.0, initializer_range)
        elif name.endswith("projection.bias"):  # as in the encoder
            assert_statistics(name, value, 0.0, 1 / 192**0.5 / 3**0.5)
        elif re.search(r"layernorm\w*\.weight$", name):
            assert (value == 1).all(), name
        elif name.endswith("bias"):
            assert (value == 0).all(), name
        else:
            matrix = value.flatten(1)
            std = xavier_std(matrix.shape[1], matrix.shape[0])
            assert_statistics(name, matrix, 0.0, std)
            assert matrix.abs().max() <= std * 3**0.5, name


def test_fixed_positions_are_not_trained():
    model = make_model()
    names = dict(model.trained_parameters())
    assert not any("position_embeddings" in name for name in names)
    model.train()(**make_inputs()).loss.backward()
    assert not model.decoder.position_embeddings.requires_grad


def test_an_encoder_checkpoint_gets_a_new_decoder(tmp_path):
    encoder = SelfViTModel(tiny_config(position_embedding_type="sincos", initializer_range=0.2))
    encoder.save_pretrained(tmp_path)
    config = make_model().config
    model = SelfViTForMAE.from_pretrained(tmp_path, config=config)
    for name, value in encoder.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], value), name
    assert torch.equal(model.decoder.position_embeddings, sincos_position_embeddings(16, (4, 4)))
    weight = model.decoder.layers[0].mlp.fc1.weight
    assert_statistics("fc1", weight, 0.0, xavier_std(16, 64))
    assert model(**make_inputs()).loss.isfinite()


# Features of transformers


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("implementation", ["eager", "flex_attention"])
def test_the_attention_implementation_applies_to_the_decoder(implementation):
    model, inputs = make_model(), make_inputs()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = model(**inputs).prediction
        model.set_attn_implementation(implementation)
        assert model.decoder.layers[0].attention.config._attn_implementation == implementation
        torch.testing.assert_close(model(**inputs).prediction, expected, **CLOSE)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_compiles_as_one_graph(training):
    model, inputs = make_model().train(training), make_inputs()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(**inputs).loss, model(**inputs).loss, **CLOSE)


def test_a_tuple_has_the_same_values():
    model, inputs = make_model(), make_inputs()
    values = model(**inputs, return_dict=False)
    assert isinstance(values, tuple)
    assert torch.equal(values[0], model(**inputs).loss)
    assert torch.equal(values[2], model(**inputs).mask)


def test_gray_images_of_one_channel_work():
    model = make_model(num_channels=1)
    images = torch.randn(2, 1, 32, 32)
    assert model(images).prediction.shape == (2, 16, 64)
    assert model.reconstruct(images)[0].shape == images.shape


def test_bfloat16_weights_reconstruct_in_float32():
    model, inputs = make_model(), make_inputs()
    expected, _ = model.reconstruct(**inputs)
    images, _ = model.to(torch.bfloat16).reconstruct(**inputs)
    assert images.dtype == torch.float32
    assert F.cosine_similarity(images.flatten(1), expected.flatten(1)).min() > 0.999
