"""Embedding map: t-SNE in two dimensions (van der Maaten and Hinton, JMLR 2008) with thumbnails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageOps

from ..data.image_source import NO_LABEL
from .figures import new_figure, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# N points · E embedding

WIDTH, HEIGHT = 1600, 1040  # pixels
MARGIN, TITLE_HEIGHT, LEGEND_WIDTH = 24, 56, 260  # pixels
COLOR_BAR_WIDTH = 32  # pixels
THUMBNAIL = 42  # pixels, longer side
THUMBNAIL_DISTANCE = 68  # pixels between the centers of thumbnails; points remain visible between
MAX_LEGEND_CLASSES = 30  # more do not fit into the height
GRAY = (0.65, 0.65, 0.65, 1)  # color of images without a label, RGBA


def project_to_plane(vectors: np.ndarray, *, seed: int = 0, perplexity: float = 30) -> np.ndarray:
    """Project vectors to two dimensions with t-SNE, which keeps neighbors by cosine close.

    Distances between clusters and sizes of clusters are not meaningful in such a map.

    Args:
        vectors: Vectors, (N, E); more than 10,000 take minutes.
        seed: Random seed of the optimization.
        perplexity: Approximate number of neighbors considered for each point; limited to
            (N - 1) / 3.

    Returns:
        Positions, (N, 2), float32.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If N is below 4 or E is below 2.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            'an embedding map needs scikit-learn; install it with pip install "selfvit[viz]".'
        ) from error
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) < 4 or vectors.shape[1] < 2:
        raise ValueError(
            f"vectors must be (N, E) with N >= 4 and E >= 2, but the shape is {vectors.shape}; "
            "use more images."
        )
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    directions = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    tsne = TSNE(
        n_components=2,
        init="pca",
        perplexity=min(perplexity, (len(vectors) - 1) / 3),
        random_state=seed,
    )
    return tsne.fit_transform(directions)


def select_thumbnails(positions: np.ndarray, min_distance: float) -> list[int]:
    """Select points greedily in their order, with a minimum distance to all selected points.

    Args:
        positions: Positions, (N, 2).
        min_distance: Minimum distance, in the unit of the positions.

    Returns:
        Indices of the selected points, ascending.
    """
    chosen: list[int] = []
    for index, position in enumerate(positions):
        gaps = np.linalg.norm(positions[chosen] - position, axis=1)
        if not (gaps < min_distance).any():
            chosen.append(index)
    return chosen


def plot_embedding_map(
    vectors: np.ndarray,
    images: Sequence[Image.Image] | None,
    labels: np.ndarray | None,
    label_names: Sequence[str] | None,
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    perplexity: float = 30,
    title: str | None = None,
) -> None:
    """Draw an embedding map as a PNG of 1600 x 1040 pixels.

    Points are colored by class. Where there is room, the image of a point is drawn as a thumbnail,
    framed in the color of its class.

    Args:
        vectors: Vectors, (N, E).
        images: N images, or None to draw points only. Only images that are drawn are read, so a
            lazy sequence is possible.
        labels: Class indices, (N,), or None for points of one color. Points of -1 have no label
            and are gray.
        label_names: Name of each class, by index, or None to show the indices.
        path: PNG file to write.
        seed: Random seed of t-SNE and of the selection of thumbnails.
        perplexity: Perplexity, as in `project_to_plane`.
        title: Title of the map; by default, it describes the map.

    Raises:
        ImportError: If matplotlib or scikit-learn is not installed.
        ValueError: If `project_to_plane` rejects the vectors, or the number of images or labels is
            not the number of vectors.
    """
    _check_lengths(vectors, images, labels)
    if title is None:
        title = _title("t-SNE", vectors, labels)
    positions = project_to_plane(vectors, seed=seed, perplexity=perplexity)
    draw_embedding_map(positions, images, labels, label_names, path, seed=seed, title=title)


def draw_embedding_map(
    positions: np.ndarray,
    images: Sequence[Image.Image] | None,
    labels: np.ndarray | None,
    label_names: Sequence[str] | None,
    path: str | os.PathLike[str],
    *,
    values: np.ndarray | None = None,
    unlabeled_name: str = "no label",
    seed: int = 0,
    title: str | None = None,
) -> None:
    """Draw a map whose positions are known, as `plot_embedding_map` does.

    Args:
        positions: Positions, (N, 2).
        images: N images or None, as in `plot_embedding_map`.
        labels: Class indices, (N,), or None for points of one color. Points of -1 have no label
            and are gray.
        label_names: Name of each class, by index, or None to show the indices.
        path: PNG file to write.
        values: Numbers that color the points instead of labels, (N,), with a color bar. Points
            whose number is not finite are gray.
        unlabeled_name: Name of the points without a label in the legend.
        seed: Random seed of the selection of thumbnails.
        title: Title of the map; by default, it describes the map.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the number of images, labels or values is not the number of positions.
    """
    _check_lengths(positions, images, labels, values)
    figure = new_figure(WIDTH, HEIGHT)
    right = MARGIN if labels is None and values is None else LEGEND_WIDTH
    width, height = WIDTH - MARGIN - right, HEIGHT - MARGIN - TITLE_HEIGHT
    axes = figure.add_axes((MARGIN / WIDTH, MARGIN / HEIGHT, width / WIDTH, height / HEIGHT))
    # The unit of the axes is one pixel, as for the distance between thumbnails.
    positions = _scale_to(positions, width, height)
    axes.set(xlim=(0, width), ylim=(0, height), xticks=[], yticks=[])
    axes.spines[:].set_color("0.85")
    if values is not None:
        colors = _draw_color_bar(figure, values)
    else:
        colors = _draw_legend(axes, labels, label_names, unlabeled_name, len(positions))
    axes.scatter(positions[:, 0], positions[:, 1], c=colors, s=28, linewidths=0, alpha=0.85)
    if images is not None:
        order = np.random.default_rng(seed).permutation(len(positions))
        for index in order[select_thumbnails(positions[order], THUMBNAIL_DISTANCE)]:
            _draw_thumbnail(axes, positions[index], images[int(index)], colors[index])
    if title is None:
        title = _title("map", positions, labels)
    axes.set_title(title, fontsize=16, loc="left", pad=12, parse_math=False)
    save_png(figure, path)


