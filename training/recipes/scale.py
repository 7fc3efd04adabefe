"""Sizes of a run on a small folder, chosen from its images and the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..config.run_config import RunConfig

# Patches along a side of an image, the wanted number first. On a CPU, 4 x 4 patches of 14 pixels
# are better than 8 x 8 of 8 pixels, and twice as fast (benchmarks/results/small_folder.md).
CPU_GRIDS, GPU_GRIDS = (4,), (14, 13, 12)
CPU_SIZE, GPU_SIZE = 56, 224  # largest image size, pixels
TEACHER_SIZE = 112  # pixels; a multiple of 14 and 16, the patch sizes of usual teachers
CPU_BATCH, GPU_BATCH = 64, 256
MIN_STEPS = 2000  # also for few images, whose crops and colors differ each time
EPOCHS = 80  # for more images, up to the steps that a machine makes in less than 20 minutes
CPU_STEPS_A_CORE, GPU_STEPS = 1000, 20_000
MAX_CORES = 8  # a small encoder is not faster on more


@dataclass(frozen=True)
class ImageFacts:
    """Properties of the images of a folder that a run should fit.

    Args:
        num_images: Number of images; None for a stream.
        side: Median of the shorter sides, pixels.
        num_channels: Number of channels of the model: 3 for gray and RGB, else that of the files.
        has_color: Whether there are colors, and not only gray values.
    """

    num_images: int | None
    side: int
    num_channels: int
    has_color: bool


@dataclass(frozen=True)
class Machine:
    """Machine that a run should fit.

    Args:
        has_accelerator: Whether there is a GPU.
        num_cores: Number of CPU cores.
    """

    has_accelerator: bool
    num_cores: int


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Args:
        image_size: Side of the model's images, pixels.
        patch_size: Side of a patch, pixels.
        num_channels: Number of channels of the model.
        has_color: Whether colors are changed at random.
        batch_size: Images of an optimizer step.
        num_steps: Number of optimizer steps; None if the number of epochs is given.
        num_workers: Number of worker processes.
        is_small: Whether the encoder is one for a CPU.
    """

    image_size: int = 56
    patch_size: int = 14
    num_channels: int = 3
    has_color: bool = True
    batch_size: int = CPU_BATCH
    num_steps: int | None = MIN_STEPS
    num_workers: int = 1
    is_small: bool = True


def choose_scale(facts: ImageFacts, machine: Machine, given: Mapping[str, Any]) -> Scale:
    """Choose the sizes of a run from its images and the machine.

    Args:
        facts: Properties of the images.
        machine: Machine that the run trains on.
        given: Options by name; what they set is not chosen, and the rest fits it.
    """
    gpu = machine.has_accelerator
    batch_size = given.get("batch_size") or (GPU_BATCH if gpu else CPU_BATCH)
    if facts.num_images is not None and "batch_size" not in given:
        batch_size = min(batch_size, 2 ** int(math.log2(max(1, facts.num_images))))
    image_size, patch_size = _sizes(facts.side, machine, given)
    num_channels = given.get("num_channels", facts.num_channels)
    cores = min(machine.num_cores, MAX_CORES)
    return Scale(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=num_channels,
        has_color=facts.has_color and num_channels == 3,
        batch_size=batch_size,
        num_steps=None if "epochs" in given else _num_steps(facts, machine, batch_size),
        num_workers=cores if gpu else max(1, min(4, cores - 1)),
        is_small=not gpu,
    )


def _sizes(side: int, machine: Machine, given: Mapping[str, Any]) -> tuple[int, int]:
    """Return image size and patch size, pixels; images are not enlarged."""
    grids = GPU_GRIDS if machine.has_accelerator else CPU_GRIDS
    patch_size, image_size = given.get("patch_size"), given.get("image_size")
    if "teacher" in given:  # the images must have whole patches of the teacher, too
        large = machine.has_accelerator and side >= 2 * TEACHER_SIZE
        size = 2 * TEACHER_SIZE if large else TEACHER_SIZE
        image_size = image_size or size
    if image_size is not None:
        sides = image_size if isinstance(image_size, list) else [image_size]
        common = math.gcd(*sides)
        divisors = [patch for patch in range(1, common + 1) if common % patch == 0]
        wanted = min(sides) / grids[0]
        return common, patch_size or min(divisors, key=lambda patch: abs(patch - wanted))
    size = min(side, GPU_SIZE if machine.has_accelerator else CPU_SIZE)
    if patch_size is not None:
        return max(1, size // patch_size) * patch_size, patch_size
    fitting = [(grid * max(1, size // grid), max(1, size // grid)) for grid in grids]
    return max(fitting, key=lambda pair: (pair[0] <= size, pair[0]))


def _num_steps(facts: ImageFacts, machine: Machine, batch_size: int) -> int:
    """Return the number of steps: `EPOCHS`, but at least MIN_STEPS, and what the machine can do."""
    most = GPU_STEPS
    if not machine.has_accelerator:
        cores = min(machine.num_cores, MAX_CORES)
        most = max(MIN_STEPS, CPU_STEPS_A_CORE * cores)
    if facts.num_images is None:
        return most
    wanted = max(MIN_STEPS, EPOCHS * facts.num_images / batch_size)
    return int(round(min(wanted, most), -2))


def describe_choices(
    run: RunConfig, facts: ImageFacts, machine: Machine, given: Mapping[str, Any]
) -> str:
    """Return the line that names what was chosen, with the reasons.

    Args:
        run: Run that was made of the choices.
        facts: Properties of the images.
        machine: Machine that the run trains on.
        given: Options by name; what they set is left out.
    """
    kind = "color" if facts.has_color else "gray" if facts.num_channels in (1, 3) else ""
    count = "" if facts.num_images is None else f"{facts.num_images:,} "
    device = "a GPU" if machine.has_accelerator else f"a CPU with {machine.num_cores} cores"
    model, schedule = run.model, run.schedule
    num_steps = schedule.max_steps or 0
    epochs = ""
    if facts.num_images is not None:
        epochs = f" ({num_steps * schedule.batch_size / facts.num_images:,.0f} epochs)"
    size = " x ".join(map(str, dict.fromkeys(model.image_height_width)))
    parts = {
        "image_size": f"image_size {size} (median side {facts.side})",
        "patch_size": f"patch_size {model.patch_size}",
        "num_channels": f"num_channels {model.num_channels}",
        "hidden_size": f"hidden_size {model.hidden_size}",
        "num_hidden_layers": f"num_hidden_layers {model.num_hidden_layers}",
        "batch_size": f"batch_size {schedule.batch_size}",
        "max_steps": f"{num_steps:,} steps{epochs}",
        "num_workers": f"num_workers {run.data.num_workers}",
    }
    left_out = {*given, *(["max_steps"] if schedule.max_steps is None else [])}
    chosen = ", ".join(text for name, text in parts.items() if name not in left_out)
    images = " ".join(f"{count}{kind} images".split())
    return f"chosen for {images} and {device}: {chosen}"


__all__ = ["ImageFacts", "Machine", "Scale", "choose_scale", "describe_choices"]
