import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

pytest.importorskip("matplotlib")
from selfvit.cli import app
from selfvit.visualization import reconstructions

from . import image_files
from .visualization.panels import num_rows, panel_of
from .visualization.test_reconstructions import masked_of, save_mae

COLUMNS = {"attention": 4, "pca": 2, "reconstruct": 3}  # image, mean, two heads; ...
AWKWARD = {
    "1_gray.jpg": image_files.gray_jpeg,
    "2_rgba.png": image_files.rgba_png,
    "3_exif.jpg": image_files.exif_rotated_jpeg,
    "4_empty.jpg": image_files.empty_jpeg,
}


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoint, tmp_path_factory):
    mae = save_mae(tmp_path_factory.mktemp("mae"), norm_pix_loss=False)
    return {"attention": tiny_checkpoint, "pca": tiny_checkpoint, "reconstruct": mae}


@pytest.fixture
def awkward_folder(tmp_path):
    folder = tmp_path / "awkward"
    folder.mkdir()
    for name, write in AWKWARD.items():
        write(folder / name)
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out" / "picture.png"


@pytest.fixture
def draw(checkpoints, image_folder, output):
    def command(plot, *arguments, data=image_folder, model=None, output=output):
        where = [model or checkpoints[plot], "--data", data, "--output", output]
        return CliRunner().invoke(app, ["visualize", plot, *map(str, [*where, *arguments])])

    return command


every_plot = pytest.mark.parametrize("plot", COLUMNS)


class TestPicture:
    @every_plot
    def test_awkward_images_are_shown_upright_and_broken_ones_told(
        self, plot, draw, awkward_folder, output
    ):
        result = draw(plot, data=awkward_folder)
        assert result.exit_code == 0, result.output
        assert "3 images drawn" in result.stdout and str(output) in result.stdout
        assert result.stderr == "skipped 4_empty.jpg: empty file (0 bytes)\n"
        picture = Image.open(output)
        assert num_rows(picture) == 3 and picture.width == COLUMNS[plot] * 232 + 8
        for row, name in enumerate(["gray", "rgba"]):
            seen = panel_of(picture, row, 0)
            assert abs(seen[:, :50] - image_files.LIGHT).max() < 12, name
            assert abs(seen[:, -50:] - image_files.DARK).max() < 12, name
        upright = panel_of(picture, 2, 0)  # stored with the light half on the left
        assert abs(upright[:50] - image_files.LIGHT).max() < 12
        assert abs(upright[-50:] - image_files.DARK).max() < 12

    @every_plot
    def test_images_are_spread_over_the_data(self, plot, draw, image_folder, output):
        assert draw(plot, "--num-images", 3).exit_code == 0
        picture = Image.open(output)
        assert num_rows(picture) == 3
        alone = output.with_name("alone.png")
        # of 7 images in stretches of 2, 2 and 3 the third begins with dog/2.png
        assert draw(plot, "--num-images", 7, output=alone).exit_code == 0
        everything = Image.open(alone)
        for row, position in enumerate([0, 2, 4]):
            np.testing.assert_array_equal(
                panel_of(picture, row, 0), panel_of(everything, position, 0)
            )

    @every_plot
    def test_a_larger_size_gives_finer_maps(self, plot, draw, output):
        assert draw(plot, "--image-size", 64, "--num-images", 1).exit_code == 0
        panel = panel_of(Image.open(output), 0, 1, (256, 256))
        cells = panel.reshape(8, 32, 8, 32, 3)
        if plot != "reconstruct":  # a patch is a square of one color
            assert (cells == cells[:, :1, :, :1]).all()
            assert len(np.unique(cells[:, 0, :, 0].reshape(-1, 3), axis=0)) > 40
        else:
            assert masked_of(Image.open(output), patch=32, size=(256, 256)).sum() == 48

    @pytest.mark.parametrize("plot", ["attention", "pca"])
    def test_the_student_sees_otherwise_than_the_teacher(self, plot, draw, output):
        pictures = []
        for network in ("teacher", "student"):
            assert draw(plot, "--network", network, "--overwrite").exit_code == 0
            pictures.append(np.asarray(Image.open(output)))
        assert (pictures[0] != pictures[1]).any()

    def test_seed_and_mask_ratio_of_a_reconstruction(self, draw, output):
        masks = []
        for seed in (1, 1, 2):
            arguments = ("--seed", seed, "--mask-ratio", 0.5, "--overwrite")
            assert draw("reconstruct", *arguments).exit_code == 0
            masks.append(masked_of(Image.open(output)))
        assert masks[0].sum() == 8
        assert (masks[0] == masks[1]).all() and (masks[0] != masks[2]).any()

    def test_parquet_files_and_splits_are_read(self, draw, output, image_folder, tmp_path):
        import datasets

        rows = [{"image": {"path": str(image_folder / "dog" / "1.png"), "bytes": None}}] * 2
        features = datasets.Features({"image": datasets.Image()})
        dataset = datasets.Dataset.from_list(rows, features=features)
        dataset.to_parquet(tmp_path / "images.parquet")
        result = draw("pca", "--split", "train", data=tmp_path / "images.parquet")
        assert result.exit_code == 0 and num_rows(Image.open(output)) == 2


