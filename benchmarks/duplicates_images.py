"""Images of the benchmark of duplicates, and the copies that are planted in them."""

# N images

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from selfvit.data.sources import open_images
from selfvit.exploration.duplication.variants import (
    VARIANTS,
    brighten,
    crop,
    reencode,
    resize,
)

STAMPS = Path("/usr/share/tuxpaint/stamps")  # Debian package tuxpaint-stamps-default
# Debian packages lomiri-wallpapers-16.04, lomiri-wallpapers-20.04 and mate-backgrounds
BACKGROUNDS = Path("/usr/share/backgrounds")
WALLPAPERS = Path("/usr/share/wallpapers")  # Debian package plasma-workspace-wallpapers
FASHION = Path("examples/fashion_mnist_sample")
TILE = 160  # pixels, shorter side of a photograph's tile
TILES = (6, 4)  # of a photograph: along the longer side, along the shorter one
PLANTED = 0.1  # share of the images
COPY = ".copy."  # in the name of a copy, after that of its image

Pair = tuple[str, str]
Pictures = dict[str, Image.Image]
Kinds = dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]]


def read_stamps() -> Pictures:
    """Return the stamps on a white background, by name."""
    pictures = {}
    for path in sorted(STAMPS.rglob("*.png")):
        stamp = Image.open(path).convert("RGBA")
        white = Image.new("RGBA", stamp.size, "white")
        white.alpha_composite(stamp)
        pictures[path.relative_to(STAMPS).with_suffix("").as_posix()] = white.convert("RGB")
    return pictures


def read_background_tiles() -> Pictures:
    """Return the photographs of the backgrounds, cut into tiles, by name."""
    paths = [*BACKGROUNDS.glob("*_by_*.jpg"), *(BACKGROUNDS / "mate" / "nature").glob("*.jpg")]
    return _read_tiles({path.stem: path for path in sorted(paths)})


def read_wallpaper_tiles() -> Pictures:
    """Return the photographs of the wallpapers, cut into tiles, by name."""
    paths = WALLPAPERS.glob("*/contents/images/2560x1600.jpg")  # drawings have other sizes
    return _read_tiles({path.parts[-4]: path for path in sorted(paths)})


def _read_tiles(paths: dict[str, Path]) -> Pictures:
    """Return photographs, cut into tiles that do not overlap, by name."""
    pictures = {}
    for name, path in paths.items():
        photograph = Image.open(path).convert("RGB")
        is_wide = photograph.width >= photograph.height
        columns, rows = TILES if is_wide else TILES[::-1]
        scale = TILE * min(TILES) / min(photograph.size)
        width, height = (round(side * scale) for side in photograph.size)
        photograph = photograph.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2)
        width, height = width // columns, height // rows
        for number in range(columns * rows):
            left, top = number % columns * width, number // columns * height
            tile = photograph.crop((left, top, left + width, top + height))
            pictures[f"{name}/{number:02d}"] = tile
    return pictures


def read_fashion() -> Pictures:
    """Return the test images of the Fashion-MNIST sample, by number."""
    return _read_table(FASHION / "test.parquet")


def read_other_fashion() -> Pictures:
    """Return 2,000 training images of the Fashion-MNIST sample, by number."""
    pictures = _read_table(FASHION / "train.parquet")
    return {name: pictures[name] for name in list(pictures)[::4]}


def _read_table(path: Path) -> Pictures:
    source = open_images(str(path))
    pictures = {}
    for position in range(len(source)):
        image = source[position].image
        assert isinstance(image, Image.Image | bytes)
        picture = image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image))
        pictures[f"{position:05d}"] = picture.convert("RGB")
    return pictures


def webp(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image after WebP compression of a quality of 30 to 95."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=int(rng.integers(30, 96)))
    return Image.open(buffer).convert("RGB")


def resize_to_nearest(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image in 50 to 150 % of its size, resized without any filter."""
    scale = rng.uniform(0.5, 1.5)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.NEAREST)


def change_gamma(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image with its pixels raised to a power of 0.8 to 1.25."""
    power = float(np.exp(rng.uniform(np.log(0.8), np.log(1.25))))
    pixels = (np.asarray(picture, dtype=np.float32) / 255) ** power
    return Image.fromarray(np.rint(255 * pixels).astype(np.uint8))


def change_all(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return the image cropped, resized, changed in brightness and re-encoded."""
    for make in (crop, resize, brighten, reencode):
        picture = make(picture, rng)
    return picture


# Kinds that the threshold is not measured with.
OTHER_KINDS: Kinds = {
    "WebP": webp,
    "resized, no filter": resize_to_nearest,
    "gamma": change_gamma,
    "all four at once": change_all,
}


def plant(pictures: Pictures, seed: int, kinds: Kinds = VARIANTS) -> Pictures:
    """Return the images and the copies of one in ten.

    Args:
        pictures: Images by name.
        seed: Random seed of the images that are chosen and of their copies.
        kinds: Functions that make a copy, by their name; they take turns.
    """
    rng = np.random.default_rng(1000 + seed)
    names = list(pictures)
    chosen = rng.permutation(len(names))[: round(PLANTED * len(names))]
    order = list(kinds)
    planted = dict(pictures)
    for number, place in enumerate(chosen):
        kind = order[number % len(order)]
        name = names[place]
        planted[f"{name}{COPY}{kind}"] = kinds[kind](pictures[name], rng)
    return planted


def true_pairs(pictures: Pictures) -> set[Pair]:
    """Return the pairs of an image and its copy."""
    return {pair_of(name, name.split(COPY)[0]) for name in pictures if COPY in name}


def pair_of(first: str, second: str) -> Pair:
    """Return two names in the order of the alphabet."""
    return (first, second) if first < second else (second, first)


def equal_pairs(pictures: Pictures, pairs: set[Pair]) -> set[Pair]:
    """Return the pairs of equal pixels."""
    return {
        (first, second)
        for first, second in pairs
        if pictures[first].size == pictures[second].size
        and pictures[first].tobytes() == pictures[second].tobytes()
    }


def write_pictures(pictures: Pictures, folder: Path) -> None:
    """Write images as PNG files, below their names."""
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, compress_level=1)
