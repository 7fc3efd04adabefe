"""Runs of DINOv2 from a checkpoint: Gram anchoring, a new mask token, another image size."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from selfvit import SelfViTModel
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.modeling.position_embeddings import interpolate_position_embeddings
from selfvit.training.train import main

from .tiny_runs import LOOP, OBJECTIVES, arguments, assert_equal_tensors, log_of, weights_of

FROZEN = ("--base-learning-rate", "0", "--min-learning-rate", "0", "--teacher-momentum", "1")


def command(start, data, output, *options):
    return [
        *OBJECTIVES["dinov2"], *LOOP, "--init-from", str(start), "--data", str(data), "--output",
        str(output), "--batch-size", "8", *map(str, options),
    ]  # fmt: skip


def part_of(weights, prefix):
    """Return the tensors whose names have a prefix, without it."""
    return {
        name[len(prefix) :]: value for name, value in weights.items() if name.startswith(prefix)
    }


def test_a_run_anchored_to_a_checkpoint_resumes_exactly_without_its_weights(
    tiny_checkpoint, two_classes, tmp_path
):
    # the checkpoint has no mask token, and the Gram teacher sees larger views
    anchors = ("--gram-weight", 1, "--gram-resolution-factor", 2)
    options = (*anchors, "--max-steps", 4, "--save-steps", 2, "--save-total-limit", 9)
    start = tmp_path / "start"
    shutil.copytree(tiny_checkpoint, start)
    for name in ("uninterrupted", "resumed"):
        main(command(start, two_classes, tmp_path / name, *options))
    expected = weights_of(tmp_path / "uninterrupted")
    encoder = load_strictly(SelfViTModel, start).state_dict()
    frozen = part_of(expected, "gram_teacher.vit.")
    assert not frozen.pop("embeddings.mask_token").any()
    assert_equal_tensors(frozen, encoder)
    assert expected["student.vit.embeddings.mask_token"].any()
    assert all("gram" in line for line in log_of(tmp_path / "uninterrupted").values())

    random = {name: torch.randn_like(value) for name, value in weights_of(start).items()}
    save_file(random, start / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step-00000004")
    main([*command(start, two_classes, tmp_path / "resumed", *options), "--resume"])
    assert log_of(tmp_path / "resumed") == log_of(tmp_path / "uninterrupted")
    assert_equal_tensors(weights_of(tmp_path / "resumed"), expected)
    model = AutoModel.from_pretrained(tmp_path / "resumed")
    assert_equal_tensors(model.state_dict(), part_of(expected, "vit."))


def test_a_run_at_another_image_size_starts_with_resized_positions(
    tiny_checkpoint, two_classes, tmp_path
):
    first, larger = tmp_path / "first", tmp_path / "larger"
    anchor = ("--gram-weight", 1)
    main(command(tiny_checkpoint, two_classes, first, "--max-steps", 1, *anchor))
    options = ("--max-steps", 1, "--image-size", 48, "--init-scope", "all", *FROZEN)
    main(command(first, two_classes, larger, *options, *anchor))
    before, after = weights_of(first), weights_of(larger)
    # the Gram teacher is the encoder of `first`, not its Gram teacher
    gram_teacher = part_of(after, "gram_teacher.vit.")
    assert_equal_tensors(gram_teacher, part_of(after, "vit."))
    before, kept = (
        {name: value for name, value in weights.items() if not name.startswith("gram_teacher.")}
        for weights in (before, after)
    )
    for prefix in ("", "student."):
        name = f"{prefix}vit.embeddings.position_embeddings"
        before[name] = interpolate_position_embeddings(before[name], (4, 4), (6, 6))
    for centers in ("loss.class_loss.center", "loss.patch_loss.center"):  # they move
        before.pop(centers), kept.pop(centers)
    assert_equal_tensors(kept, before)
    assert AutoModel.from_pretrained(larger).config.image_size == 48


def test_gram_anchoring_without_a_checkpoint_is_an_error(two_classes, tmp_path):
    options = ("--max-steps", 1, "--batch-size", 8, "--gram-weight", 1)
    with pytest.raises(ValueError, match=r"--gram-weight \(1\) .*give --init-from CHECKPOINT"):
        main(arguments("dinov2", two_classes, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()
