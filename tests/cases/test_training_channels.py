"""Training on images with 1, 4, 8 and 12 channels, and on images of twelve bits."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest
import tifffile
import torch
from accelerate.state import AcceleratorState, GradientState
from transformers import AutoImageProcessor
from typer.testing import CliRunner

from selfvit.cli import app
from selfvit.data.sources import open_images
from selfvit.embedding.embedder import Embedder
from selfvit.embedding.preparation import preprocess
from selfvit.embedding.vectors.reader import read_vectors
from selfvit.training.config.run_config import RunConfig
from selfvit.training.train import main, train_recipe

from ..hub_requests import USER
from ..local_hub import LocalHub
from ..python_without_selfvit import create_python_without_selfvit
from ..sharing.hub_client import HubClient
from ..training.tiny_runs import (
    ENCODER,
    LOOP,
    arguments,
    assert_equal_tensors,
    log_of,
    weights_of,
)
from .inputs_channels import bands, write_bands, write_bands_table

SHORT = ("--max-steps", 2, "--batch-size", 4, "--cpu")
CHANNELS = [1, 4, 8, 12]


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Reset Accelerate's singletons after each test, so that runs do not share state."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_of(output):
    return RunConfig.from_yaml((output / "training.yaml").read_text())


def bands_folder(tmp_path, num_channels, **options):
    return write_bands(tmp_path / "bands", num_channels, **options)


def assert_reads(output, num_channels):
    """Check a finished run: its losses, its model, and the processor that it saved."""
    losses = [line["loss"] for line in log_of(output).values()]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert json.loads((output / "config.json").read_text())["num_channels"] == num_channels
    processor = AutoImageProcessor.from_pretrained(output)
    assert processor.num_channels == num_channels
    assert len(processor.image_mean) == len(processor.image_std) == num_channels
    assert processor.image_mean == run_of(output).preprocessing.image_mean


@pytest.mark.parametrize("num_channels", CHANNELS)
def test_every_objective_trains_on_any_number_of_channels(num_channels, tmp_path, capsys):
    data = bands_folder(tmp_path, num_channels)
    options = (*SHORT, "--num-channels", num_channels, "--image-steps", 1)
    for objective in ("dino", "dinov2", "lejepa", "mae", "pmsn"):
        main(arguments(objective, data, tmp_path / objective, *options))
        assert_reads(tmp_path / objective, num_channels)
        pictures = {path.name for path in (tmp_path / objective / "images").iterdir()}
        kind = "reconstructions" if objective == "mae" else "attention"
        assert {"step-00000002-views.png", f"step-00000002-{kind}.png"} <= pictures
    classifier = tmp_path / "classify"
    main([
        *("classify", "--init-from", str(tmp_path / "dino"), "--data", str(data)),
        *("--output", str(classifier), *LOOP, *map(str, SHORT)),
    ])  # fmt: skip
    assert_reads(classifier, num_channels)
    printed = capsys.readouterr().out
    assert f"augmentation for {num_channels} channels: color_jitter 0.8 0.8 0.0 0.0" in printed
    assert f"mean and std of {num_channels} channels, measured on 12 images" in printed
    embedded = Embedder.from_pretrained(tmp_path / "dino", device="cpu").embed(open_images(data))
    assert embedded.vectors.shape[0] == 12 and np.isfinite(embedded.vectors).all()
    assert not np.allclose(embedded.vectors[0], embedded.vectors[1])


def test_four_channels_resume_bit_identically_with_the_stored_mean_and_std(tmp_path, capsys):
    data = bands_folder(tmp_path, 4)
    options = ("--max-steps", 4, "--save-steps", 2, "--batch-size", 4, "--num-channels", 4, "--cpu")
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    main(arguments("dino", data, uninterrupted, *options))
    main(arguments("dino", data, resumed, *options))
    # as if the run had been killed after step 2
    shutil.rmtree(resumed / "checkpoints" / "step-00000004")
    for name in ("config.json", "model.safetensors"):
        (resumed / name).unlink()
    capsys.readouterr()
    main(arguments("dino", data, resumed, *options, "--resume"))
    assert "measured" not in capsys.readouterr().out
    assert_equal_tensors(weights_of(resumed), weights_of(uninterrupted))
    assert log_of(resumed) == log_of(uninterrupted)
    assert run_of(resumed).preprocessing == run_of(uninterrupted).preprocessing
    assert len(run_of(resumed).preprocessing.image_mean) == 4


def test_a_stream_of_four_channels_trains(tmp_path, capsys):
    table = write_bands_table(tmp_path / "bands.parquet", 4)
    options = (*SHORT, "--num-channels", 4, "--streaming", "--num-workers", 1)
    main(arguments("dino", table, tmp_path / "out", *options))
    assert_reads(tmp_path / "out", 4)
    assert "mean and std of 4 channels, measured on 12 images" in capsys.readouterr().out


def test_batches_of_a_folder_with_eight_and_more_bits_train(tmp_path):
    data = bands_folder(tmp_path, 3, kinds="tif")
    for index in range(4):
        deep = data / "a" / f"deep{index}.tif"
        tifffile.imwrite(deep, bands(index, 3, high=65536), photometric="rgb")
    main(arguments("mae", data, tmp_path / "out", *SHORT[:2], "--batch-size", 8, "--cpu"))
    assert np.isfinite([line["loss"] for line in log_of(tmp_path / "out").values()]).all()


@pytest.mark.parametrize("option", ["--dry-run", "--find-batch-size"])
def test_a_plan_and_the_search_of_a_batch_size_know_the_channels(option, tmp_path, capsys):
    data = bands_folder(tmp_path, 5)
    steps = ("--max-steps", 1, "--batch-size", 4, "--cpu")  # the search makes two steps
    main(arguments("dino", data, tmp_path / "out", *steps, "--num-channels", 5, option))
    printed = capsys.readouterr().out
    assert "augmentation for 5 channels" in printed
    expected = "Plan of recipe dino_demo" if option == "--dry-run" else "4 images fit at a time"
    assert expected in printed


# --- bits


@pytest.mark.parametrize(
    "declared", [("--bits", 12), ("--pixel-range", 0, 4095)], ids=["bits", "range"]
)
def test_the_range_of_the_data_stands_in_the_checkpoint_and_is_used_by_embed(
    declared, tmp_path, capsys
):
    data = tmp_path / "deep"
    hand_scaled = tmp_path / "floats"
    for folder in (data, hand_scaled):
        folder.mkdir()
    for index in range(8):
        pixels = bands(index, 3, high=4096)
        tifffile.imwrite(data / f"{index}.tif", pixels, photometric="rgb")
        floats = (pixels / 4095).astype(np.float32)
        tifffile.imwrite(hand_scaled / f"{index}.tif", floats, photometric="rgb")
    main(arguments("dino", data, tmp_path / "out", *SHORT, *declared))
    assert "1/8" not in capsys.readouterr().out
    assert run_of(tmp_path / "out").preprocessing.declared_range == (0.0, 4095.0)
    assert tuple(AutoImageProcessor.from_pretrained(tmp_path / "out").pixel_range) == (0.0, 4095.0)
    assert "0 to 4095" in (tmp_path / "out" / "README.md").read_text()
    embedder = Embedder.from_pretrained(tmp_path / "out", device="cpu")
    vectors = embedder.embed(open_images(data)).vectors
    by_hand = Embedder.from_pretrained(tmp_path / "out", device="cpu", pixel_range=(0.0, 1.0))
    expected = by_hand.embed(open_images(hand_scaled)).vectors
    np.testing.assert_allclose(vectors, expected, atol=1e-5)

    main([
        *("classify", "--init-from", str(tmp_path / "out"), "--data", str(with_classes(data))),
        *("--output", str(tmp_path / "classifier"), *LOOP, *map(str, SHORT)),
    ])  # fmt: skip
    assert run_of(tmp_path / "classifier").preprocessing.declared_range == (0.0, 4095.0)


def with_classes(folder):
    for index, path in enumerate(sorted(folder.iterdir())):
        target = folder / ("a", "b")[index % 2]
        target.mkdir(exist_ok=True)
        path.rename(target / path.name)
    return folder


def test_a_run_warns_once_if_the_values_use_a_small_part_of_their_range(tmp_path, capsys):
    data = bands_folder(tmp_path, 3, high=4096, kinds="tif")
    main(arguments("mae", data, tmp_path / "out", "--max-steps", 3, "--batch-size", 4, "--cpu"))
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if "1/8" in line]
    assert len(lines) == 1
    assert lines[0].startswith("warning: ") and ".tif" in lines[0]
    assert "--bits N with N of at least 12" in lines[0]


# --- mean and std


def test_mean_and_std_of_any_length_are_taken_and_nothing_is_measured(tmp_path, capsys):
    data = bands_folder(tmp_path, 2, kinds="tif")
    given = ("--image-mean", 0.5, 0.1, "--image-std", 0.25, 0.2)
    main(arguments("dino", data, tmp_path / "out", *SHORT, "--num-channels", 2, *given))
    assert "measured" not in capsys.readouterr().out
    assert run_of(tmp_path / "out").preprocessing.image_mean == [0.5, 0.1]
    assert AutoImageProcessor.from_pretrained(tmp_path / "out").image_std == [0.25, 0.2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--image-mean", 0.5, 0.1), r"image_mean .* must be 4 numbers, one for each of num_chan"),
        (("--color-jitter", 0.4, 0.4, 0.4, 0.1), "color_jitter .* needs 3 channels, but num_chan"),
        (("--grayscale-probability", 0.2), "set --grayscale-probability 0.0, or leave it out"),
        (("--bits", 12, "--pixel-range", 0, 1), "give --bits or --pixel-range"),
        (("--pixel-range", 5, 1), "must be two numbers"),
        (("--num-channels", 6), "num_channels .6. does not fit .*has 4 channels"),
        (("--num-channels", 0), "num_channels .0. must be at least 1"),
    ],
)
def test_values_that_do_not_fit_the_channels_are_refused_and_nothing_is_written(
    options, message, tmp_path
):
    data = bands_folder(tmp_path, 4, kinds="tif")
    with pytest.raises(Exception, match=message):
        main(arguments("dino", data, tmp_path / "out", *SHORT, "--num-channels", 4, *options))
    assert not (tmp_path / "out").exists()


def test_channels_that_photos_do_not_have_are_refused_before_the_first_image(
    image_folder, tmp_path
):
    with pytest.raises(ValueError, match=r"num_channels \(4\) does not fit the images of"):
        main(arguments("dino", image_folder, tmp_path / "out", *SHORT, "--num-channels", 4))
    assert not (tmp_path / "out").exists()


def test_photos_train_in_gray(image_folder, tmp_path):
    main(arguments("dino", image_folder, tmp_path / "out", *SHORT, "--num-channels", 1))
    assert_reads(tmp_path / "out", 1)


# --- a checkpoint of other channels


@pytest.mark.parametrize(
    ("num_channels", "rule"),
    [
        (1, "adapted to 1: sum over the 3 channels"),
        (4, "adapted to 4: mean over the 3 channels, repeated 4 times and scaled by 3/4"),
    ],
)
def test_an_rgb_checkpoint_is_adapted_to_other_channels_and_the_rule_is_recorded(
    num_channels, rule, tiny_checkpoint, tmp_path, capsys
):
    data = bands_folder(tmp_path, num_channels, kinds="tif")
    still = ("--base-learning-rate", 0, "--min-learning-rate", 0, "--weight-decay", 0)
    main([
        *("dino_finetune", "--init-from", str(tiny_checkpoint), "--data", str(data), *LOOP),
        *("--output", str(tmp_path / "out"), "--num-channels", str(num_channels)),
        *("--num-local-views", "0", "--num-prototypes", "32", "--head-hidden-size", "32"),
        *map(str, (*SHORT, *still)),
    ])  # fmt: skip
    assert rule in capsys.readouterr().out
    assert rule in (tmp_path / "out" / "README.md").read_text()
    assert_reads(tmp_path / "out", num_channels)
    key = "embeddings.patch_embeddings.projection.weight"
    before = weights_of(tiny_checkpoint)[f"vit.{key}"]  # of the teacher
    found = [v for k, v in weights_of(tmp_path / "out").items() if k.endswith(key)]
    assert len(found) == 2  # student and teacher
    for kernel in found:
        assert kernel.shape[1] == num_channels
        # an image of equal channels has the same patch embeddings as before
        torch.testing.assert_close(kernel.sum(dim=1), before.sum(dim=1))


def test_init_scope_all_adapts_student_and_teacher_but_not_the_decoder_of_mae(
    image_folder, tmp_path
):
    data = bands_folder(tmp_path, 4, kinds="tif")
    for objective in ("dino", "mae"):
        main(arguments(objective, image_folder, tmp_path / objective, *SHORT))
    four = ("--num-channels", 4, "--init-scope", "all", "--init-from")
    main(arguments("dino", data, tmp_path / "four", *SHORT, *four, tmp_path / "dino"))
    assert_reads(tmp_path / "four", 4)
    with pytest.raises(ValueError, match=r"init_scope \(all\) takes the decoder of MAE too"):
        main(arguments("mae", data, tmp_path / "mae4", *SHORT, *four, tmp_path / "mae"))
    with pytest.raises(ValueError, match="only a patch embedding of 1 or 3 channels"):
        other = ("--num-channels", 1, "--init-from", tmp_path / "four")
        main(arguments("dino", data, tmp_path / "one", *SHORT, *other))
    with pytest.raises(ValueError, match=r"lora_rank \(4\) keeps the weights"):
        lora = ("--num-channels", 4, "--lora-rank", 4, "--init-from", tmp_path / "dino")
        main(arguments("dino", data, tmp_path / "lora", *SHORT, *lora))
    assert not (tmp_path / "lora").exists()


# --- recipes that presuppose a start


@pytest.mark.parametrize(
    ("recipe", "instead"),
    [
        ("dino_finetune", "dino_vits16_in1k or dino"),
        ("dinov2_finetune", "dinov2_vits16_in1k or dinov2"),
        ("distill_finetune", "distill_vits16 or distill"),
        ("lejepa_finetune", "lejepa_vits16_in1k or lejepa"),
        ("mae_finetune", "mae_vitb16_in1k or mae"),
        ("pmsn_finetune", "msn_vits16_in1k or pmsn"),
        ("linear_probe", "classify"),
        ("dino_lora", "dino_vits16_in1k or dino"),
    ],
)
def test_a_recipe_for_pretrained_encoders_needs_init_from(recipe, instead, image_folder, tmp_path):
    words = [recipe, "--data", str(image_folder), "--output", str(tmp_path / "out"), *LOOP]
    with pytest.raises(ValueError, match=rf"{recipe} .*needs --init-from CHECKPOINT.*{instead}"):
        main([*words, *map(str, SHORT)])
    with pytest.raises(ValueError, match="needs --init-from CHECKPOINT"):
        train_recipe(recipe, data=image_folder, output=tmp_path / "out", max_steps=2)
    assert not (tmp_path / "out").exists()


def test_a_classifier_from_random_weights_says_so(two_class_folder, tmp_path, capsys):
    main([
        *("classify", "--data", str(two_class_folder), "--output", str(tmp_path / "out")),
        *(*ENCODER, *LOOP, *map(str, SHORT)),
    ])  # fmt: skip
    assert "warning: classify starts from random weights" in capsys.readouterr().out


@pytest.fixture
def two_class_folder(tmp_path):
    return write_bands(tmp_path / "photos", 3, kinds="tif")


WITHOUT_SELFVIT = """
import sys
import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel

