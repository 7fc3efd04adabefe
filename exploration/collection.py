"""Open a folder of vectors together with the images that they are of."""

# N rows · E embedding

from __future__ import annotations

import csv
import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ..atomic_output import atomic_output
from ..data.decoding import UnreadableImageError, decode_image
from ..data.image_source import ImageRecord, ImageSource, short_hash
from ..data.sources import Data, open_images
from ..embedding.vectors.columns import fingerprint_of, read_columns, write_columns
from ..embedding.vectors.folder import METADATA
from ..embedding.vectors.manifest import Manifest
from ..embedding.vectors.reader import read_part, read_vectors
from ..embedding.vectors.storage import is_remote, read_text, resolve

if TYPE_CHECKING:
    from ..embedding.embedder import Embedder

# Entries of a fingerprint that the vectors of a query need not have.
NOT_OF_A_QUERY = ("vector_dtype", "patch_grid", "engine")
NAME_IN_STREAM = re.compile(r"shard \d+ row \d+")  # of a row of a stream that has no id


class Collection:
    """Vectors of a folder, row by row.

    Args:
        folder: Folder that `selfvit embed` wrote, or its URL.

    Raises:
        FileNotFoundError: If there are no vectors in the folder.
        ValueError: If a file is damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = resolve(folder)
        self.manifest = Manifest.load(self.folder)
        if self.manifest is None:
            names = read_vectors(self.folder).column_names
        else:
            names = self.manifest.schema.names
        small = [name for name in names if name not in ("embedding", "patches")]
        self._table = read_vectors(self.folder, small)
        self.metadata: dict[str, Any] = json.loads(read_text(self.folder / METADATA) or "{}")
        self._opened: tuple[Any, Embedder] | None = None  # last embedder, and what it was asked for

    def __len__(self) -> int:
        return len(self._table)

    @property
    def is_complete(self) -> bool:
        """Whether the run that wrote the folder has ended."""
        return bool(self.metadata.get("complete", True))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash that changes with any vector; of the names only in a folder without a manifest."""
        if self.manifest is None:
            return short_hash(name.encode("utf-8", "surrogatepass") for name in self.ids)
        return fingerprint_of(self.manifest)

    @property
    def pixel_range(self) -> tuple[float, float] | None:
        """Values of black and white in image files of more than eight bits, as in `PixelFormat`."""
        stored = None if self.manifest is None else self.manifest.checkpoint.get("pixel_range")
        return None if stored is None else tuple(stored)

    @functools.cached_property
    def ids(self) -> list[str]:
        """Names of the images: paths or ids."""
        return self._table.column(0).to_pylist()

    @functools.cached_property
    def labels(self) -> list[str | None] | None:
        """Names of the classes; None if the images are unlabeled."""
        if "label" not in self._table.column_names:
            return None
        return self._table["label"].to_pylist()

    @functools.cached_property
    def seconds(self) -> list[float] | None:
        """Times of the frames in their videos; None if the vectors are of images."""
        if "seconds" not in self._table.column_names:
            return None
        return self._table["seconds"].to_pylist()

    @functools.cached_property
    def checksums(self) -> list[str | None]:
        """Checksums of the image files; None where there is none."""
        if "checksum" not in self._table.column_names:
            return [None] * len(self)
        return self._table["checksum"].to_pylist()

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """Vectors, (N, E), float32.

        Raises:
            ValueError: If a vector is not finite, or the folder has other vectors by now.
        """
        vectors = vectors_of(read_vectors(self.folder, ["embedding"])["embedding"])
        self._check_unchanged()
        self._check_finite(vectors, range(len(vectors)))
        return vectors

    def vectors_at(self, rows: Sequence[int]) -> np.ndarray:
        """Return the vectors of some rows; only the parts that hold them are read.

        Args:
            rows: R rows.

        Returns:
            Vectors, (R, E), float32.

        Raises:
            ValueError: As `vectors`.
        """
        if self.manifest is None or "vectors" in vars(self):
            return self.vectors[rows]
        self._check_unchanged()
        vectors = np.empty((len(rows), self.manifest.checkpoint["embedding_size"]), np.float32)
        start = 0
        for part in self.manifest.in_order():
            stop = start + part.num_rows
            places = [place for place, row in enumerate(rows) if start <= row < stop]
            if places:
                table = read_part(self.folder, self.manifest, part, ["embedding"])
                inside = [rows[place] - start for place in places]
                vectors[places] = vectors_of(table["embedding"])[inside]
            start = stop
        self._check_finite(vectors, rows)
        return vectors

    def _check_finite(self, vectors: np.ndarray, rows: Sequence[int]) -> None:
        is_finite = np.isfinite(vectors).all(axis=1)
        if not is_finite.all():
            row = rows[int(np.flatnonzero(~is_finite)[0])]
            raise ValueError(
                f"the vectors must be finite, but that of {self.ids[row]!r} in "
                f"{str(self.folder)!r} is not; embed the images again in float32."
            )

    def _check_unchanged(self) -> None:
        """Check that no update has changed the vectors since the collection was opened."""
        if self.manifest is None:
            return
        now = Manifest.load(self.folder)
        if now is None or fingerprint_of(now) != self.fingerprint:
            raise ValueError(
                f"the vectors in {str(self.folder)!r} have changed since they were opened, so that "
                "names and vectors would be mixed up; open the folder again."
            )

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """Vectors scaled to length 1, (N, E), float32; a vector of zeros stays as it is."""
        return directions_of(self.vectors)

    @property
    def columns(self) -> dict[str, list[Any]]:
        """Columns that were added to the vectors, for example clusters, by name."""
        added = read_columns(self.folder, self.fingerprint)
        return {name: column.to_pylist() for name, column in added.items()}

    @property
    def is_local(self) -> bool:
        """Whether the vectors are on this machine, so that columns can be added to them."""
        return not is_remote(self.folder)

    def write_columns(self, name: str, columns: Mapping[str, Any]) -> Path:
        """Add columns to the vectors, see `embedding.vectors.columns.write_columns`.

        Args:
            name: Name of their file.
            columns: Values of all rows by name of the column.
        """
        return write_columns(self.folder, self.fingerprint, name, columns)

    def write_csv(self, path: Path, columns: Mapping[str, Sequence[Any]]) -> None:
        """Write columns as a CSV file with a row per image, or per frame with its time.

        Args:
            path: File to write.
            columns: Values of all rows by name of the column; None is an empty cell.
        """
        seconds = {} if self.seconds is None else {"seconds": self.seconds}
        table = {"path": self.ids, **seconds, **columns}
        with (
            atomic_output(path) as unfinished,
            open(unfinished, "w", encoding="utf-8", newline="") as stream,
        ):
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(table)
            writer.writerows(zip(*table.values(), strict=True))

    def rows_of(self, name: str) -> list[int]:
        """Return the row of an image, or the rows of the frames of a video.

        Args:
            name: Name of the image, as for `row_of`.

        Raises:
            ValueError: If there is no such row, or several images have the name.
        """
        row = self.row_of(name)
        if (count := self._counts[self.ids[row]]) == 1:
            return [row]
        if self.manifest is None or not self.manifest.data.get("is_video"):
            raise ValueError(
                f"{name!r} must be one image, but {count} rows of {str(self.folder)!r} have this "
                "name; embed the images with names (a column id) that are unique."
            )
        return [place for place, other in enumerate(self.ids) if other == self.ids[row]]

    def row_of(self, name: str) -> int:
        """Return the row of an image, the first one of several.

        Args:
            name: Name of the image, as in `ids`, or the path of its file.

        Raises:
            ValueError: If there is no such row.
        """
        if name in self._rows:
            return self._rows[name]
        parts = name.split("/")
        below = [
            self._rows[end]
            for start in range(1, len(parts))
            if (end := "/".join(parts[start:])) in self._rows and self._may_be_in(parts[:start])
        ]
        if len(below) == 1:
            return below[0]
        if os.path.isabs(name) and self._image_folder is not None:
            inside = os.path.relpath(name, self._image_folder)
            if inside in self._rows:
                return self._rows[inside]
        raise ValueError(
            f"{str(self.folder)!r} has no image {name!r}; its names are like "
            f"{self.ids[0] if self.ids else '-'!r}."
        )

    def _may_be_in(self, folders: list[str]) -> bool:
        """Return whether the images are in a folder, given by the last parts of its path.

        It is True if the vectors do not name their images.
        """
        stored = (self.metadata.get("images") or {}).get("data")
        if stored is None:
            return True
        places = [
            os.path.abspath(place) for place in ([stored] if isinstance(stored, str) else stored)
        ]
        places += [os.path.dirname(place) for place in places if not os.path.isdir(place)]
        wanted = "/" + "/".join(part for part in folders if part not in ("", "."))
        is_tail = any(known.endswith(wanted) for known in places)
        return is_tail or os.path.abspath("/".join(folders)) in places

    @functools.cached_property
    def _image_folder(self) -> str | None:
        """Folder that the paths of the images start from; None if there is none."""
        stored = self.metadata.get("images") or {}
        if "data" not in stored or self._table.column_names[0] != "path":
            return None
        try:
            folder = getattr(open_images(**stored), "folder", None)
        except (OSError, ValueError, ImportError):  # the images are gone
            return None
        return None if folder is None else os.path.abspath(folder)

    @functools.cached_property
    def _counts(self) -> Counter[str]:
        return Counter(self.ids)

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in reversed(list(enumerate(self.ids)))}

    def embedder(self, checkpoint: str | None = None, **options: Any) -> Embedder:
        """Return an embedder whose vectors can be compared with those of the folder.

        A repeated call with the same arguments returns the same one.

        Args:
            checkpoint: Checkpoint; None for the one that the folder names.
            options: Further options of `Embedder.from_pretrained`, for example `device`.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            ValueError: If the checkpoint is another one than that of the vectors, or the folder
                names none.
        """
        asked = (checkpoint, options)
        if self._opened is not None and self._opened[0] == asked:
            return self._opened[1]
        from ..embedding.embedder import Embedder
        from ..embedding.vectors.fingerprint import checkpoint_fingerprint

        name = checkpoint or self.metadata.get("model")
        if name is None:
            raise ValueError(
                f"{str(self.folder)!r} does not say which checkpoint its vectors are of; choose it "
                "with --checkpoint."
            )
        stored = {} if self.manifest is None else self.manifest.checkpoint
        entries = {**self.metadata, **stored}
        known = {
            key: entries[key]
            for key in ("network", "pooling", "normalize", "dtype", "pixel_range")
            if entries.get(key) is not None
        }
        if "pixel_range" in known:
            known["pixel_range"] = tuple(known["pixel_range"])
        embedder = Embedder.from_pretrained(name, **{**known, **options})
        if self.manifest is not None:
            embedder.use_engine_of(stored)
            found = checkpoint_fingerprint(embedder, "float32")
            differing = [
                key
                for key, value in stored.items()
                if key not in NOT_OF_A_QUERY and found.get(key) != value
            ]
            if differing:
                raise ValueError(
                    f"the vectors in {str(self.folder)!r} are of another checkpoint than {name!r} "
                    f"({', '.join(differing)} differ); choose theirs with --checkpoint, or embed "
                    "the images again."
                )
        self._opened = asked, embedder
        return embedder

    def images(self, data: Data | None = None) -> CollectionImages:
        """Return the images that the vectors are of.

        Args:
            data: Place of the images; None for the one that the folder names.

        Raises:
            FileNotFoundError: If there is no such place.
            ValueError: If the folder names none.
        """
        stored = dict(self.metadata.get("images") or {})
        place = stored.pop("data", None) if data is None else data
        if place is None:
            raise ValueError(
                f"{str(self.folder)!r} does not say where its images are; give their place with "
                "--data."
            )
        stored.pop("data", None)
        if self.manifest is not None and self.manifest.data.get("is_video"):
            raise ValueError(
                f"the vectors in {str(self.folder)!r} are of frames of videos, which cannot be "
                "shown yet; leave out the sheet, or use --no-thumbnails for a map. Duplicates and "
                "the app need images."
            )
        source = open_images(place, **stored)
        return CollectionImages(self, source)


