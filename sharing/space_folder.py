"""Write a Space: the app of `selfvit explore`, a small collection and its checkpoint.

A Space (https://huggingface.co/docs/hub/spaces) is a repository of the Hub whose `app.py` runs
there. The folder runs on any machine that has the packages of its `requirements.txt`: it holds the
code of selfvit, too.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import torch
import yaml

from ..atomic_output import atomic_output
from ..data.sources import Data
from ..exploration.app.explorer import Explorer
from ..exploration.app.subset import IMAGES, LONGEST_SIDE, VECTORS, choose_rows, write_subset
from ..exploration.collection import Collection
from .provenance import CARD
from .published_files import choose_files, published_content, read_card

MAX_IMAGES = 1000
MAX_BYTES = 1_000_000_000  # of the repository of a Space (hub/storage-limits, November 2026)
APP, CHECKPOINT, REQUIREMENTS = "app.py", "checkpoint", "requirements.txt"
PACKAGE = "selfvit"  # folder of the code

APP_CODE = f'''\
"""App of this Space: a collection of images in the browser, as `selfvit explore` shows it."""

import os
from pathlib import Path

from selfvit import explore

FOLDER = Path(__file__).resolve().parent
HOST = "0.0.0.0" if os.environ.get("SYSTEM") == "spaces" else "127.0.0.1"

explore(
    FOLDER / "{VECTORS}",
    data=FOLDER / "{IMAGES}",
    checkpoint=str(FOLDER / "{CHECKPOINT}"),
    host=os.environ.get("GRADIO_SERVER_NAME", HOST),
    port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
)
'''

README = """\
# {title}

{num_images} in the browser: search by image, a map, clusters, duplicates and a table. The app is
`selfvit explore` of selfvit {version}.

| part | content |
| --- | --- |
| `{vectors}/`, `{images}` | {choice}, at most {side} pixels, and the vectors of the originals |
| `{checkpoint}/` | encoder of the vectors, with its card |
| `{package}/` | code of selfvit, Apache-2.0 |