checkpoint, result, *files = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(checkpoint, trust_remote_code=True)
model = AutoModel.from_pretrained(checkpoint, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
with torch.no_grad():
    pixels = processor([np.load(file) for file in files], return_tensors="pt")
    np.save(result, model(**pixels).pooler_output.numpy())
"""


def test_four_channels_of_twelve_bits_from_training_to_the_hub_and_back(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    data, output = bands_folder(tmp_path, 4, high=4096, kinds="npy"), tmp_path / "out"
    main(arguments("dino", data, output, *SHORT, "--num-channels", 4, "--bits", 12))
    for words in (
        ("embed", output, "--data", data, "--output", tmp_path / "vectors"),
        ("export", output, "--to", "onnx", "--output", tmp_path / "onnx"),
    ):
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == 0, result.output
    with LocalHub() as hub, HubClient(hub, tmp_path / "publisher") as client:
        code, printed = client.run("publish", output, f"{USER}/bands")
        assert code == 0, printed
        table = read_vectors(tmp_path / "vectors")
        vectors = np.stack(table["embedding"].to_numpy())
        files = [data / path for path in table["path"].to_pylist()]
        assert len(files) == 12 and vectors.std(axis=0).mean() > 0.01

        session = runtime.InferenceSession(tmp_path / "onnx" / "model.onnx")
        processor = AutoImageProcessor.from_pretrained(output)
        pixels = torch.stack([preprocess(file, processor) for file in files]).numpy()
        (found,) = session.run(None, {"pixel_values": pixels})
        np.testing.assert_allclose(found, vectors, atol=1e-5)

        python = create_python_without_selfvit(tmp_path / "environment")
        variables = {"HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub.url}
        arguments_of = [f"{USER}/bands", tmp_path / "found.npy", *files]
        loaded = subprocess.run(
            [python, "-I", "-c", WITHOUT_SELFVIT, *arguments_of],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HF_HUB_DISABLE_XET": "1", **variables},
            capture_output=True,
            text=True,
        )
        assert loaded.returncode == 0, loaded.stderr
        np.testing.assert_allclose(np.load(tmp_path / "found.npy"), vectors, atol=1e-5)
