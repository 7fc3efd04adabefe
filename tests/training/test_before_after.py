"""The report that compares a model before and after training, for runs that help and that hurt."""

import copy
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel
from typer.testing import CliRunner

pytest.importorskip("sklearn")
from selfvit import SelfViTForDINO
from selfvit.cli import app
from selfvit.data.sources import open_images
from selfvit.embedding.preprocessing import build_processor
from selfvit.evaluation.evaluate import evaluate_checkpoint
from selfvit.training.config.arguments import build_run, parse_arguments
from selfvit.training.evaluation import Evaluation
from selfvit.training.evaluation_images import open_evaluation_images
from selfvit.training.exceptions import NoImprovementError
from selfvit.training.recipes import RECIPES
from selfvit.training.report_size import (
    MIN_REPORT_IMAGES,
    report_size,
    sample_evaluation_images,
)
from selfvit.training.train import main, open_source

from ..image_files import noise
from .processes import run_two
from .tiny_runs import LOOP, OBJECTIVES, arguments, log_of, weights_of

SAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist_sample"
TRAIN, TEST = SAMPLE / "train.parquet", SAMPLE / "test.parquet"
LIMIT = 800


def report_of(output):
    return json.loads((output / "report.json").read_text())


# --- the sample


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """Randomly initialized encoder of `dino_demo`, above chance but with room to improve."""
    run = RECIPES["dino_demo"](None, None)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("untrained")
    SelfViTForDINO(run.model).save_pretrained(folder)
    options = run.preprocessing
    build_processor(
        run.model, resize=options.resize, mean=options.image_mean, std=options.image_std
    ).save_pretrained(folder)
    return folder


def finetune(untrained, output, *options):
    return CliRunner().invoke(
        app,
        [
            *("train", "dino_finetune", "--init-from", str(untrained), "--data", str(TRAIN)),
            *("--output", str(output), "--eval-train", str(TRAIN), "--eval-test", str(TEST)),
            *("--eval-limit", str(LIMIT), "--require-improvement", *LOOP),
            *("--report-images", str(2 * LIMIT)),
            *("--num-local-views", "0", "--freeze-encoder-ratio", "0", "--layer-decay", "1"),
            *map(str, options),
        ],
    )


def test_finetuning_on_the_sample_shows_the_gain_with_its_interval(untrained, tmp_path):
    out = tmp_path / "out"
    options = ("--max-steps", 80, "--base-learning-rate", 4e-3, "--teacher-momentum", 0.98)
    crops = ("--global-crop-scale", 0.5, 1, "--koleo-weight", 0.2)
    result = finetune(untrained, out, *options, *crops)
    assert result.exit_code == 0, result.output
    assert "Training helped: k-NN, k = 20 rose by" in result.output
    report = report_of(out)
    gain = report["metrics"]["knn_20"]["difference"]
    assert report["improved"] is True and report["metric"] == "knn_20"
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert report["metrics"]["view_retrieval"]["num_images"] == LIMIT
    assert 0 < report["neighbor_overlap"]["value"] < 1
    # the metrics are those of `selfvit evaluate` for the two checkpoints
    for name, checkpoint in (("before", untrained), ("after", out)):
        metrics = evaluate_checkpoint(
            checkpoint, open_images(TRAIN), open_images(TEST), limit=LIMIT, device="cpu"
        )
        for metric in ("knn_10", "knn_20", "linear_probe", "rankme"):
            value = report["metrics"][metric][name]["value"]
            assert value == pytest.approx(metrics[metric], rel=1e-5), (metric, name)


