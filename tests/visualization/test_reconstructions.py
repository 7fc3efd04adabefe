import numpy as np
import pytest
import torch
from PIL import Image

from selfvit import SelfViTForMAE
from selfvit.embedding.preprocessing import build_processor
from selfvit.training.recipes import RECIPES
from selfvit.visualization.reconstructions import open_mae, plot_reconstructions

from .. import image_files
from ..objectives import tiny_config, tiny_mae_config
from .panels import num_rows, panel_of

GRAY = 128
PATCH = 56  # side of a patch in pixels of a panel


def save_mae(folder, **mae):
    """Save a tiny MAE model whose predictions differ clearly from the pixels of any image."""
    torch.manual_seed(0)
    config = tiny_config(initializer_range=0.2, mae_config=tiny_mae_config(**mae))
    SelfViTForMAE(config).save_pretrained(folder)
    build_processor(config, resize="square", mean=(0.3,) * 3, std=(0.2,) * 3).save_pretrained(
        folder
    )
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_mae(tmp_path_factory.mktemp("mae"), norm_pix_loss=False)


@pytest.fixture
def draw(checkpoint, tmp_path):
    def command(images, seed=0, **options):
        plot_reconstructions(*open_mae(checkpoint, **options), images, path, seed=seed)
        return Image.open(path)

    path = tmp_path / "new" / "picture.png"
    return command


def patches_of(panel, patch=PATCH):
    """Split a panel into patches, row by row: (H, W, 3) -> (N, patch, patch, 3)."""
    rows, columns = panel.shape[0] // patch, panel.shape[1] // patch
    return panel.reshape(rows, patch, columns, patch, 3).swapaxes(1, 2).reshape(-1, patch, patch, 3)


def masked_of(picture, row=0, patch=PATCH, size=(224, 224)):
    """Return a mask (N,) of the patches that are gray in the masked panel."""
    return (patches_of(panel_of(picture, row, 1, size), patch) == GRAY).all(axis=(1, 2, 3))


NOISE = [image_files.noise(32, 32, seed) for seed in range(3)]


