"""Checkpoints and runs that an older selfvit saved open and resume.

tests/fixtures/saved_by_0_1/ was written by selfvit 0.1.0 before checkpoints had two code files:

checkpoint/                    result of a tiny `dino_demo` run, with 22 code files
expected_vectors.safetensors   pixel values, and the vectors and the loss computed from them; the
                               vectors of the images of `write_images`
run/                           another such run, stopped after step 2 of 4
expected_weights.safetensors   weights of the run after it was resumed
expected_log.jsonl             its last two log lines

0.1.0 itself resumed to the weights of a run without a stop, and so did later versions until the
random numbers of the views of a seed changed; the last two files were written then.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForPreTraining

from selfvit import SelfViTForDINO, SelfViTModel
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.modeling.checkpoints.loading import load_strictly

from .image_files import noise
from .python_without_selfvit import FORGET_SELFVIT

FIXTURES = Path(__file__).parent / "fixtures" / "saved_by_0_1"
CHECKPOINT = FIXTURES / "checkpoint"
# The same weights give the same bits on one processor; kernels for other processors round
# differently.
OTHER_PROCESSOR = {"atol": 1e-5, "rtol": 1e-5}
# AdamW divides by the size of the gradient, so a rounding error can change a weight by a fraction
# of the learning rate, which is at most 3.2e-5 in steps 3 and 4.
AFTER_TWO_STEPS = {"atol": 1e-5, "rtol": 1e-5}

WITHOUT_SELFVIT = """
import importlib.util, sys

assert importlib.util.find_spec("selfvit") is None, "selfvit can be imported"
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining

checkpoint, pixel_values, resaved, output = sys.argv[1:]
pixels = load_file(pixel_values)["pixel_values"]
with torch.no_grad():
    teacher = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
    student = AutoModel.from_pretrained(checkpoint, network="student", trust_remote_code=True)
    model = AutoModelForPreTraining.from_pretrained(checkpoint, trust_remote_code=True)
    model.save_pretrained(resaved)
    again = AutoModel.from_pretrained(resaved, trust_remote_code=True)
    views = torch.stack([pixels, pixels.flip(-1)])
    results = {
        "teacher": teacher(pixels).pooler_output,
        "student": student(pixels).pooler_output,
        "loss": model(global_views=views).loss.reshape(1),
        "resaved": again(pixels).pooler_output,
    }
save_file({name: value.contiguous() for name, value in results.items()}, output)
"""


@pytest.fixture(scope="module")
def expected():
    return load_file(FIXTURES / "expected_vectors.safetensors")


def write_images(folder: Path) -> Path:
    folder.mkdir()
    for seed in range(8):
        noise(24 + seed, 28, seed).save(folder / f"{seed}.png")
    return folder


def assert_close(found: torch.Tensor, wanted: torch.Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, **(tolerance or OTHER_PROCESSOR))


@torch.no_grad()
def vectors_of(encoder, pixels):
    return encoder(pixels).pooler_output


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_an_encoder_gives_the_same_vectors(network, expected):
    pixels = expected["pixel_values"]
    vectors = vectors_of(AutoModel.from_pretrained(CHECKPOINT, network=network), pixels)
    assert_close(vectors, expected[network])
    strict = load_strictly(SelfViTModel, CHECKPOINT, network=network)
    embedder = Embedder.from_pretrained(CHECKPOINT, network=network, device="cpu")
    assert torch.equal(vectors_of(strict, pixels), vectors)
    assert torch.equal(torch.from_numpy(embedder.embed_pixels(pixels)), vectors)


@torch.no_grad()
def test_the_objective_gives_the_same_loss(expected):
    pixels = expected["pixel_values"]
    views = torch.stack([pixels, pixels.flip(-1)])
    model = AutoModelForPreTraining.from_pretrained(CHECKPOINT)
    assert type(model) is SelfViTForDINO
    loss = model(global_views=views).loss.reshape(1)
    assert_close(loss, expected["loss"])
    strict = load_strictly(SelfViTForDINO, CHECKPOINT)
    assert torch.equal(strict(global_views=views).loss.reshape(1), loss)


def test_embedder_gives_the_same_vectors_of_images(expected, tmp_path):
    embedder = Embedder.from_pretrained(CHECKPOINT, device="cpu")
    vectors = embedder.embed(open_images(write_images(tmp_path / "images"))).vectors
    assert_close(torch.from_numpy(vectors), expected["images"])


def test_its_own_code_opens_it_without_selfvit(python_with_torch, expected, tmp_path):
    output = tmp_path / "results.safetensors"
    vectors = FIXTURES / "expected_vectors.safetensors"
    code = FORGET_SELFVIT + WITHOUT_SELFVIT
    process = subprocess.run(
        [python_with_torch, "-c", code, CHECKPOINT, vectors, tmp_path / "resaved", output],
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    found = load_file(output)
    for name in ("teacher", "student", "loss"):
        assert_close(found[name], expected[name])
    assert torch.equal(found["resaved"], found["teacher"])
    # today's code computes the same bits as the code in the folder
    encoder = AutoModel.from_pretrained(CHECKPOINT)
    assert torch.equal(found["teacher"], vectors_of(encoder, expected["pixel_values"]))


def test_saving_again_replaces_its_22_code_files_by_two(tmp_path):
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINT, folder)
    assert len(list(folder.glob("*.py"))) == 22
    AutoModelForPreTraining.from_pretrained(folder).save_pretrained(folder)
    names = {path.name for path in folder.glob("*.py")}
    assert names == {"configuration_selfvit.py", "modeling_selfvit.py"}
    before = load_file(CHECKPOINT / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_run_resumes_with_its_weights_optimizer_and_schedule(python_with_selfvit, tmp_path):
    write_images(tmp_path / "images")
    shutil.copytree(FIXTURES / "run", tmp_path / "run")
    options = [
        *("--image-size", "16", "--patch-size", "8", "--hidden-size", "8"),
        *("--num-hidden-layers", "1", "--num-attention-heads", "2", "--drop-path-rate", "0.1"),
        *("--local-view-size", "8", "--num-local-views", "2", "--num-prototypes", "16"),
        *("--head-hidden-size", "16", "--head-bottleneck-size", "8", "--batch-size", "4"),
        *("--max-steps", "4", "--save-steps", "2", "--log-steps", "1", "--image-steps", "0"),
        *("--num-workers", "0", "--tracker", "none", "--energy-meter", "none"),
    ]
    process = subprocess.run(
        [
            python_with_selfvit, "-m", "selfvit.cli", "train", "dino_demo", *options,
            "--data", "images", "--output", "run", "--resume",
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr

    wanted = load_file(FIXTURES / "expected_weights.safetensors")
    start = load_file(FIXTURES / "run" / "checkpoints" / "step-00000002" / "model.safetensors")
    found = load_file(tmp_path / "run" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert_close(found[name], tensor, **AFTER_TWO_STEPS)
    moved = max(float((wanted[name] - start[name]).abs().max()) for name in wanted)
    assert moved > 3 * AFTER_TWO_STEPS["atol"], "two steps change weights by more than that"

    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    expected_log = (FIXTURES / "expected_log.jsonl").read_text().splitlines()
    for line, text in zip(log[2:], expected_log, strict=True):
        assert line["loss"] == pytest.approx(json.loads(text)["loss"], rel=1e-4)