def test_a_run_that_made_the_features_worse_saves_its_result_and_exits_with_code_2(
    untrained, tmp_path
):
    out = tmp_path / "out"
    options = ("--max-steps", 15, "--batch-size", 32, "--warmup-ratio", 0)
    result = finetune(
        untrained, out, *options, "--base-learning-rate", 2, "--teacher-momentum", 0.5
    )
    assert result.exit_code == 2
    assert "error: Training made the features worse: k-NN, k = 20 fell by" in result.output
    assert "lower --base-learning-rate (it was 2)" in result.output
    assert "trained:" not in result.output and "Traceback" not in result.output
    report = report_of(out)
    assert report["improved"] is False
    assert report["metrics"]["knn_20"]["difference"]["high"] < -0.05
    # the result is saved as for any other run
    model = AutoModel.from_pretrained(out)
    assert model.config.embedding_size == 256
    assert (out / "README.md").is_file() and (out / "checkpoints" / "step-00000015").is_dir()

    # resuming it fails again, even with a report from an older version
    report["figures"] = report.pop("metrics")
    (out / "report.json").write_text(json.dumps(report))
    again = finetune(untrained, out, *options, "--base-learning-rate", 2, "--teacher-momentum", 0.5,
                     "--resume")  # fmt: skip
    assert again.exit_code == 2 and "fell by" in again.output


# --- tiny runs


def command(recipe, checkpoint, data, output, *options):
    tiny = OBJECTIVES["dino"][1:] if recipe == "dino_finetune" else []
    return [
        recipe, *tiny, *LOOP, "--init-from", str(checkpoint), "--data", str(data), "--output",
        str(output), "--batch-size", "6", *map(str, options),
    ]  # fmt: skip


@pytest.fixture
def unlabeled(tmp_path):
    folder = tmp_path / "unlabeled"
    folder.mkdir()
    for index in range(12):
        noise(36, 36, index).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


WITHOUT_LEARNING = ("--base-learning-rate", 0, "--min-learning-rate", 0)


def test_a_resumed_run_has_the_same_report_as_an_uninterrupted_one(
    two_classes, tiny_checkpoint, tmp_path
):
    options = ("--max-steps", 6, "--save-steps", 3, "--warmup-ratio", 0, "--eval-steps", 2)
    uninterrupted = tmp_path / "uninterrupted"
    main(command("dino_finetune", tiny_checkpoint, two_classes, uninterrupted, *options))
    resumed = tmp_path / "resumed"
    main(command("dino_finetune", tiny_checkpoint, two_classes, resumed, *options))
    # as if the run had been killed after step 3
    shutil.rmtree(resumed / "checkpoints" / "step-00000006")
    for file in ("config.json", "model.safetensors", "report.json"):
        (resumed / file).unlink()
    main(command("dino_finetune", tiny_checkpoint, two_classes, resumed, *options, "--resume"))
    assert report_of(resumed) == report_of(uninterrupted)
    assert log_of(resumed) == log_of(uninterrupted)


def test_new_evaluation_data_at_a_resume_is_used_for_before_and_after(
    two_classes, tiny_checkpoint, image_folder, tmp_path
):
    options = ("--max-steps", 2, "--save-steps", 1, "--save-total-limit", 9, "--eval-steps", 1)
    out = tmp_path / "out"
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, *options))
    # a fifth of the 24 images, stratified by class
    assert report_of(out)["metrics"]["linear_probe"]["num_images"] == 4
    assert report_of(out)["best"]["step"] == 1  # both steps are equal, so the first is kept
    shutil.rmtree(out / "checkpoints" / "step-00000002")
    (out / "config.json").unlink()
    others = ("--eval-train", two_classes, "--eval-test", two_classes, "--resume")
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, *options, *others))
    assert report_of(out)["metrics"]["linear_probe"]["num_images"] == 24
    # the best step of the first run was measured on other images, so it does not count
    assert report_of(out)["best"]["step"] == 2


