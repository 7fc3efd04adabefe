"""Measure what writing folders of vectors costs: time, memory, resuming, and several processes.

    OMP_NUM_THREADS=1 python -m benchmarks.vectors --output benchmarks/results/vectors.md

Images are random, so that nothing has to be read; the model of the memory test is as small as
possible, so that a million rows take minutes. The memory is that of a real process for each size;
it is also drawn, in vectors_memory.png.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.objectives import processor_name
from selfvit import SelfViTConfig, SelfViTModel
from selfvit.data.image_source import ImageRecord, ImageSource
from selfvit.data.sources import open_images
from selfvit.embedding import embedder as embedder_module
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preprocessing import build_processor
from selfvit.embedding.vectors.folder import VectorFolder
from selfvit.embedding.vectors.manifest import Manifest
from selfvit.embedding.vectors.parts import PartWriter
from selfvit.embedding.vectors.writer import write_embeddings
from selfvit.visualization.figures import new_figure, save_png

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


def build_embedder(batch_size: int, name: str = "vitti16", **fields: object) -> Embedder:
    """Return an embedder of random weights."""
    torch.manual_seed(0)
    config = SelfViTConfig(**fields) if fields else SelfViTConfig.from_name(name)
    return Embedder(SelfViTModel(config).eval(), build_processor(config), batch_size=batch_size)


def overhead(num_images: int, folder: Path) -> float:
    """Return the share of the CPU time that parts, manifest and checksums take.

    The time inside these functions is measured, in a run that embeds JPEG files with ViT-Ti/16 at
    224 pixels: the difference of two runs would be smaller than its spread.

    Args:
        num_images: Number of images.
        folder: Empty folder.
    """
    (folder / "images").mkdir()
    source = RandomImages(64, 375)  # pixels of noise make large files: 109 KB
    for position in range(num_images):
        image: Any = source[position].image
        image.save(folder / "images" / f"{position:06}.jpg", quality=85)
    spent = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal spent
            start = time.process_time()
            try:
                return function(*args, **options)
            finally:
                spent += time.process_time() - start

        return call

    embedder = build_embedder(32)
    with (
        patch.object(PartWriter, "write", timed(PartWriter.write)),
        patch.object(VectorFolder, "add", timed(VectorFolder.add)),
        patch.object(VectorFolder, "finish", timed(VectorFolder.finish)),
        patch.object(embedder_module, "checksum_of", timed(embedder_module.checksum_of)),
    ):
        start = time.process_time()
        images = open_images(folder / "images")
        write_embeddings(embedder, images, folder / "v", progress=False, part_images=256)
        return spent / (time.process_time() - start)


def throughput(name: str, images: Path) -> float:
    """Return the images per second of one process from JPEG files to vectors.

    Args:
        name: Name of the model's size.
        images: Folder of JPEG files.
    """
    embedder, source = build_embedder(32, name), open_images(images)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_embeddings(embedder, source.sample(256), Path(folder) / "v", progress=False)
        return 256 / (time.perf_counter() - start)


def write_rows(num_images: int, output: Path, runner: str) -> None:
    """Write the vectors of the smallest model; print memory and seconds as JSON.

    The memory is that of this process, for Ray that of the driver, in MiB after so many rows.

    Args:
        num_images: Number of rows.
        output: Folder to write.
        runner: "local" or "ray".
    """
    embedder, process = build_embedder(1000, **SMALL), psutil.Process()
    if runner == "ray":
        import ray

        from selfvit.embedding.ray import RayEmbedder

        ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
        embedder = RayEmbedder(embedder, num_actors=1)
    stream, points = embedder.stream, []

    def measured(*args: Any, **options: Any) -> Iterator[Any]:
        num_rows = 0
        for batch in stream(*args, **options):
            yield batch
            num_rows += batch.num_images
            points.append((num_rows, process.memory_info().rss / 2**20))

    embedder.stream = measured  # type: ignore[method-assign, assignment]
    started = time.perf_counter()
    write_embeddings(embedder, RandomImages(num_images, 8), output, progress=False)
    print(json.dumps({"points": points, "seconds": time.perf_counter() - started}))


def plot_memory(runs: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Draw the memory of processes against the rows that they have written.

    Args:
        runs: Rows and MiB of each run, by name.
        path: PNG file to write.
    """
    figure = new_figure(800, 400)
    axes = figure.add_subplot(xlabel="rows written", ylabel="MiB", xscale="log")
    for name, points in runs.items():
        rows, memory = zip(*points, strict=True)
        axes.plot(rows, memory, label=name)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    save_png(figure, path)


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


