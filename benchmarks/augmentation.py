"""Compare the views of selfvit with those of Lightly and torchvision, from JPEG files, on one core.

    pip install -e ".[train,bench]" torchvision
    python -m benchmarks.augmentation --quick
    python -m benchmarks.augmentation --output benchmarks/results/augmentation.md

All make the same views: DINO's 2 of 224 and 6 of 96 pixels, PMSN's 2 of 224 and 10 of 96, MAE's
single crop; strengths and probabilities are selfvit's defaults. Lightly and torchvision return
normalized floats. selfvit trains from uint8, which the model's device normalizes; a row with
normalization on this core is for the comparison. The last row is the limit: decoding alone,
reduced (12 megapixels to 1/4), without any view. Photos are synthetic unless --photos is given.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from lightly.transforms import DINOTransform, MAETransform, MSNTransform
from PIL import Image
from torchvision.transforms import v2

from benchmarks.interleaved import (
    build_parser,
    choose_clock,
    format_times,
    machine,
    measure,
    pin_threads,
    versions,
    write_section,
)
from benchmarks.photos import write_photos
from selfvit import open_images
from selfvit.training.augmentations.base import Augmentation
from selfvit.training.augmentations.multi_crop import FocalCrops, MultiCrop
from selfvit.training.augmentations.single_crop import MAECrop
from selfvit.training.dataloader.collate import normalize
from selfvit.training.dataloader.views import ViewDataset

PACKAGES = ("torch", "torchvision", "lightly", "Pillow", "simplejpeg", "opencv-python-headless")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
SIZE, SMALL_SIZE = 224, 96
LARGE_PHOTO = (4000, 3000)  # pixels
GRAIN = 4.0  # levels; makes a file of about 2.5 MB
SEED = 0
Program = Callable[[], Any]
Transform = Callable[[Image.Image], Any]


def crop_of(size: int, scale: tuple[float, float]) -> list[v2.Transform]:
    """Return the random crop of torchvision with a flip."""
    bicubic = v2.InterpolationMode.BICUBIC
    crop = v2.RandomResizedCrop(size, scale, interpolation=bicubic, antialias=True)
    return [crop, v2.RandomHorizontalFlip()]


def floats() -> list[v2.Transform]:
    """Return the normalization of torchvision."""
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


def torchvision_multi_crop(pixels: torch.Tensor) -> list[torch.Tensor]:
    """Return the views of DINO, made by torchvision from (3, H, W) uint8."""
    return [view(pixels) for view in TORCHVISION_VIEWS]


def _torchvision_view(
    size: int, scale: tuple[float, float], blur: float, solarize: float
) -> v2.Transform:
    return v2.Compose(
        [
            *crop_of(size, scale),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=blur),
            v2.RandomSolarize(128, p=solarize),
            *floats(),
        ]
    )


TORCHVISION_VIEWS = [
    _torchvision_view(SIZE, (0.4, 1.0), 1.0, 0.0),
    _torchvision_view(SIZE, (0.4, 1.0), 0.1, 0.2),
    *[_torchvision_view(SMALL_SIZE, (0.05, 0.4), 0.5, 0.0) for _ in range(6)],
]

# By name: Lightly's transform, torchvision's if it has the views, and selfvit's augmentation.
CASES: dict[str, tuple[Transform, Transform | None, Augmentation]] = {
    "DINO": (
        DINOTransform(),
        v2.Compose([v2.PILToTensor(), torchvision_multi_crop]),
        MultiCrop(num_local_views=6),
    ),
    "PMSN": (MSNTransform(cj_strength=0.5), None, FocalCrops()),
    "MAE": (
        MAETransform(),
        v2.Compose([v2.PILToTensor(), *crop_of(SIZE, (0.2, 1.0)), *floats()]),
        MAECrop(),
    ),
}


def peer(files: Sequence[Path], transform: Transform) -> Program:
    """Return a program that opens and transforms all files, as Lightly's datasets do."""

    def run() -> None:
        for file in files:
            with Image.open(file) as image:
                transform(image.convert("RGB"))

    return run