def test_without_labels_the_verdict_uses_view_retrieval(
    unlabeled, tiny_checkpoint, tmp_path, capsys
):
    out = tmp_path / "out"
    main(command("dino_finetune", tiny_checkpoint, unlabeled, out, "--max-steps", 1))
    report = report_of(out)
    assert report["metric"] == "view_retrieval"
    assert list(report["metrics"]) == ["view_retrieval", "rankme", "uniformity"]
    # An unreadable image is left out. Replaced by its neighbor, that image would have four views.
    assert report["metrics"]["view_retrieval"]["num_images"] == 12
    printed = capsys.readouterr().out
    assert "view retrieval" in printed and report["verdict"] in printed


def test_labels_of_the_training_images_are_used_unless_the_objective_trained_on_them(
    two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "dino"
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, "--max-steps", 1))
    report = report_of(out)
    assert report["metric"] == "knn_20"
    assert "images that were trained on" in report["note"]
    # a classifier was trained on these labels, so they give no metric and no verdict
    out = tmp_path / "classify"
    main(command("classify", tiny_checkpoint, two_classes, out, "--max-steps", 1))
    report = report_of(out)
    assert (report["metric"], report["improved"]) == (None, None)
    assert list(report["metrics"]) == ["view_retrieval", "rankme", "uniformity"]


def test_a_new_classifier_is_judged_by_its_encoder_and_classes_are_matched_by_name(
    two_classes, tiny_checkpoint, tmp_path
):
    # The classifier has a class "black" as well, so "bright" is class 1 there and class 0 in the
    # test images. Labels used to be compared by index: a perfect classifier had an accuracy of 0.
    three = tmp_path / "three"
    shutil.copytree(two_classes, three)
    (three / "black").mkdir()
    for index in range(12):
        noise(36, 36, index).point(lambda level: level // 16).save(three / "black" / f"{index}.png")
    out = tmp_path / "out"
    length = ("--max-steps", 60, "--eval-steps", 60)
    options = ("--eval-train", three, "--eval-test", two_classes, *length)
    rates = ("--base-learning-rate", 0.1, "--warmup-ratio", 0)
    main(command("classify", tiny_checkpoint, three, out, *options, *rates))
    report = report_of(out)
    # the accuracy of a new classifier rises even if the encoder gets worse, so it is not used
    assert report["metric"] == "knn_20" and "accuracy" not in report["metrics"]
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert logged[-1]["accuracy"] > 0.8


def test_the_report_of_a_stream_uses_its_first_images(tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    stream = ("--streaming", "--max-steps", 1, "--eval-limit", 40)
    main(command("dino_finetune", tiny_checkpoint, TEST, out, *stream))
    metrics = report_of(out)["metrics"]
    tested = metrics["view_retrieval"]["num_images"]
    assert 5 <= tested <= 15 and metrics["rankme"]["num_images"] == 40 - tested


@pytest.mark.parametrize("has_labels", [True, False], ids=["labeled", "unlabeled"])
def test_a_run_from_random_weights_is_compared_with_its_untrained_encoder_and_raw_pixels(
    has_labels, two_classes, unlabeled, tmp_path, capsys
):
    out = tmp_path / "out"
    line = arguments("dino", two_classes if has_labels else unlabeled, out, *WITHOUT_LEARNING)
    line += ["--max-steps", "1", "--batch-size", "6", "--report-images", "100"]
    main([*line, "--teacher-momentum", "1"])
    report = report_of(out)
    metric = "knn_20" if has_labels else "view_retrieval"
    labeled = ["knn_10", "knn_20"] if has_labels else []
    assert (report["init_from"], report["metric"]) == (None, metric)
    assert list(report["raw_pixels"]) == [*labeled, "view_retrieval"]
    # nothing was learned, so the figures are those of the initial weights
    assert report["metrics"][metric]["difference"]["value"] == 0
    assert report["metrics"]["view_retrieval"]["num_images"] == (4 if has_labels else 12)
    printed = capsys.readouterr().out
    assert "raw pixels" in printed and "untrained" in printed and report["verdict"] in printed
    if has_labels:  # brightness separates the classes, and raw pixels show it
        raw, after = report["raw_pixels"][metric]["value"], report["metrics"][metric]["after"]
        assert report["passes_raw_pixels"] is (after["value"] > raw)
        assert ("Raw pixels" in printed) is (after["value"] <= raw)


def test_the_report_has_as_many_images_as_a_tenth_of_the_training_time_allows():
    # 3 measurements of 0.01 s an image: 1,000 images take 30 s, a tenth of 300 s
    assert report_size(300, 0.01, 10_000) == 1000
    assert report_size(600, 0.01, 10_000) == 2000
    assert report_size(600, 0.02, 10_000) == 1000
    assert report_size(1e6, 0.01, 10_000) == 10_000
    assert report_size(1, 0.01, 10_000) == MIN_REPORT_IMAGES  # intervals need some
    assert report_size(1, 0.01, 24) == 24
    assert report_size(300, 0.01, 10_000, requested=50) == 50
    assert report_size(300, 0.01, 40, requested=50) == 40


def test_a_sample_of_the_images_has_a_class_of_each_test_image_and_is_named_as_one(
    two_classes, tiny_checkpoint, tmp_path, capsys
):
    run = build_run(
        parse_arguments(command("dino_finetune", tiny_checkpoint, TEST, tmp_path), RECIPES), 2000
    )
    images = open_evaluation_images(run, open_source(run.data))
    for size in (25, 300):
        sample = sample_evaluation_images(images, size)
        assert sample.available == 2000 and 0.6 * size <= len(sample) <= size
        assert set(sample.test.labels()) <= set(sample.images.labels())
        assert len(sample.test) <= size / 5 + 1
    assert sample_evaluation_images(images, 2000) is images
    out = tmp_path / "out"
    options = ("--max-steps", 1, "--report-images", 10)
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, *options))
    intervals = report_of(out)["intervals"]
    assert (intervals["num_images"], intervals["num_available"]) == (10, 24)
    assert "over a sample of 10 of 24 evaluation images" in capsys.readouterr().out


