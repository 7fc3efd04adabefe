"""Fit the recipes of small folders to their images and to the machine."""

from __future__ import annotations

import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.dataset_source import StreamingImageSource
from ...data.decoding import UnreadableImageError, decode_pixels
from ...data.image_source import ImageRecord, ImageSource
from ...data.pixel_format import PixelFormat
from ...embedding.statistics import sample_images
from ...sharing.published_files import RUN_FILE
from ..config.arguments import RunRequest, build_run
from ..config.run_config import RunConfig
from ..recipes.scale import ImageFacts, Machine, choose_scale, describe_choices
from ..recipes.small_folder import SMALL_FOLDER

NUM_SAMPLED = 32  # images that are decoded; the median of their sizes is enough for a choice
MAX_CHANNELS = 32  # numbers of channels that are tried
COLORED = 12  # levels of 255 between the channels of a colored pixel; JPEG colors gray by a few
# Fraction of colored pixels of a colored image, and of such images among those with colors.
COLORED_PIXELS, COLORED_IMAGES = 0.01, 0.1
# With 300 images, several hundred steps gained nothing, and raw pixels were not passed.
FEW_IMAGES = 500

Source = ImageSource | StreamingImageSource


def fit_to_folder(request: RunRequest, source: Source) -> tuple[RunRequest, list[str]]:
    """Return the request with the sizes chosen for its images, and the lines to print.

    Requests of other recipes are unchanged. A resumed run takes all values of its training.yaml, so
    that it continues exactly, on any machine.

    Args:
        request: Request for a run.
        source: Training images.

    Raises:
        ValueError: If no image can be read.
    """
    recipe: Any = request.recipe
    if recipe not in SMALL_FOLDER:
        return request, []
    if request.start.resume:
        return _as_started(request), []
    pixel_range = request.sections.preprocessing.declared_range
    facts = image_facts(source, request.options.get("num_channels"), pixel_range)
    machine = this_machine(request.sections)
    scale = choose_scale(facts, machine, request.options)
    fitted = RunRequest(request.name, request.draft, partial(recipe, scale=scale), request.options)
    run = build_run(fitted, facts.num_images)
    lines = [describe_choices(run, facts, machine, request.options)]
    advice = pretrained_advice(request, facts.num_images)
    return fitted, lines if advice is None else [advice, *lines]


def _as_started(request: RunRequest) -> RunRequest:
    """Return the request with the values that the run to resume was started with.

    Raises:
        ValueError: If it is the run of another recipe.
    """
    path = Path(request.start.output) / RUN_FILE
    if not path.is_file():  # `check_run_folder` will refuse it
        return request
    started = RunConfig.from_yaml(path.read_text(encoding="utf-8"))
    if started.recipe != request.name:
        raise ValueError(
            f"{request.start.output} holds a run of {started.recipe}, not of {request.name}; "
            f"continue it with selfvit train {started.recipe} --resume."
        )
    return RunRequest(request.name, started, None, request.options)


def pretrained_advice(request: RunRequest, num_images: int | None) -> str | None:
    """Return the advice to start from pretrained weights, or None if there are enough images.

    Args:
        request: Request for a run of a small folder.
        num_images: Number of images; None for a stream.
    """
    start = None if request.recipe is None else SMALL_FOLDER[request.recipe]
    if start is None or num_images is None or num_images >= FEW_IMAGES:
        return None
    recipe, weights = start
    names = [request.data.data] if isinstance(request.data.data, str) else request.data.data
    words = ["selfvit", "train", recipe, "--init-from", weights, "--data", *names]
    command = shlex.join([*words, "--output", request.start.output])
    return (
        f"advice: {num_images} images are too few to learn much from random weights; start from "
        f"pretrained weights instead: {command}"
    )


def image_facts(
    source: Source,
    num_channels: int | None = None,
    pixel_range: tuple[float, float] | None = None,
) -> ImageFacts:
    """Return the properties of images that a run should fit, from a fixed sample.

    Args:
        source: Images; of a stream, the first ones are read.
        num_channels: Number of channels to read; None for 3, or the number that the files have if
            they cannot be read as RGB.
        pixel_range: Values of black and white in files of more than eight bits, if declared.

    Raises:
        ValueError: If no image of the sample can be read.
    """
    sample = sample_images(source, NUM_SAMPLED)
    records = [sample[position] for position in range(len(sample))]
    if num_channels is None:
        num_channels = next((n for n in map(_num_channels, records) if n is not None), 3)
    sides, colored, reason = [], [], "there are none"
    for record in records:
        try:
            pixels = decode_pixels(record.image, PixelFormat(num_channels, pixel_range)).pixels
        except UnreadableImageError as error:
            reason = f"{record.id} {error}"
            continue
        sides.append(min(pixels.shape[:2]))
        spread = np.ptp(pixels, axis=2) if num_channels == 3 else np.zeros(1)
        colored.append((spread > COLORED).mean() > COLORED_PIXELS)
    if not sides:
        raise ValueError(
            f"none of {len(records)} images tried of {source.description} can be read with "
            f"{num_channels} channels; the last one: {reason}. Choose other data, or another "
            "--num-channels."
        )
    num_images = None if isinstance(source, StreamingImageSource) else len(source)
    has_color = bool(np.mean(colored) > COLORED_IMAGES)
    return ImageFacts(num_images, int(np.median(sides)), num_channels, has_color)


def _num_channels(record: ImageRecord) -> int | None:
    """Return the number of channels to read an image with: 3 if possible; None if unreadable."""
    for count in (3, *(count for count in range(1, MAX_CHANNELS + 1) if count != 3)):
        try:
            decode_pixels(record.image, PixelFormat(count), (1, 1))
        except UnreadableImageError:
            continue
        return count
    return None


def this_machine(run: RunConfig) -> Machine:
    """Return the machine that a run trains on.

    Several processes may run on different machines and must choose alike, so each of them counts
    as two cores.

    Args:
        run: Configuration of the run.
    """
    uses_cpu = run.runtime.cpu or os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    num_processes = int(os.environ.get("WORLD_SIZE", 1))
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # Linux
        cores = len(os.sched_getaffinity(0))
    return Machine(
        has_accelerator=has_gpu and not uses_cpu,
        num_cores=cores if num_processes == 1 else 2 * num_processes,
    )


__all__ = ["FEW_IMAGES", "fit_to_folder", "image_facts", "pretrained_advice", "this_machine"]
