"""Memory of a training run on extreme and huge images: views, evaluation, report, pictures."""

import os
import re
import subprocess

import numpy as np
import pytest
import tifffile
from PIL import Image

from ..image_files import noise
from ..training.tiny_runs import LOOP

GIBIBYTE = 2**30
RUN = """
import resource, sys
from selfvit.training.train import main
main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_of_training(python, data, start, output):
    """Return the peak resident memory of a run that reports and evaluates its encoder, in bytes.

    It includes the memory of `python`, a forked process, in each run alike.
    """
    command = [
        *("dino_finetune", "--init-from", str(start), "--data", str(data), "--output", str(output)),
        *LOOP, *("--image-steps", "1", "--max-steps", "1", "--batch-size", "5", "--cpu"),
        *("--local-view-size", "16", "--num-prototypes", "32", "--head-hidden-size", "32"),
    ]  # fmt: skip
    finished = subprocess.run(
        [python, "-c", RUN, *command],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    assert "skipped" not in finished.stdout + finished.stderr
    return int(re.search(r"^peak (\d+)$", finished.stdout, re.MULTILINE)[1])


@pytest.fixture(scope="module")
def ordinary_peak(python_with_selfvit, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ordinary")
    data = write_sound(folder / "data")
    return peak_of_training(python_with_selfvit, data, tiny_checkpoint, folder / "out")


def write_sound(folder):
    folder.mkdir()
    for seed in range(5):
        noise(300, 200, seed).save(folder / f"sound{seed}.jpg")
    return folder


def line_of_one_pixel(path):
    Image.fromarray(np.zeros((1, 20_000), dtype=np.uint8)).save(path)


def gray_of_16_bits(path):
    ramp = np.linspace(0, 65535, 12_000).astype(np.uint16)
    tifffile.imwrite(path, np.broadcast_to(ramp, (12_000, 12_000)), rowsperstrip=256)


def photo(path):
    noise(64, 64).resize((12_000, 12_000)).save(path, quality=80)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (line_of_one_pixel, "line.png"),
        (gray_of_16_bits, "deep.tif"),
        (photo, "photo.jpg"),
    ],
    ids=["1 x 20,000", "144 megapixels of 16 bits", "144 megapixels of a JPEG file"],
)
def test_an_image_takes_at_most_a_gibibyte_more_than_an_ordinary_one(
    write, name, ordinary_peak, python_with_selfvit, tiny_checkpoint, tmp_path
):
    data = write_sound(tmp_path / "data")
    write(data / name)
    peak = peak_of_training(python_with_selfvit, data, tiny_checkpoint, tmp_path / "out")
    assert peak - ordinary_peak < GIBIBYTE