def test_the_report_uses_the_last_evaluation_and_embeds_nothing_again(
    two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "out"
    options = ("--max-steps", 2, "--eval-steps", 2)
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, *options))
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    evaluated = next(line for line in logged if "view_retrieval" in line)
    for name, metric in report_of(out)["metrics"].items():
        assert metric["after"]["value"] == evaluated[name], name


def test_without_a_report_there_is_none(two_classes, tmp_path):
    out = tmp_path / "out"
    main(arguments("dino", two_classes, out, "--max-steps", 1, "--batch-size", 6))
    assert not (out / "report.json").exists() and not (out / "best").exists()


def test_a_frozen_encoder_has_no_report(two_classes, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    main(command("linear_probe", tiny_checkpoint, two_classes, out, "--max-steps", 1))
    assert not (out / "report.json").exists()


def test_the_checkpoint_with_the_best_evaluation_is_kept_in_best(
    two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "out"
    options = (
        *("--eval-steps", 1, "--best-metric", "rankme", "--max-steps", 8, "--warmup-ratio", 0),
        *("--save-steps", 1, "--save-total-limit", 99, "--freeze-encoder-ratio", 0),
        *("--base-learning-rate", 3, "--teacher-momentum", 0),  # collapses within a few steps
    )
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, *options))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    ranks = [line["rankme"] for line in lines if "rankme" in line]
    step = int(np.argmax(ranks)) + 1
    assert len(ranks) == 8 and step < 8
    kept = json.loads((out / "best" / "best.json").read_text())
    assert report_of(out)["best"] == kept
    del kept["data"]
    assert kept == {"step": step, "metric": "rankme", "value": max(ranks)}
    saved = weights_of(out / "checkpoints" / f"step-{step:08d}")
    for name, tensor in weights_of(out / "best").items():
        assert torch.equal(tensor, saved[name]), name
    assert AutoModel.from_pretrained(out / "best").config.hidden_size == 32
    AutoImageProcessor.from_pretrained(out / "best")


