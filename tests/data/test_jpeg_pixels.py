"""JPEG files decoded by simplejpeg: the pixels, and the errors, are those of Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from selfvit.data.decoding import UnreadableImageError, decode_pixels
from selfvit.data.pixel_format import PixelFormat
from selfvit.data.pixels import jpeg_pixels

from ..image_files import noise

pytest.importorskip("simplejpeg", reason="part of the extra [train]")

KINDS = {
    "plain": ("RGB", {}),
    "full color": ("RGB", {"subsampling": 0}),
    "progressive": ("RGB", {"progressive": True}),
    "RGB": ("RGB", {"keep_rgb": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 3}),
    "gray": ("L", {}),
    "CMYK": ("CMYK", {}),
}
TEXTURE = (
    noise(170, 131),
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (131, 170, 3), dtype=np.uint8)),
)
PHOTO = Image.blend(*TEXTURE, 0.2)


def jpeg(image=PHOTO, mode="RGB", **settings):
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "JPEG", **settings)
    return buffer.getvalue()


def decoded(content, **settings):
    try:
        return decode_pixels(content, **settings).pixels
    except UnreadableImageError as error:
        return str(error)


def assert_same_as_pillow(content, monkeypatch, **settings):
    """Assert that pixels or errors are the same without simplejpeg; return them."""
    first = decoded(content, **settings)
    with monkeypatch.context() as changed:
        changed.setattr(jpeg_pixels, "simplejpeg", None)
        np.testing.assert_array_equal(first, decoded(content, **settings))
    return first


@pytest.mark.parametrize("target", [None, (60, 60), (30, 30), (8, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pillow_at_every_scale(kind, target, monkeypatch):
    mode, settings = KINDS[kind]
    pixels = assert_same_as_pillow(jpeg(mode=mode, **settings), monkeypatch, target=target)
    factor = {None: 1, (60, 60): 1, (30, 30): 2, (8, 8): 8}[target]
    assert pixels.shape == (-(-131 // factor), -(-170 // factor), 3)


@pytest.mark.parametrize("kind", KINDS)
def test_all_but_cmyk_files_are_read_without_pillow(kind):
    mode, settings = KINDS[kind]
    with Image.open(io.BytesIO(jpeg(mode=mode, **settings))) as opened:
        pixels = jpeg_pixels.read_jpeg(opened, "RGB")
    assert (pixels is None) == (kind == "CMYK")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_photos_are_turned_and_reduced_alike(orientation, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = assert_same_as_pillow(jpeg(exif=exif), monkeypatch, target=(42, 30))
    assert pixels.shape[:2] == ((131, 170) if orientation < 5 else (85, 66))


def test_a_gray_model_reads_gray_and_colored_files(monkeypatch):
    for mode in ("L", "RGB"):
        content = jpeg(mode=mode)
        pixels = assert_same_as_pillow(content, monkeypatch, pixel_format=PixelFormat(1))
        assert pixels.shape == (131, 170, 1)


def test_the_first_photo_of_a_file_with_several_is_read(monkeypatch):
    buffer = io.BytesIO()
    PHOTO.save(buffer, "MPO", save_all=True, append_images=[TEXTURE[0]])
    assert_same_as_pillow(buffer.getvalue(), monkeypatch)


def test_damaged_and_truncated_files_give_the_pixels_or_the_error_of_pillow(monkeypatch):
    content = jpeg()
    rng = np.random.default_rng(0)
    found = [decoded(content[:cut]) for cut in (-1, -2, -50, len(content) // 2)]
    assert found[2].startswith("truncated") and found[3].startswith("truncated")
    for number in range(80):
        damaged = bytearray(content if number % 2 else content[: rng.integers(1, len(content))])
        for position in rng.integers(0, len(damaged), 2):
            damaged[position] = rng.integers(256)
        assert_same_as_pillow(bytes(damaged), monkeypatch)


def test_a_reduced_photo_shows_what_the_whole_one_shows():
    large = PHOTO.resize((1600, 1200), Image.Resampling.BICUBIC)
    content = jpeg(large, quality=90)
    whole, reduced = decode_pixels(content).pixels, decode_pixels(content, target=(150, 200)).pixels
    assert reduced.shape == (300, 400, 3)
    views = [
        np.asarray(Image.fromarray(pixels).resize((200, 150), Image.Resampling.BICUBIC), float)
        for pixels in (whole, reduced)
    ]
    assert np.abs(views[0] - views[1]).mean() < 1
    centered = [(view - view.mean()).ravel() for view in views]
    norms = [np.linalg.norm(view) for view in centered]
    assert centered[0] @ centered[1] / (norms[0] * norms[1]) > 0.999
