"""Decode the frames of a video in the order of their times, and sample them at a fixed rate."""

# Times are fractions of seconds from the first frame, so that no time is rounded.

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files.listing import NOT_REGULAR

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

logger = logging.getLogger(__name__)

# A fixed number, as FFmpeg treats damaged streams differently with other numbers of threads.
NUM_THREADS = 4
MAX_TOLERANCE = Fraction(1, 1000)  # Matroska rounds times to milliseconds
SECONDS_MISSING = 1  # at the end of a video that is cut off, compared with its header
WITHOUT_TIME = "a frame has no time stamp, and the video has no frame rate"


class UnreadableVideoError(ValueError):
    """Video that cannot be decoded, or not to its end; the message is the reason."""


@dataclass(frozen=True)
class TimedFrame:
    """Decoded frame.

    Args:
        start: Time from the first frame of the video, in seconds.
        duration: Time for which the frame is shown, in seconds; 0 if unknown.
        picture: Frame of PyAV, not converted.
    """

    start: Fraction
    duration: Fraction
    picture: Any


def read_frames(path: str, fps: Fraction) -> Generator[TimedFrame, None, None]:
    """Yield the frames of a video that are shown at the times k / fps, k = 0, 1, ...

    Args:
        path: Absolute path of the file.
        fps: Times per second.

    Raises:
        UnreadableVideoError: If the video cannot be opened, or is damaged; after the frames before.
    """
    import av

    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            raise UnreadableVideoError(NOT_REGULAR)
        # A file may be a playlist that names other files, or addresses of a network.
        options = {"protocol_whitelist": "file"}
        container = av.open(path, options=options, metadata_errors="ignore")
    except UnreadableVideoError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableVideoError(f"cannot be opened as a video: {_text(error)}") from error
    with container:
        stream = _choose_stream(container, os.path.basename(path))
        tolerance = min(MAX_TOLERANCE, Fraction(stream.time_base or MAX_TOLERANCE))
        yield from sample_frames(_frames_in_time(container, stream), fps, tolerance)


def sample_frames(
    frames: Iterable[TimedFrame], fps: Fraction, tolerance: Fraction
) -> Generator[TimedFrame, None, None]:
    """Yield the frames that are shown at the times k / fps: for each, the last one that has begun.

    A frame that is shown at several of these times is yielded once. The last frame is shown for its
    duration.

    Args:
        frames: Frames in the order of their times.
        fps: Times per second.
        tolerance: Seconds after k / fps at which a frame may begin, as stored times are rounded.

    Raises:
        UnreadableVideoError: If `frames` raises it, after the frames before.
    """
    shown: TimedFrame | None = None
    number = 0  # k of the next time
    damage: UnreadableVideoError | None = None
    try:
        for frame in frames:
            if shown is not None and number / fps + tolerance < frame.start:
                yield shown
                number = ceil((frame.start - tolerance) * fps)
            shown = frame
    except UnreadableVideoError as error:
        damage = error
    if shown is not None:
        is_due = number / fps <= shown.start + tolerance
        end = shown.start + shown.duration
        if is_due or (damage is None and number / fps + tolerance < end):
            yield shown
    if damage is not None:
        raise damage


def _choose_stream(container: InputContainer, name: str) -> Any:
    """Return the best video stream that is no attached picture, for example a cover.

    Raises:
        UnreadableVideoError: If there is none.
    """
    from av.stream import Disposition

    pictures = Disposition.attached_pic | Disposition.timed_thumbnails
    streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
    if not streams:
        kind = "only an attached picture" if container.streams.video else "no video"
        raise UnreadableVideoError(f"{kind} in the file")
    best = container.streams.best("video")
    chosen = best if best in streams else max(streams, key=lambda stream: stream.width or 0)
    if chosen.codec_context is None:
        raise UnreadableVideoError("no decoder for the codec of the video")
    if len(streams) > 1:
        logger.warning(
            "%s has %d video streams; stream %d (%d x %d) is read.",
            *(name, len(streams), chosen.index, chosen.width, chosen.height),
        )
    return chosen


