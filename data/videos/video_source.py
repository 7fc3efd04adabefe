"""Stream of the frames of videos, one shard per video file."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ...errors import printable, shorten
from ..dataset_source import StreamingImageSource
from ..files.image_files import choose_split, labels_below
from ..files.image_formats import VIDEOS, extension_of
from ..files.listing import CLOSED_FOLDER, Listing, list_images
from ..files.splits import ALL
from ..image_source import NO_LABEL, ImageRecord, UnreadableContent
from ..inventory import Inventory, LeftOut
from ..labels import Labels, first_folders
from .frames import UnreadableVideoError, pixels_of, read_frames


class VideoStream(StreamingImageSource):
    """Frames of videos at a fixed rate, one shard per video.

    A video that cannot be opened, or is damaged, is one record with the reason, after the frames
    before the damage.

    Args:
        folder: Folder that the paths are relative to.
        paths: Paths of the videos, in the order of the stream.
        fps: Frames per second: of each video, the frames that are shown at the times k / fps are
            taken, k = 0, 1, ..., counted from its first frame, and each frame once.
        description: Description of the data for logs and model cards.
        labels: Labels of the videos.
        inventory: Files that were left out, and notes.

    Raises:
        ValueError: If `fps` is no positive number.
    """

    id_column = "path"
    is_video = True

    def __init__(
        self,
        folder: Path,
        paths: Sequence[str],
        fps: float,
        description: str,
        labels: Labels,
        inventory: Inventory,
    ):
        self._fps = _rate(fps)
        self._folder = folder.absolute()
        self._paths = list(paths)
        self._labels = labels.values
        sizes = [_size(os.path.join(self._folder, path)) for path in self._paths]
        names = [printable(path) for path in self._paths]
        identity = [f"{name} {size}" for name, size in zip(names, sizes, strict=True)]
        super().__init__(description, labels.names, [f"{self._fps} fps", *identity], inventory)
        self.label_rule = labels.rule

    @property
    def num_shards(self) -> int:
        """Number of videos."""
        return len(self._paths)

    def read_shard(
        self, shard: int, *, start: int = 0, part: int = 0, num_parts: int = 1
    ) -> Generator[ImageRecord, None, None]:
        """Yield the frames of a video; see `StreamingImageSource`.

        A video is always decoded from its beginning, as only that gives the same frames whatever
        the codec and the times of the frames are. Frames that are skipped are not converted.
        """
        records = self._read_video(shard, part + start * num_parts, num_parts)
        with closing(records):
            yield from records

    def _read_video(self, shard: int, first: int, step: int) -> Generator[ImageRecord, None, None]:
        from av.video.reformatter import VideoReformatter

        path = os.path.join(self._folder, self._paths[shard])
        name = printable(self._paths[shard])
        label = NO_LABEL if self._labels is None else int(self._labels[shard])
        known = None if label == NO_LABEL else label
        reformatter, number = VideoReformatter(), -1
        with closing(read_frames(path, self._fps)) as frames:
            try:
                for number, frame in enumerate(frames):
                    if number >= first and (number - first) % step == 0:
                        pixels = pixels_of(frame.picture, reformatter)
                        yield ImageRecord(name, pixels, known, float(frame.start))
                return
            except UnreadableVideoError as error:
                number, reason = number + 1, str(error)
        if number >= first and (number - first) % step == 0:
            yield ImageRecord(name, UnreadableContent(printable(reason)), known)


def open_videos(files: Sequence[Path], fps: float, split: str | None = None) -> VideoStream:
    """Open one or several video files, or a folder of them, as a stream of frames.

    Args:
        files: Video files, or one folder.
        fps: Frames per second, see `VideoStream`.
        split: Split of a folder, and subfolder, as for image files.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If PyAV is not installed.
        ValueError: If there are no videos, or `fps` is no positive number.
    """
    if importlib.util.find_spec("av") is None:
        raise ImportError('--video-fps needs PyAV: pip install "selfvit[video]"')
    _rate(fps)
    if len(files) == 1 and files[0].is_dir():
        return _open_folder(files[0], fps, split)
    if split not in (None, ALL):
        raise ValueError(
            f"video files have no splits, so that {split!r} cannot be chosen; omit --split."
        )
    for file in files:
        if not file.exists():
            raise FileNotFoundError(f"there is no file {str(file)!r}.")
        if file.is_dir() or extension_of(file.name) not in VIDEOS:
            kind = "a folder" if file.is_dir() else "another file"
            raise ValueError(
                f"with --video-fps, data must be one folder or video files "
                f"({', '.join(sorted(VIDEOS))}), but {str(file)!r} is {kind}; leave out "
                "--video-fps for images."
            )
    by_place = {os.path.realpath(file): file.absolute() for file in reversed(files)}
    different = list(dict.fromkeys(by_place[os.path.realpath(file)] for file in files))
    folder = Path(os.path.commonpath([file.parent for file in different]))
    paths = [os.path.relpath(file, folder) for file in different]
    notes = []
    if num_repeated := len(files) - len(different):
        notes.append(f"{num_repeated} files are given twice, and taken once")
    where = str(different[0]) if len(paths) == 1 else f"{len(paths)} video files in {folder}"
    return VideoStream(folder, paths, fps, _description(where, fps), Labels(), _inventory(notes))


def _open_folder(folder: Path, fps: float, split: str | None) -> VideoStream:
    listing = list_images(folder)
    closed = [e for e in listing.left_out if e.reason.startswith(CLOSED_FOLDER)]
    firsts = first_folders(listing.videos)
    chosen = choose_split(firsts, closed, split, str(folder), "video")
    prefix = chosen.prefix
    paths = [path for path in listing.videos if path.startswith(prefix)]
    left_out = chosen.own(closed)
    if not paths:
        raise ValueError(_without_videos(folder / prefix, listing, left_out))
    labels = labels_below(paths, None if prefix else firsts, prefix, split == ALL, "video")
    notes = [*replace(listing, videos=[]).notes(), *chosen.notes, *_not_read(listing)]
    root = folder / prefix if prefix else folder
    names = [path[len(prefix) :] for path in paths]
    description = _description(f"{len(paths)} video files in {root}", fps)
    inventory = _inventory([*notes, *labels.notes], left_out)
    return VideoStream(root, names, fps, description, labels, inventory)


def _inventory(notes: list[str], left_out: Sequence[LeftOut] = ()) -> Inventory:
    """Return an inventory of a stream, whose frames are not counted."""
    return Inventory(len(left_out), 0, list(left_out), notes)


def _description(where: str, fps: float) -> str:
    return f"{where}, {fps:g} frames per second"


def _rate(fps: float) -> Fraction:
    """Return frames per second as the decimal fraction that a user writes, 0.1 as 1/10.

    Raises:
        ValueError: If it is no positive number.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(
            f"video_fps ({fps}) must be a positive number of frames per second; use for example 1."
        )
    return Fraction(repr(float(fps)))


def _not_read(listing: Listing) -> list[str]:
    """Return sentences about what else a folder of videos contains."""
    notes = []
    if listing.paths:
        notes.append(
            f"{len(listing.paths)} image files beside the videos are not read "
            f"({shorten(listing.paths, 3)}); embed them without --video-fps"
        )
    if others := [name for names in listing.containers.values() for name in names]:
        notes.append(f"{shorten(others, 3)} beside the videos: not read")
    return notes


def _without_videos(folder: Path, listing: Listing, left_out: Sequence[LeftOut]) -> str:
    found = [f"{len(listing.paths)} image files"] if listing.paths else []
    found += [f"{len(left_out)} folders that cannot be opened"] if left_out else []
    text = f", but {' and '.join(found)}" if found else ""
    advice = "; leave out --video-fps to embed the images" if listing.paths else ""
    return (
        f"there are no videos in {str(folder)!r}{text}; the extension of a video file must be one "
        f"of {', '.join(sorted(VIDEOS))}{advice}."
    )


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # reported when it is read
        return None


__all__ = ["VideoStream", "open_videos"]
