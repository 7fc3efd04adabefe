"""Write the map of a collection: an interactive page, a picture, or a table for embedding-atlas."""

# N rows

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ..atomic_output import atomic_output
from ..data.image_source import NO_LABEL
from ..data.sources import Data
from ..visualization.embedding_map import MAX_LEGEND_CLASSES, draw_embedding_map
from .collection import Collection, CollectionImages, check_rows
from .maps import Layout, lay_out

TITLES = {"umap": "UMAP", "tsne": "t-SNE"}
PREFERRED_COLORS = ("label", "cluster", "folder")  # the first that there is colors the map
MAX_FOLDERS = 200  # more of them are no groups
ATLAS_IMAGE = 96  # pixels, longer side of the images for embedding-atlas
ATLAS_BATCH = 1000  # rows


@dataclass(frozen=True)
class MapResult:
    """Result of `map_vectors`.

    Args:
        output: File that was written; None if there is none.
        atlas: Table for embedding-atlas that was written; None if there is none.
        layout: Positions and neighbors.
        num_thumbnails: Number of images that the page shows.
        color: Column that colors the points; None for points of one color.
        note: Remark on the picture; "" for none.
    """

    output: str | None
    atlas: str | None
    layout: Layout
    num_thumbnails: int
    color: str | None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers of the result as values that JSON can represent."""
        layout = self.layout
        return {
            "output": self.output,
            "atlas": self.atlas,
            "method": layout.method,
            "seed": layout.seed,
            "num_rows": len(layout.positions),
            "num_kept": layout.num_kept,
            "num_placed": layout.num_placed,
            "num_thumbnails": self.num_thumbnails,
            "color": self.color,
            "note": self.note,
        }


def map_vectors(
    vectors: str | os.PathLike[str] | Collection,
    output: str | os.PathLike[str] | None = None,
    *,
    atlas: str | os.PathLike[str] | None = None,
    method: str = "umap",
    seed: int = 0,
    new: bool = False,
    color: str | None = None,
    thumbnails: bool = True,
    data: Data | None = None,
) -> MapResult:
    """Lay a collection out in two dimensions and write the map.

    The positions become the columns `x` and `y` of the vectors. See `exploration.maps.lay_out` for
    the rule by which images keep their positions.

    Args:
        vectors: Folder of vectors, or the collection that was opened.
        output: HTML page or PNG to write, by its extension; None for neither.
        atlas: Parquet file for embedding-atlas; None for none.
        method: "umap" or "tsne".
        seed: Random seed.
        new: Whether positions of an earlier map are ignored.
        color: Column that colors the points; None for the labels, clusters or folders.
        thumbnails: Whether the map shows images.
        data: Place of the images; None for the one that the folder of vectors names.

    Raises:
        FileNotFoundError: If there are no vectors, or no images.
        ImportError: If umap-learn, scikit-learn or matplotlib is not installed.
        ValueError: If there is no vector, no such method or no such column, or the output is
            neither .html nor .png.
    """
    collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
    suffix = Path(output).suffix.lower() if output is not None else None
    if suffix not in (None, ".html", ".png"):
        raise ValueError(f"{str(output)!r} must end in .html or .png; choose such a name.")
    check_rows(collection, 1, "a map")
    columns = coloring_columns(collection)
    color = choose_color(columns, color)
    images = collection.images(data) if thumbnails or atlas is not None else None
    layout = lay_out(collection, method=method, seed=seed, new=new)
    num_thumbnails = 0
    note = ""
    if output is not None and suffix == ".html":
        thumbnail = images.thumbnail if images is not None and thumbnails else None
        page, num_thumbnails = render_map_page(collection, layout, columns, color, thumbnail)
        with atomic_output(output) as unfinished:
            unfinished.write_text(page, encoding="utf-8")
    elif output is not None:
        shown = images if thumbnails else None
        note = _draw_picture(collection, layout, columns, color, shown, output)
    if atlas is not None and images is not None:
        write_atlas(collection, layout, columns, images, atlas)
    written = [None if path is None else str(path) for path in (output, atlas)]
    return MapResult(written[0], written[1], layout, num_thumbnails, color, note)


def coloring_columns(collection: Collection) -> dict[str, Sequence[Any]]:
    """Return the values that points can be colored by: labels, folders and added columns.

    `folder` is the first folder of the paths, for example train and test, if it is not the label.

    Args:
        collection: Vectors.
    """
    columns: dict[str, Sequence[Any]] = {}
    if collection.labels is not None:
        columns["label"] = collection.labels
    columns |= {k: v for k, v in collection.columns.items() if k not in ("x", "y")}
    folders = [PurePosixPath(name).parts[0] if "/" in name else None for name in collection.ids]
    if 1 < len(set(folders)) <= MAX_FOLDERS and folders != columns.get("label"):
        columns.setdefault("folder", folders)
    return columns


def choose_color(columns: dict[str, Sequence[Any]], wanted: str | None) -> str | None:
    """Return the column that colors the map; None for points of one color.

    Args:
        columns: Columns by name.
        wanted: Name that the user has chosen; None for the default.

    Raises:
        ValueError: If there is no such column.
    """
    if wanted is None:
        return next((name for name in PREFERRED_COLORS if name in columns), None)
    if wanted not in columns:
        known = ", ".join(columns) or "none"
        raise ValueError(f"the vectors have no column {wanted!r} to color by; there are: {known}.")
    return wanted


def render_map_page(
    collection: Collection,
    layout: Layout,
    columns: dict[str, Sequence[Any]],
    color: str | None,
    open_thumbnail: Callable[[int, int], Image.Image] | None,
) -> tuple[str, int]:
    """Return the interactive page, and the number of images that it shows.

    Args:
        collection: Vectors.
        layout: Positions and neighbors.
        columns: Columns to color by.
        color: Column of the first view; None for points of one color.
        open_thumbnail: Function of row and size in pixels that returns the shrunk image; None for
            a page without images.
    """
    from .page.page import Page, render_page
    from .page.thumbnails import draw_thumbnails

    count = len(collection)
    pictures = None if open_thumbnail is None else draw_thumbnails(open_thumbnail, count)
    shown = 0 if pictures is None else pictures.count
    note = f"{TITLES[layout.method]} of {count:,} vectors, seed {layout.seed}"
    if shown < count:
        note += f"; thumbnails of {shown:,} images" if shown else "; no thumbnails"
    page = Page(
        title=f"{Path(str(collection.folder)).resolve().name}: {count:,} images",
        names=collection.ids,
        positions=layout.positions,
        neighbors=layout.neighbors,
        similarities=layout.similarities,
        columns=columns,
        color=color,
        thumbnails=pictures,
        note=note,
    )
    return render_page(page), shown


class _Pictures(Sequence):
    """Images of a collection, opened when they are drawn."""

    def __init__(self, images: CollectionImages, count: int, size: int):
        self._images, self._count, self._size = images, count, size

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Image.Image:
        return self._images.thumbnail(int(row), self._size)


def _draw_picture(
    collection: Collection,
    layout: Layout,
    columns: dict[str, Sequence[Any]],
    color: str | None,
    images: CollectionImages | None,
    path: str | os.PathLike[str],
) -> str:
    """Draw the map as a picture; return a remark if it has no legend."""
    from .page.page import is_numeric

    count = len(collection)
    codes = names = values = None
    if color is not None and is_numeric(columns[color]):
        numbers = [np.nan if value is None else value for value in columns[color]]
        values = np.array(numbers, dtype=np.float64)
    elif color is not None:
        codes, names = _classes(columns[color])
    coloring = "" if color is None else f", colored by {color}"
    draw_embedding_map(
        layout.positions,
        None if images is None else _Pictures(images, count, 128),
        codes,
        names,
        path,
        values=values,
        unlabeled_name=f"no {color}",
        seed=layout.seed,
        title=f"{TITLES[layout.method]} of {count:,} vectors{coloring}",
    )
    if names is None or len(names) <= MAX_LEGEND_CLASSES:
        return ""
    return (
        f"the picture has no legend: column {color!r} has {len(names)} values, and only "
        f"{MAX_LEGEND_CLASSES} fit; write a page (.html), or choose another --color"
    )


def _classes(values: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
    """Return the class of each value (N,), NO_LABEL for None, and the names of the classes.

    Integers are in the order of their values, all else in that of their texts.
    """
    known = [value for value in values if value is not None]
    if all(isinstance(value, int) for value in known):
        names = [str(value) for value in sorted(set(known))]
    else:
        names = sorted({str(value) for value in known})
    places = {name: place for place, name in enumerate(names)}
    codes = [NO_LABEL if value is None else places[str(value)] for value in values]
    return np.array(codes), names


def write_atlas(
    collection: Collection,
    layout: Layout,
    columns: dict[str, Sequence[Any]],
    images: CollectionImages,
    path: str | os.PathLike[str],
) -> None:
    """Write the table that embedding-atlas opens: positions, neighbors, images and columns.

    Args:
        collection: Vectors.
        layout: Positions and neighbors.
        columns: Further columns.
        images: Images, stored as JPEG of at most `ATLAS_IMAGE` pixels.
        path: Parquet file to write.
    """
    with atomic_output(path) as unfinished:
        writer = None
        for table in _atlas_tables(collection, layout, columns, images):
            writer = writer or pq.ParquetWriter(str(unfinished), table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def _atlas_tables(
    collection: Collection,
    layout: Layout,
    columns: dict[str, Sequence[Any]],
    images: CollectionImages,
) -> Iterator[pa.Table]:
    id_column = "path" if collection.manifest is None else collection.manifest.data["id_column"]
    further = {name: pa.array(values) for name, values in columns.items()}
    neighbors = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))])
    for start in range(0, len(collection), ATLAS_BATCH):
        stop = min(start + ATLAS_BATCH, len(collection))
        x, y = layout.positions[start:stop].T
        found = [
            {"ids": rows, "distances": distances}
            for rows, distances in zip(
                layout.neighbors[start:stop].tolist(),
                (1 - layout.similarities[start:stop]).tolist(),
                strict=True,
            )
        ]
        pictures = [{"bytes": _jpeg(images, row)} for row in range(start, stop)]
        yield pa.table(
            {
                id_column: pa.array(collection.ids[start:stop], pa.string()),
                "x": np.ascontiguousarray(x),
                "y": np.ascontiguousarray(y),
                "neighbors": pa.array(found, neighbors),
                "image": pa.array(pictures, pa.struct([("bytes", pa.binary())])),
                **{name: values[start:stop] for name, values in further.items()},
            }
        )


def _jpeg(images: CollectionImages, row: int) -> bytes:
    file = io.BytesIO()
    images.thumbnail(row, ATLAS_IMAGE).save(file, "JPEG", quality=85)
    return file.getvalue()


def atlas_command(path: str | os.PathLike[str]) -> str:
    """Return the command that opens the table in embedding-atlas.

    Args:
        path: Table that `write_atlas` wrote.
    """
    import shlex

    return (
        f"embedding-atlas {shlex.quote(str(path))} --x x --y y --neighbors neighbors --image image"
    )


__all__ = [
    "MapResult",
    "atlas_command",
    "choose_color",
    "coloring_columns",
    "map_vectors",
    "render_map_page",
    "write_atlas",
]