def _measure_rows(num_rows: int, output: Path, runner: str) -> Any:
    """Run `write_rows` in a process of its own, and return what it prints."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.vectors", "--write"]
    command += [str(num_rows), str(output), runner]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])


def measure_overhead(arguments: argparse.Namespace, folder: Path, table: Table) -> None:
    """Measure overhead and throughput."""
    share = overhead(arguments.images, folder)
    table.add(
        "CPU time of parts, manifest and checksums, of embedding JPEG files with ViT-Ti/16 at 224 "
        "pixels",
        f"{100 * share:.2f} %",
    )
    for name in ("vitti16", "vits16", "vitb16"):
        rate = throughput(name, folder / "images")
        table.add(
            f"{name} at 224 pixels, JPEG files of 375 x 375 pixels to vectors, one core",
            f"{rate:.1f} images/s",
        )


def measure_memory(arguments: argparse.Namespace, folder: Path, table: Table) -> None:
    """Measure memory and resuming, and draw the memory."""
    runs: dict[str, list[tuple[int, float]]] = {}
    for runner, num_rows in itertools.product(arguments.runners, arguments.rows):
        measured = _measure_rows(num_rows, folder / str(num_rows), runner)
        peak = max(memory for _, memory in measured["points"])
        runs[f"{runner}, {num_rows:,} rows"] = measured["points"]
        what = "a process" if runner == "local" else "the driver of Ray"
        table.add(
            f"largest memory of {what} that writes {num_rows:,} rows",
            f"{peak:.0f} MiB ({measured['seconds']:.0f} s)",
        )
    if arguments.output is not None:
        plot_memory(runs, arguments.output.with_name("vectors_memory.png"))
    largest = max(arguments.rows)
    seconds = resume_seconds(largest, folder / str(largest))
    table.add(
        f"start of a resumed run over {largest:,} rows, to its first batch", f"{seconds:.2f} s"
    )


def measure_processes(arguments: argparse.Namespace, folder: Path, table: Table) -> None:
    """Measure two processes against one."""
    one, two = several_processes(arguments.shared_images, folder)
    table.add(
        f"two processes on two cores against one on one core, {arguments.shared_images} images",
        f"{one / two:.2f} times as fast ({one:.0f} s, {two:.0f} s, start included)",
    )


class Table:
    """Table of results in a file; rows of measures that do not run again stay.

    Args:
        path: Markdown file, or None.
    """

    def __init__(self, path: Path | None):
        self._path = path
        text = path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
        lines = [line.strip("| \n").split(" | ") for line in text.splitlines() if line[:1] == "|"]
        self._rows = {measure: (value, machine) for measure, value, machine in lines[2:]}

    def add(self, measure: str, value: str) -> None:
        """Print a row, and write the table."""
        self._rows[measure] = (value, f"{processor_name()}, torch {torch.__version__}")
        print(f"| {measure} | {value} |", flush=True)
        lines = ["| measure | value | machine |", "| --- | --- | --- |"]
        lines += [f"| {name} | {found} | {where} |" for name, (found, where) in self._rows.items()]
        if self._path is not None:
            self._path.write_text("\n".join(lines) + "\n", encoding="utf-8")


MEASURES = {
    "overhead": measure_overhead,
    "memory": measure_memory,
    "processes": measure_processes,
}


def main() -> None:
    """Measure, and write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--runners", nargs="+", default=["local", "ray"])
    parser.add_argument("--images", type=int, default=2000, help="of the overhead")
    parser.add_argument("--shared-images", type=int, default=8000)
    parser.add_argument("--write", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        num_rows, output, runner = arguments.write
        write_rows(int(num_rows), Path(output), runner)
        return
    table = Table(arguments.output)
    for name in arguments.measures:
        with tempfile.TemporaryDirectory() as place:
            MEASURES[name](arguments, Path(place), table)


if __name__ == "__main__":
    main()
