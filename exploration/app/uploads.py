"""Images that a user of the app has dropped: decoded within bounds and kept in the memory."""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Callable

from PIL import Image

from ...data.decoding import DECODER_ERRORS, UnreadableImageError, decode_image

MAX_BYTES = 20_000_000  # of a file
MAX_PIXELS = 50_000_000  # of an image; a photo has 12 to 48 million
KEPT = 32  # uploads, for addresses that name them; older ones are dropped
SHOWN = 640  # pixels, longer side of the copy that is kept


def decode_upload(content: bytes, pixel_range: tuple[float, float] | None = None) -> Image.Image:
    """Decode an uploaded file, as images of a collection are decoded.

    Args:
        content: Content of the file.
        pixel_range: Range of the collection, see `Collection.pixel_range`.

    Raises:
        UnreadableImageError: If it is too large, or no image.
    """
    if len(content) > MAX_BYTES:
        raise UnreadableImageError(
            f"the file has {len(content):,} bytes, but at most {MAX_BYTES:,} are allowed"
        )
    try:
        with Image.open(io.BytesIO(content)) as opened:  # reads the header only
            width, height = opened.size
    except DECODER_ERRORS:
        width = height = 0  # a format that Pillow does not know, which `decode_image` may
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(str(error)) from error
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(
            f"the image has {width:,} x {height:,} pixels, but at most {MAX_PIXELS:,} are allowed"
        )
    return decode_image(content, pixel_range)


class Uploads:
    """Small copies of the last uploads by the hash of their content.

    Args:
        on_add: Function that is called with hash and content of a new upload.
        pixel_range: Range of the collection, see `Collection.pixel_range`.
    """

    def __init__(
        self,
        on_add: Callable[[str, bytes], None],
        pixel_range: tuple[float, float] | None = None,
    ):
        self._kept: OrderedDict[str, Image.Image] = OrderedDict()
        self._lock = threading.Lock()
        self._on_add = on_add
        self._pixel_range = pixel_range

    def add(self, content: bytes) -> str:
        """Decode an uploaded file, and return its hash.

        Args:
            content: Content of the file.

        Raises:
            UnreadableImageError: If it is too large, or no image.
        """
        picture = decode_upload(content, self._pixel_range)
        digest = hashlib.sha256(content).hexdigest()[:32]
        self._on_add(digest, content)
        picture.thumbnail((SHOWN, SHOWN))
        with self._lock:
            self._kept[digest] = picture
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return digest

    def get(self, digest: str) -> Image.Image | None:
        """Return the small copy of an upload; None if it is not kept.

        Args:
            digest: Hash that `add` returned.
        """
        with self._lock:
            return self._kept.get(digest)


__all__ = ["MAX_BYTES", "MAX_PIXELS", "Uploads", "decode_upload"]