def _title(method: str, rows: np.ndarray, labels: np.ndarray | None) -> str:
    coloring = "" if labels is None else ", colored by class"
    return f"{method} of {len(rows):,} embeddings{coloring}"


def _check_lengths(
    vectors: np.ndarray,
    images: Sequence[Image.Image] | None,
    labels: np.ndarray | None,
    values: np.ndarray | None = None,
) -> None:
    for name, given in (("images", images), ("labels", labels), ("values", values)):
        if given is not None and len(given) != len(vectors):
            raise ValueError(
                f"the numbers of {name} ({len(given)}) and vectors ({len(vectors)}) must be equal."
            )


def _scale_to(positions: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale positions (N, 2) to the axes, with a margin of half a thumbnail at the edges."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    unit = (positions - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    return THUMBNAIL * 0.75 + unit * (np.array([width, height]) - THUMBNAIL * 1.5)


def _draw_legend(
    axes: Axes,
    labels: np.ndarray | None,
    label_names: Sequence[str] | None,
    unlabeled_name: str,
    count: int,
) -> np.ndarray:
    """Draw the legend of the classes if they fit; return the color of each point (N, 4)."""
    import matplotlib

    if labels is None:
        return np.tile(matplotlib.colormaps["tab10"](0), (count, 1))
    is_labeled = labels != NO_LABEL
    classes, ranks = np.unique(labels[is_labeled], return_inverse=True)
    names = [str(label) if label_names is None else label_names[label] for label in classes]
    palette = _palette(len(classes))
    colors = np.tile(GRAY, (count, 1))
    colors[is_labeled] = palette[ranks]
    if len(classes) > MAX_LEGEND_CLASSES:
        return colors
    if not is_labeled.all():
        names, palette = [*names, unlabeled_name], np.vstack([palette, GRAY])
    handles = [axes.scatter([], [], color=color, s=60) for color in palette]
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
    # names are set afterwards: a legend leaves out those that start with an underscore
    legend = axes.legend(
        handles, [""] * len(handles), frameon=False, fontsize=12, borderaxespad=0, **place
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)
    return colors


def _draw_color_bar(figure: Figure, values: np.ndarray) -> np.ndarray:
    """Draw the color bar of numbers; return the color of each point (N, 4)."""
    import matplotlib
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0, 1)
    mappable = ScalarMappable(Normalize(low, high), matplotlib.colormaps["viridis"])
    place = ((WIDTH - LEGEND_WIDTH + MARGIN) / WIDTH, 0.25, COLOR_BAR_WIDTH / WIDTH, 0.5)
    figure.colorbar(mappable, cax=figure.add_axes(place)).ax.tick_params(labelsize=12)
    is_finite = np.isfinite(values)[:, None]
    return np.where(is_finite, mappable.to_rgba(values), GRAY)


def _palette(num_classes: int) -> np.ndarray:
    """Return the colors of the classes (L, 4); beyond 20 classes, adjacent hues look similar."""
    import matplotlib

    if num_classes <= 10:
        return matplotlib.colormaps["tab10"](np.arange(num_classes))
    if num_classes <= 20:
        return matplotlib.colormaps["tab20"](np.arange(num_classes))
    return matplotlib.colormaps["hsv"](np.linspace(0, 1, num_classes, endpoint=False))


def _draw_thumbnail(axes: Axes, position: np.ndarray, image: Image.Image, color: Any) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    small = ImageOps.contain(image.convert("RGB"), (THUMBNAIL, THUMBNAIL))
    # The unit of OffsetImage is a point of 1/72 inch.
    picture = OffsetImage(np.asarray(small), zoom=72 / axes.figure.dpi, interpolation="antialiased")
    frame = {"edgecolor": color, "linewidth": 1.5, "facecolor": "none"}
    axes.add_artist(AnnotationBbox(picture, tuple(position), pad=0.05, bboxprops=frame))
