"""Measure what writing folders of vectors costs: time, memory, resuming, and several processes.

    OMP_NUM_THREADS=1 python -m benchmarks.vectors --output benchmarks/results/vectors.md

Images are random, so that nothing has to be read; the model of the memory test is as small as
possible, so that a million rows take minutes. Peak memory is that of a real process for each size.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.objectives import processor_name
from selfvit import SelfViTConfig, SelfViTModel
from selfvit.data.image_source import ImageRecord, ImageSource
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preprocessing import build_processor
from selfvit.embedding.vectors.manifest import Manifest
from selfvit.embedding.vectors.writer import write_embeddings

SMALL = {
    "image_size": 8,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}


class RandomImages(ImageSource):
    """Images of noise, the same ones for every position of the same remainder.

    Args:
        num_images: Number of images.
        size: Height and width, pixels.
    """

    def __init__(self, num_images: int, size: int):
        super().__init__(f"{num_images} random images", None, "id")
        pixels = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)
        self._images = [Image.fromarray(image) for image in pixels]
        self._num_images = num_images

    def __len__(self) -> int:
        return self._num_images

    def __getitem__(self, position: int) -> ImageRecord:
        return ImageRecord(f"image {position}", self._images[position % 64], None)

    @property
    def fingerprint(self) -> str:
        """Name of the source."""
        return self.description


def build_embedder(batch_size: int, **fields: object) -> Embedder:
    """Return an embedder of random weights."""
    torch.manual_seed(0)
    config = SelfViTConfig(**fields) if fields else SelfViTConfig.from_name("vitti16")
    return Embedder(SelfViTModel(config).eval(), build_processor(config), batch_size=batch_size)


def overhead(num_images: int, repeats: int) -> list[float]:
    """Return the share of the time that writing adds to embedding with ViT-Ti/16 at 224 pixels.

    Args:
        num_images: Number of images per run.
        repeats: Number of pairs of runs, one without and one with writing.
    """
    embedder, source = build_embedder(32), RandomImages(num_images, 224)
    shares = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats):
            start = time.process_time()
            for _ in embedder.stream(source):
                pass
            middle = time.process_time()
            output = Path(folder) / str(repeat)
            write_embeddings(embedder, source, output, progress=False, part_images=256)
            shares.append((time.process_time() - middle) / (middle - start) - 1)
    return shares


def write_rows(num_images: int, output: Path) -> None:
    """Write the vectors of the smallest model; print peak memory and seconds as JSON."""
    import resource

    embedder = build_embedder(1000, **SMALL)
    started = time.perf_counter()
    write_embeddings(embedder, RandomImages(num_images, 8), output, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"MiB": peak, "seconds": time.perf_counter() - started}))


def resume_seconds(num_images: int, output: Path) -> float:
    """Return the time until a resumed run has embedded its first batch, the last part missing."""
    manifest = Manifest.load(output)
    assert manifest is not None
    (output / manifest.in_order()[-1].file).unlink()
    embedder = build_embedder(1000, **SMALL)
    stream, seen = embedder.stream, []
    started = time.perf_counter()

    def first_batch(*args: object, **options: object):  # type: ignore[no-untyped-def]
        for batch in stream(*args, **options):  # type: ignore[arg-type]
            seen.append(time.perf_counter() - started)
            yield batch

    embedder.stream = first_batch  # type: ignore[method-assign, assignment]
    write_embeddings(embedder, RandomImages(num_images, 8), output, resume=True, progress=False)
    return seen[0]


def several_processes(num_images: int, folder: Path) -> tuple[float, float]:
    """Return the seconds of `selfvit embed` with one process on one core, and two on two cores.

    Both start the same way (`--devices`), so that the start is the same.
    """
    embedder = build_embedder(32)
    embedder.model.save_pretrained(folder / "model")
    embedder.processor.save_pretrained(folder / "model")
    source = RandomImages(64, 224)
    (folder / "images").mkdir()
    for position in range(64):
        source[position].image.save(folder / "images" / f"{position:02}.png")  # type: ignore[union-attr]
    names = [f"images/{number % 64:02}.png" for number in range(num_images)]
    for number, name in enumerate(names):
        os.link(folder / name, folder / "images" / f"copy_{number:06}.png")
    seconds = []
    for size in (1, 2):
        cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:size])
        command = [
            *("taskset", "-c", cores, sys.executable, "-m", "selfvit.cli", "embed"),
            *(str(folder / "model"), "--data", str(folder / "images"), "--num-workers", "0"),
            *("--output", str(folder / f"vectors_{size}"), "--devices", str(size)),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        subprocess.run(command, check=True, env=environment, capture_output=True)
        seconds.append(time.perf_counter() - start)
    assert len(open_images(folder / "images")) == num_images + 64
    return seconds[0], seconds[1]


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--images", type=int, default=768, help="of the overhead")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shared-images", type=int, default=4000)
    parser.add_argument("--write", nargs=2, metavar=("ROWS", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_rows(int(arguments.write[0]), Path(arguments.write[1]))
        return
    lines = [f"CPU: {processor_name()}, torch {torch.__version__}", ""]
    lines += ["| measure | value |", "| --- | --- |"]

    def row(measure: str, value: str) -> None:
        lines.append(f"| {measure} | {value} |")
        print(lines[-1], flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shares = overhead(arguments.images, arguments.repeats)
        row(
            "CPU time of parts, manifest and checksums, of embedding with ViT-Ti/16 at 224",
            f"{100 * statistics.median(shares):.1f} % (from {100 * min(shares):.1f} to "
            f"{100 * max(shares):.1f} % in {len(shares)} pairs)",
        )
        for num_rows in arguments.rows:
            command = [sys.executable, "-m", "benchmarks.vectors", "--write", str(num_rows)]
            output = folder / str(num_rows)
            printed = subprocess.run(
                [*command, str(output)], check=True, capture_output=True, text=True
            ).stdout
            measured = json.loads(printed.splitlines()[-1])
            row(
                f"peak memory of a process that writes {num_rows:,} rows",
                f"{measured['MiB']:.0f} MiB ({measured['seconds']:.0f} s)",
            )
        largest = max(arguments.rows)
        seconds = resume_seconds(largest, folder / str(largest))
        row(f"start of a resumed run over {largest:,} rows, to its first batch", f"{seconds:.2f} s")
        one, two = several_processes(arguments.shared_images, folder)
        row(
            f"two processes on two cores against one on one core, {arguments.shared_images} images",
            f"{one / two:.2f} times as fast ({one:.0f} s, {two:.0f} s, start included)",
        )
    if arguments.output is not None:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
