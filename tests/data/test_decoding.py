import os
import pickle
import re
import warnings

import numpy as np
import pytest
import tifffile
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

from selfvit.data.decoding import UnreadableImageError, decode_image, decode_pixels
from selfvit.data.pixel_format import FOURTH_BAND, FRAMES, NAN, TRANSPARENCY, PixelFormat

from .. import image_files
from ..image_files import DARK, LIGHT, light_left


def halves(image):
    """Return the mean gray value of the left, right, top and bottom third."""
    gray = np.asarray(image.convert("L"), dtype=float)
    height, width = gray.shape
    sides = gray[:, : width // 3], gray[:, -width // 3 :], gray[: height // 3], gray[-height // 3 :]
    return tuple(side.mean() for side in sides)


@pytest.mark.parametrize("name", image_files.READABLE)
def test_readable_files_become_rgb(name, tmp_path):
    image_files.READABLE[name](tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(tmp_path / name).mode == "RGB"


@pytest.mark.parametrize("name", image_files.UNREADABLE)
def test_the_error_for_an_unreadable_file_gives_the_reason(name, tmp_path):
    write, reason = image_files.UNREADABLE[name]
    write(tmp_path / name)
    for image in (tmp_path / name, str(tmp_path / name), (tmp_path / name).read_bytes()):
        with pytest.raises(UnreadableImageError, match="^" + re.escape(reason)):
            decode_image(image)


@pytest.mark.parametrize(
    "name", sorted(set(image_files.READABLE) - {"sixteen_bit.png", "float.tiff"})
)
def test_pixels_equal_those_of_transformers(name, tmp_path):
    image_files.READABLE[name](tmp_path / name)
    ours = decode_image(tmp_path / name)
    theirs = convert_to_rgb(load_image(str(tmp_path / name)), return_numpy=True)  # as a pipeline
    np.testing.assert_array_equal(np.asarray(ours), theirs)


@pytest.mark.parametrize("name", ["transparent.gif", "transparent.png"])
def test_a_transparent_color_becomes_white_if_the_processor_would_fill_it(name, tmp_path):
    image_files.READABLE[name](tmp_path / name)
    for fills, dark in ((True, 255), (False, DARK)):
        pixels = decode_pixels(tmp_path / name, PixelFormat(fills_transparent_color=fills))
        assert (pixels.pixels[:, -1] == dark).all() and (pixels.pixels[:, 0] == LIGHT).all()
        assert pixels.unread == (() if fills else (TRANSPARENCY,))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_equals_that_of_transformers(orientation, tmp_path):
    image_files.exif_rotated_jpeg(tmp_path / "a.jpg", orientation)
    ours, theirs = decode_image(tmp_path / "a.jpg"), load_image(str(tmp_path / "a.jpg"))
    np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_a_turned_tiff_file_is_the_same_by_its_path_and_its_content(mode, tmp_path):
    # Pillow maps a file of one strip, with width and height swapped: the rows were scrambled.
    image = image_files.noise(30, 20).convert("L").convert("RGB").convert(mode)
    image.save(tmp_path / "a.tif")
    expected = decode_image(tmp_path / "a.tif").transpose(Image.Transpose.ROTATE_270)
    image.save(tmp_path / "a.tif", tiffinfo={274: 6})
    for source in (tmp_path / "a.tif", (tmp_path / "a.tif").read_bytes()):
        np.testing.assert_array_equal(decode_image(source), np.asarray(expected))


def write_pages(path, kind):
    """Write two pages; the second one is a page, a smaller version of the first, or a mask."""
    with tifffile.TiffWriter(path) as file:
        for page in range(2):
            pixels = np.zeros((16, 16, 3), np.uint8)
            file.write(pixels, photometric="rgb", subfiletype=kind if page else 0)


def write_16_bits(path, alpha):
    pixels = np.full((8, 8, 4), 40_000, np.uint16)
    pixels[..., 3] = alpha
    tifffile.imwrite(path, pixels, photometric="rgb", extrasamples=["unassalpha"])


def write_holes(path):
    tifffile.imwrite(path, np.where(np.eye(8, dtype=bool), np.nan, 0.5).astype(np.float32))


def write_extra_band(path, dtype, photometric, planes, extra):
    """Write colors and an extra band, in planes of their own or not."""
    pixels = np.full((8, 8, 4 if photometric == "rgb" else 2), 90, dtype)
    pixels = np.moveaxis(pixels, -1, 0).copy() if planes == "separate" else pixels
    tifffile.imwrite(
        path, pixels, photometric=photometric, planarconfig=planes, extrasamples=[extra]
    )


UNREAD = {
    "rgba.png": (image_files.rgba_png, (TRANSPARENCY,)),
    "gray.png": (image_files.gray_alpha_png, (TRANSPARENCY,)),
    "palette.png": (image_files.palette_png, (TRANSPARENCY,)),
    "opaque.png": (lambda path: light_left().convert("RGBA").save(path), ()),
    "unused.gif": (lambda path: light_left().quantize(4).save(path, transparency=9), ()),
    "animated.gif": (image_files.animated_gif, (FRAMES,)),
    "pages.tif": (lambda path: write_pages(path, 0), (FRAMES,)),
    "thumbnail.tif": (lambda path: write_pages(path, 1), ()),
    "deep.tif": (lambda path: write_16_bits(path, 9), (TRANSPARENCY,)),
    "deep_opaque.tif": (lambda path: write_16_bits(path, 65_535), ()),
    "holes.tif": (write_holes, (NAN,)),
    "gray.jpg": (image_files.gray_jpeg, ()),
}


@pytest.mark.parametrize("name", UNREAD)
def test_what_is_not_read_of_a_file_is_told(name, tmp_path):
    write, unread = UNREAD[name]
    write(tmp_path / name)
    assert decode_pixels(tmp_path / name).unread == unread
    assert decode_pixels((tmp_path / name).read_bytes()).unread == unread


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("photometric, planes, extra, unread", [
    ("rgb", "contig", 0, FOURTH_BAND), ("rgb", "separate", 0, FOURTH_BAND),
    ("rgb", "separate", 1, TRANSPARENCY), ("rgb", "separate", 2, TRANSPARENCY),
    ("rgb", "contig", 2, TRANSPARENCY), ("minisblack", "contig", 1, TRANSPARENCY),
    ("minisblack", "separate", 2, TRANSPARENCY), ("miniswhite", "contig", 2, TRANSPARENCY),
])  # fmt: skip
def test_an_extra_band_of_a_tiff_file_is_left_out_and_named(
    dtype, photometric, planes, extra, unread, tmp_path
):
    # of eight bits, most were no images for Pillow; of 16 bits, near infrared was transparency
    write_extra_band(tmp_path / "a.tif", dtype, photometric, planes, extra)
    decoded = decode_pixels(tmp_path / "a.tif")
    white = 255 if dtype == np.uint8 else 65_535
    expected = 255 / white * (white - 90 if photometric == "miniswhite" else 90)
    np.testing.assert_allclose(decoded.pixels, expected, rtol=1e-5)
    assert decoded.pixels.shape == (8, 8, 3) and decoded.unread == (unread,)


def test_a_gray_tiff_file_with_an_unknown_band_has_two_channels(tmp_path):
    write_extra_band(tmp_path / "a.tif", np.uint8, "minisblack", "contig", 0)
    with pytest.raises(UnreadableImageError, match="has 2 channels, but the model reads 3"):
        decode_pixels(tmp_path / "a.tif")


def test_a_model_of_four_channels_reads_alpha(tmp_path):
    image_files.rgba_png(tmp_path / "a.png")
    assert decode_pixels(tmp_path / "a.png", PixelFormat(4)).findings is None


def test_a_rotated_photo_is_turned_upright(tmp_path):
    image_files.exif_rotated_jpeg(tmp_path / "a.jpg", orientation=6)
    image = decode_image(tmp_path / "a.jpg")
    assert image.size == (32, 48)
    _, _, top, bottom = halves(image)
    assert top == pytest.approx(LIGHT, abs=8) and bottom == pytest.approx(DARK, abs=8)


def test_an_animation_gives_its_first_frame(tmp_path):
    image_files.animated_gif(tmp_path / "a.gif")
    left, right, _, _ = halves(decode_image(tmp_path / "a.gif"))
    assert left == pytest.approx(LIGHT, abs=8) and right == pytest.approx(DARK, abs=8)


@pytest.mark.parametrize("stored, shown", [(0, 0), (256, 1), (32896, 128), (65535, 255)])
def test_sixteen_bit_grays_are_scaled_not_clipped(stored, shown, tmp_path):
    # Pillow's convert would turn every value from 255 of 65535 into white.
    image_files.sixteen_bit_png(tmp_path / "a.png", stored)
    assert decode_image(tmp_path / "a.png").getpixel((20, 20)) == (shown,) * 3


def test_float_grays_up_to_one_are_scaled(tmp_path):
    image_files.float_tiff(tmp_path / "a.tiff", 0.5)
    assert decode_image(tmp_path / "a.tiff").getpixel((20, 20)) == (128,) * 3


@pytest.mark.parametrize("brightest", [255, 65535, 1000000])
def test_the_scale_of_integers_is_not_guessed_from_the_brightest_pixel(brightest):
    # It was the smallest of some ranges that fit, so two images of one series differed in scale.
    pixels = np.full((8, 8), 100, dtype=np.int32)
    pixels[0, 0] = brightest
    image = decode_image(Image.fromarray(pixels), pixel_range=(0, 1000))
    assert image.getpixel((5, 5)) == (26,) * 3
    assert decode_image(Image.fromarray(pixels)).getpixel((5, 5)) == (128,) * 3


def test_nan_becomes_black_unless_it_is_all_there_is():
    pixels = np.full((8, 8), np.nan, dtype=np.float32)
    with pytest.raises(UnreadableImageError, match="without a finite value"):
        decode_image(Image.fromarray(pixels))
    pixels[1:] = 1
    assert decode_image(Image.fromarray(pixels)).getpixel((0, 0)) == (0, 0, 0)


def test_a_photo_above_the_warning_limit_of_pillow_gives_no_warning(tmp_path):
    image_files.huge_png(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(tmp_path / "a.png").size == (10_000, 9_000)


def test_a_missing_file_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImageError, match="No such file"):
        decode_image(tmp_path / "missing.jpg")


def test_an_open_image_is_not_changed():
    image = image_files.light_left().convert("L")
    before = image.tobytes()
    decode_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.mode == "L" and image.tobytes() == before


def test_a_decoded_rgb_image_is_a_copy():
    image = image_files.light_left()
    decode_image(image).putpixel((0, 0), (1, 2, 3))
    assert image.getpixel((0, 0)) == (LIGHT,) * 3


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tiff", ".bmp"])
def test_damaged_bytes_never_crash(suffix, tmp_path):
    image_files.noise(40, 40).save(tmp_path / f"a{suffix}")
    content = (tmp_path / f"a{suffix}").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        for position in rng.integers(0, min(len(content), 400), 6):
            damaged[position] = rng.integers(256)
        damaged = damaged[: rng.integers(1, len(content) + 1)]
        try:
            assert decode_image(bytes(damaged)).mode == "RGB"
        except UnreadableImageError as error:
            assert str(error) and os.linesep not in str(error)


def test_the_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(UnreadableImageError("empty file (0 bytes)")))
    assert str(error) == "empty file (0 bytes)"
