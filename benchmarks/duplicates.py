"""Search for planted duplicates: selfvit, perceptual hashing and raw pixels.

One image in ten gets a copy that is re-encoded, resized, cropped or brightened, in turns. A pair
that is found counts as true if one image is the copy of the other one, and as false otherwise, even
if it shows the same picture; pairs of equal pixels do not count. Score and threshold were tuned on
the sets `stamps_tuning` and `fashion_tuning`; the other sets have seeds, and all but `stamps` have
images, that were not used for it. The results are written to `benchmarks/results/duplicates.md`.

    python -m benchmarks.duplicates --images stamps --write FOLDER
    selfvit train dino_demo --data FOLDER --output RUN --image-size 56 --patch-size 14
    python -m benchmarks.duplicates --images stamps --encoder RUN --work FOLDER
"""

# N images

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.duplicates_images import (
    COPY,
    OTHER_KINDS,
    Kinds,
    Pair,
    Pictures,
    equal_pairs,
    pair_of,
    plant,
    read_background_tiles,
    read_fashion,
    read_other_fashion,
    read_stamps,
    read_wallpaper_tiles,
    true_pairs,
    write_pictures,
)
from benchmarks.duplicates_report import Measured, section
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.vectors.writer import write_embeddings
from selfvit.exploration.collection import Collection
from selfvit.exploration.duplicates import DuplicatesResult, duplicates
from selfvit.exploration.duplication.threshold import Threshold
from selfvit.exploration.duplication.variants import VARIANTS
from selfvit.exploration.sheets import SheetRow, Tile, draw_sheet

RESULTS = Path("benchmarks/results/duplicates.md")
TUNING_SEEDS = [0, 1, 2, 3, 4]
SEEDS = [10, 11, 12, 13, 14]  # 5 to 9 were looked at in between
PHASH_DISTANCE = 10  # bits of 64, the default of the package imagededup
RAW_SIDE = 32  # pixels
TRAINING_SIDE = 96  # pixels, longer side of the images that --write writes
METHODS = ("selfvit", "phash", "raw pixels")


@dataclass(frozen=True)
class Outcome:
    """Pairs that a method has found.

    Args:
        pairs: Pairs of names.
        setting: Threshold, as text.
    """

    pairs: set[Pair]
    setting: str


@dataclass(frozen=True)
class ImageSet:
    """Images and the copies that are planted in them.

    Args:
        title: Title of its section.
        read: Function that returns the images.
        seeds: Seeds of the copies.
        kinds: Kinds of copies.
        remark: What the false pairs are.
    """

    title: str
    read: Callable[[], Pictures]
    seeds: list[int]
    kinds: Kinds
    remark: str = ""


SETS = {
    "stamps": ImageSet(
        "Stamps of Tux Paint", read_stamps, SEEDS, VARIANTS, "The pair is one picture, filed twice."
    ),
    "stamps_other_kinds": ImageSet(
        "Stamps of Tux Paint, copies of other kinds",
        read_stamps,
        SEEDS,
        OTHER_KINDS,
        "The pair is one picture, filed twice.",
    ),
    "photographs": ImageSet(
        "Tiles of photographs",
        read_wallpaper_tiles,
        SEEDS,
        VARIANTS,
        "Each pair is of one photograph, nearly all of a clear sky; one seed found all of them.",
    ),
    "fashion": ImageSet(
        "Fashion-MNIST sample, test images",
        read_fashion,
        SEEDS,
        VARIANTS,
        "The pairs are two of trousers and one of boots, which differ in brightness only.",
    ),
    "stamps_tuning": ImageSet("Tuning: stamps of Tux Paint", read_stamps, TUNING_SEEDS, VARIANTS),
    "photographs_tuning": ImageSet(
        "Tuning: tiles of other photographs", read_background_tiles, SEEDS, VARIANTS
    ),
    "fashion_tuning": ImageSet(
        "Tuning: Fashion-MNIST sample, training images",
        read_other_fashion,
        TUNING_SEEDS,
        VARIANTS,
    ),
}


def find_selfvit(pictures: Pictures, encoder: Path, work: Path) -> tuple[Outcome, DuplicatesResult]:
    """Find duplicates with `selfvit.duplicates`, at its own threshold."""
    folder, vectors = work / "images", work / "vectors"
    shutil.rmtree(work, ignore_errors=True)
    write_pictures(pictures, folder)
    embedder = Embedder.from_pretrained(str(encoder), device="cpu")
    metadata = {"model": str(encoder), "images": {"data": [str(folder)], "split": None}}
    write_embeddings(embedder, open_images(folder), vectors, metadata=metadata, progress=False)
    result = duplicates(Collection(vectors), device="cpu")
    pairs = {
        pair_of(group.keep[: -len(".png")], member[: -len(".png")])
        for group in result.groups
        for member in group.members
    }
    return Outcome(pairs, f"measured: agreement {result.threshold or 1:.3f}"), result


