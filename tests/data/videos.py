"""Writers of small videos whose frames tell their number."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np

SIZE = 64, 48  # width, height
BLOCKS = 2, 4  # rows and columns of black and white blocks, the bits of a number


def picture_of(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return pixels (H, W, 3) that stand for a number from 0 to 254."""
    width, height = size
    bits = np.array([(number + 1) >> bit & 1 for bit in range(8)], np.uint8).reshape(BLOCKS)
    rows, columns = -(-height // BLOCKS[0]), -(-width // BLOCKS[1])
    gray = (30 + 200 * bits).repeat(rows, 0).repeat(columns, 1)[:height, :width]
    return np.repeat(gray[..., None], 3, axis=2)


def number_of(pixels: np.ndarray) -> int:
    """Return the number that a frame of `picture_of` stands for."""
    height, width, _ = pixels.shape
    blocks = pixels.reshape(BLOCKS[0], height // BLOCKS[0], BLOCKS[1], width // BLOCKS[1], 3)
    bits = (blocks.mean(axis=(1, 3, 4)) > 130).reshape(-1)
    return int(sum(1 << bit for bit in range(8) if bits[bit])) - 1


def write_video(
    path: Path,
    num_frames: int = 50,
    *,
    fps: Fraction | int = 25,
    codec: str = "libx264",
    size: tuple[int, int] = SIZE,
    pixel_format: str = "yuv420p",
    times: list[int] | None = None,
    unit: Fraction | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a video, and return its path.

    Args:
        path: File to write; the extension chooses the container.
        num_frames: Number of frames.
        fps: Frame rate.
        codec: Name of the encoder.
        size: Width and height.
        pixel_format: Format of the stored pixels.
        times: Time of each frame in `unit`; by default, `fps` frames per second.
        unit: Unit of `times`, in seconds.
        options: Options of the encoder.
        container_options: Options of the container.
    """
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"threads": "1", "bf": "2", "g": "12"} | (options or {})
    if codec != "libx264" and codec != "mpeg4":
        options.pop("bf")
    with av.open(str(path), "w", container_options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pixel_format
        if unit is not None:
            stream.codec_context.time_base = unit
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture_of(number, size), format="rgb24")
            frame.pts = number if times is None else times[number]
            frame.time_base = unit or 1 / Fraction(fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn_video(path: Path, turned: Path, matrix: list[int]) -> Path:
    """Copy an MP4 file with another display matrix (a, b, c, d) in its header."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes
    a, b, c, d = (value * 65536 for value in matrix)
    values = np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4")
    content[start : start + 36] = values.tobytes()
    turned.write_bytes(content)
    return turned
