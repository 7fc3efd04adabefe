import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from selfvit import SelfViTConfig, SelfViTModel
from selfvit.conversion.exporters.export import export
from selfvit.embedding.preprocessing import build_processor

from ..image_files import noise

timm = pytest.importorskip("timm")

VARIANTS = [
    {},
    {"pooling": "mean"},
    {"num_register_tokens": 4, "layerscale_value": 0.1, "pooling": "mean", "use_mask_token": True},
    {"position_embedding_type": "sincos", "qkv_bias": False, "num_register_tokens": 2},
    {"image_size": [16, 40], "mlp_ratio": 2.5, "hidden_act": "relu"},
]


def pixels(config):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, config.num_channels, *config.image_height_width, generator=generator)


def exported(checkpoint, folder, **arguments):
    report = export(checkpoint, folder, to="timm", **arguments)
    assert report.fidelity.max_difference < 1e-5
    return SelfViTModel.from_pretrained(checkpoint).eval()


@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_timm_vectors_match(overrides, make_checkpoint, tmp_path):
    ours = exported(make_checkpoint(**overrides), tmp_path / "out")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    with torch.no_grad():
        expected = ours(pixels(ours.config))
        found = theirs(pixels(ours.config))
        tokens = theirs.forward_features(pixels(ours.config))
    torch.testing.assert_close(found, expected.pooler_output, atol=1e-5, rtol=0)
    torch.testing.assert_close(tokens, expected.last_hidden_state, atol=1e-5, rtol=0)


def test_vit_s16_opens_by_name_and_weights_file(make_checkpoint, tmp_path):
    ours = exported(make_checkpoint(SelfViTConfig.from_name("vits16")), tmp_path / "out")
    theirs = timm.create_model(
        "vit_small_patch16_224",
        num_classes=0,
        checkpoint_path=str(tmp_path / "out" / "model.safetensors"),
    ).eval()
    with torch.no_grad():
        expected = ours(pixels(ours.config)).pooler_output
        torch.testing.assert_close(theirs(pixels(ours.config)), expected, atol=1e-5, rtol=0)


def test_transformers_opens_the_folder_and_pools_by_the_mean(make_checkpoint, tmp_path):
    ours = exported(make_checkpoint(pooling="mean"), tmp_path / "out")
    theirs = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = ours(pixels(ours.config)).pooler_output
        found = theirs(pixels(ours.config)).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("resize", ["shortest_edge", "square"])
def test_timm_transform_gives_the_pixels_of_the_processor(resize, make_checkpoint, tmp_path):
    pytest.importorskip("torchvision")
    checkpoint = make_checkpoint(resize=resize, image_size=56)
    notes = export(checkpoint, tmp_path / "out", to="timm").fidelity.notes
    assert ("center crop" in " ".join(notes)) == (resize != "square")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    for photo in (noise(128, 128), noise(96, 64), noise(50, 70)):
        ours = processor(photo, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(transform(photo), ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"num_register_tokens": 2, "interpolate_antialias": True, "pooling": "mean"},
        {"position_embedding_type": "rotary", "layer_norm_eps": 1e-5, "key_bias": False},
    ],
    ids=["learned", "antialias", "rotary"],
)
@pytest.mark.parametrize("resize", ["shortest_edge", "square"])
def test_an_encoder_larger_than_its_processor_has_the_size_of_the_processor(
    overrides, resize, make_checkpoint, tmp_path
):
    # as DINOv2, with 518 and 224 pixels; this was an error
    pytest.importorskip("torchvision")
    checkpoint = make_checkpoint(image_size=112, **overrides)
    build_processor(SelfViTConfig(image_size=56, patch_size=8), resize=resize).save_pretrained(
        checkpoint
    )
    report = export(checkpoint, tmp_path / "out", to="timm")
    assert report.fidelity.max_difference < 1e-5
    is_resized = "resized from 112 x 112 pixels to 56 x 56" in " ".join(report.fidelity.notes)
    assert is_resized == ("position_embedding_type" not in overrides)
    ours = SelfViTModel.from_pretrained(checkpoint).eval()
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    settings = timm.data.resolve_model_data_config(theirs)
    assert settings["input_size"] == (3, 56, 56)
    photo = noise(96, 64)
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    pixel_values = processor(photo, return_tensors="pt")["pixel_values"]
    transformed = timm.data.create_transform(**settings)(photo)[None]
    torch.testing.assert_close(transformed, pixel_values, atol=1e-5, rtol=0)
    with torch.no_grad():
        expected = ours(pixel_values).pooler_output
        torch.testing.assert_close(theirs(pixel_values), expected, atol=1e-5, rtol=0)


