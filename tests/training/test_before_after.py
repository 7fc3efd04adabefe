"""Before and after, for real: fine-tuning on the sample, made better and made worse; tiny runs."""

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
from selfvit.training.evaluation import Evaluation, open_evaluation_images
from selfvit.training.exceptions import NoImprovementError
from selfvit.training.recipes import RECIPES
from selfvit.training.train import main, open_source

from ..image_files import noise
from .tiny_runs import LOOP, OBJECTIVES, log_of, start, weights_of

SAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist_sample"
TRAIN, TEST = SAMPLE / "train.parquet", SAMPLE / "test.parquet"
LIMIT = 800


def report_of(output):
    return json.loads((output / "report.json").read_text())


# --- the sample


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The encoder of `dino_demo` as it is drawn: far from the best, and far from chance."""
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
            *("train", "dino_finetune", "--init_from", str(untrained), "--data", str(TRAIN)),
            *("--output", str(output), "--eval_train", str(TRAIN), "--eval_test", str(TEST)),
            *("--eval_limit", str(LIMIT), "--require_improvement", "true", *LOOP),
            *("--num_local_views", "0", "--freeze_encoder_ratio", "0", "--layer_decay", "1"),
            *map(str, options),
        ],
    )


def test_finetuning_on_the_sample_shows_the_gain_with_its_interval(untrained, tmp_path):
    out = tmp_path / "out"
    options = ("--max_steps", 80, "--base_learning_rate", 4e-3, "--teacher_momentum", 0.98)
    crops = ("--global_crop_scale", 0.5, 1, "--koleo_weight", 0.2)
    result = finetune(untrained, out, *options, *crops)
    assert result.exit_code == 0, result.output
    assert "Training helped: k-NN, k = 20 rose by" in result.output
    report = report_of(out)
    gain = report["metrics"]["knn_20"]["difference"]
    assert report["improved"] is True and report["metric"] == "knn_20"
    assert 0 < gain["low"] < gain["value"] < gain["high"]
    assert report["metrics"]["view_retrieval"]["num_images"] == LIMIT
    assert 0 < report["neighbor_overlap"]["value"] < 1
    # and the figures are those that `selfvit evaluate` gives for the two checkpoints
    for name, checkpoint in (("before", untrained), ("after", out)):
        metrics = evaluate_checkpoint(
            checkpoint, open_images(TRAIN), open_images(TEST), limit=LIMIT, device="cpu"
        )
        for figure in ("knn_10", "knn_20", "linear_probe", "rankme"):
            value = report["metrics"][figure][name]["value"]
            assert value == pytest.approx(metrics[figure], rel=1e-5), (figure, name)


def test_a_run_made_worse_says_so_exits_non_zero_and_loses_nothing(untrained, tmp_path):
    out = tmp_path / "out"
    options = ("--max_steps", 15, "--batch_size", 32, "--warmup_ratio", 0)
    result = finetune(
        untrained, out, *options, "--base_learning_rate", 2, "--teacher_momentum", 0.5
    )
    assert result.exit_code == 2
    assert "error: Training made the features worse: k-NN, k = 20 fell by" in result.output
    assert "lower base_learning_rate (it was 2)" in result.output
    assert "trained:" not in result.output and "Traceback" not in result.output
    report = report_of(out)
    assert report["improved"] is False
    assert report["metrics"]["knn_20"]["difference"]["high"] < -0.05
    # saved as any other run is
    model = AutoModel.from_pretrained(out)
    assert model.config.embedding_size == 256
    assert (out / "README.md").is_file() and (out / "checkpoints" / "step-00000015").is_dir()

    # a resume of it does not pass for a success, also with a report of an older version
    report["figures"] = report.pop("metrics")
    (out / "report.json").write_text(json.dumps(report))
    again = finetune(untrained, out, *options, "--base_learning_rate", 2, "--teacher_momentum", 0.5,
                     "--resume", "true")  # fmt: skip
    assert again.exit_code == 2 and "fell by" in again.output


# --- tiny runs


def command(recipe, checkpoint, data, output, *options):
    tiny = OBJECTIVES["dino"][1:] if recipe == "dino_finetune" else []
    return [
        recipe, *tiny, *LOOP, "--init_from", str(checkpoint), "--data", str(data), "--output",
        str(output), "--batch_size", "6", *map(str, options),
    ]  # fmt: skip


@pytest.fixture
def unlabeled(tmp_path):
    folder = tmp_path / "unlabeled"
    folder.mkdir()
    for index in range(12):
        noise(36, 36, index).save(folder / f"{index}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


STILL = ("--base_learning_rate", 0, "--min_learning_rate", 0)


def test_a_resumed_run_gives_the_report_of_the_unbroken_one(two_classes, tiny_checkpoint, tmp_path):
    options = ("--max_steps", 6, "--save_steps", 3, "--warmup_ratio", 0, "--eval_steps", 2)
    whole = tmp_path / "whole"
    main(command("dino_finetune", tiny_checkpoint, two_classes, whole, *options))
    for name in ("resumed", "before lost"):
        parts = tmp_path / name
        main(command("dino_finetune", tiny_checkpoint, two_classes, parts, *options))
        # as if it had been killed after step 3
        shutil.rmtree(parts / "checkpoints" / "step-00000006")
        for file in ("config.json", "model.safetensors", "report.json"):
            (parts / file).unlink()
        if name == "before lost":  # a run of a version without reports
            (parts / "checkpoints" / "before.npz").unlink()
        again = (*options, "--resume", "true")
        main(command("dino_finetune", tiny_checkpoint, two_classes, parts, *again))
        assert report_of(parts) == report_of(whole)
        assert log_of(parts) == log_of(whole)


def test_other_data_to_evaluate_on_at_a_resume_is_measured_before_and_after(
    two_classes, tiny_checkpoint, image_folder, tmp_path
):
    options = ("--max_steps", 2, "--save_steps", 1, "--save_total_limit", 9, "--eval_steps", 1)
    out = tmp_path / "out"
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, *options))
    assert report_of(out)["metrics"]["linear_probe"]["num_images"] == 4  # a fifth of 24, by class
    assert report_of(out)["best"]["step"] == 1  # the first of equals
    shutil.rmtree(out / "checkpoints" / "step-00000002")
    (out / "config.json").unlink()
    others = ("--eval_train", two_classes, "--eval_test", two_classes, "--resume", "true")
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, *options, *others))
    assert report_of(out)["metrics"]["linear_probe"]["num_images"] == 24
    assert report_of(out)["best"]["step"] == 2  # the one before was of other images


def test_without_labels_the_other_view_judges(unlabeled, tiny_checkpoint, tmp_path, capsys):
    out = tmp_path / "out"
    main(command("dino_finetune", tiny_checkpoint, unlabeled, out, "--max_steps", 1))
    report = report_of(out)
    assert report["metric"] == "view_retrieval"
    assert list(report["metrics"]) == ["view_retrieval", "rankme", "uniformity"]
    # an unreadable image is left out, and not replaced by a neighbor, whose views would be four
    assert report["metrics"]["view_retrieval"]["num_images"] == 12
    printed = capsys.readouterr().out
    assert "view retrieval" in printed and report["verdict"] in printed


def test_labels_of_the_training_images_are_used_where_the_objective_does_not(
    two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "dino"
    main(command("dino_finetune", tiny_checkpoint, two_classes, out, "--max_steps", 1))
    report = report_of(out)
    assert report["metric"] == "knn_20"
    assert "images that were trained on" in report["note"]
    # a classifier has learnt these labels: no figure of theirs, and no verdict
    out = tmp_path / "classify"
    main(command("classify", tiny_checkpoint, two_classes, out, "--max_steps", 1))
    report = report_of(out)
    assert (report["metric"], report["improved"]) == (None, None)
    assert list(report["metrics"]) == ["view_retrieval", "rankme", "uniformity"]


def test_a_new_classifier_is_judged_by_its_encoder_and_classes_go_by_name(
    two_classes, tiny_checkpoint, tmp_path
):
    # The classifier knows "black" too, so "bright" is 1 there and 0 in the test images. They were
    # compared by index, and a perfect classifier had an accuracy of 0.
    three = tmp_path / "three"
    shutil.copytree(two_classes, three)
    (three / "black").mkdir()
    for index in range(12):
        noise(36, 36, index).point(lambda level: level // 16).save(three / "black" / f"{index}.png")
    out = tmp_path / "out"
    length = ("--max_steps", 60, "--eval_steps", 60)
    options = ("--eval_train", three, "--eval_test", two_classes, *length)
    rates = ("--base_learning_rate", 0.1, "--warmup_ratio", 0)
    main(command("classify", tiny_checkpoint, three, out, *options, *rates))
    report = report_of(out)
    # drawn anew, its own accuracy would rise whatever came of the encoder
    assert report["metric"] == "knn_20" and "accuracy" not in report["metrics"]
    logged = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert logged[-1]["accuracy"] > 0.8


def test_a_stream_is_reported_on_by_its_first_images(tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    stream = ("--streaming", "true", "--max_steps", 1, "--eval_limit", 40)
    main(command("dino_finetune", tiny_checkpoint, TEST, out, *stream))
    figures = report_of(out)["metrics"]
    tested = figures["view_retrieval"]["num_images"]
    assert 5 <= tested <= 15 and figures["rankme"]["num_images"] == 40 - tested


def test_a_run_without_weights_to_start_from_has_no_report(two_classes, tmp_path):
    from .tiny_runs import arguments

    out = tmp_path / "out"
    main(arguments("dino", two_classes, out, "--max_steps", 1, "--batch_size", 6))
    assert not (out / "report.json").exists() and not (out / "best").exists()


def test_a_frozen_encoder_has_no_report(two_classes, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    main(command("linear_probe", tiny_checkpoint, two_classes, out, "--max_steps", 1))
    assert not (out / "report.json").exists()


def test_the_best_evaluation_is_kept_beside_the_last(two_classes, tiny_checkpoint, tmp_path):
    out = tmp_path / "out"
    options = (
        *("--eval_steps", 1, "--best_metric", "rankme", "--max_steps", 8, "--warmup_ratio", 0),
        *("--save_steps", 1, "--save_total_limit", 99, "--freeze_encoder_ratio", 0),
        *("--base_learning_rate", 3, "--teacher_momentum", 0),  # it collapses, soon
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


def test_what_did_not_move_is_no_improvement_and_two_processes_say_the_same(
    two_classes, tiny_checkpoint, tmp_path
):
    options = (*STILL, "--max_steps", 1, "--require_improvement", "true")
    with pytest.raises(NoImprovementError, match="did not change"):
        main(command("dino_finetune", tiny_checkpoint, two_classes, tmp_path / "one", *options))
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"
    two = command("dino_finetune", tiny_checkpoint, two_classes, tmp_path / "two", *options)
    process = start([*launcher.split(), "-m"], two)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode != 0 and "\nerror: " in printed and "did not change" in printed
    assert printed.count("neighbors kept") == 1
    assert report_of(tmp_path / "two") == report_of(tmp_path / "one")
    assert (tmp_path / "two" / "config.json").is_file()


def test_measuring_leaves_model_and_random_states_as_they_were(
    two_classes, tiny_checkpoint, tmp_path
):
    line = command("dino_finetune", tiny_checkpoint, two_classes, tmp_path / "out")
    run = build_run(parse_arguments(line, RECIPES), 24)
    model = SelfViTForDINO.from_pretrained(tiny_checkpoint).train()
    model.student.vit.eval()  # as a frozen part is
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


def test_images_that_are_tested_on_what_was_learnt_from_them_are_said_to_be(
    two_classes, tiny_checkpoint, tmp_path
):
    for test, expected in ((two_classes, "too high: --eval-test"), (TEST, "")):
        train = two_classes if test == two_classes else TRAIN
        options = ("--eval_train", train, "--eval_test", test)
        line = command("dino_finetune", tiny_checkpoint, two_classes, tmp_path / "out", *options)
        run = build_run(parse_arguments(line, RECIPES), 24)
        note = open_evaluation_images(run, open_source(run.data)).note
        assert expected in note and bool(note) == bool(expected)


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("dino_finetune", ("--freeze_encoder_ratio", 1), "freeze_encoder_ratio below 1"),
        ("dino_finetune", ("--best_metric", "loss"), "best_metric .'loss'. must be one of"),
        ("dino_finetune", ("--best_metric", "accuracy"), "available: knn_10, .*view_retrieval"),
        ("classify", (), "none for a classifier.*--eval-train"),
    ],
)
def test_what_cannot_be_judged_is_said_before_anything_is_written(
    recipe, options, message, two_classes, tiny_checkpoint, tmp_path
):
    required = (*options, "--max_steps", 1, "--require_improvement", "true")
    if options[:1] == ("--best_metric",):
        # so few images that there are no 20 neighbors
        required = (*required, "--eval_limit", 15)
    with pytest.raises(ValueError, match=message):
        main(command(recipe, tiny_checkpoint, two_classes, tmp_path / "out", *required))
    assert not (tmp_path / "out").exists()


def test_improvement_on_nothing_is_refused(two_classes, tmp_path):
    from .tiny_runs import arguments

    options = ("--max_steps", 1, "--require_improvement", "true")
    with pytest.raises(ValueError, match="give init_from"):
        main(arguments("dino", two_classes, tmp_path / "out", *options))