def find_phash(pictures: Pictures) -> Outcome:
    """Find duplicates by the perceptual hash of the package imagehash."""
    import imagehash

    names = list(pictures)
    hashes = np.stack([imagehash.phash(picture).hash.ravel() for picture in pictures.values()])
    bits = hashes.astype(np.float32) * 2 - 1
    distances = (bits.shape[1] - bits @ bits.T) / 2  # (N, N)
    return Outcome(_pairs_of(names, distances <= PHASH_DISTANCE), f"<= {PHASH_DISTANCE} of 64 bits")


def find_raw(pictures: Pictures, true: set[Pair]) -> Outcome:
    """Find duplicates by the correlation of small gray images, at the best threshold."""
    names = list(pictures)
    pixels = np.stack(
        [
            np.asarray(picture.convert("L").resize((RAW_SIDE, RAW_SIDE)), np.float32).ravel()
            for picture in pictures.values()
        ]
    )
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels /= np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)
    correlations = pixels @ pixels.T  # (N, N)
    best = (-1.0, 1.0)
    for threshold in (0.9, 0.95, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999):
        pairs = _pairs_of(names, correlations >= threshold)
        hits = len(pairs & true)
        score = 2 * hits / (len(pairs) + len(true))
        best = max(best, (score, threshold))
    pairs = _pairs_of(names, correlations >= best[1])
    return Outcome(pairs, f"best in hindsight: {best[1]:g}")


def _pairs_of(names: list[str], is_duplicate: np.ndarray) -> set[Pair]:
    rows, columns = np.nonzero(np.triu(is_duplicate, 1))
    return {pair_of(names[row], names[column]) for row, column in zip(rows, columns, strict=True)}


def measure(
    images: ImageSet, pictures: Pictures, encoder: Path, seeds: list[int], work: Path
) -> Iterator[tuple[dict[str, Measured], list[Threshold]]]:
    """Yield what all methods reach on one set of images, after each seed."""
    measured = {name: Measured() for name in METHODS}
    estimates: list[Threshold] = []
    for seed in seeds:
        planted = plant(pictures, seed, images.kinds)
        true = true_pairs(planted)
        found, result = find_selfvit(planted, encoder, work / str(seed))
        if result.calibration is not None:
            estimates.append(result.calibration)
        outcomes = (found, find_phash(planted), find_raw(planted, true))
        for name, outcome in zip(METHODS, outcomes, strict=True):
            _count(measured[name], outcome, planted, true)
        _draw(planted, measured["selfvit"].false, work / f"false_{seed}.png")
        last = {name: (entry.precisions[-1], entry.recalls[-1]) for name, entry in measured.items()}
        print(images.title, seed, last, found.setting, flush=True)
        yield measured, estimates


def _count(entry: Measured, outcome: Outcome, planted: Pictures, true: set[Pair]) -> None:
    pairs = outcome.pairs - equal_pairs(planted, outcome.pairs - true)
    hits = pairs & true
    entry.precisions.append(len(hits) / max(1, len(pairs)))
    entry.recalls.append(len(hits) / len(true))
    entry.by_kind.update(max(pair, key=len).split(COPY)[1] for pair in hits)
    entry.false.update(pairs - hits)
    entry.settings.append(outcome.setting)


def _draw(pictures: Pictures, pairs: Counter[Pair], path: Path) -> None:
    """Draw the pairs that these pictures have, side by side."""
    shown = [pair for pair in sorted(pairs) if set(pair) <= set(pictures)]
    rows = [SheetRow([Tile(pictures[name], name) for name in pair]) for pair in shown]
    if rows:
        draw_sheet(rows, path)


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", choices=sorted(SETS), required=True)
    parser.add_argument("--write", type=Path, help="Folder to write images for training to.")
    parser.add_argument("--encoder", type=Path, help="Run of selfvit train.")
    parser.add_argument("--work", type=Path, help="Folder for images, vectors and sections.")
    parser.add_argument("--seeds", type=int, nargs="+", help="Seeds of the copies.")
    arguments = parser.parse_args()
    images = SETS[arguments.images]
    pictures = images.read()
    if arguments.write is not None:
        small = {name: _shrink(picture) for name, picture in pictures.items()}
        write_pictures(small, arguments.write)
        return
    if arguments.encoder is None or arguments.work is None:
        parser.error("--encoder and --work are required; or choose --write.")
    seeds, work = arguments.seeds or images.seeds, arguments.work / arguments.images
    for measured, estimates in measure(images, pictures, arguments.encoder, seeds, work):
        done = seeds[: len(measured["selfvit"].recalls)]
        lines = section(images.title, measured, estimates, len(pictures), done, images.kinds)
        (arguments.work / f"{arguments.images}.md").write_text("\n".join(lines))
    write_results(arguments.work)


def _shrink(picture: Image.Image) -> Image.Image:
    small = picture.copy()
    small.thumbnail((TRAINING_SIDE, TRAINING_SIDE))
    return small


def write_results(work: Path) -> None:
    """Put the sections of all sets that were measured into one file, with their remarks."""
    lines = [
        "# Planted duplicates",
        "",
        "Written by `python -m benchmarks.duplicates`, which says what counts as a true pair.",
        "",
    ]
    for name, images in SETS.items():
        path = work / f"{name}.md"
        if path.is_file():
            lines += [path.read_text(), *([images.remark, ""] if images.remark else [])]
    RESULTS.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
