"""JPEG files for benchmarks: photos of this computer, or synthesized ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

FOLDERS = (Path("/usr/share/wallpapers"), Path("/usr/share/backgrounds"))  # of Linux desktops
SEED = 0
QUALITY = 90
LAYERS = ((4, 70), (16, 35), (64, 18), (500, 6))  # cells per side and std of smooth noise
MIN_SHARE = 0.7  # of a side that a photo has to have, so that it is enlarged little


def find_photos(folders: Sequence[Path], size: tuple[int, int]) -> list[Path]:
    """Return the JPEG files of folders that are large enough, one per folder of wallpapers.

    Args:
        folders: Folders to search.
        size: (width, height) to be cut from each.
    """
    found: dict[object, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*.jp*g")):
            with Image.open(path) as image:
                shares = [have / need for have, need in zip(image.size, size, strict=True)]
            # a folder of wallpapers has one picture in many sizes
            key = path.parents[2] if path.parent.name.startswith("images") else path
            if min(shares) >= MIN_SHARE:
                found.setdefault(key, path)
    return list(found.values())


def synthesize_photo(size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Return an image with the smooth and the fine structure of a photo.

    Args:
        size: (width, height).
        generator: Source of random numbers.
    """
    pixels = np.zeros((size[1], size[0], 3), np.float32)
    for cells, strength in LAYERS:
        coarse = generator.normal(0, 1, (cells, cells, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[..., channel]).resize(size, Image.Resampling.BICUBIC)
            pixels[..., channel] += strength * np.asarray(layer)
    return Image.fromarray((128 + pixels).clip(0, 255).astype(np.uint8))


def write_photos(
    folder: Path, count: int, size: tuple[int, int] = (500, 375), photos: Sequence[Path] = ()
) -> None:
    """Write JPEG files of one size.

    Args:
        folder: Folder to write to.
        count: Number of files.
        size: (width, height).
        photos: Photos to cut and resize, in turns; none for synthesized ones.
    """
    generator = np.random.default_rng(SEED)
    for index in range(count):
        if photos:
            with Image.open(photos[index % len(photos)]) as opened:
                image = _cut(opened.convert("RGB"), size)
        else:
            image = synthesize_photo(size, generator)
        image.save(folder / f"{index:04}.jpg", quality=QUALITY)


def _cut(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the center of an image in the aspect ratio of a size, at that size."""
    scale = min(have / need for have, need in zip(image.size, size, strict=True))
    left, top = ((have - scale * need) / 2 for have, need in zip(image.size, size, strict=True))
    box = (left, top, left + scale * size[0], top + scale * size[1])
    return image.resize(size, Image.Resampling.LANCZOS, box=box)


__all__ = ["FOLDERS", "find_photos", "synthesize_photo", "write_photos"]