Anywhere else: `pip install -r {requirements}`, then `python {app}`.
"""


@dataclass(frozen=True)
class SpaceFolder:
    """Result of `write_space`.

    Args:
        files: Files of the Space, as paths relative to the folder, with slashes.
        num_images: Number of images.
        num_rows: Number of images of the whole collection.
        num_bytes: Size of all files.
        left_out: Names of images that were chosen, but cannot be read or shown.
    """

    files: list[str]
    num_images: int
    num_rows: int
    num_bytes: int
    left_out: list[str]


def write_space(
    checkpoint: str | os.PathLike[str],
    vectors: str | os.PathLike[str] | Collection,
    folder: str | os.PathLike[str],
    *,
    title: str | None = None,
    data: Data | None = None,
    max_images: int = MAX_IMAGES,
) -> SpaceFolder:
    """Write the folder of a Space that shows a collection, without sending it.

    Of a collection with more than `max_images` images, evenly spaced ones are taken, the same ones
    each time. The added columns and the last map of the vectors are copied, too.

    Args:
        checkpoint: Checkpoint folder with a card, as for `publish`.
        vectors: Folder of vectors of this checkpoint, or the collection that was opened.
        folder: Folder to write; it must be new or empty.
        title: Title of the Space; None for the name of the folder.
        data: Place of the images; None for the one that the folder of vectors names.
        max_images: Maximum number of images.

    Returns:
        The files.

    Raises:
        FileExistsError: If the folder is not empty.
        FileNotFoundError: If there are no vectors or no images, or the checkpoint is not complete.
        ImportError: If Gradio is not installed.
        ValueError: If the vectors are of another checkpoint, `max_images` is below 1, no image can
            be read, or the Space would be larger than the Hub allows.
    """
    folder, source = Path(folder), Path(checkpoint)
    if max_images < 1:
        raise ValueError(f"max_images ({max_images}) must be at least 1.")
    _check_new(folder)
    settings = _settings(title or folder.resolve().name, source)
    sent = choose_files(source).sent
    collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
    explorer = Explorer(collection, data, str(source))
    embedder = collection.embedder(str(source), device="cpu")  # refuses another checkpoint
    # uploads are embedded in the precision of the vectors, and only OpenVINO computes in int8
    extras = ["explore"] + ["openvino"] * (embedder.request.dtype == torch.int8)
    num_rows = len(collection)
    rows = choose_rows(num_rows, max_images)
    with atomic_output(folder) as unfinished:
        unfinished.mkdir()
        left_out = write_subset(explorer, rows, unfinished)
        num_images = len(rows) - len(left_out)
        _copy_checkpoint(source, sent, unfinished / CHECKPOINT)
        _copy_package(unfinished)
        (unfinished / APP).write_text(APP_CODE, encoding="utf-8")
        (unfinished / REQUIREMENTS).write_text(
            "\n".join(_requirements(extras)) + "\n", encoding="utf-8"
        )
        (unfinished / CARD).write_text(_readme(settings, num_images, num_rows), encoding="utf-8")
        files = sorted(path for path in unfinished.rglob("*") if path.is_file())
        num_bytes = sum(path.stat().st_size for path in files)
        _check_size(num_bytes, unfinished)
        names = [path.relative_to(unfinished).as_posix() for path in files]
    return SpaceFolder(names, num_images, num_rows, num_bytes, left_out)


def _check_new(folder: Path) -> None:
    is_usable = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if not is_usable and (folder.exists() or folder.is_symlink()):
        raise FileExistsError(
            f"{str(folder)!r} must be a new or an empty folder; choose another one."
        )


def _settings(title: str, checkpoint: Path) -> dict[str, object]:
    """Return the settings of the Space, which are the metadata of its README.md."""
    try:
        gradio_version = metadata.version("gradio")
    except metadata.PackageNotFoundError as error:
        raise ImportError(
            'the app needs Gradio; install it with pip install "selfvit[explore]".'
        ) from error
    settings: dict[str, object] = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": gradio_version,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": APP,
    }
    terms = read_card(checkpoint).data.to_dict()
    for name in ("license", "license_name", "license_link"):
        if terms.get(name):
            settings[name] = terms[name]
    return settings


def _readme(settings: dict[str, object], num_images: int, num_rows: int) -> str:
    choice = f"{num_images:,} images"
    if num_images < num_rows:
        choice += f" of {num_rows:,}, evenly spaced"
    text = README.format(
        title=settings["title"],
        num_images=f"{num_images:,} images" if num_images > 1 else "One image",
        version=_version(),
        choice=choice,
        side=LONGEST_SIDE,
        vectors=VECTORS,
        images=IMAGES,
        checkpoint=CHECKPOINT,
        package=PACKAGE,
        requirements=REQUIREMENTS,
        app=APP,
    )
    return f"---\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}---\n\n{text}"


def _version() -> str:
    from .. import __version__

    return __version__


def _copy_checkpoint(source: Path, files: list[str], target: Path) -> None:
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        content = published_content(source / name)
        if isinstance(content, bytes):
            (target / name).write_bytes(content)
        else:
            shutil.copyfile(content, target / name)


def _copy_package(folder: Path) -> None:
    """Copy the code of selfvit, as no registry is sure to have this version."""
    package = Path(str(resources.files(PACKAGE)))
    for path in _package_files(package):
        target = folder / PACKAGE / path.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    terms = _license_text()
    if terms is not None:
        (folder / PACKAGE / "LICENSE").write_text(terms, encoding="utf-8")


def _package_files(package: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(package, followlinks=True):  # links in a checkout
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        yield from (Path(place, name) for name in sorted(names) if not name.endswith(".pyc"))


def _license_text() -> str | None:
    try:
        distribution = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    return distribution.read_text("licenses/LICENSE") or distribution.read_text("LICENSE")


def _requirements(extras: Sequence[str]) -> list[str]:
    """Return the packages that selfvit and some of its extras need."""
    from packaging.requirements import Requirement

    found = []
    for text in metadata.requires(PACKAGE) or ():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            requirement.marker = None
            found.append(str(requirement))
    return sorted(set(found))


def _check_size(num_bytes: int, folder: Path) -> None:
    if num_bytes <= MAX_BYTES:
        return
    parts = {name: _size_of(folder / name) for name in (CHECKPOINT, IMAGES)}
    raise ValueError(
        f"a Space may have {MAX_BYTES / 1e6:,.0f} MB, but this one would have "
        f"{num_bytes / 1e6:,.0f} MB ({parts[CHECKPOINT] / 1e6:,.0f} MB of them the checkpoint, "
        f"{parts[IMAGES] / 1e6:,.0f} MB images); use fewer images (--space-images) or a smaller "
        "checkpoint."
    )


def _size_of(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


__all__ = ["MAX_IMAGES", "SpaceFolder", "write_space"]
