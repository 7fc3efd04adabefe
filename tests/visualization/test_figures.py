import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")
from selfvit.visualization.figures import GAP, HEADER, check_picture, draw_panels, heatmap

from .panels import panel_of


def random_panel(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)) / 255


@pytest.mark.parametrize("height, width, factor", [(28, 28, 8), (32, 48, 5), (224, 224, 1)])
def test_panels_show_every_pixel_as_a_square(height, width, factor, tmp_path):
    rows = [[random_panel(height, width, seed), random_panel(2, 2, seed)] for seed in range(3)]
    draw_panels(["left", "right"], rows, tmp_path / "panels.png")
    picture = Image.open(tmp_path / "panels.png")
    panel_height, panel_width = height * factor, width * factor
    assert picture.size == (
        2 * (panel_width + GAP) + GAP,
        3 * (panel_height + GAP) + HEADER,
    )
    for row, panels in enumerate(rows):
        for column, panel in enumerate(panels):
            drawn = panel_of(picture, row, column, (panel_height, panel_width))
            block = (panel_height // len(panel), panel_width // panel.shape[1])
            expected = np.kron(np.round(panel * 255), np.ones((*block, 1)))
            np.testing.assert_array_equal(drawn, expected)


def test_large_images_are_shrunk_and_keep_their_proportions(tmp_path):
    draw_panels(["image"], [[np.full((2000, 1000, 3), 0.4)]], tmp_path / "panels.png")
    picture = Image.open(tmp_path / "panels.png")
    assert picture.size == (256 + 2 * GAP, 512 + GAP + HEADER)
    assert (panel_of(picture, 0, 0, (512, 256)) == 102).all()


def test_titles_are_above_their_columns(tmp_path):
    draw_panels(["", "MMM"], [[np.zeros((200, 200, 3))] * 2], tmp_path / "panels.png")
    header = np.asarray(Image.open(tmp_path / "panels.png").convert("L"))[:HEADER]
    columns = np.flatnonzero((header < 128).any(axis=0))
    assert abs(columns.mean() - (GAP + 200 + GAP + 100)) < 5
    rows = np.flatnonzero((header < 128).any(axis=1))
    assert rows.min() > 2 and rows.max() < HEADER - 2


def test_heatmaps_range_from_black_to_light_and_accept_constants():
    colors = heatmap(np.array([[0.1, 0.2], [0.3, 0.4]]))
    brightness = colors.sum(axis=2)
    assert brightness[0, 0] < 0.1 and brightness[1, 1] > 2
    assert (np.diff(brightness.ravel()) > 0).all()
    constant = heatmap(np.full((3, 3), 0.25))
    assert np.isfinite(constant).all() and (constant == constant[0, 0]).all()


@pytest.mark.parametrize("name", ["photo.jpg", "photo", "photo.png.txt"])
def test_other_extensions_are_refused(name, tmp_path):
    with pytest.raises(ValueError, match="does not end in .png"):
        check_picture(tmp_path / name)


def test_an_existing_picture_is_replaced_only_with_overwrite(tmp_path):
    check_picture(tmp_path / "new" / "picture.PNG")
    (tmp_path / "picture.png").touch()
    with pytest.raises(FileExistsError, match="--overwrite"):
        check_picture(tmp_path / "picture.png")
    check_picture(tmp_path / "picture.png", overwrite=True)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(FileExistsError, match="is a folder"):
        check_picture(tmp_path / "folder.png", overwrite=True)


def test_missing_matplotlib_is_an_error_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for function in (lambda: check_picture(tmp_path / "a.png"), lambda: heatmap(np.zeros((2, 2)))):
        with pytest.raises(ImportError, match=r"selfvit\[viz\]"):
            function()