def test_the_edge_before_the_crop_is_not_rounded_down(make_checkpoint, tmp_path):
    # 32 / (32 / 37) is slightly less than 37, so timm would have resized to 36.
    export(make_checkpoint(), tmp_path / "out", to="timm")
    stored = json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]
    assert int(32 / stored["crop_pct"]) == 37


@pytest.mark.parametrize(
    "settings",
    [{"do_normalize": False}, {"rescale_factor": 1 / 127.5}, {"do_rescale": False}],
)
def test_other_scales_of_the_processor_become_mean_and_std(settings, make_checkpoint, tmp_path):
    pytest.importorskip("torchvision")
    checkpoint = make_checkpoint(resize="square", image_size=56)
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    processor.from_dict({**processor.to_dict(), **settings}).save_pretrained(checkpoint)
    export(checkpoint, tmp_path / "out", to="timm")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
    ours = processor(noise(96, 64), return_tensors="pt")["pixel_values"][0]
    scale = ours.abs().max().item()
    torch.testing.assert_close(transform(noise(96, 64)), ours, atol=1e-5 * scale, rtol=0)


def test_an_export_for_timm_without_resizing_is_an_error(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint()
    processor = AutoImageProcessor.from_pretrained(checkpoint)
    processor.from_dict({**processor.to_dict(), "do_resize": False}).save_pretrained(checkpoint)
    with pytest.raises(ValueError, match="do_resize"):
        export(checkpoint, tmp_path / "out", to="timm")


def test_a_processor_without_an_interpolation_has_the_bicubic_one(make_checkpoint, tmp_path):
    checkpoint = make_checkpoint()  # this was a TypeError
    stored = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({**stored, "resample": None}))
    export(checkpoint, tmp_path / "out", to="timm")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["pretrained_cfg"]["interpolation"] == "bicubic"


def test_names_match_timm_and_query_key_and_value_are_one_tensor(make_checkpoint, tmp_path):
    ours = exported(make_checkpoint(), tmp_path / "out")
    weights = load_file(tmp_path / "out" / "model.safetensors")
    attention = ours.layers[1].attention
    separate = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    assert torch.equal(weights["blocks.1.attn.qkv.weight"], torch.cat(separate))
    assert torch.equal(weights["pos_embed"], ours.embeddings.position_embeddings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pooling": "gem"}, "cannot be expressed.*Use --pooling mean for the nearest"),
        ({"pooling": "concat:2"}, "cannot be expressed.*Use --pooling cls for the nearest"),
        ({"pooling": "cls+mean"}, "cannot be expressed.*Use --pooling cls for the nearest"),
        ({"layer_norm_eps": 1e-5}, r"layer_norm_eps \(1e-05\) must be 1e-06"),
        ({"hidden_act": "gelu_10"}, r"hidden_act \('gelu_10'\) must be one of gelu"),
    ],
)
def test_encoders_that_timm_cannot_express_are_refused(
    overrides, message, make_checkpoint, tmp_path
):
    with pytest.raises(ValueError, match=message):
        export(make_checkpoint(**overrides), tmp_path / "out", to="timm")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("image_size", "changed", "message"),
    [
        (32, {"resample": Image.Resampling.LANCZOS}, "must be bilinear or bicubic for timm"),
        # timm resizes in another way; these were exported without a message
        (32, {"size": {"shortest_edge": 40, "longest_edge": 44}}, "must be a shortest edge, foll"),
        ([16, 40], {"size": {"shortest_edge": 48}}, "followed by a square center crop"),
        (
            32,
            {"crop_size": {"height": 30, "width": 30}},
            r"output size \(30 x 30\) that the patch size \(8\) divides",
        ),
    ],
    ids=["lanczos", "longest edge", "not square", "no multiple"],
)
def test_preprocessing_that_timm_cannot_express_is_refused(
    image_size, changed, message, make_checkpoint, tmp_path
):
    checkpoint = make_checkpoint(image_size=image_size)
    sides = [image_size] * 2 if isinstance(image_size, int) else image_size
    crop = {"do_center_crop": True, "crop_size": dict(zip(("height", "width"), sides, strict=True))}
    stored = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({**stored, **crop, **changed}))
    with pytest.raises(ValueError, match=message):
        export(checkpoint, tmp_path / "out", to="timm")
    assert not list(tmp_path.iterdir())
