"""Image files with the unusual formats and defects that occur in real folders."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image

LIGHT, DARK = 200, 40


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image of smooth random colors, which JPEG changes little."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def light_left(width: int = 48, height: int = 32) -> Image.Image:
    """Return a gray image whose left half is light and whose right half is dark."""
    pixels = np.full((height, width, 3), DARK, dtype=np.uint8)
    pixels[:, : width // 2] = LIGHT
    return Image.fromarray(pixels)


def exif_rotated_jpeg(path: Path, orientation: int = 6) -> None:
    """Write a photo stored with the light half on the left; orientation 6 shows it on top."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    light_left().save(path, "JPEG", quality=95, exif=exif)


def broken_exif_jpeg(path: Path) -> None:
    exif = b"Exif\x00\x00II*\x00\xff\xff\xff\x7f" + b"\xff" * 20
    light_left().save(path, "JPEG", quality=95, exif=exif)


def text_orientation_jpeg(path: Path) -> None:
    """Write a photo whose EXIF orientation is a text instead of a number."""
    entry = struct.pack("<HHI", 0x0112, 2, 2) + b"6\0\0\0"
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    light_left().save(path, "JPEG", quality=95, exif=exif)


def transparent_gif(path: Path) -> None:
    """Write an image without an alpha channel, whose dark half has a color that is transparent."""
    image = light_left().convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    image.save(path, "GIF", transparency=image.getpixel((image.width - 1, 0)))


def transparent_png(path: Path) -> None:
    light_left().save(path, "PNG", transparency=(DARK, DARK, DARK))


def cmyk_jpeg(path: Path) -> None:
    light_left().convert("CMYK").save(path, "JPEG", quality=95)


def sixteen_bit_png(path: Path, value: int = 32896) -> None:
    """Write an image of one 16-bit gray value; 32896 is 128 in 8 bits."""
    Image.fromarray(np.full((32, 48), value, dtype=np.uint16)).save(path, "PNG")


def float_tiff(path: Path, value: float = 0.5) -> None:
    pixels = np.full((32, 48), value, dtype=np.float32)
    pixels[0, 0] = 1.0
    Image.fromarray(pixels).save(path, "TIFF")


def palette_png(path: Path) -> None:
    """Write an image with a palette that contains transparent colors."""
    image = light_left().convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    image.save(path, "PNG", transparency=bytes([0, 128, 255, 255]))


def rgba_png(path: Path) -> None:
    image = light_left()
    image.putalpha(Image.new("L", image.size, 10))
    image.save(path, "PNG")


def gray_alpha_png(path: Path) -> None:
    image = light_left().convert("L")
    image.putalpha(Image.new("L", image.size, 10))
    image.save(path, "PNG")


def gray_jpeg(path: Path) -> None:
    light_left().convert("L").save(path, "JPEG", quality=95)


def animated_gif(path: Path) -> None:
    """Write two frames: the light half is on the left in the first, on the right in the second."""
    second = light_left().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    light_left().save(path, "GIF", save_all=True, append_images=[second], duration=50)


def truncated_jpeg(path: Path) -> None:
    buffer = io.BytesIO()
    noise(256, 256).save(buffer, "JPEG", quality=95)
    content = buffer.getvalue()
    path.write_bytes(content[: len(content) // 2])


def truncated_png(path: Path) -> None:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "PNG")
    content = buffer.getvalue()
    path.write_bytes(content[: len(content) // 2])


def empty_jpeg(path: Path) -> None:
    path.write_bytes(b"")


def text_jpeg(path: Path) -> None:
    path.write_text("This is not an image.\n")


def damaged_png(path: Path) -> None:
    """Write a file with a valid signature and size, but invalid content."""
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "PNG")
    content = bytearray(buffer.getvalue())
    content[45:] = b"\x55" * (len(content) - 45)
    path.write_bytes(content)


def bomb_png(path: Path) -> None:
    """Write 400 megapixels in 49 kB: more than twice Pillow's limit."""
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


def huge_png(path: Path) -> None:
    """Write 90 megapixels: between Pillow's limit for warnings and twice that limit."""
    Image.new("1", (10_000, 9_000), 1).save(path, "PNG")


READABLE = {
    "exif.jpg": exif_rotated_jpeg,
    "broken_exif.jpg": broken_exif_jpeg,
    "text_orientation.jpg": text_orientation_jpeg,
    "transparent.gif": transparent_gif,
    "transparent.png": transparent_png,
    "cmyk.jpg": cmyk_jpeg,
    "sixteen_bit.png": sixteen_bit_png,
    "float.tiff": float_tiff,
    "palette.png": palette_png,
    "rgba.png": rgba_png,
    "gray_alpha.png": gray_alpha_png,
    "gray.jpg": gray_jpeg,
    "animated.gif": animated_gif,
}
UNREADABLE = {
    "truncated.jpg": (truncated_jpeg, "truncated"),
    "truncated.png": (truncated_png, "truncated"),
    "empty.jpg": (empty_jpeg, "empty file (0 bytes)"),
    "text.jpg": (text_jpeg, "not an image"),
    "damaged.png": (damaged_png, ""),
    "bomb.png": (bomb_png, "too many pixels"),
}


def write_all(folder: Path, without: tuple[str, ...] = ()) -> None:
    """Write one file of every kind, readable and unreadable, except those in `without`."""
    writers = {**READABLE, **{name: write for name, (write, _) in UNREADABLE.items()}}
    for name in writers.keys() - set(without):
        writers[name](folder / name)
