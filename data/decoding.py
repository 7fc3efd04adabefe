"""From an image file of any kind to eight-bit RGB, or to the reason why not."""

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

# What Pillow's decoders raise on corrupt data, found by feeding them corrupt data.
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
    """An image cannot be decoded; the message is a short reason, without the image's name."""


def decode_image(image: bytes | str | Path | Image.Image) -> Image.Image:
    """Decode the first frame, upright, to eight-bit RGB.

    Transparency is dropped, not blended with a background: the color stored under transparent
    pixels shows. `transformers.image_utils.load_image` does the same, and vectors must not depend
    on whether `pipeline("image-feature-extraction")` or selfvit computed them. The one difference:
    grays of more than eight bits are scaled here (see `to_eight_bit`), where Pillow's `convert`
    would clip them to white.

    Args:
        image: content of a file, path of a file, or an image opened already (left as it is).

    Returns:
        A new image, mode RGB.

    Raises:
        UnreadableImageError: if it is empty, truncated, no image, or so large that decoding it
            could exhaust the memory (more than twice `PIL.Image.MAX_IMAGE_PIXELS`).
    """
    # Pillow warns of photos above its limit of pixels, which are legitimate up to twice the limit,
    # of odd EXIF blocks and odd palettes. Among a million files nobody can act on it.
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
                f"too many pixels: above {2 * (Image.MAX_IMAGE_PIXELS or 0)}, the safety limit "
                "against decompression bombs"
            ) from error
        except UnidentifiedImageError as error:
            raise UnreadableImageError(
                "not an image, or of a format Pillow does not know"
            ) from error
        except PILLOW_ERRORS as error:
            raise UnreadableImageError(_reason(error)) from error


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Scale a gray image of more than eight bits to eight; return others as they are.

    Sixteen-bit modes are divided by 257 (65535 becomes 255). Modes I (32-bit integers) and F
    (floats) do not say what white is; it is taken as the first of 1 (F only), 255 and 65535 that
    no pixel exceeds, else as the brightest pixel. Negative values and NaN become 0.

    Args:
        image: of any mode.

    Returns:
        The image itself, or a new one of mode L.
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


def _open(image: bytes | str | Path) -> Image.Image:
    if isinstance(image, bytes):
        num_bytes = len(image)
    else:
        status = os.stat(image)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for a writer
            raise UnreadableImageError("not a file, but a pipe, socket, device or folder")
        num_bytes = status.st_size
    if num_bytes == 0:
        raise UnreadableImageError("empty file (0 bytes)")
    return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def _upright_rgb(image: Image.Image) -> Image.Image:
    image.load()
    # Not ImageOps.exif_transpose: that also rewrites the EXIF block, which fails on blocks that are
    # odd elsewhere than in the orientation.
    upright = UPRIGHT.get(_orientation(image))
    converted = to_eight_bit(image).convert("RGB")
    return converted if upright is None else converted.transpose(upright)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except PILLOW_ERRORS:
        return 1  # the pixels are sound: a broken EXIF block says nothing about them


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}"
    text = one_line(error)
    return f"{'truncated' if 'truncated' in text.lower() else 'corrupt'}: {text}"


__all__ = ["UnreadableImageError", "decode_image", "to_eight_bit"]
