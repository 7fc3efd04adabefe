"""Classifiers: real runs of tiny models that fine-tune the encoder or train a linear probe."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from selfvit import SelfViTModel
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.training.train import main

from .tiny_runs import LOOP, assert_equal_tensors, log_of, weights_of


def command(recipe, checkpoint, data, output, *options):
    return [
        recipe, *LOOP, "--init-from", str(checkpoint), "--data", str(data), "--output", str(output),
        "--batch-size", "8", *map(str, options),
    ]  # fmt: skip


@pytest.mark.parametrize("recipe", ["mae_classify", "linear_probe"])
def test_a_classifier_interrupted_within_an_epoch_resumes_exactly(
    recipe, two_classes, tiny_checkpoint, tmp_path
):
    # Classifiers could not be resumed: the integer keys of id2label broke the comparison of the
    # settings. 24 images in batches of 8 are 3 steps per epoch, so step 4 is within an epoch.
    options = ("--max-steps", 8, "--save-steps", 4)
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    for output in (uninterrupted, resumed):
        main(command(recipe, tiny_checkpoint, two_classes, output, *options))
    shutil.rmtree(resumed / "checkpoints" / "step-00000008")
    for name in ("config.json", "model.safetensors"):
        (resumed / name).unlink()
    main(command(recipe, tiny_checkpoint, two_classes, resumed, *options, "--resume"))
    assert log_of(resumed) == log_of(uninterrupted)
    assert_equal_tensors(weights_of(resumed), weights_of(uninterrupted))


def test_mixup_cutmix_and_label_smoothing_change_the_loss(two_classes, tiny_checkpoint, tmp_path):
    losses = {}
    for name, options in {
        "mixed": (),
        "plain": ("--mixup-alpha", 0, "--cutmix-alpha", 0, "--label-smoothing", 0),
    }.items():
        out = tmp_path / name
        main(command("mae_classify", tiny_checkpoint, two_classes, out, "--max-steps", 3, *options))
        losses[name] = [log_of(out)[step]["loss"] for step in (1, 2, 3)]
    assert all(a != b for a, b in zip(losses["mixed"], losses["plain"], strict=True))


def correct_predictions(output, data):
    """Classify images with a pipeline; return for each whether its folder's name is predicted."""
    classify = pipeline("image-classification", model=str(output))
    assert classify.model.config.id2label == {0: "bright", 1: "dark"}
    paths = sorted(data.rglob("*.png"))
    return [classify(str(path))[0]["label"] == path.parent.name for path in paths]


CLASSIFY = ("--max-steps", 40, "--batch-size", 12, "--warmup-ratio", 0)
# RandAugment is disabled, because it inverts and solarizes, and the classes are bright and dark.
MAE_CLASSIFY = (
    *("--max-steps", 60, "--crop-scale", 0.5, 1, "--rand-augment-magnitude", 0),
    *("--layer-decay", 1, "--seed", 1),
)


@pytest.mark.parametrize(
    ("recipe", "options", "trains_encoder"),
    [
        ("classify", (*CLASSIFY, "--freeze-encoder-ratio", 0), True),
        ("classify", (*CLASSIFY, "--freeze-encoder-ratio", 1), False),
        ("mae_classify", MAE_CLASSIFY, True),
    ],
)
def test_a_classifier_learns_the_folder_names_and_works_in_a_pipeline(
    recipe, options, trains_encoder, two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "out"
    evaluated = ("--eval-steps", 20, "--eval-train", two_classes, "--eval-test", two_classes)
    options = (*options, "--base-learning-rate", 0.1, *evaluated)
    main(command(recipe, tiny_checkpoint, two_classes, out, *options))
    before = load_strictly(SelfViTModel, tiny_checkpoint).state_dict()
    after = load_strictly(SelfViTModel, out).state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) != trains_encoder, name
    correct = correct_predictions(out, two_classes)
    assert sum(correct) >= 20
    accuracy = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["accuracy"]
    assert accuracy == pytest.approx(sum(correct) / len(correct), abs=0.05)


def test_a_linear_probe_trains_only_its_head_and_logs_the_accuracy_of_its_pipeline(
    two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "out"
    options = ("--max-steps", 40, "--eval-steps", 20)
    evaluated = ("--eval-train", two_classes, "--eval-test", two_classes)
    main(command("linear_probe", tiny_checkpoint, two_classes, out, *options, *evaluated))
    before = load_strictly(SelfViTModel, tiny_checkpoint).state_dict()
    weights = load_file(out / "model.safetensors")
    assert all(torch.equal(weights["vit." + name], before[name]) for name in before)
    assert not torch.equal(weights["classifier_norm.running_mean"], torch.zeros(32))
    model = AutoModelForImageClassification.from_pretrained(out)
    assert model.config.classifier_batch_norm
    correct = correct_predictions(out, two_classes)
    assert sum(correct) >= 22
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    reported = [line["accuracy"] for line in lines if "accuracy" in line]
    assert len(reported) == 2
    assert reported[-1] == pytest.approx(sum(correct) / len(correct), abs=0.05)


def test_evaluating_a_linear_probe_does_not_change_its_running_statistics(
    two_classes, tiny_checkpoint, tmp_path
):
    # in training mode, the batch norm would update its statistics with the test images
    evaluated = ("--eval-steps", 1, "--eval-train", two_classes, "--eval-test", two_classes)
    for name, options in {"plain": (), "evaluated": evaluated}.items():
        steps = ("--max-steps", 4)
        out = tmp_path / name
        main(command("linear_probe", tiny_checkpoint, two_classes, out, *steps, *options))
    plain, other = weights_of(tmp_path / "plain"), weights_of(tmp_path / "evaluated")
    assert_equal_tensors(other, plain)
