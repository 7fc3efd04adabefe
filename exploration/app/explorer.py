"""Answers that the app shows: search, clusters, map, table, images."""

# N rows · E embedding

from __future__ import annotations

import csv
import functools
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ...data.sources import Data
from ...embedding.vectors.columns import COLUMNS_PATTERN
from ...embedding.vectors.storage import is_remote
from ..collection import Collection, check_rows, directions_of
from ..map_files import choose_color, coloring_columns, render_map_page
from ..maps import last_settings, lay_out
from ..search import SearchResult, directions_at, find_matches
from .uploads import Uploads
from .view import View

if TYPE_CHECKING:
    from ..duplicates import DuplicatesResult

RESULTS = 10  # of a search
EXEMPLARS = 12  # of a cluster
MAX_SHOWN = 200  # images of one cluster
SIZES = (160, 640)  # pixels, longer side of the images that are served
QUALITY = 85  # of JPEG


class Explorer:
    """Collection as the app shows it.

    Args:
        vectors: Folder of vectors.
        data: Place of the images; None for the one that the folder names.
        checkpoint: Checkpoint of the vectors; None for the one that the folder names.
        device: Device to compute on; None for the best available.

    Raises:
        FileNotFoundError: If there are no vectors or no images.
        ValueError: If there is no vector.
    """

    def __init__(
        self,
        vectors: str | Path | Collection,
        data: Data | None = None,
        checkpoint: str | None = None,
        device: str | None = None,
    ):
        self.collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
        check_rows(self.collection, 1, "the app")
        self.images = self.collection.images(data)
        self._data = data
        self._checkpoint, self._device = checkpoint, device
        stored = (self.collection.metadata.get("images") or {}).get("data")
        places = stored if data is None else data
        places = [places] if isinstance(places, str | Path) else list(places or ())
        self._roots = [Path(place).resolve() for place in places if Path(str(place)).is_dir()]
        self._found: dict[str, SearchResult] = {}
        self.uploads = Uploads(self._search_upload, self.collection.pixel_range)
        self._lock = threading.Lock()

    @property
    def columns(self) -> dict[str, Sequence[Any]]:
        """Columns by name: labels, folders and those that were added to the vectors."""
        return self._columns_of(self._column_files())

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one explorer per process)
    def _columns_of(self, files: tuple[tuple[str, int], ...]) -> dict[str, Sequence[Any]]:
        return coloring_columns(self.collection)

    def _column_files(self) -> tuple[tuple[str, int], ...]:
        """Return the files of added columns with their times, as they change while the app runs."""
        folder = self.collection.folder
        if is_remote(folder):
            return ()
        return tuple((p.name, p.stat().st_mtime_ns) for p in sorted(folder.glob(COLUMNS_PATTERN)))

    @functools.cached_property
    def name(self) -> str:
        """Name of the folder of vectors."""
        return Path(str(self.collection.folder)).resolve().name

    # ------------------------------------------------------------------ images

    def may_serve(self, row: int) -> bool:
        """Return whether the file of a row is in the folder of the images, links resolved.

        Args:
            row: Row.

        Raises:
            FileNotFoundError: If the images no longer hold it.
        """
        image = self.images.record(row).image
        if not isinstance(image, str) or "://" in image:
            return True  # content of an archive or a table, or an object of the storage
        path = Path(image)
        real, parent = path.resolve(), path.parent.resolve()
        if self._roots:
            return any(real.is_relative_to(root) for root in self._roots)
        return real.parent == parent  # a file of a list, which is no link to somewhere else

    def image_file(self, row: int, size: int) -> bytes | None:
        """Return the image of a row as JPEG; None if it cannot be served.

        Args:
            row: Row.
            size: Longer side in pixels, one of `SIZES`.
        """
        if not 0 <= row < len(self.collection) or size not in SIZES:
            return None
        return self._image_file(row, size)

    @functools.lru_cache(maxsize=4096)  # noqa: B019 (one explorer per process)
    def _image_file(self, row: int, size: int) -> bytes | None:
        try:
            if not self.may_serve(row):
                return None
        except FileNotFoundError:
            return None
        return jpeg(self.images.thumbnail(row, size))

    def _thumbnail(self, row: int, size: int) -> Image.Image:
        """Return the shrunk image of a row, gray if it may not be served."""
        try:
            if self.may_serve(row):
                return self.images.thumbnail(row, size)
        except FileNotFoundError:
            pass
        return Image.new("RGB", (size, size), (128, 128, 128))

    # ------------------------------------------------------------------ search

    def _search_upload(self, digest: str, content: bytes) -> None:
        with self._lock:
            direction = directions_of(self._embedder([content]))
        names = ["the image that you dropped"]
        self._found[digest] = find_matches(self.collection, direction, names, RESULTS)

    @functools.cached_property
    def _embedder(self) -> Any:
        return self.collection.embedder(self._checkpoint, device=self._device)

    def query_row(self, view: View) -> int:
        """Return the row of the image that a view searches by.

        Args:
            view: State of the app.

        Raises:
            ValueError: If there is no such image, or several have its name and no row is given.
        """
        ids = self.collection.ids
        row = int(view.row) if view.row.isdecimal() else len(ids)
        if row < len(ids) and ids[row] == view.image:
            return row
        return self.collection.rows_of(view.image)[0]

    def search(self, view: View) -> SearchResult | None:
        """Return the result of the search of a view; None if there is no query.

        Args:
            view: State of the app.

        Raises:
            ValueError: If there is no such image.
        """
        if view.upload:
            return self._found.get(view.upload)
        if view.image:
            row = self.query_row(view)
            direction = directions_at(self.collection, [row])
            return find_matches(self.collection, direction, [view.image], RESULTS, [row])
        return None

    # ------------------------------------------------------------------ clusters

    @property
    def clusters(self) -> dict[str, list[int]]:
        """Rows of each cluster, the most typical first; {} if there is no column `cluster`.

        The most typical row is the nearest to the mean direction of the cluster.
        """
        return self._clusters_of(self._column_files())

    @functools.lru_cache(maxsize=1)  # noqa: B019 (one explorer per process)
    def _clusters_of(self, files: tuple[tuple[str, int], ...]) -> dict[str, list[int]]:
        values = self.columns.get("cluster")
        if values is None:
            return {}
        names = ["none" if value in (None, -1) else str(value) for value in values]
        found: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            found.setdefault(name, []).append(row)
        ordered = sorted(found, key=lambda name: (name == "none", -len(found[name]), name))
        return {name: self._typical_first(found[name]) for name in ordered}

    def _typical_first(self, rows: list[int]) -> list[int]:
        directions = self.collection.directions[rows]
        center = directions_of(directions.mean(axis=0, keepdims=True))[0]
        order = np.argsort(-(directions @ center), kind="stable")
        return [rows[place] for place in order]

    # ------------------------------------------------------------------ duplicates

    @functools.cached_property
    def duplicates(self) -> DuplicatesResult:
        """Groups of duplicates, as `selfvit duplicates` finds them.

        Raises:
            ValueError: If they cannot be found.
        """
        from ..duplicates import duplicates as find

        with self._lock:
            return find(
                self.collection,
                data=self._data,
                checkpoint=self._checkpoint,
                device=self._device,
            )

    # ------------------------------------------------------------------ map and table

    @functools.cached_property
    def map_page(self) -> bytes:
        """Page of the map: the last one that `selfvit map` has laid out, or a new one."""
        with self._lock:
            layout = lay_out(self.collection, **last_settings(self.collection))
            color = choose_color(self.columns, None)
            text, _ = render_map_page(self.collection, layout, self.columns, color, self._thumbnail)
            return text.encode()

    def rows_of(self, view: View) -> list[int]:
        """Return the rows that the filters of the table select.

        Args:
            view: State of the app.
        """
        rows = range(len(self.collection))
        wanted = view.text.strip().lower()
        if wanted:
            rows = [row for row in rows if wanted in self.collection.ids[row].lower()]  # type: ignore[assignment]
        if view.column in self.columns and view.value:
            values = self.columns[view.column]
            rows = [row for row in rows if str(values[row]) == view.value]  # type: ignore[assignment]
        return list(rows)

    def table(self, rows: Sequence[int]) -> tuple[list[str], list[list[Any]]]:
        """Return the header and the lines of a table of rows.

        Args:
            rows: Rows.
        """
        header = ["row", "path", *self.columns]
        lines = [
            [row, self.collection.ids[row], *(values[row] for values in self.columns.values())]
            for row in rows
        ]
        return header, lines

    def csv(self, view: View) -> bytes:
        """Return the rows that the filters select as CSV.

        Args:
            view: State of the app.
        """
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        header, lines = self.table(self.rows_of(view))
        writer.writerow(header)
        writer.writerows(lines)
        return file.getvalue().encode("utf-8", "surrogateescape")


def jpeg(picture: Image.Image) -> bytes:
    """Return an image as a JPEG file.

    Args:
        picture: Image.
    """
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


__all__ = ["EXEMPLARS", "MAX_SHOWN", "SIZES", "Explorer", "jpeg"]
