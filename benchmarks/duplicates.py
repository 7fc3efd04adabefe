"""Search for planted duplicates: selfvit, perceptual hashing and raw pixels.

One image in ten gets a copy that is re-encoded, resized, cropped or brightened, in turns. A pair
that is found counts as true if one image is the copy of the other one, and as false otherwise, even
if it shows the same picture; pairs of equal pixels do not count. The results are written to
`benchmarks/results/duplicates.md`.

    python -m benchmarks.duplicates --images stamps --encoder RUN --work FOLDER
    python -m benchmarks.duplicates --images fashion --encoder RUN --work FOLDER
"""

# N images

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.vectors.writer import write_embeddings
from selfvit.exploration.collection import Collection
from selfvit.exploration.duplicates import DuplicatesResult, duplicates
from selfvit.exploration.duplication.variants import VARIANTS
from selfvit.exploration.sheets import SheetRow, Tile, draw_sheet

STAMPS = Path("/usr/share/tuxpaint/stamps")  # Debian package tuxpaint-stamps-default
FASHION = Path("examples/fashion_mnist_sample/test.parquet")
RESULTS = Path("benchmarks/results/duplicates.md")
PLANTED = 0.1  # share of the images
PHASH_DISTANCE = 10  # bits of 64, the default of the package imagededup
RAW_SIDE = 32  # pixels
COPY = ".copy."  # in the name of a copy, after that of its image

Pair = tuple[str, str]


@dataclass(frozen=True)
class Outcome:
    """Pairs that a method has found.

    Args:
        pairs: Pairs of names.
        setting: Threshold, as text.
    """

    pairs: set[Pair]
    setting: str


def read_stamps() -> dict[str, Image.Image]:
    """Return the stamps on a white background, by name."""
    pictures = {}
    for path in sorted(STAMPS.rglob("*.png")):
        stamp = Image.open(path).convert("RGBA")
        white = Image.new("RGBA", stamp.size, "white")
        white.alpha_composite(stamp)
        pictures[path.relative_to(STAMPS).with_suffix("").as_posix()] = white.convert("RGB")
    return pictures


def read_fashion() -> dict[str, Image.Image]:
    """Return the test images of the Fashion-MNIST sample, by name."""
    source = open_images(str(FASHION))
    pictures = {}
    for position in range(len(source)):
        image = source[position].image
        assert isinstance(image, Image.Image | bytes)
        picture = image if isinstance(image, Image.Image) else Image.open(_buffer(image))
        pictures[f"{position:05d}"] = picture.convert("RGB")
    return pictures


def _buffer(content: bytes):
    import io

    return io.BytesIO(content)


def plant(pictures: dict[str, Image.Image], seed: int) -> dict[str, Image.Image]:
    """Return the images and the copies of one in ten."""
    rng = np.random.default_rng(1000 + seed)
    names = list(pictures)
    chosen = rng.permutation(len(names))[: round(PLANTED * len(names))]
    kinds = list(VARIANTS)
    planted = dict(pictures)
    for number, place in enumerate(chosen):
        kind = kinds[number % len(kinds)]
        name = names[place]
        planted[f"{name}{COPY}{kind}"] = VARIANTS[kind](pictures[name], rng)
    return planted


def true_pairs(pictures: dict[str, Image.Image]) -> set[Pair]:
    """Return the pairs of an image and its copy."""
    return {_pair(name, name.split(COPY)[0]) for name in pictures if COPY in name}


def _pair(first: str, second: str) -> Pair:
    return (first, second) if first < second else (second, first)


def equal_pairs(pictures: dict[str, Image.Image], pairs: set[Pair]) -> set[Pair]:
    """Return the pairs of equal pixels."""
    return {
        (first, second)
        for first, second in pairs
        if pictures[first].size == pictures[second].size
        and pictures[first].tobytes() == pictures[second].tobytes()
    }


def find_selfvit(
    pictures: dict[str, Image.Image], encoder: Path, work: Path
) -> tuple[Outcome, DuplicatesResult]:
    """Find duplicates with `selfvit.duplicates`, at its own threshold."""
    folder = work / "images"
    for name, picture in pictures.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
    vectors = work / "vectors"
    embedder = Embedder.from_pretrained(str(encoder), device="cpu")
    metadata = {"model": str(encoder), "images": {"data": [str(folder)], "split": None}}
    write_embeddings(embedder, open_images(folder), vectors, metadata=metadata, progress=False)
    result = duplicates(Collection(vectors), device="cpu")
    pairs = {
        _pair(group.keep[: -len(".png")], member[: -len(".png")])
        for group in result.groups
        for member in group.members
    }
    return Outcome(pairs, f"measured: agreement {result.threshold or 1:.3f}"), result


def find_phash(pictures: dict[str, Image.Image]) -> Outcome:
    """Find duplicates by the perceptual hash of the package imagehash."""
    import imagehash

    names = list(pictures)
    hashes = np.stack([imagehash.phash(picture).hash.ravel() for picture in pictures.values()])
    bits = hashes.astype(np.float32) * 2 - 1
    distances = (bits.shape[1] - bits @ bits.T) / 2  # (N, N)
    return Outcome(_pairs_of(names, distances <= PHASH_DISTANCE), f"<= {PHASH_DISTANCE} of 64 bits")