def decoding(files: Sequence[Path]) -> Program:
    """Return a program that only decodes all files, reduced as far as large views allow.

    A reduced photo has at least twice the size of a view; most of the time goes to the entropy
    code, which cannot be reduced.
    """
    with Image.open(files[0]) as image:
        shorter = min(image.size)
    factor = next(f for f in (8, 4, 2, 1) if shorter // f >= 2 * SIZE or f == 1)

    def run() -> None:
        for file in files:
            content = file.read_bytes()
            height, width, *_ = simplejpeg.decode_jpeg_header(content)
            simplejpeg.decode_jpeg(
                content, min_factor=factor, min_height=height // factor, min_width=width // factor
            )

    return run


def own(folder: Path, augmentation: Augmentation, in_floats: bool) -> Program:
    """Return a program that makes the views of all files in a folder, as a worker does."""
    source = open_images(folder)
    views = ViewDataset(source, augmentation, (SIZE, SIZE), 16, SEED, with_labels=False)
    draws = itertools.count()

    def run() -> None:
        for place in range(len(source)):
            sample = views[place, next(draws)]
            if in_floats:
                for value in sample.values():
                    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
                        normalize(torch.from_numpy(value), MEAN, STD)

    return run


def table(folder: Path, name: str, num_rounds: int, clock: Callable[[], float]) -> str:
    """Measure the views of one objective from the files of a folder, and return a table."""
    files = sorted(folder.iterdir())
    lightly, torchvision, augmentation = CASES[name]
    programs = {"Lightly": peer(files, lightly)}
    if torchvision is not None:
        programs["torchvision v2"] = peer(files, torchvision)
    programs["selfvit, normalized"] = own(folder, augmentation, in_floats=True)
    programs["selfvit, uint8"] = own(folder, augmentation, in_floats=False)
    programs["limit: decoding alone"] = decoding(files)
    times = measure(programs, num_rounds, clock=clock)
    return format_times(times, "Lightly", "images/s", len(files), note="")


def write_large_photos(folder: Path, count: int) -> None:
    """Write JPEG files of 12 megapixels with the structure of photos, and grain."""
    folder.mkdir()
    write_photos(folder, count)
    generator = np.random.default_rng(SEED)
    for file in folder.iterdir():
        enlarged = Image.open(file).resize(LARGE_PHOTO, Image.Resampling.BICUBIC)
        pixels = np.asarray(enlarged, dtype=np.float32)
        pixels = pixels + GRAIN * generator.standard_normal((*pixels.shape[:2], 1), np.float32)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, quality=88)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, and print or write its tables."""
    parser = build_parser("augmentation", __doc__, "Fewer rounds: in less than two minutes.")
    parser.add_argument("--photos", type=Path, help="Folder of JPEG files to use instead.")
    options = parser.parse_args(arguments)
    pin_threads(1)
    cv2.setNumThreads(1)
    num_photos, num_large, num_rounds = (8, 2, 5) if options.quick else (32, 4, 21)
    clock, clock_name = choose_clock(options.cpu_time)
    lines = [
        f"1 thread; {versions(PACKAGES)}; {num_rounds} rounds; "
        f"{clock_name}, which includes reading and decoding. Ratios are the time of Lightly "
        "divided by that of the row, within a round: median, smallest and largest.",
    ]
    with tempfile.TemporaryDirectory() as place:
        folders = {"your photos": options.photos}
        if options.photos is None:
            small, large = Path(place, "small"), Path(place, "large")
            small.mkdir()
            write_photos(small, num_photos)
            write_large_photos(large, num_large)
            folders = {"500 x 375 pixels": small, "12 megapixels": large}
        for kind, folder in folders.items():
            for name in CASES:
                text = table(folder, name, num_rounds, clock)
                lines += [f"### {name}, {kind}", text]
                print(f"\n{name}, {kind}\n{text}", flush=True)
    if options.output is not None:
        write_section(options.output, machine(), "\n\n".join(lines))


if __name__ == "__main__":
    main()