def test_an_unchanged_model_is_no_improvement_with_one_or_two_processes(
    two_classes, tiny_config, tmp_path
):
    config, start = copy.deepcopy(tiny_config), tmp_path / "start"
    config.use_mask_token = True  # DINO does not use it, and processes do not wait for its gradient
    SelfViTForDINO(config).save_pretrained(start)
    build_processor(config).save_pretrained(start)
    options = (*WITHOUT_LEARNING, "--max-steps", 2, "--require-improvement")
    with pytest.raises(NoImprovementError, match="did not change"):
        main(command("dino_finetune", start, two_classes, tmp_path / "one", *options))
    two = command("dino_finetune", start, two_classes, tmp_path / "two", *options)
    codes, printed = run_two(two, tmp_path)
    assert codes[0] == 2 and "\nerror: " in printed and "did not change" in printed
    assert printed.count("neighbors kept") == 1
    assert report_of(tmp_path / "two") == report_of(tmp_path / "one")
    assert (tmp_path / "two" / "config.json").is_file()


def test_evaluation_does_not_change_the_model_or_random_states(
    two_classes, tiny_checkpoint, tmp_path
):
    line = command("dino_finetune", tiny_checkpoint, two_classes, tmp_path / "out")
    run = build_run(parse_arguments(line, RECIPES), 24)
    model = SelfViTForDINO.from_pretrained(tiny_checkpoint).train()
    model.student.vit.eval()  # like a frozen encoder
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    processor = AutoImageProcessor.from_pretrained(tiny_checkpoint)
    images = open_evaluation_images(run, open_source(run.data))
    first = Evaluation(model, processor, run, images).measure(0)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    second = Evaluation(model, processor, run, images).measure(0)
    assert first.metrics == second.metrics


def test_a_note_warns_if_test_images_are_also_training_images(
    two_classes, tiny_checkpoint, tmp_path
):
    for test, expected in ((two_classes, "too high: --eval-test"), (TEST, "")):
        train = two_classes if test == two_classes else TRAIN
        options = ("--eval-train", train, "--eval-test", test)
        line = command("dino_finetune", tiny_checkpoint, two_classes, tmp_path / "out", *options)
        run = build_run(parse_arguments(line, RECIPES), 24)
        note = open_evaluation_images(run, open_source(run.data)).note
        assert expected in note and bool(note) == bool(expected)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("dino_finetune", ("--freeze-encoder-ratio", 1), "--freeze-encoder-ratio below 1"),
        ("dino_finetune", ("--best-metric", "loss"), "best_metric .'loss'. must be one of"),
        ("dino_finetune", ("--best-metric", "accuracy"), "available: knn_10, .*view_retrieval"),
        ("classify", (), "none for a classifier.*--eval-train"),
    ],
)
def test_require_improvement_without_a_usable_metric_is_an_error_before_anything_is_written(
    recipe, options, message, two_classes, tiny_checkpoint, tmp_path
):
    required = (*options, "--max-steps", 1, "--require-improvement")
    if options[:1] == ("--best-metric",):
        # too few images for 20 neighbors
        required = (*required, "--eval-limit", 15)
    with pytest.raises(ValueError, match=message):
        main(command(recipe, tiny_checkpoint, two_classes, tmp_path / "out", *required))
    assert not (tmp_path / "out").exists()


def test_require_improvement_without_a_report_is_an_error(two_classes, tmp_path):
    options = ("--max-steps", 1, "--require-improvement")
    with pytest.raises(ValueError, match="not --report-images 0"):
        main(arguments("dino", two_classes, tmp_path / "out", *options))


def test_a_report_warns_once_of_a_skipped_classifier(
    two_classes, tiny_checkpoint, tmp_path, caplog
):
    # raw pixels, before and after each gave the same warning
    out = tmp_path / "out"
    options = ("--max-steps", 1, "--report-images", 20)
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, *options))
    assert caplog.text.count("k-NN with k = 20 is skipped") == 1