def find_raw(pictures: dict[str, Image.Image], true: set[Pair]) -> Outcome:
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
    return {_pair(names[row], names[column]) for row, column in zip(rows, columns, strict=True)}


@dataclass
class Measured:
    """Metrics of a method on one data set, a value per seed."""

    precisions: list[float]
    recalls: list[float]
    by_kind: Counter[str]
    false: Counter[Pair]
    settings: list[str]


def measure(
    pictures: dict[str, Image.Image], encoder: Path, seeds: int, work: Path
) -> Iterator[tuple[dict[str, Measured], list[DuplicatesResult]]]:
    """Yield what all methods reach on one data set, after each seed."""
    methods = ("selfvit", "phash", "raw pixels")
    measured = {name: Measured([], [], Counter(), Counter(), []) for name in methods}
    results = []
    for seed in range(seeds):
        planted = plant(pictures, seed)
        true = true_pairs(planted)
        found, result = find_selfvit(planted, encoder, work / str(seed))
        results.append(result)
        outcomes = (found, find_phash(planted), find_raw(planted, true))
        for name, outcome in zip(methods, outcomes, strict=True):
            equal = equal_pairs(planted, outcome.pairs - true)
            pairs = outcome.pairs - equal
            hits = pairs & true
            entry = measured[name]
            entry.precisions.append(len(hits) / max(1, len(pairs)))
            entry.recalls.append(len(hits) / len(true))
            entry.by_kind.update(max(pair, key=len).split(COPY)[1] for pair in hits)
            entry.false.update(pairs - hits)
            entry.settings.append(outcome.setting)
        if seed == 0:
            _draw_false(planted, measured["selfvit"].false, work / "false.png")
        last = {name: (entry.precisions[-1], entry.recalls[-1]) for name, entry in measured.items()}
        print(seed, last, found.setting, flush=True)
        yield measured, results


def _draw_false(pictures: dict[str, Image.Image], false: Counter[Pair], path: Path) -> None:
    rows = [SheetRow([Tile(pictures[name], name) for name in pair]) for pair in sorted(false)]
    draw_sheet(rows, path)


def table(measured: dict[str, Measured], num_planted: int) -> list[str]:
    """Return the metrics as lines of a Markdown table."""
    kinds = list(VARIANTS)
    lines = [
        "| method | threshold | precision | recall | recall: " + " | ".join(kinds) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(kinds),
    ]
    for name, entry in measured.items():
        seeds = len(entry.recalls)
        per_kind = Counter(kinds[number % len(kinds)] for number in range(num_planted))
        shares = [f"{entry.by_kind[kind] / (seeds * per_kind[kind]):.3f}" for kind in kinds]
        settings = sorted(set(entry.settings))
        setting = settings[0] if len(settings) == 1 else f"{settings[0]} to {settings[-1][-5:]}"
        columns = [name, setting, _spread(entry.precisions), _spread(entry.recalls), *shares]
        lines.append("| " + " | ".join(columns) + " |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def report(
    title: str,
    measured: dict[str, Measured],
    results: list[DuplicatesResult],
    num_images: int,
    remark: str,
) -> list[str]:
    """Return the section of one data set."""
    num_planted = round(PLANTED * num_images)
    estimates = [result.calibration for result in results if result.calibration]
    lines = [
        f"## {title}",
        "",
        f"{num_images:,} images and {num_planted} copies, {len(results)} seeds: mean (least to "
        "greatest).",
        "",
        *table(measured, num_planted),
        "",
        "selfvit expected a precision of "
        f"{_spread([estimate.precision for estimate in estimates])} and a recall of "
        f"{_spread([estimate.recall for estimate in estimates])}.",
        "",
    ]
    false = measured["selfvit"].false
    lines += [f"False pairs of selfvit, with the number of seeds: {len(false)} different ones.", ""]
    lines += [f"- {first} and {second}: {count}" for (first, second), count in false.most_common(8)]
    if len(false) > 8:
        lines.append(f"- and {len(false) - 8} more")
    return [*lines, "", remark, ""] if remark else [*lines, ""]


REMARKS = {"stamps": "", "fashion": ""}
SETS = {
    "stamps": ("tuxpaint-stamps-default", read_stamps),
    "fashion": ("Fashion-MNIST sample, test images", read_fashion),
}


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", choices=sorted(SETS), required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="Run of selfvit train.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for images and vectors.")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    title, read = SETS[arguments.images]
    pictures, work = read(), arguments.work / arguments.images
    for measured, results in measure(pictures, arguments.encoder, arguments.seeds, work):
        section = report(title, measured, results, len(pictures), REMARKS[arguments.images])
        (arguments.work / f"{arguments.images}.md").write_text("\n".join(section))
    sections = [arguments.work / f"{name}.md" for name in SETS]
    lines = ["# Planted duplicates", "", "Written by `python -m benchmarks.duplicates`.", ""]
    lines += [path.read_text() for path in sections if path.is_file()]
    RESULTS.write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