class CollectionImages:
    """Images of a collection by row.

    Args:
        collection: Vectors.
        source: Images that hold those of the collection.
    """

    def __init__(self, collection: Collection, source: ImageSource):
        self._ids = collection.ids
        self._source = source
        self._pixel_range = collection.pixel_range

    @functools.cached_property
    def _positions(self) -> list[int | None]:
        """Position of the image of each row; None if there is none, or it is not clear which."""
        places: dict[str, list[int]] = {}
        for position, name in enumerate(self._source.names()):
            places.setdefault(name, []).append(position)
        counts, seen = Counter(self._ids), Counter[str]()
        positions: list[int | None] = []
        for name in self._ids:
            found = places.get(name, [])
            # images of one name are in the order of their rows, unless one could not be embedded
            positions.append(found[seen[name]] if len(found) == counts[name] else None)
            seen[name] += 1
        return positions

    def name_of(self, row: int) -> str:
        """Return the name of the image of a row, as in `Collection.ids`."""
        return self._ids[row]

    def record(self, row: int) -> ImageRecord:
        """Return the image of a row, not decoded.

        Raises:
            FileNotFoundError: If the images no longer hold it.
        """
        name, position = self._ids[row], self._positions[row]
        if position is None and NAME_IN_STREAM.fullmatch(name):
            raise FileNotFoundError(
                f"images must have ids to be found again after --streaming, but {name!r} has none; "
                "embed them without --streaming, or add a column id."
            )
        if position is None:
            raise FileNotFoundError(
                f"there is no image {name!r}, or another number of them, in the "
                f"{self._source.description}; restore it, or update the vectors with selfvit embed "
                "--update."
            )
        return self._source[position]

    def picture(self, row: int) -> Image.Image:
        """Return the image of a row as eight-bit RGB.

        Raises:
            FileNotFoundError: If the images no longer hold it.
            UnreadableImageError: If it cannot be decoded.
        """
        return decode_image(self.record(row).image, self._pixel_range)

    def thumbnail(self, row: int, size: int) -> Image.Image:
        """Return the image of a row, shrunk to at most `size` pixels; gray if it cannot be read.

        Args:
            row: Row of the collection.
            size: Longer side in pixels.
        """
        try:
            picture = self.picture(row)
        except (FileNotFoundError, UnreadableImageError):
            return Image.new("RGB", (size, size), (128, 128, 128))
        picture.thumbnail((size, size))
        return picture


