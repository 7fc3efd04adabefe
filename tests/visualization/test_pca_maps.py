import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.decomposition import PCA
from transformers import ViTImageProcessor

from selfvit import SelfViTConfig, SelfViTForDINO, SelfViTModel
from selfvit.visualization.pca_maps import patch_tokens, pca_colors, plot_pca_maps

from .. import image_files
from .panels import num_rows, panel_of


@pytest.fixture
def model():
    """Encoder without position embeddings, so that patches differ only in their content."""
    torch.manual_seed(0)
    config = SelfViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        num_register_tokens=3,
        initializer_range=0.2,
    )
    model = SelfViTModel(config).eval()
    torch.nn.init.zeros_(model.embeddings.position_embeddings)
    return model


@pytest.fixture
def processor():
    return ViTImageProcessor(size={"height": 32, "width": 32}, do_convert_rgb=True)


@pytest.fixture
def tokens():
    return torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))


class TestTokens:
    def test_tokens_are_the_patch_tokens_row_by_row(self, model):
        pixel_values = torch.randn(2, 3, 32, 48)
        tokens = patch_tokens(model, pixel_values)
        with torch.no_grad():
            hidden_states = model(pixel_values).last_hidden_state
        assert tokens.shape == (2, 4, 6, 32)
        # Patches follow the class token and three register tokens.
        assert torch.equal(tokens.flatten(1, 2), hidden_states[:, 4:])
        assert torch.equal(tokens[1, 2, 3], hidden_states[1, 4 + 2 * 6 + 3])

    def test_the_mode_of_every_module_is_restored(self, model):
        model.train()
        model.layers[0].eval()
        patch_tokens(model, torch.randn(1, 3, 32, 32))
        assert model.training and not model.layers[0].training and model.layers[1].training

    def test_a_pretraining_model_uses_its_teacher(self, tiny_checkpoint):
        model = SelfViTForDINO.from_pretrained(tiny_checkpoint)
        images = torch.randn(1, 3, 32, 32)
        assert torch.equal(patch_tokens(model, images), patch_tokens(model.vit, images))


class TestColors:
    def test_components_equal_those_of_scikit_learn_up_to_sign(self, tokens):
        scores = PCA(n_components=3).fit_transform(tokens.flatten(0, 2).double().numpy())
        colors = pca_colors(tokens).flatten(0, 2).double().numpy() - 0.5
        for component in range(3):
            inside = np.abs(colors[:, component]) < 0.4999  # the other values are clipped
            assert inside.sum() > 40
            ratio = colors[inside, component] / scores[inside, component]
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)

    def test_the_sign_does_not_depend_on_the_order_of_the_images(self, tokens):
        torch.testing.assert_close(pca_colors(tokens.flip(0)), pca_colors(tokens).flip(0))

    def test_components_are_computed_from_all_images_together(self, tokens):
        alone = pca_colors(tokens[:1])
        assert not torch.allclose(pca_colors(tokens)[:1], alone, atol=1e-2)

    def test_equal_tokens_are_gray_despite_rounding_errors(self):
        tokens = torch.randn(10).expand(2, 4, 4, 10)
        rounded = tokens + 1e-7 * torch.randn(2, 4, 4, 10)
        assert (pca_colors(rounded) == 0.5).all()
        assert (pca_colors(torch.zeros(1, 2, 2, 5)) == 0.5).all()

    def test_two_kinds_of_patches_span_the_range_of_one_color(self):
        tokens = torch.zeros(1, 2, 4, 8)
        tokens[:, :, 2:] = torch.randn(8, generator=torch.Generator().manual_seed(0))
        colors = pca_colors(tokens)
        left, right = colors[0, 0, 0], colors[0, 0, 3]
        assert {round(float(left[0])), round(float(right[0]))} == {0, 1}
        assert (colors[..., 1:] == 0.5).all()  # the other components have no variation

    def test_a_few_patches_of_large_norm_do_not_compress_the_other_colors(self):
        tokens = torch.randn(1, 30, 30, 6, generator=torch.Generator().manual_seed(0))
        tokens[0, 0, :10] *= 10  # 1 %
        reds = pca_colors(tokens)[..., 0].flatten()[10:]
        assert reds.std() > 0.14  # a range from smallest to largest value would give 0.014

    def test_a_rare_patch_is_visible(self):
        tokens = torch.zeros(1, 30, 30, 6)
        tokens[0, 7, 7] = 1
        reds = pca_colors(tokens)[..., 0].flatten()
        assert reds[7 * 30 + 7].round() in (0, 1) and (reds - 0.5).abs().median() < 0.01


class TestPicture:
    def test_halves_of_different_content_get_different_colors(self, model, processor, tmp_path):
        plot_pca_maps(model, processor, [image_files.light_left(32, 32)], tmp_path / "pca.png")
        picture = Image.open(tmp_path / "pca.png")
        seen, colors = panel_of(picture, 0, 0), panel_of(picture, 0, 1)
        assert (seen[:, :112] == image_files.LIGHT).all()
        assert (seen[:, 112:] == image_files.DARK).all()
        left, right = colors[:, :112], colors[:, 112:]
        assert (left == left[0, 0]).all() and (right == right[0, 0]).all()
        assert abs(left[0, 0, 0] - right[0, 0, 0]) == 255

    def test_an_image_of_one_color_gives_a_map_of_one_color(self, model, processor, tmp_path):
        plain = Image.new("RGB", (40, 40), (10, 200, 90))
        plot_pca_maps(model, processor, [plain, image_files.noise(32, 32)], tmp_path / "pca.png")
        picture = Image.open(tmp_path / "pca.png")
        colors = panel_of(picture, 0, 1)
        assert np.ptp(colors, axis=(0, 1)).max() <= 1  # of 255
        assert np.ptp(panel_of(picture, 1, 1), axis=(0, 1)).max() > 100

    def test_any_multiple_of_the_patch_size_works(self, model, tmp_path):
        processor = ViTImageProcessor(size={"height": 64, "width": 96}, do_convert_rgb=True)
        images = [image_files.noise(50, 50, seed) for seed in range(3)]
        plot_pca_maps(model, processor, images, tmp_path / "pca.png")
        picture = Image.open(tmp_path / "pca.png")
        assert num_rows(picture, 192) == 3
        colors = panel_of(picture, 2, 1, (192, 288))
        cells = colors.reshape(8, 24, 12, 24, 3)  # a patch is a square of one color
        assert (cells == cells[:, :1, :, :1]).all()
        assert len(np.unique(cells[:, 0, :, 0].reshape(-1, 3), axis=0)) > 48

    def test_no_images_are_refused(self, model, processor, tmp_path):
        with pytest.raises(ValueError, match="at least one image"):
            plot_pca_maps(model, processor, [], tmp_path / "pca.png")
