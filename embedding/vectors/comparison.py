"""Compare the images of a source with those that a folder of vectors was begun with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ...data.checksum import checksum_of
from ...data.dataset_source import AnySource, StreamingImageSource
from ...data.image_source import ImageSource
from ...data.remote.file_system import StorageError
from .manifest import Manifest
from .storage import parquet_input


def find_other_image(folder: Path, manifest: Manifest, source: AnySource) -> str | None:
    """Compare the first and the last row of each part with the images at their positions.

    The fingerprint of a source says nothing about the content of its images. A stream cannot be
    read by position; its fingerprint has the sizes of its shards.

    Args:
        folder: Folder of vectors.
        manifest: Its manifest, whose parts have positions.
        source: Images.

    Returns:
        Name of an image that is another one now, or None.

    Raises:
        StorageError: If object storage cannot be read.
        ValueError: If a part is damaged.
    """
    if isinstance(source, StreamingImageSource):
        return None
    for part in manifest.in_order():
        if part.start is None or part.stop is None or not part.num_rows:
            continue
        first, last = _ends_of(folder / part.file, manifest.data["id_column"])
        positions = range(part.start, part.stop)
        near = part.num_skipped + 1  # a row follows the images that were skipped before it
        for row, nearest in ((first, positions[:near]), (last, positions[::-1][:near])):
            if not _is_among(source, nearest, *row):
                return row[0]
    return None


def _ends_of(file: Path, id_column: str) -> list[tuple[str, str | None]]:
    """Return the names and checksums of the first and the last row of a part."""
    try:
        with parquet_input(file) as place, pq.ParquetFile(place) as part:
            groups = [
                part.read_row_group(number, columns=[id_column, "checksum"])
                for number in (0, part.num_row_groups - 1)
            ]
    except StorageError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{str(file)!r} is damaged: {error}; delete it, and repeat the command."
        ) from error
    return [
        (group[id_column][place].as_py(), group["checksum"][place].as_py())
        for group, place in zip(groups, (0, -1), strict=True)
    ]


def _is_among(
    source: ImageSource, positions: Sequence[int], name: str, checksum: str | None
) -> bool:
    """Return whether one of the images has a name and a checksum, which only files have."""
    for position in positions:
        record = source[position]
        if record.id != name:
            continue
        try:
            if checksum is None or checksum_of(record.image) == checksum:
                return True
        except StorageError:
            raise
        except OSError:
            continue  # it cannot be read, but it could
    return False


__all__ = ["find_other_image"]
