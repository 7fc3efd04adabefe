"""Write duplicates as a table or a contact sheet, and link the images to keep into a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from PIL import Image

from ...atomic_output import atomic_output
from ...data.image_source import ImageRecord
from ..collection import CollectionImages
from ..sheets import SheetRow, Tile, draw_sheet
from .groups import Groups

SHEET_SIZE = 288  # pixels of the longer side of a thumbnail
EXTENSIONS = {"JPEG": ".jpg", "TIFF": ".tif"}


def write_groups(groups: Groups, ids: list[str], keeper_ids: list[str], path: Path) -> None:
    """Write groups as CSV or Parquet, one row per image, the keeper of a group first.

    Args:
        groups: Groups.
        ids: Names of the members' collection.
        keeper_ids: Names of the keepers' collection.
        path: File to write: .csv or .parquet.
    """
    rows = []
    for number, (keeper, members) in enumerate(groups.items()):
        rows.append((number, keeper_ids[keeper], True, "keeper", 1.0, 1.0))
        for member in members:
            kind = "exact" if member.is_exact else "near"
            name = ids[member.row]
            rows.append((number, name, False, kind, member.similarity, member.agreement))
    schema = pa.schema(
        {
            "group": pa.int64(),
            "path": pa.string(),
            "keep": pa.bool_(),
            "kind": pa.string(),
            "similarity": pa.float64(),
            "agreement": pa.float64(),
        }
    )
    table = pa.Table.from_pylist(
        [dict(zip(schema.names, row, strict=True)) for row in rows], schema
    )
    with atomic_output(path) as unfinished:
        if path.suffix.lower() == ".csv":
            pyarrow.csv.write_csv(table, str(unfinished))
        else:
            pyarrow.parquet.write_table(table, str(unfinished))


def draw_groups(
    groups: Groups, images: CollectionImages, keeper_images: CollectionImages, path: Path
) -> None:
    """Draw one row of thumbnails per group, the keeper first and framed, as a PNG.

    Args:
        groups: Groups.
        images: Images of the members' collection.
        keeper_images: Images of the keepers' collection.
        path: PNG file to write.
    """

    def rows() -> Iterator[SheetRow]:
        for keeper, members in groups.items():
            name = keeper_images.name_of(keeper)
            tiles = [Tile(keeper_images.thumbnail(keeper, SHEET_SIZE), f"keep\n{name}", True)]
            for member in members:
                kind = "exact copy" if member.is_exact else f"agreement {member.agreement:.4f}"
                caption = f"{kind}\n{images.name_of(member.row)}"
                tiles.append(Tile(images.thumbnail(member.row, SHEET_SIZE), caption))
            yield SheetRow(tiles)

    draw_sheet(rows(), path)


def check_link_folder(folder: Path) -> None:
    """Check that images can be linked into a folder.

    Args:
        folder: Folder, which need not exist.

    Raises:
        FileExistsError: If it is a file, or holds something.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(
            f"--link-to {str(folder)!r} must be a new or an empty folder; choose another one."
        )


def check_link_names(names: Iterable[str]) -> None:
    """Check that each name is a file of its own in the folder of the links.

    Args:
        names: Names of the images.

    Raises:
        ValueError: If a name leads out of the folder, or two images have the same name.
    """
    taken: set[PurePosixPath] = set()
    for name in names:
        path = _relative_name(name)
        if path in taken:
            raise ValueError(
                f"names of images must be different for --link-to, but two are {str(path)!r}; "
                "give the images different names, or leave out --link-to."
            )
        taken.add(path)


def link_images(images: CollectionImages, rows: Iterable[int], folder: Path) -> int:
    """Link images into a folder, under their names.

    Files are linked; those on another device are copied, and images in tables and archives are
    written as files. No file is changed or deleted.

    Args:
        images: Images of the collection.
        rows: Rows to link.
        folder: New or empty folder.

    Returns:
        Number of images.

    Raises:
        FileExistsError: If the folder is not empty, or two images have the same name.
        FileNotFoundError: If an image is no longer there.
        ValueError: If the name of an image leads out of the folder.
    """
    check_link_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    for row in rows:
        record = images.record(row)
        target = folder / _relative_name(images.name_of(row))
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(record.image, str):
            _link(record.image, target)
        else:
            _write(record, images, row, target)
    return len(rows)


def _relative_name(name: str) -> PurePosixPath:
    path = PurePosixPath(name.split("://", 1)[-1])
    parts = [part for part in path.parts if part != path.anchor]
    if not parts or ".." in parts:
        raise ValueError(
            f"names of images must stay within --link-to, but {name!r} does not; rename it."
        )
    return PurePosixPath(*parts)


def _link(source: str, target: Path) -> None:
    _refuse_existing(target)
    path = os.path.realpath(source)
    try:
        os.link(path, target)
    except FileNotFoundError:
        raise
    except OSError:  # another device, or a file system without hard links
        shutil.copy2(path, target)


def _write(record: ImageRecord, images: CollectionImages, row: int, target: Path) -> None:
    if isinstance(record.image, bytes):
        target = _with_extension(record.image, target)
        _refuse_existing(target)
        target.write_bytes(record.image)
        return
    target = target.with_name(target.name + ".png")
    _refuse_existing(target)
    images.picture(row).save(target)


def _with_extension(content: bytes, target: Path) -> Path:
    import io

    if target.suffix.lower() in Image.registered_extensions():
        return target
    with Image.open(io.BytesIO(content)) as image:
        kind = image.format or "png"
    return target.with_name(target.name + EXTENSIONS.get(kind, f".{kind.lower()}"))


def _refuse_existing(target: Path) -> None:
    if target.exists():
        raise FileExistsError(
            f"two images have the name {str(target)!r}; give the images different names."
        )


__all__ = ["check_link_folder", "check_link_names", "draw_groups", "link_images", "write_groups"]
