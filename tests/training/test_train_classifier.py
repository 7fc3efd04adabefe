"""Classifiers trained for real on tiny models: fine-tuned as MAE does, and as a linear probe."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from selfvit import SelfViTModel
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.training.train import main

from .tiny_runs import LOOP, log_of, weights_of


def command(recipe, checkpoint, data, output, *options):
    return [
        recipe, *LOOP, "--init_from", str(checkpoint), "--data", str(data), "--output", str(output),
        "--batch_size", "8", *map(str, options),
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", ["mae_classify", "linear_probe"])
def test_a_run_interrupted_in_mid_epoch_and_resumed_equals_the_unbroken_one(
    recipe, two_classes, tiny_checkpoint, tmp_path
):
    # A classifier could not be resumed: the numbers of id2label ended the comparison of the runs.
    # 24 images in batches of 8 are 3 steps an epoch: step 4 lies within one.
    options = ("--max_steps", 8, "--save_steps", 4)
    for name in ("whole", "parts"):
        main(command(recipe, tiny_checkpoint, two_classes, tmp_path / name, *options))
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step-00000008")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "parts" / name).unlink()
    again = (*options, "--resume", "true")
    main(command(recipe, tiny_checkpoint, two_classes, tmp_path / "parts", *again))
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.equal(parts[name], whole[name]), name


def test_mixing_shows_in_the_losses(two_classes, tiny_checkpoint, tmp_path):
    losses = {}
    for name, options in {
        "mixed": (),
        "plain": ("--mixup_alpha", 0, "--cutmix_alpha", 0, "--label_smoothing", 0),
    }.items():
        out = tmp_path / name
        main(command("mae_classify", tiny_checkpoint, two_classes, out, "--max_steps", 3, *options))
        losses[name] = [log_of(out)[step]["loss"] for step in (1, 2, 3)]
    assert all(a != b for a, b in zip(losses["mixed"], losses["plain"], strict=True))


def test_mae_classify_trains_the_encoder_and_a_pipeline_serves_it(
    two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "out"
    options = ("--max_steps", 60, "--base_learning_rate", 0.1, "--crop_scale", 0.5, 1)
    # bright and dark folders: RandAugment inverts and solarizes, which is the label here
    plain = ("--rand_augment_magnitude", 0, "--layer_decay", 1, "--seed", 1)
    main(command("mae_classify", tiny_checkpoint, two_classes, out, *options, *plain))
    before = load_strictly(SelfViTModel, tiny_checkpoint).state_dict()
    after = load_strictly(SelfViTModel, out).state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in before)
    serve = pipeline("image-classification", model=str(out))
    paths = sorted(two_classes.rglob("*.png"))
    right = [serve(str(path))[0]["label"] == path.parent.name for path in paths]
    assert sum(right) >= 20


def test_a_linear_probe_trains_its_head_alone_and_reports_the_accuracy_it_serves_with(
    two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "out"
    options = ("--max_steps", 40, "--eval_steps", 20)
    evaluated = ("--eval_train", two_classes, "--eval_test", two_classes)
    main(command("linear_probe", tiny_checkpoint, two_classes, out, *options, *evaluated))
    before = load_strictly(SelfViTModel, tiny_checkpoint).state_dict()
    weights = load_file(out / "model.safetensors")
    assert all(torch.equal(weights["vit." + name], before[name]) for name in before)
    assert not torch.equal(weights["classifier_norm.running_mean"], torch.zeros(32))
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.config.classifier_batch_norm
    serve = pipeline("image-classification", model=str(out))
    assert serve.model.config.id2label == {0: "bright", 1: "dark"}
    paths = sorted(two_classes.rglob("*.png"))
    right = [serve(str(path))[0]["label"] == path.parent.name for path in paths]
    assert sum(right) >= 22
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    reported = [line["accuracy"] for line in lines if "accuracy" in line]
    assert len(reported) == 2
    assert reported[-1] == pytest.approx(sum(right) / len(right), abs=0.05)


def test_evaluating_a_probe_does_not_change_its_running_statistics(
    two_classes, tiny_checkpoint, tmp_path
):
    # in training mode the batch norm would learn from the test images that pass it
    evaluated = ("--eval_steps", 1, "--eval_train", two_classes, "--eval_test", two_classes)
    for name, options in {"plain": (), "evaluated": evaluated}.items():
        steps = ("--max_steps", 4)
        out = tmp_path / name
        main(command("linear_probe", tiny_checkpoint, two_classes, out, *steps, *options))
    plain, other = weights_of(tmp_path / "plain"), weights_of(tmp_path / "evaluated")
    for name in plain:
        assert torch.equal(other[name], plain[name]), name