def _frames_in_time(container: InputContainer, stream: Any) -> Iterator[TimedFrame]:
    """Yield all frames with their times.

    A frame without a time stamp follows the one before by a period of the average frame rate.

    Raises:
        UnreadableVideoError: If the video is damaged, its times go back, or it is cut off.
    """
    period = 1 / stream.average_rate if stream.average_rate else None
    first: Fraction | None = None
    last: TimedFrame | None = None
    for picture in _pictures(container, stream):
        stamp = picture.dts if picture.pts is None else picture.pts
        unit = Fraction(picture.time_base or stream.time_base)
        if stamp is not None:
            time = stamp * unit
        elif first is None or last is None:
            time = Fraction(0)
        elif period is None:
            raise UnreadableVideoError(WITHOUT_TIME)
        else:
            time = last.start + first + period
        first = time if first is None else first
        if last is not None and time - first < last.start:
            raise UnreadableVideoError(
                f"its times go back from {float(last.start):.3f} s to {float(time - first):.3f} s, "
                "so that the frames after it are left out; repair it, for example with ffmpeg"
            )
        last = TimedFrame(time - first, Fraction(picture.duration or 0) * unit, picture)
        yield last
    if last is None:
        raise UnreadableVideoError("without any frame that can be decoded")
    _check_end(container, stream, last.start + last.duration)


def _pictures(container: InputContainer, stream: Any) -> Iterator[av.VideoFrame]:
    """Yield all frames up to the first damage; damaged ones before the first whole one are dropped.

    Raises:
        UnreadableVideoError: If the video is damaged.
    """
    import av

    stream.thread_type = "AUTO"
    stream.codec_context.thread_count = NUM_THREADS
    num_frames = 0
    try:
        for packet in container.demux(stream):
            is_damaged = packet.is_corrupt and num_frames
            # The decoder returns what it has when it is flushed.
            decoded = stream.codec_context.decode(None) if is_damaged else packet.decode()
            for picture in decoded:
                if not picture.is_corrupt:
                    num_frames += 1
                    yield picture
                elif num_frames:
                    is_damaged = True
                    break
            if is_damaged:
                raise UnreadableVideoError(_damage(num_frames, "the data is corrupt"))
    except UnreadableVideoError:
        raise
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableVideoError(_damage(num_frames, _text(error))) from error


def _damage(num_frames: int, reason: str) -> str:
    return f"damaged after {num_frames} frames: {reason}; the frames after it are left out"


def _check_end(container: InputContainer, stream: Any, end: Fraction) -> None:
    """Check that a video is as long as its header says.

    Raises:
        UnreadableVideoError: If it is shorter.
    """
    stated = None
    if stream.duration is not None:
        stated = stream.duration * stream.time_base
    elif container.duration is not None and len(container.streams) == 1:
        stated = Fraction(container.duration, 1_000_000)
    if stated is not None and end + SECONDS_MISSING < stated:
        raise UnreadableVideoError(
            f"ends at {float(end):.3f} s, but its header says {float(stated):.3f} s, so that it "
            "may be cut off"
        )


def pixels_of(picture: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Convert a frame to eight-bit RGB (H, W, 3), and turn it as the metadata of the video says.

    Args:
        picture: Frame of PyAV.
        reformatter: Converter, which is faster if it is the same for all frames of a video.

    Raises:
        UnreadableVideoError: If the pixels are of a kind that FFmpeg cannot convert.
    """
    import av

    try:
        pixels = reformatter.reformat(picture, format="rgb24", threads=1).to_ndarray()
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableVideoError(f"cannot be converted to RGB: {_text(error)}") from error
    side_data: Any = picture.side_data
    for entry in side_data:
        if entry.type.name == "DISPLAYMATRIX":
            pixels = _turned(pixels, np.frombuffer(bytes(entry), np.int32))
    return np.ascontiguousarray(pixels)


def _turned(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a display matrix, which maps columns x and rows y: x' = a x + c y, y' = b x + d y."""
    a, b, _, c, d = matrix[:5].tolist()
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _text(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


__all__ = ["TimedFrame", "UnreadableVideoError", "pixels_of", "read_frames", "sample_frames"]
