from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from selfvit import DINOConfig, SelfViTConfig, SelfViTForDINO, SelfViTModel
from selfvit.visualization.attention_maps import attention_maps, plot_attention_maps

from ..image_files import noise
from .panels import panel_of

GEOMETRY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "num_register_tokens": 3,
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    # Large initial weights make attention far from uniform.
    return SelfViTModel(SelfViTConfig(**GEOMETRY, initializer_range=0.5)).eval()


@pytest.fixture
def pixel_values():
    return torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))


def test_maps_equal_the_attentions_that_the_model_returns(model, pixel_values):
    maps = attention_maps(model, pixel_values)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(pixel_values, output_attentions=True).attentions[-1]
    assert maps.shape == (3, 2, 4, 6)
    # Patches follow the class token and three register tokens, row by row.
    assert torch.equal(maps.flatten(2), attentions[:, :, 0, 4:])
    assert maps[0, 0, 1, 2] == attentions[0, 0, 0, 4 + 1 * 6 + 2]


def test_attention_to_patches_and_prefix_tokens_sums_to_one(model, pixel_values):
    maps = attention_maps(model, pixel_values)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        prefix = model(pixel_values, output_attentions=True).attentions[-1][:, :, 0, :4]
    totals = maps.sum(dim=(2, 3)) + prefix.sum(dim=2)
    torch.testing.assert_close(totals, torch.ones(3, 2))


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_attention_implementation_and_mode_are_restored(model, pixel_values, implementation):
    model.set_attn_implementation(implementation)
    model.train()
    attention_maps(model, pixel_values)
    assert model.config._attn_implementation == implementation
    assert model.training


def test_attention_implementation_is_restored_after_an_error(model):
    before = model.config._attn_implementation
    with pytest.raises(ValueError):
        attention_maps(model, torch.zeros(1, 3, 31, 32))
    assert model.config._attn_implementation == before == "sdpa"


def test_a_pretraining_model_uses_its_teacher():
    torch.manual_seed(0)
    dino = DINOConfig(num_prototypes=16, head_hidden_size=16, head_bottleneck_size=8)
    model = SelfViTForDINO(SelfViTConfig(**GEOMETRY, dino_config=dino)).eval()
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(attention_maps(model, images), attention_maps(model.vit, images))
    assert model.config._attn_implementation == "sdpa"


def test_the_picture_has_one_row_per_image_and_one_column_per_head(model, tmp_path):
    pytest.importorskip("matplotlib")
    processor = ViTImageProcessor(size={"height": 32, "width": 32}, do_convert_rgb=True)
    red = Image.new("RGB", (50, 40), (255, 0, 0))
    gray = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8))
    plot_attention_maps(model, processor, [red, gray], tmp_path / "new" / "maps.png")
    picture = Image.open(tmp_path / "new" / "maps.png").convert("RGB")
    assert picture.size == (4 * 232 + 8, 2 * 232 + 34)  # image, mean, two heads; two rows
    # The first panel is the preprocessed image without normalization.
    assert (panel_of(picture, 0, 0) == (255, 0, 0)).all()
    seen = np.asarray(gray.convert("RGB"))
    np.testing.assert_array_equal(panel_of(picture, 1, 0), np.kron(seen, np.ones((7, 7, 1))))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["maps.png"]


def test_panels_show_the_attention_maps(model, tmp_path):
    pytest.importorskip("matplotlib")
    processor = ViTImageProcessor(size={"height": 32, "width": 48}, do_convert_rgb=True)
    images = [noise(48, 32, seed) for seed in range(2)]
    plot_attention_maps(model, processor, images, tmp_path / "maps.png")
    picture = Image.open(tmp_path / "maps.png")
    maps = attention_maps(model, processor(images, return_tensors="pt")["pixel_values"])
    for row, image_maps in enumerate(maps):
        expected = [image_maps.mean(dim=0), *image_maps]
        for column, heads in enumerate(expected, start=1):
            drawn = panel_of(picture, row, column, (160, 240))
            brightness = drawn.reshape(4, 40, 6, 40, 3)[:, 0, :, 0].sum(axis=2).ravel()
            order = heads.flatten().argsort()  # in magma, larger values are brighter
            assert (np.diff(brightness[order]) >= 0).all()
            assert brightness.min() < 10 and brightness.max() > 600


def test_no_images_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        plot_attention_maps(model, None, [], tmp_path / "maps.png")
