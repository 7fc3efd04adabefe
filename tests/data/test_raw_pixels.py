"""Files of more than eight bits, of many channels, and arrays."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from selfvit.data.decoding import UnreadableImageError, decode_image, decode_pixels
from selfvit.data.pixel_format import (
    NAN,
    DecodedPixels,
    Findings,
    PixelCheck,
    PixelFormat,
    RangeCheck,
    each_warning_once,
)

RGB, GRAY = PixelFormat(3), PixelFormat(1)
RAMP = np.tile(np.arange(0, 256, 4), (48, 1))  # (48, 64), eight bits


def tiff(pixels, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def bands(count, dtype=np.uint16, height=6, width=9):
    top = 2 ** (8 * np.dtype(dtype).itemsize) if np.dtype(dtype).kind == "u" else 256
    return np.random.default_rng(0).integers(0, top, (height, width, count)).astype(dtype)


def deep_png(pixels):
    """Write 16-bit colors, (H, W, 3) or (H, W, 4), with all the filters of PNG."""
    cv2 = pytest.importorskip("cv2")
    order = [2, 1, 0, 3][: pixels.shape[2]]
    return cv2.imencode(".png", pixels[..., order])[1].tobytes()


def wide(kind, bits=None):
    """Return the ramp with the full range of a type, as an array and its range."""
    if kind == "f":
        return (RAMP / 255).astype(np.float32), (0, 1)
    low, high = (0, 2**bits - 1) if kind == "u" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    values = np.round(low + RAMP / 255 * (high - low))
    return values.astype(f"{kind}{bits // 8}"), (low, high)


TYPES = [("u", 16), ("i", 16), ("u", 32), ("i", 32), ("i", 8), ("u", 64), ("f", 32)]


class TestTypes:
    @pytest.mark.parametrize("kind, bits", TYPES)
    @pytest.mark.parametrize("write", [tiff, npy, lambda values: values])
    def test_the_full_range_of_a_type_is_the_ramp(self, kind, bits, write):
        values, full_range = wide(kind, bits)
        decoded = decode_pixels(write(values), GRAY)
        assert decoded.pixels.shape == (48, 64, 1) and decoded.pixels.dtype == np.float32
        tolerance = 0.51 if bits == 8 else 0.01
        np.testing.assert_allclose(decoded.pixels[..., 0], RAMP, atol=tolerance)
        assert decoded.full_range == pytest.approx(full_range)
        assert decoded.value_range == pytest.approx((values.min(), values.max()))

    @pytest.mark.parametrize("byteorder", "<>")
    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_byte_order_and_compression_do_not_matter(self, byteorder, compression):
        values, _ = wide("i", 16)
        content = tiff(values, byteorder=byteorder, compression=compression)
        np.testing.assert_allclose(decode_pixels(content, GRAY).pixels[..., 0], RAMP, atol=0.01)

    @pytest.mark.parametrize("kind, bits", [("u", 8), ("u", 16), ("f", 32)])
    def test_small_values_are_bright_in_white_is_zero(self, kind, bits):
        values = RAMP.astype(np.uint8) if bits == 8 else wide(kind, bits)[0]
        content = tiff(values, photometric="miniswhite")
        pixels = decode_pixels(content, GRAY).pixels[..., 0]
        np.testing.assert_allclose(pixels, 255 - RAMP, atol=0.01)
        assert decode_image(content).getpixel((0, 0)) == (255, 255, 255)

    def test_a_compressed_signed_file_is_read_by_pillow_where_tifffile_cannot(self, tmp_path):
        # LZW: tifffile needs imagecodecs for it, and Pillow does not keep the type.
        Image.fromarray(wide("u", 16)[0]).save(tmp_path / "a.tif", compression="tiff_lzw")
        np.testing.assert_allclose(
            decode_pixels(tmp_path / "a.tif", GRAY).pixels[..., 0], RAMP, atol=0.01
        )

    @pytest.mark.parametrize("dtype", [np.uint8, bool])
    def test_eight_bits_and_booleans_stay_eight_bits(self, dtype):
        values = (RAMP > 99) if dtype is bool else RAMP.astype(np.uint8)
        decoded = decode_pixels(values, PixelFormat(1, (0, 4095)))
        assert decoded.pixels.dtype == np.uint8 and decoded.value_range is None
        expected = values * 255 if dtype is bool else values
        np.testing.assert_array_equal(decoded.pixels[..., 0], expected)

    def test_an_image_of_nan_alone_is_no_image(self):
        with pytest.raises(UnreadableImageError, match="without a finite value"):
            decode_pixels(np.full((8, 8), np.nan, np.float32))

    def test_values_outside_of_the_range_are_clipped_and_nan_is_black(self):
        values = np.array([[-5.0, 0.5, 7.0, np.nan, np.inf, -np.inf]], np.float32)
        decoded = decode_pixels(values, GRAY)
        np.testing.assert_allclose(decoded.pixels.ravel(), [0, 127.5, 255, 0, 255, 0])
        assert decoded.value_range == (-5, 7)

    def test_nan_is_black_where_small_values_are_bright(self):
        # it was white
        file, values = io.BytesIO(), np.array([[np.nan, 0, 0.5, 1]] * 16, np.float32)
        tifffile.imwrite(file, values, photometric="miniswhite")
        decoded = decode_pixels(file.getvalue(), GRAY)
        np.testing.assert_allclose(decoded.pixels[0].ravel(), [0, 255, 127.5, 0])
        assert decoded.unread == (NAN,)

    def test_a_range_of_large_integers_is_scaled_exactly(self):
        values = (10**9 + RAMP).astype(np.uint32)  # float32 has steps of 64 here
        decoded = decode_pixels(values, PixelFormat(1, (10**9, 10**9 + 255)))
        np.testing.assert_allclose(decoded.pixels[..., 0], RAMP, atol=1e-4)

    @pytest.mark.parametrize("maxval", [1023, 4095, 65535])
    def test_a_pgm_file_declares_its_own_range(self, maxval):
        values = np.round(RAMP / 255 * maxval).astype(">u2")
        content = b"P5\n# a camera\n64 48\n%d\n" % maxval + values.tobytes()
        decoded = decode_pixels(content, GRAY)
        np.testing.assert_allclose(decoded.pixels[..., 0], RAMP, atol=0.13)
        assert decoded.value_range == (0, values.max()) and decoded.full_range == (0, maxval)
        halved = decode_pixels(content, PixelFormat(1, (0, 2 * maxval))).pixels
        np.testing.assert_allclose(halved[..., 0], RAMP / 2, atol=0.13)

    @pytest.mark.parametrize("image", ["path", "bytes", "open"])
    def test_a_declared_range_applies_to_every_kind_of_input(self, image, tmp_path):
        values = np.round(RAMP / 255 * 4095).astype(np.uint16)
        Image.fromarray(values).save(tmp_path / "a.png")
        source = {
            "path": tmp_path / "a.png",
            "bytes": (tmp_path / "a.png").read_bytes(),
            "open": Image.open(tmp_path / "a.png"),
        }[image]
        decoded = decode_pixels(source, PixelFormat(3, (0, 4095)))
        assert decoded.pixels.shape == (48, 64, 3)
        np.testing.assert_allclose(decoded.pixels[..., 1], values * (255 / 4095), rtol=1e-6)


class TestChannels:
    @pytest.mark.parametrize("count", [2, 4, 8, 12])
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    @pytest.mark.parametrize("planar", ["contig", "separate", "pages"])
    def test_every_band_of_a_tiff_is_data(self, count, dtype, planar):
        values = bands(count, dtype)
        if dtype == np.float32:
            values = values / 255
        stored, options = values, {"photometric": "minisblack"}
        if planar != "contig":
            stored = values.transpose(2, 0, 1)
        if planar != "pages":
            options["planarconfig"] = planar
        decoded = decode_pixels(tiff(stored, **options), PixelFormat(count))
        scale = {np.uint8: 1, np.uint16: 255 / 65535, np.float32: 255}[dtype]
        np.testing.assert_allclose(decoded.pixels, values * scale, rtol=1e-5)
        assert (decoded.pixels.dtype == np.uint8) == (dtype == np.uint8)

    @pytest.mark.parametrize("count", [1, 2, 4, 12])
    @pytest.mark.parametrize("first", [False, True])
    def test_the_channels_of_an_array_are_the_axis_of_their_number(self, count, first, tmp_path):
        values = bands(count)
        np.save(tmp_path / "a.npy", values.transpose(2, 0, 1) if first else values)
        decoded = decode_pixels(tmp_path / "a.npy", PixelFormat(count, (0, 65535)))
        np.testing.assert_allclose(decoded.pixels, values * (255 / 65535), rtol=1e-5)
        assert decoded.pixels.flags.c_contiguous and decoded.pixels.flags.writeable

    def test_the_last_axis_wins_if_both_fit(self):
        values = bands(4, np.uint8, height=4)
        np.testing.assert_array_equal(decode_pixels(values, PixelFormat(4)).pixels, values)

    def test_the_fourth_band_of_an_rgba_file_is_data_for_four_channels_only(self):
        values = bands(4, np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(values, "RGBA").save(buffer, "PNG")
        four, three = (decode_pixels(buffer.getvalue(), PixelFormat(n)).pixels for n in (4, 3))
        np.testing.assert_array_equal(four, values)
        np.testing.assert_array_equal(three, values[..., :3])

    @pytest.mark.parametrize("count", [3, 4])
    def test_colors_of_16_bits_in_png_keep_their_low_bytes(self, count):
        values = bands(count, height=40, width=50)
        pixels = decode_pixels(deep_png(values), PixelFormat(count)).pixels
        np.testing.assert_allclose(pixels, values * (255 / 65535), rtol=1e-5)
        three = decode_pixels(deep_png(values), RGB).pixels
        np.testing.assert_allclose(three, values[..., :3] * (255 / 65535), rtol=1e-5)

    def test_colors_of_16_bits_in_tiff_keep_their_low_bytes(self):
        values = bands(3)
        pixels = decode_pixels(tiff(values, photometric="rgb"), RGB).pixels
        np.testing.assert_allclose(pixels, values * (255 / 65535), rtol=1e-5)

    def test_colors_in_tiff_of_a_compression_of_pillow_only_keep_their_low_bytes(self):
        cv2 = pytest.importorskip("cv2")  # writes LZW, for which tifffile needs imagecodecs
        values = bands(3, height=40, width=50)
        content = cv2.imencode(".tif", values[..., ::-1])[1].tobytes()
        pixels = decode_pixels(content, RGB).pixels
        np.testing.assert_allclose(pixels, values * (255 / 65535), rtol=1e-5)

    @pytest.mark.parametrize("orientation", [1, 3, 6])
    def test_colors_in_tiff_of_a_compression_of_pillow_only_are_turned_once(self, orientation):
        # Pillow turned them, and they were turned again.
        cv2 = pytest.importorskip("cv2")
        values = bands(3)
        content = bytearray(cv2.imencode(".tif", values[..., ::-1])[1].tobytes())
        planes = content.index(b"\x1c\x01\x03\x00\x01\x00\x00\x00\x01\x00")  # tag 284, not needed
        content[planes : planes + 2] = b"\x12\x01"  # tag 274, orientation
        content[planes + 8] = orientation
        upright = np.rot90(values, {1: 0, 3: 2, 6: -1}[orientation])
        pixels = decode_pixels(bytes(content), RGB).pixels
        np.testing.assert_allclose(pixels, upright * (255 / 65535), rtol=1e-5)

    def test_bands_in_a_compression_that_nothing_reads_name_the_package(self):
        content = bytearray(tiff(bands(4), photometric="minisblack", planarconfig="contig"))
        place = content.index(b"\x03\x01\x03\x00\x01\x00\x00\x00") + 8  # tag 259, compression
        content[place] = 5  # LZW
        with pytest.raises(UnreadableImageError, match="LZW.* pip install imagecodecs"):
            decode_pixels(bytes(content), PixelFormat(4))

    def test_four_bands_of_eight_bits_in_lzw_are_read_by_pillow(self):
        values, buffer = bands(4, np.uint8), io.BytesIO()
        Image.fromarray(values, "RGBA").save(buffer, "TIFF", compression="tiff_lzw")
        pixels = decode_pixels(buffer.getvalue(), PixelFormat(4)).pixels
        np.testing.assert_array_equal(pixels, values)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_gray_is_repeated_and_colors_become_gray_as_in_pillow(self, dtype):
        values = bands(3, dtype)
        eight = (values >> (8 * (values.itemsize - 1))).astype(np.uint8)
        gray = decode_pixels(tiff(values, photometric="rgb"), GRAY).pixels
        expected = np.asarray(Image.fromarray(eight).convert("L"), dtype=float)
        np.testing.assert_allclose(gray[..., 0], expected, atol=0 if dtype == np.uint8 else 1.1)
        repeated = decode_pixels(values[..., 0], RGB).pixels
        assert (repeated == repeated[..., :1]).all() and repeated.shape == (6, 9, 3)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_three_bands_that_are_not_declared_as_colors_are_red_green_blue(self, dtype, planar):
        values = bands(3, dtype)
        stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
        declared = decode_pixels(tiff(values, photometric="rgb")).pixels
        file = tiff(stored, photometric="minisblack", planarconfig=planar)
        np.testing.assert_array_equal(decode_pixels(file).pixels, declared)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    @pytest.mark.parametrize("num_channels", [1, 3])
    def test_alpha_of_gray_is_dropped(self, dtype, num_channels):
        values = bands(2, dtype)
        file = tiff(values, photometric="minisblack", planarconfig="contig", extrasamples=[2])
        plain = tiff(values[..., 0], photometric="minisblack")
        pixel_format = PixelFormat(num_channels)
        expected = decode_pixels(plain, pixel_format).pixels
        np.testing.assert_array_equal(decode_pixels(file, pixel_format).pixels, expected)

    @pytest.mark.parametrize(
        "write, num_channels, reason",
        [
            (lambda: tiff(bands(12), photometric="minisblack", planarconfig="contig"), 4, "has 12"),
            (lambda: tiff(bands(12), photometric="minisblack", planarconfig="contig"), 3, "has 12"),
            (
                lambda: tiff(bands(4, np.uint8), photometric="minisblack", planarconfig="contig"),
                1,
                "has 4 channels",
            ),
            (lambda: tiff(bands(3), photometric="rgb"), 4, "has 3 channels, but the .* reads 4"),
            (lambda: npy(bands(5)), 3, "an array of 6 x 9 x 5, but the model reads 3"),
            (lambda: npy(bands(4)), 3, "neither the first nor the last axis"),
            (lambda: npy(np.zeros((2, 3, 4, 5), np.uint8)), 3, "an array of 4 axes"),
            (lambda: npy(np.zeros((0, 4), np.uint8)), 1, "without pixels"),
            (lambda: npy(np.zeros((4, 4), complex)), 1, "the type complex128"),
            (lambda: npy(np.array([["a", "b"]])), 1, "the type <U1"),
            (lambda: npy(bands(4))[:150], 4, "corrupt|truncated"),
            (lambda: tiff(bands(4), photometric="rgb")[:-300], 4, "corrupt: failed to read"),
            (lambda: deep_png(bands(3, height=90, width=90))[:-900], 3, "truncated|corrupt"),
        ],
    )
    def test_what_does_not_fit_is_an_error_with_the_reason(self, write, num_channels, reason):
        with pytest.raises(UnreadableImageError, match=reason):
            decode_pixels(write(), PixelFormat(num_channels))

    def test_the_channels_of_an_eight_bit_file_are_counted(self, tmp_path):
        Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg")
        with pytest.raises(UnreadableImageError, match="has 3 channels, but the .* reads 2"):
            decode_pixels(tmp_path / "a.jpg", PixelFormat(2))

    def test_python_objects_in_an_array_are_not_opened(self):
        buffer = io.BytesIO()
        np.save(buffer, np.array([print], dtype=object), allow_pickle=True)
        with pytest.raises(UnreadableImageError, match="allow_pickle|type object"):
            decode_pixels(buffer.getvalue())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_files_are_turned_upright_as_eight_bit_files_are(orientation):
    values = bands(1, np.uint8)[..., 0]
    tag = [(274, "H", 1, orientation, True)]
    deep = tiff(values.astype(np.uint16) * 257, extratags=tag)
    expected = np.asarray(decode_image(tiff(values, extratags=tag)))
    np.testing.assert_allclose(decode_pixels(deep).pixels, expected, atol=1e-3)


class TestLargeImages:
    def test_a_large_image_is_reduced_to_its_means(self):
        values = np.zeros((7000, 9000), np.uint16)
        values[:3500, 4500:] = 65535
        decoded = decode_pixels(values, GRAY, target=(100, 100))
        assert decoded.pixels.shape == (412, 530, 1)  # 1 of 17 pixels, at least 4 * 100
        assert decoded.pixels[:200, 270:].min() == pytest.approx(255)
        assert decoded.pixels[:200, :260].max() == decoded.pixels[210:].max() == 0

    def test_an_ordinary_image_is_not_reduced(self):
        assert decode_pixels(np.zeros((900, 900), np.uint16), target=(8, 8)).pixels.shape[0] == 900

    def test_a_large_photo_is_reduced_by_the_decoder(self, tmp_path):
        image = Image.new("RGB", (8000, 6000), (9, 99, 199))
        image.paste((200, 20, 2), (4000, 0, 8000, 6000))
        for name, times in (("a.jpg", 2), ("a.png", 4)):
            image.save(tmp_path / name, exif=Image.Exif())
            pixels = decode_pixels(tmp_path / name, target=(200, 200)).pixels
            assert 200 * times <= min(pixels.shape[:2]) <= 1500 and pixels.dtype == np.uint8
            np.testing.assert_allclose(pixels[9, 9], (9, 99, 199), atol=2)
            np.testing.assert_allclose(pixels[-9, -9], (200, 20, 2), atol=2)

    def test_a_strip_of_many_pixels_is_refused_with_its_size(self):
        with pytest.raises(UnreadableImageError, match="too large: 50000000 x 2 pixels"):
            decode_pixels(np.zeros((2, 50_000_000), np.uint8), GRAY, target=(8, 8))

    def test_an_array_of_too_many_bytes_is_refused_with_its_size(self):
        virtual = np.broadcast_to(np.zeros(1, np.float64), (9000, 9000, 12))
        with pytest.raises(UnreadableImageError, match="9000 x 9000 pixels of 12 channels"):
            decode_pixels(virtual, PixelFormat(12), target=(8, 8))

    def test_memory_that_runs_out_is_a_reason(self, monkeypatch):
        def no_memory(*args, **kwargs):
            raise MemoryError

        monkeypatch.setattr("selfvit.data.decoding.scale_pixels", no_memory)
        with pytest.raises(UnreadableImageError, match="^not enough memory to decode it$"):
            decode_pixels(np.zeros((8, 8), np.uint16))


class TestRangeCheck:
    @pytest.mark.parametrize(
        "values, full, fits",
        [
            ((0, 4095), (0, 65535), False),
            ((0, 8191), (0, 65535), False),
            ((0, 8192), (0, 65535), True),
            ((60000, 65000), (0, 65535), True),
            ((0, 0), (0, 65535), True),
            ((0, 4095), (-32768, 32767), False),
            ((-32768, 32767), (-32768, 32767), True),
            ((-100, 100), (-32768, 32767), False),
            ((0, 1), (0, 1), True),
            ((0, 255), (0, 1), False),
            ((-0.1, 0.9), (0, 1), False),
            ((0, 4096), (0, 4095), False),
        ],
    )
    def test_a_small_part_and_values_outside_are_found(self, values, full, fits):
        check = RangeCheck()
        check.add("a.png", DecodedPixels(np.zeros((1, 1, 1)), values, full))
        assert (check.warning() is None) == fits

    def test_one_warning_names_the_first_image_the_largest_value_and_the_options(self):
        check = RangeCheck()
        check.add("fits.png", ((0, 65535), (0, 65535)))
        check.add("eight.png", None)
        check.add("a.png", ((0, 900), (0, 65535)))
        check.add("b.png", ((0, 3000), (0, 65535)))
        warning = pickle.loads(pickle.dumps(check)).warning()
        assert warning.startswith("a.png has values from 0 to 900, which is less than 1/8 of")
        assert (
            ", as does 1 of 3 others;" in warning
            and "3000" in warning
            and "N of at least 12" in warning
        )
        assert "--pixel-range LOW HIGH" in warning and "\n" not in warning

    def test_each_kind_is_returned_once_by_a_check_or_by_all_checks_of_a_command(self):
        findings = Findings(((0, 900), (0, 65535)), ("transparency",))

        def warned(check):
            check.add("a.png", findings)
            return check.warnings_once()

        check = PixelCheck()
        assert len(warned(check)) == 2 and warned(check) == []
        assert len(warned(PixelCheck())) == 2
        with each_warning_once():
            assert len(warned(PixelCheck())) == 2 and warned(PixelCheck()) == []
        assert len(warned(PixelCheck())) == 2

    @pytest.mark.parametrize("pixel_range", [(1, 1), (2, 1), (0, float("nan")), (0,), "ab", 3])
    def test_a_range_must_be_two_numbers_in_order(self, pixel_range):
        with pytest.raises(ValueError, match="must be two numbers"):
            PixelFormat(3, pixel_range)
