"""Decode image files of any kind to eight-bit RGB, or report why that is not possible."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import one_line
from .image_source import UnreadableContent

# Exceptions that Pillow's decoders raise on corrupt data, determined by experiment.
PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    struct.error,
    zlib.error,
)

ORIENTATION_TAG = 0x0112  # Exif 2.3, Sec. 4.6.4
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImageError(ValueError):
    """Image that cannot be decoded; the message is a short reason without the name of the image."""


def decode_image(image: bytes | str | Path | Image.Image | UnreadableContent) -> Image.Image:
    """Decode the first frame of an image to eight-bit RGB, rotated upright.

    The alpha channel is dropped, not blended with a background, so the color stored in transparent
    pixels becomes visible. `transformers.image_utils.load_image` does the same, and
    `pipeline("image-feature-extraction")` and selfvit must compute the same vectors. There is one
    difference: gray values of more than eight bits are scaled (see `to_eight_bit`), where Pillow's
    `convert` would clip them to white.

    Args:
        image: Content of a file, path of a file, or an open image, which is not changed.

    Returns:
        New image with mode RGB.

    Raises:
        UnreadableImageError: If the image is empty, truncated, not an image, or so large that
            decoding it could exhaust the memory (more than twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    # Pillow warns about photos above its pixel limit (valid up to twice the limit) and about
    # unusual EXIF blocks and palettes. In a dataset of a million files these warnings are noise.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if isinstance(image, Image.Image):
                return _upright_rgb(image)
            with _open(image) as opened:
                return _upright_rgb(opened)
        except UnreadableImageError:
            raise
        except Image.DecompressionBombError as error:
            raise UnreadableImageError(
                f"too many pixels: more than {2 * (Image.MAX_IMAGE_PIXELS or 0)}, the limit that "
                "protects against decompression bombs"
            ) from error
        except UnidentifiedImageError as error:
            raise UnreadableImageError(
                "not an image, or a format that Pillow does not support"
            ) from error
        except PILLOW_ERRORS as error:
            raise UnreadableImageError(_reason(error)) from error


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Scale a gray image of more than eight bits to eight bits; return other images unchanged.

    Values of sixteen-bit modes are divided by 257 (65535 becomes 255). Modes I (32-bit integers)
    and F (floats) do not define the value of white; it is the first of 1 (F only), 255 and 65535
    that no pixel exceeds, or else the value of the brightest pixel. Negative values and NaN
    become 0.

    Args:
        image: Image of any mode.

    Returns:
        The image itself, or a new image with mode L.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0.0, neginf=0.0)
    brightest = float(values.max())
    if image.mode.startswith("I;16"):
        white = 65535.0
    else:
        candidates = ([1.0] if image.mode == "F" else []) + [255.0, 65535.0]
        white = next((white for white in candidates if brightest <= white), brightest)
    scaled = np.clip(values * (255.0 / white), 0, 255)
    return Image.fromarray(np.round(scaled).astype(np.uint8))


def _open(image: bytes | str | Path | UnreadableContent) -> Image.Image:
    if isinstance(image, UnreadableContent):
        raise UnreadableImageError(image.reason)
    if isinstance(image, bytes):
        num_bytes = len(image)
    else:
        status = os.stat(image)
        if not stat.S_ISREG(
            status.st_mode
        ):  # reading a pipe would block until something writes to it
            raise UnreadableImageError("not a regular file but a pipe, socket, device or folder")
        num_bytes = status.st_size
    if num_bytes == 0:
        raise UnreadableImageError("empty file (0 bytes)")
    return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    # Not ImageOps.exif_transpose: it also rewrites the EXIF block, which fails if another entry of
    # the block is invalid.
    upright = UPRIGHT.get(_orientation(image))
    converted = to_eight_bit(image).convert("RGB")
    return converted if upright is None else converted.transpose(upright)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except PILLOW_ERRORS:
        return 1  # a broken EXIF block does not make the pixels unusable


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    text = one_line(error)
    return f"{'truncated' if 'truncated' in text.lower() else 'corrupt'}: {text}"


__all__ = ["UnreadableImageError", "decode_image", "to_eight_bit"]
