"""Tiny training runs: options that make the recipe of each objective finish within a second."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import load_file

from ..objectives import TINY_TEACHER

ENCODER = [
    *("--image-size", "32", "--patch-size", "8", "--hidden-size", "32"),
    *("--num-hidden-layers", "2", "--num-attention-heads", "2", "--drop-path-rate", "0.1"),
]
LOOP = [
    *("--num-workers", "0", "--tracker", "none", "--energy-meter", "none", "--log-steps", "1"),
    *("--image-steps", "0"),
]

# Recipe of each objective and the options that make it tiny.
OBJECTIVES = {
    "dino": [
        *("dino_demo", "--local-view-size", "16", "--num-local-views", "2"),
        *("--num-prototypes", "32", "--head-hidden-size", "32", "--head-bottleneck-size", "16"),
        *("--koleo-weight", "0"),  # KoLeo depends on the size of the micro-batch
    ],
    "dinov2": [
        *("dinov2_demo", "--local-view-size", "16", "--num-local-views", "2"),
        *("--num-prototypes", "32", "--head-hidden-size", "32", "--head-bottleneck-size", "16"),
        *("--koleo-weight", "0"),
    ],
    "distill": [
        *("distill_demo", "--teacher", TINY_TEACHER, "--queue-size", "16"),
        "--no-mixup",  # it blends the images of a micro-batch
    ],
    "lejepa": [
        *("lejepa_demo", "--local-view-size", "16", "--num-local-views", "2"),
        *("--num-slices", "32", "--head-hidden-size", "32", "--head-output-size", "16"),
    ],
    "mae": [
        *("mae_demo", "--decoder-hidden-size", "16", "--decoder-num-layers", "2"),
        *("--decoder-num-attention-heads", "2"),
    ],
    "pmsn": [
        *("pmsn_demo", "--focal-view-size", "16", "--num-focal-views", "2"),
        *("--num-prototypes", "32", "--head-hidden-size", "32", "--head-output-size", "16"),
    ],
}

# Suffixes of the names of parameters whose gradient is zero up to rounding. Softmax is invariant to
# a shift of all keys, and PMSN's batch norm to a shift of all features.
WITHOUT_GRADIENT = {
    "dino": ("k_proj.bias",),
    "dinov2": ("k_proj.bias",),
    "distill": ("k_proj.bias",),
    "lejepa": ("k_proj.bias", "vit.layernorm.bias"),
    "mae": ("k_proj.bias",),
    "pmsn": ("k_proj.bias", "vit.layernorm.bias"),
}

# Largest relative difference between the loss of four micro-batches of two images and the loss of
# the full batch, for objectives with batch statistics (batch norm, the mean prediction, SIGReg,
# whose value grows with the number of images until projections are normally distributed) or that
# compare the images of a batch (distillation). There is no such bound for the gradient, because
# batch norm divides by the distance between two images.
MICRO_BATCH_TOLERANCE = {"distill": 0.9, "lejepa": 0.6, "pmsn": 0.5}


def arguments(objective: str, data: Path, output: Path, *options: object) -> list[str]:
    """Return the arguments of `selfvit train` for a tiny run of an objective without a report."""
    return [
        *OBJECTIVES[objective], *ENCODER, *LOOP, "--report-images", "0", "--data", str(data),
        "--output", str(output), *map(str, options),
    ]  # fmt: skip


def start(
    python: Path, launcher: list[str], command: list[str], **environment: str
) -> subprocess.Popen:
    """Start a training process on the CPU with one thread."""
    return subprocess.Popen(
        [str(python), *launcher, "selfvit.training.train", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment},
    )


def log_of(output: Path) -> dict[int, dict[str, float]]:
    """Return the logged metrics of each step, without those that depend on time."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return {line.pop("step"): line for line in lines}


def weights_of(folder: Path) -> dict:
    """Return the tensors of a checkpoint."""
    return load_file(folder / "model.safetensors")


def assert_equal_tensors(first: dict, second: dict) -> None:
    """Check that two dictionaries have the same names and bit-identical tensors."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
