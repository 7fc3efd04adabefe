"""Measure the time to open a folder of images, against `os.walk` over the same folder.

python -m benchmarks.listing --files 200000
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from selfvit.data.sources import open_images

FILES_PER_FOLDER = 2_000


def write_folder(root: Path, num_files: int) -> None:
    """Write class folders of empty image files; the listing reads names only."""
    for number in range(num_files):
        folder = root / f"class_{number // FILES_PER_FOLDER:04}"
        if number % FILES_PER_FOLDER == 0:
            folder.mkdir()
        (folder / f"image_{number:07}.jpg").touch()


def ratios_to_walk(root: Path, repeats: int) -> list[float]:
    """Return CPU time of `open_images` over that of `os.walk`, in turns, `repeats` times.

    Raises:
        ValueError: If the two find different numbers of files.
    """
    ratios = []
    for _ in range(repeats):
        start = time.process_time()
        num_files = sum(len(files) for _, _, files in os.walk(root))
        middle = time.process_time()
        num_images = len(open_images(root))
        ratios.append((time.process_time() - middle) / (middle - start))
        if num_images != num_files:
            raise ValueError(f"{num_files} files, but {num_images} images are listed.")
    return ratios


def main() -> None:
    """Print the ratios of the command line's number of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_folder(Path(name), arguments.files)
        ratios = ratios_to_walk(Path(name), arguments.repeats)
    print(
        f"{arguments.files} files: open_images takes {statistics.median(ratios):.2f} times the "
        f"time of os.walk (from {min(ratios):.2f} to {max(ratios):.2f} in {len(ratios)} runs)"
    )


if __name__ == "__main__":
    main()
