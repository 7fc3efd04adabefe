"""Classifiers: real runs of tiny models that fine-tune the encoder or train a linear probe."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification, pipeline

from selfvit import SelfViTModel
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.training.config.arguments import build_run, parse_arguments
from selfvit.training.recipes import RECIPES
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


def test_the_rows_of_a_kept_classifier_follow_the_names_of_the_classes(
    two_classes, tiny_checkpoint, tmp_path
):
    trained, again = tmp_path / "trained", tmp_path / "again"
    main(command("linear_probe", tiny_checkpoint, two_classes, trained, "--max-steps", 2))
    kept = ("--init-scope", "all", "--max-steps", 1, "--base-learning-rate", 0)
    swapped = json.loads((trained / "config.json").read_text())
    labels = swapped["id2label"]
    swapped["id2label"] = dict(zip(labels, reversed(labels.values()), strict=True))
    swapped["label2id"] = {name: int(row) for row, name in swapped["id2label"].items()}
    (trained / "config.json").write_text(json.dumps(swapped))
    main(command("linear_probe", trained, two_classes, again, *kept))
    before, after = weights_of(trained), weights_of(again)
    assert torch.equal(after["classifier.weight"], before["classifier.weight"].flip(0))
    assert torch.equal(after["classifier.bias"], before["classifier.bias"].flip(0))
    others = tmp_path / "others"
    for number, folder in enumerate(sorted(path for path in two_classes.iterdir())):
        shutil.copytree(folder, others / f"other_{number}")
    with pytest.raises(ValueError, match="are not those of the data.*leave it out"):
        main(command("linear_probe", trained, others, tmp_path / "third", *kept))


def test_one_class_is_an_error_and_the_kind_of_problem_is_not_inherited(
    two_classes, tiny_checkpoint, tmp_path
):
    one = tmp_path / "one.csv"
    one.write_text("file_name,label\n" + "".join(f"{p},only\n" for p in two_classes.rglob("*.png")))
    with pytest.raises(ValueError, match=r"needs at least two classes.*only one \(only\)"):
        main(command("linear_probe", tiny_checkpoint, one, tmp_path / "run"))
    folder = tmp_path / "oneclass"  # was "has no labels"
    shutil.copytree(two_classes / "dark", folder / "dark")
    with pytest.raises(ValueError, match="two classes, but all of .* in one folder, 'dark';"):
        main(command("classify", tiny_checkpoint, folder, tmp_path / "run"))
    scores = tmp_path / "scores.csv"
    rows = "".join(f"{path},x,y\n" for path in two_classes.rglob("*.png"))
    scores.write_text(f"file_name,species,kind_name\n{rows}")
    with pytest.raises(ValueError, match=r"but there are none for .*; name the column") as caught:
        main(command("classify", tiny_checkpoint, scores, tmp_path / "run"))
    assert "folder with its name" not in str(caught.value)
    assert "not taken" not in str(caught.value)
    start = tmp_path / "start"
    shutil.copytree(tiny_checkpoint, start)
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    words = command("linear_probe", start, two_classes, tmp_path / "run")
    assert build_run(parse_arguments(words, RECIPES), 24).model.problem_type is None


@pytest.mark.parametrize("recipe", ["classify", "linear_probe"])
def test_a_classifier_names_the_options_that_measure_its_accuracy_and_prints_it_with_them(
    recipe, two_classes, tiny_checkpoint, tmp_path, capsys
):
    # classify ended with "No verdict", and linear_probe with nothing
    steps = ("--max-steps", 2)
    main(command(recipe, tiny_checkpoint, two_classes, tmp_path / "plain", *steps))
    printed = capsys.readouterr().out
    assert printed.count("Accuracy was not measured; give labeled images") == 1
    assert "accuracy is not measured; give" in printed
    assert "Labels" not in printed and "No verdict" not in printed
    evaluated = ("--eval-train", two_classes, "--eval-test", two_classes)
    main(command(recipe, tiny_checkpoint, two_classes, tmp_path / "other", *steps, *evaluated))
    printed = capsys.readouterr().out
    assert "not measured" not in printed
    assert "The classifier is right for" in printed and "of 24 test images" in printed
