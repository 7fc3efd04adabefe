"""Runs of a second: every objective, by its recipe, made tiny."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

ENCODER = [
    *("--image_size", "32", "--patch_size", "8", "--hidden_size", "32"),
    *("--num_hidden_layers", "2", "--num_attention_heads", "2", "--drop_path_rate", "0.1"),
]
LOOP = [
    *("--num_workers", "0", "--tracker", "none", "--energy_meter", "none", "--log_steps", "1"),
    *("--image_steps", "0"),
]

# One entry an objective: its recipe and what makes it tiny.
OBJECTIVES = {
    "dino": [
        *("dino_demo", "--local_view_size", "16", "--num_local_views", "2"),
        *("--num_prototypes", "32", "--head_hidden_size", "32", "--head_bottleneck_size", "16"),
        *("--koleo_weight", "0"),  # it compares the images of a micro-batch: fewer, if it is split
    ],
    "mae": [
        *("mae_demo", "--decoder_hidden_size", "16", "--decoder_num_layers", "2"),
        *("--decoder_num_attention_heads", "2"),
    ],
    "pmsn": [
        *("pmsn_demo", "--focal_view_size", "16", "--num_focal_views", "2"),
        *("--num_prototypes", "32", "--head_hidden_size", "32", "--head_output_size", "16"),
    ],
}

# Parameters whose gradient is zero but for rounding, by the ends of their names. Softmax does not
# see a shift of all keys; PMSN's batch norm none of all features.
WITHOUT_GRADIENT = {
    "dino": ("k_proj.bias",),
    "mae": ("k_proj.bias",),
    "pmsn": ("k_proj.bias", "vit.layernorm.bias"),
}

# Objectives with statistics of a batch (batch norm, the mean prediction): micro-batches are not the
# whole. The largest relative difference of the loss, for four micro-batches of two; the gradient's
# has no bound worth a test, as batch norm divides by the distance of two images.
MICRO_BATCH_TOLERANCE = {"pmsn": 0.25}


def arguments(objective: str, data: Path, output: Path, *options: object) -> list[str]:
    """Return a command line for `selfvit train`."""
    return [
        *OBJECTIVES[objective], *ENCODER, *LOOP, "--data", str(data), "--output", str(output),
        *map(str, options),
    ]  # fmt: skip


def start(launcher: list[str], command: list[str], **environment: str) -> subprocess.Popen:
    """Start a training process on the CPU, one thread."""
    return subprocess.Popen(
        [sys.executable, *launcher, "selfvit.training.train", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **environment},
    )


def log_of(output: Path) -> dict[int, dict[str, float]]:
    """Return the figures of each step, without those that depend on time."""
    lines = [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("images_per_second", None)
    return {line.pop("step"): line for line in lines}


def weights_of(folder: Path) -> dict:
    """Return the tensors of a checkpoint."""
    return load_file(folder / "model.safetensors")