class TestPicture:
    def test_visible_patches_are_original_and_masked_patches_gray(self, draw):
        picture = draw(NOISE)
        assert num_rows(picture) == 3
        for row, image in enumerate(NOISE):
            seen, masked, filled = (
                patches_of(panel_of(picture, row, column)) for column in range(3)
            )
            enlarged = np.kron(np.asarray(image), np.ones((7, 7, 1)))
            np.testing.assert_array_equal(seen, patches_of(enlarged))
            is_masked = masked_of(picture, row)
            assert is_masked.sum() == 12  # 0.75 of 16
            np.testing.assert_array_equal(masked[~is_masked], seen[~is_masked])
            np.testing.assert_array_equal(filled[~is_masked], seen[~is_masked])
            for prediction, truth in zip(filled[is_masked], seen[is_masked], strict=True):
                assert np.abs(prediction - truth).max() > 20

    def test_masked_patches_show_the_predictions_of_the_model(self, draw, checkpoint):
        picture = draw(NOISE[:1])
        model, processor = open_mae(checkpoint)
        pixel_values = processor(NOISE[:1], return_tensors="pt")["pixel_values"]
        noise = torch.rand(1, 16, generator=torch.Generator().manual_seed(0))
        images, mask = model.reconstruct(pixel_values, noise)
        pixels = (255 * (images[0] * 0.2 + 0.3).clamp(0, 1)).round()  # its std and mean
        filled = panel_of(picture, 0, 2)[::7, ::7]
        np.testing.assert_array_equal(filled, pixels.movedim(0, -1).numpy())
        np.testing.assert_array_equal(masked_of(picture), mask[0].bool().numpy())

    def test_the_seed_determines_the_masks(self, draw):
        first = [masked_of(draw(NOISE[:2], seed=1), row) for row in (0, 1)]
        again = [masked_of(draw(NOISE[:2], seed=1), row) for row in (0, 1)]
        other = [masked_of(draw(NOISE[:2], seed=2), row) for row in (0, 1)]
        np.testing.assert_array_equal(first, again)
        assert (first[0] != other[0]).any() and (first[0] != first[1]).any()

    def test_the_global_random_state_is_not_used(self, draw):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        draw(NOISE[:1])
        assert torch.equal(torch.rand(3), expected)

    @pytest.mark.parametrize("mask_ratio, num_masked", [(0.25, 4), (0.5, 8), (0.9, 15)])
    def test_the_mask_ratio_can_be_changed(self, draw, mask_ratio, num_masked):
        assert masked_of(draw(NOISE[:1], mask_ratio=mask_ratio)).sum() == num_masked

    def test_any_multiple_of_the_patch_size_works(self, draw):
        picture = draw([image_files.noise(64, 64)], image_size=64)
        masked = masked_of(picture, patch=32, size=(256, 256))
        assert len(masked) == 64 and masked.sum() == 48

    def test_images_need_not_be_square(self, tmp_path):
        torch.manual_seed(0)
        config = tiny_config(image_size=(32, 48), mae_config=tiny_mae_config())
        model = SelfViTForMAE(config).eval()
        plot_reconstructions(model, build_processor(config), NOISE[:1], tmp_path / "wide.png")
        picture = Image.open(tmp_path / "wide.png")
        assert masked_of(picture, patch=40, size=(160, 240)).sum() == 18  # 0.75 of 4 x 6

    def test_the_mode_of_every_module_is_restored(self, checkpoint, tmp_path):
        model, processor = open_mae(checkpoint)
        model.train()
        model.vit.layers[0].eval()
        plot_reconstructions(model, processor, NOISE[:1], tmp_path / "picture.png")
        assert model.decoder.training and not model.vit.layers[0].training

    def test_predictions_of_normalized_pixels_get_the_true_brightness(self, tmp_path):
        # The model does not predict the brightness of a patch, so the true one is drawn.
        model, processor = open_mae(save_mae(tmp_path / "mae", norm_pix_loss=True))
        plain = Image.new("RGB", (32, 32), (200, 200, 200))
        plot_reconstructions(model, processor, [plain], tmp_path / "picture.png")
        picture = Image.open(tmp_path / "picture.png")
        assert np.abs(panel_of(picture, 0, 2) - 200).max() <= 2
        assert masked_of(picture).sum() == 12


class TestErrors:
    def test_the_error_for_a_checkpoint_without_a_decoder_names_a_recipe(self, tiny_checkpoint):
        with pytest.raises(ValueError, match="SelfViTForDINO checkpoint, without the decoder"):
            open_mae(tiny_checkpoint)
        with pytest.raises(ValueError, match="selfvit train mae --data"):
            open_mae(tiny_checkpoint)
        assert RECIPES["mae"](None, None).architecture == "SelfViTForMAE"

    def test_a_saved_mae_encoder_has_no_decoder(self, checkpoint, tmp_path):
        model, _ = open_mae(checkpoint)
        model.vit.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="MAEEncoder checkpoint, without the decoder"):
            open_mae(tmp_path)

    @pytest.mark.parametrize("mask_ratio", [0, 1, -0.5])
    def test_ratios_outside_zero_to_one_are_refused(self, mask_ratio, checkpoint):
        with pytest.raises(Exception, match=rf"mask_ratio \({mask_ratio}\) must be above 0"):
            open_mae(checkpoint, mask_ratio=mask_ratio)

    def test_a_ratio_that_leaves_no_visible_patch_is_refused(self, checkpoint):
        with pytest.raises(ValueError, match="leaves none of 16 patches visible"):
            open_mae(checkpoint, mask_ratio=0.99)

    def test_a_missing_folder_is_an_error(self):
        with pytest.raises(FileNotFoundError, match="there is no folder '/nowhere/model'"):
            open_mae("/nowhere/model")

    def test_no_images_are_refused(self, checkpoint, tmp_path):
        with pytest.raises(ValueError, match="at least one image"):
            plot_reconstructions(*open_mae(checkpoint), [], tmp_path / "picture.png")
