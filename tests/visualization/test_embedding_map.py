import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
from selfvit.visualization import embedding_map
from selfvit.visualization.embedding_map import (
    plot_embedding_map,
    project_to_plane,
    select_thumbnails,
)

from ..figures import kept_figures


@pytest.fixture
def vectors():
    centers = 5 * np.random.default_rng(0).normal(size=(3, 12))
    return (centers[LABELS] + np.random.default_rng(1).normal(size=(30, 12))).astype(np.float32)


LABELS = np.arange(30) % 3
COLORS = [(255, 0, 255), (0, 255, 255), (255, 255, 0)]


def test_the_picture_is_1600_pixels_wide_and_shows_thumbnails(vectors, tmp_path):
    images = [Image.new("RGB", (30, 20), COLORS[label]) for label in LABELS]
    path = tmp_path / "new" / "map.png"
    plot_embedding_map(vectors, images, LABELS, ["cat", "dog", "owl"], path)
    picture = Image.open(path)
    assert picture.size == (1600, 1040)
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for color in COLORS:  # at least one complete thumbnail per class
        assert (pixels == color).all(axis=1).sum() >= 0.8 * 42 * 28
    assert [file.name for file in path.parent.iterdir()] == ["map.png"]


def test_labels_images_and_names_are_optional(vectors, tmp_path):
    plot_embedding_map(vectors, None, None, None, tmp_path / "points.png")
    plot_embedding_map(vectors, None, LABELS, None, tmp_path / "classes.png")
    for name in ("points.png", "classes.png"):
        assert len(np.unique(np.asarray(Image.open(tmp_path / name)))) > 10  # not blank


def test_names_of_classes_are_not_read_as_markup(vectors, tmp_path):
    """A name with an underscore was missing from the legend, and two dollar signs were an error."""

    def legend_of(*names):
        path = tmp_path / "map.png"
        plot_embedding_map(vectors, None, LABELS, names, path, title="$5_$10")
        pixels = np.asarray(Image.open(path).convert("L"))[:, -250:]
        lines = np.flatnonzero((pixels < 128).any(axis=1))
        return pixels[:, 40:] < 128, 1 + (np.diff(lines) > 5).sum()

    _, num_lines = legend_of("_a", "b", "c")
    assert num_lines == 3
    text, num_lines = legend_of("cost_$5_$10", "b", "c")
    other, _ = legend_of("cost_5_10", "b", "c")
    assert num_lines == 3 and text.sum() > other.sum()


def test_unlabeled_images_are_gray_and_named_so_in_the_legend(vectors, tmp_path, monkeypatch):
    """They had the name of the last class, as -1 is the last place of the names."""
    figures = kept_figures(monkeypatch, embedding_map)
    labels = np.where(LABELS == 1, -1, LABELS)
    plot_embedding_map(vectors, None, labels, ["cat", "dog", "owl"], tmp_path / "map.png")
    (axes,) = figures[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cat", "owl", "no label"]
    colors = axes.collections[-1].get_facecolors()[:, :3]
    is_gray = (colors == embedding_map.GRAY[:3]).all(axis=1)
    assert is_gray.tolist() == (LABELS == 1).tolist()
    plot_embedding_map(vectors, None, np.full(30, -1), ["cat"], tmp_path / "none.png")


def test_only_drawn_images_are_read(vectors, tmp_path):
    class Images(list):
        read: list[int] = []

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    many = np.concatenate([vectors, vectors + 1e-4])
    images = Images([Image.new("L", (8, 8))] * 60)
    plot_embedding_map(many, images, None, None, tmp_path / "map.png")
    assert 0 < len(set(images.read)) <= 30 + 10


def test_the_map_keeps_neighbors_close_and_is_reproducible(vectors):
    positions = project_to_plane(vectors)
    distances = np.linalg.norm(positions[:, None] - positions, axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (LABELS[distances.argmin(axis=1)] == LABELS).mean() > 0.9
    np.testing.assert_array_equal(positions, project_to_plane(vectors))


@pytest.mark.parametrize("num_images", [4, 7])
def test_few_points_get_a_smaller_perplexity(vectors, num_images):
    # scikit-learn rejects a perplexity that is not below the number of points.
    positions = project_to_plane(vectors[:num_images], perplexity=30)
    assert positions.shape == (num_images, 2) and np.isfinite(positions).all()


def test_too_few_points_are_refused(vectors):
    with pytest.raises(ValueError, match="N >= 4"):
        project_to_plane(vectors[:3])


def test_thumbnails_have_a_minimum_distance():
    positions = np.random.default_rng(0).uniform(0, 100, size=(300, 2))
    chosen = positions[select_thumbnails(positions, 20)]
    gaps = np.linalg.norm(chosen[:, None] - chosen, axis=2)
    np.fill_diagonal(gaps, np.inf)
    assert gaps.min() >= 20
    # The selection is maximal: no other point would fit.
    assert (np.linalg.norm(positions[:, None] - chosen, axis=2).min(axis=1) < 20).all()


def test_different_numbers_of_labels_and_vectors_are_refused(vectors, tmp_path):
    with pytest.raises(ValueError, match=r"labels \(29\) and vectors \(30\)"):
        plot_embedding_map(vectors, None, LABELS[1:], None, tmp_path / "map.png")


def test_the_error_for_a_missing_library_names_the_extra(vectors, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(ImportError, match=r"selfvit\[viz\]"):
        project_to_plane(vectors)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"selfvit\[viz\]"):
        plot_embedding_map(vectors, None, None, None, tmp_path / "map.png")