class TestErrors:
    def test_a_checkpoint_without_a_decoder_is_told(self, draw, tiny_checkpoint, output):
        result = draw("reconstruct", model=tiny_checkpoint)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
        assert "SelfViTForDINO checkpoint, without the decoder" in result.stderr
        assert "selfvit train mae --data" in result.stderr and not output.exists()

    def test_a_converted_checkpoint_without_a_decoder_has_the_given_name(
        self, draw, tiny_checkpoint, monkeypatch
    ):
        # the name was that of the folder in the cache
        monkeypatch.setattr(reconstructions, "resolve_checkpoint", lambda name: tiny_checkpoint)
        result = draw("reconstruct", model="dinov2")
        assert "'dinov2' is a SelfViTForDINO checkpoint" in result.stderr

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (["--num-images", "0"], "num_images (0)"),
            (["--mask-ratio", "1.5"], "mask_ratio (1.5) must be above 0 and below 1"),
            (["--split", "nope"], "without a subfolder 'nope'"),
        ],
    )
    def test_wrong_options_are_told(self, arguments, message, draw, output):
        result = draw("reconstruct", *arguments)
        assert result.exit_code == 2 and message in result.stderr
        assert not output.exists()

    @every_plot
    def test_a_size_that_the_patch_does_not_divide_is_told(self, plot, draw, output):
        result = draw(plot, "--image-size", 30)
        assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
        assert "(30) must be a multiple of patch_size (8)" in result.stderr
        assert "24 or 32" in result.stderr and not output.exists()

    @every_plot
    def test_an_existing_picture_is_refused_before_any_work(self, plot, draw, output):
        output.parent.mkdir()
        output.write_bytes(b"my photo")
        result = draw(plot, model="/nowhere/model", data="/nowhere/photos")
        assert result.exit_code == 2 and "exists; choose a new path" in result.stderr
        assert output.read_bytes() == b"my photo"
        assert draw(plot, "--overwrite").exit_code == 0
        assert Image.open(output).format == "PNG" and os.listdir(output.parent) == [output.name]

    @every_plot
    def test_missing_folders_are_one_line(self, plot, draw):
        for result in (draw(plot, model="/nowhere/model"), draw(plot, data="/nowhere/photos")):
            assert result.exit_code == 2 and "there is no folder" in result.stderr
            assert len(result.stderr.splitlines()) == 1

    @every_plot
    def test_without_any_readable_image_there_is_no_picture(self, plot, draw, output, tmp_path):
        (tmp_path / "data").mkdir()
        image_files.empty_jpeg(tmp_path / "data" / "a.jpg")
        result = draw(plot, data=tmp_path / "data")
        assert result.exit_code == 2 and "none of the 1 images can be read" in result.stderr
        assert not output.exists()

    @every_plot
    def test_missing_matplotlib_names_the_extra(self, plot, draw, output, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        result = draw(plot)
        assert result.exit_code == 2 and 'pip install "selfvit[viz]"' in result.stderr
        assert not output.parent.exists()


def test_a_real_process_draws(python_with_selfvit, tiny_checkpoint, image_folder, output):
    command = [python_with_selfvit, "-m", "selfvit.cli", "visualize", "pca", "--num-images", "2"]
    command += [tiny_checkpoint, "--data", image_folder, "--output", output]
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr
    assert num_rows(Image.open(output)) == 2


def test_help_lists_the_plots():
    text = CliRunner().invoke(app, ["visualize", "--help"]).stdout
    assert all(plot in text for plot in COLUMNS)