def vectors_of(column: pa.ChunkedArray) -> np.ndarray:
    """Return the vectors of a column of lists as an array, (N, E), float32.

    Args:
        column: Column `embedding` of a table.
    """
    size = column.type.list_size
    vectors = np.empty((len(column), size), dtype=np.float32)
    start = 0
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        vectors[start : start + len(chunk)] = values.reshape(-1, size)
        start += len(chunk)
    return vectors


def directions_of(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors to length 1; a vector of zeros stays as it is.

    Args:
        vectors: Vectors, (N, E).

    Returns:
        Directions, (N, E), float32.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32, copy=False)


def check_rows(collection: Collection, minimum: int, purpose: str) -> None:
    """Check that a collection has enough rows.

    Args:
        collection: Vectors.
        minimum: Number of rows that are needed.
        purpose: Result that needs them, for example "a map".

    Raises:
        ValueError: If it has fewer rows.
    """
    if len(collection) < minimum:
        raise ValueError(
            f"{purpose} needs at least {minimum} vector{'s' * (minimum != 1)}, but "
            f"{str(collection.folder)!r} has "
            f"{len(collection)}; embed more images."
        )


def names_of(collection: Collection, rows: Iterable[int]) -> list[str]:
    """Return the names of rows.

    Args:
        collection: Vectors.
        rows: Rows.
    """
    return [collection.ids[row] for row in rows]


__all__ = [
    "Collection",
    "CollectionImages",
    "check_rows",
    "directions_of",
    "names_of",
    "vectors_of",
]
