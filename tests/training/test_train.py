"""Real training runs of tiny models, in one process and in two."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForPreTraining, pipeline

from selfvit import SelfViTModel, train
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.modeling.registry import TRAINABLE_CLASSES
from selfvit.training.config.run_config import RunConfig
from selfvit.training.exceptions import NonFiniteError
from selfvit.training.train import main

from ..image_files import empty_jpeg, noise, text_jpeg, truncated_jpeg
from .processes import run_two
from .tiny_runs import (
    ENCODER,
    LOOP,
    MICRO_BATCH_TOLERANCE,
    OBJECTIVES,
    WITHOUT_GRADIENT,
    arguments,
    assert_equal_tensors,
    log_of,
    weights_of,
)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_result_of_a_run_loads_with_auto_classes_and_a_pipeline(
    objective, two_classes, tmp_path
):
    out = tmp_path / "out"
    main(arguments(objective, two_classes, out, "--max-steps", 2, "--batch-size", 6))
    assert {path.name for path in out.iterdir()} >= {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md",
        "training.yaml",
    }  # fmt: skip
    model = AutoModelForPreTraining.from_pretrained(out)
    assert type(model).__name__ == model.config.architectures[0]
    image = next(two_classes.rglob("*.png"))
    vector = pipeline("image-feature-extraction", model=str(out))(str(image), pool=True)
    assert len(vector[0]) == AutoModel.from_pretrained(out).config.embedding_size


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_train_like_one_process(objective, two_classes, tmp_path):
    # drop path draws different numbers in each process, so it is disabled
    options = ("--max-steps", 3, "--batch-size", 8, "--drop-path-rate", 0)
    main(arguments(objective, two_classes, tmp_path / "one", *options))
    command = arguments(objective, two_classes, tmp_path / "two", *options)
    codes, printed = run_two(command, tmp_path)
    assert codes == [0, 0], printed
    assert printed.count("trained: ") == 1
    newest = tmp_path / "two" / "checkpoints" / "step-00000003" / "trainer_state.json"
    assert json.loads(newest.read_text())["num_processes"] == 2

    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    for step in (1, 2, 3):
        assert two[step] == pytest.approx(one[step], rel=1e-4)
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-5)
    assert_trained_alike(tmp_path / "one", tmp_path / "two", objective, two_classes, tmp_path)


def assert_trained_alike(first, second, objective, data, tmp_path):
    """Check that the difference between two results is small compared with the updates.

    AdamW divides by the size of the gradient, so a gradient that is zero up to rounding changes its
    parameter as much as any other. Such parameters are excluded.
    """
    start_folder = tmp_path / "start"
    options = ("--max-steps", 1, "--batch-size", 8, "--drop-path-rate", 0)
    without_learning = ("--base-learning-rate", 0, "--min-learning-rate", 0)
    main(arguments(objective, data, start_folder, *options, *without_learning))
    initial, ours, theirs = (weights_of(folder) for folder in (start_folder, first, second))
    for name in ours:
        if name.endswith(WITHOUT_GRADIENT[objective]):
            continue
        moved = (ours[name] - initial[name]).norm().item()
        difference = (ours[name] - theirs[name]).norm().item()
        assert difference <= 1e-2 * moved + 1e-6, (name, difference, moved)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_accumulating_four_micro_batches_equals_training_on_the_full_batch(
    objective, two_classes, tmp_path
):
    options = ("--max-steps", 3, "--batch-size", 8, "--drop-path-rate", 0)
    one, four = tmp_path / "one", tmp_path / "four"
    main(arguments(objective, two_classes, one, *options))
    accumulation = ("--gradient-accumulation-steps", 4)
    main(arguments(objective, two_classes, four, *options, *accumulation))
    expected, accumulated = log_of(one), log_of(four)
    tolerance = MICRO_BATCH_TOLERANCE.get(objective, 1e-5)
    for step in (1, 2, 3):
        assert accumulated[step]["loss"] == pytest.approx(expected[step]["loss"], rel=tolerance)
    if objective in MICRO_BATCH_TOLERANCE:
        return
    for step in (1, 2, 3):
        assert accumulated[step]["gradient_norm"] == pytest.approx(
            expected[step]["gradient_norm"], rel=1e-3
        )
    assert_trained_alike(one, four, objective, two_classes, tmp_path)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bf16_trains_close_to_float32_and_saves_float32(objective, two_classes, tmp_path):
    options = ("--max-steps", 3, "--batch-size", 8, "--drop-path-rate", 0)
    main(arguments(objective, two_classes, tmp_path / "float32", *options))
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    bf16 = ("--mixed-precision", "bf16")
    main(arguments(objective, two_classes, tmp_path / "bf16", *options, *bf16))
    for step in (1, 2, 3):
        losses = [log_of(tmp_path / name)[step]["loss"] for name in ("float32", "bf16")]
        assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {tensor.dtype for tensor in weights_of(tmp_path / "bf16").values()} == {torch.float32}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_activation_checkpointing_does_not_change_the_loss(objective, two_classes, tmp_path):
    options = ("--max-steps", 2, "--batch-size", 6)
    main(arguments(objective, two_classes, tmp_path / "plain", *options))
    extra = ("--activation-checkpointing",)
    main(arguments(objective, two_classes, tmp_path / "checkpointed", *options, *extra))
    plain, checkpointed = log_of(tmp_path / "plain"), log_of(tmp_path / "checkpointed")
    assert checkpointed[2]["loss"] == pytest.approx(plain[2]["loss"], rel=1e-5)


def test_training_changes_student_teacher_and_center_but_not_frozen_parameters(
    two_classes, tmp_path
):
    out = tmp_path / "out"
    options = ("--max-steps", 4, "--batch-size", 6, "--save-steps", 1, "--save-total-limit", 9)
    frozen = ("--freeze-last-layer-ratio", 0.5, "--base-learning-rate", 0.1, "--warmup-ratio", 0)
    main(arguments("dino", two_classes, out, *options, *frozen))
    by_step = [weights_of(out / "checkpoints" / f"step-0000000{step}") for step in (1, 2, 3, 4)]
    for name, first in by_step[0].items():
        moves = [
            not torch.equal(before[name], after[name])
            for before, after in zip(by_step[:-1], by_step[1:], strict=True)
        ]
        if name.endswith("magnitude"):
            assert not any(moves), name
        elif name == "student.head.last_layer.direction":
            assert moves == [False, True, True]  # steps 1 and 2 of 4 are frozen
        elif name == "head.last_layer.direction":
            assert moves[0] is False  # moving average of a constant
        else:
            assert all(moves), name
        assert torch.isfinite(first).all()


def test_a_new_head_trains_while_the_encoder_is_frozen(two_classes, tiny_checkpoint, tmp_path):
    # the run uses the geometry of tiny_checkpoint, which has 3 blocks
    out = tmp_path / "out"
    command = [
        *OBJECTIVES["dino"], *LOOP, "--init-from", str(tiny_checkpoint), "--data", str(two_classes),
        "--output", str(out), "--max-steps", "4", "--batch-size", "6", "--save-steps", "1",
        "--save-total-limit", "9", "--freeze-encoder-ratio", "0.5", "--warmup-ratio", "0",
        "--freeze-last-layer-ratio", "0",
    ]  # fmt: skip
    main(command)
    start_weights = load_strictly(SelfViTModel, tiny_checkpoint).state_dict()
    by_step = [weights_of(out / "checkpoints" / f"step-0000000{step}") for step in (1, 2, 3)]
    for name, tensor in start_weights.items():
        for prefix in ("vit.", "student.vit."):
            assert torch.equal(by_step[1][prefix + name], tensor), prefix + name
        assert not torch.equal(by_step[2]["student.vit." + name], tensor), name
    for name in by_step[0]:
        if name.startswith("student.head.layers"):
            assert not torch.equal(by_step[0][name], by_step[1][name]), name


def test_init_scope_all_loads_student_head_and_center_of_the_checkpoint(
    two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "out"
    without_learning = ("--base-learning-rate", 0, "--min-learning-rate", 0)
    constant_teacher = ("--teacher-momentum", 1, "--center-momentum", 1)
    command = [
        "dino_demo", *LOOP, "--init-from", str(tiny_checkpoint), "--init-scope", "all",
        "--num-prototypes", "16", "--head-hidden-size", "24", "--head-bottleneck-size", "8",
        "--local-view-size", "16", "--data", str(two_classes), "--output", str(out),
        "--max-steps", "1", "--batch-size", "6", *map(str, (*without_learning, *constant_teacher)),
    ]  # fmt: skip
    main(command)
    assert_equal_tensors(weights_of(out), weights_of(tiny_checkpoint))


def test_init_scope_all_starts_with_a_new_queue_and_new_slices_of_any_size(two_classes, tmp_path):
    short = ("--max-steps", 1, "--batch-size", 8)
    for objective, size in [("distill", "--queue-size"), ("lejepa", "--num-slices")]:
        first, second = tmp_path / objective, tmp_path / f"{objective}_2"
        main(arguments(objective, two_classes, first, *short))
        start = ("--init-from", first, "--init-scope", "all", size, 24)
        main(arguments(objective, two_classes, second, *short, *start))
    queue = weights_of(tmp_path / "distill_2")["loss.queue"]
    assert queue.shape[0] == 24 and queue.any(dim=1).sum() == 8  # those of its own batch
    assert weights_of(tmp_path / "lejepa_2")["loss.slices"].shape[1] == 24


def test_an_initial_checkpoint_that_lacks_a_tensor_is_an_error(
    two_classes, tiny_checkpoint, tmp_path
):

    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["vit.layers.1.mlp.fc1.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    command = [
        *OBJECTIVES["dino"], *LOOP, "--init-from", str(broken), "--data", str(two_classes),
        "--output", str(tmp_path / "out"), "--max-steps", "1", "--batch-size", "6",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.fc1\.weight"):
        main(command)


@pytest.mark.parametrize(
    ("objective", "learning_rate", "name"),
    [("dino", 1e30, "loss"), ("mae", 1e6, "gradient norm")],
)
def test_a_non_finite_value_stops_the_run_before_it_reaches_the_weights(
    objective, learning_rate, name, two_classes, tmp_path
):
    out = tmp_path / "out"
    options = ("--max-steps", 50, "--batch-size", 6, "--save-steps", 1, "--warmup-ratio", 0)
    message = rf"the {name} of recipe {objective}_demo became .* at step \d+;.*step-0"
    with pytest.raises(NonFiniteError, match=message):
        main(
            arguments(objective, two_classes, out, *options, "--base-learning-rate", learning_rate)
        )
    steps = sorted(path.name for path in (out / "checkpoints").iterdir())
    failed = max(log_of(out)) + 1
    assert steps[-1] == f"step-{failed - 1:08d}"
    assert all(
        torch.isfinite(tensor).all()
        for tensor in weights_of(out / "checkpoints" / steps[-1]).values()
    )
    assert not (out / "config.json").exists()


def test_unreadable_images_are_skipped_and_listed_once(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for index in range(6):
        noise(30, 30, index).save(data / f"{index}.png")
    empty_jpeg(data / "empty.jpg")
    text_jpeg(data / "text.jpg")
    truncated_jpeg(data / "truncated.jpg")
    command = arguments("dino", data, tmp_path / "out", "--max-steps", 4, "--batch-size", 4)
    command += ["--save-steps", "1", "--save-total-limit", "9"]
    main(command)
    listed = (tmp_path / "out" / "skipped.csv").read_text().splitlines()
    assert listed[0] == "path,reason"
    assert {line.split(",")[0] for line in listed[1:]} == {"empty.jpg", "text.jpg", "truncated.jpg"}
    # after a resume, they used to be listed twice
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "out" / "checkpoints" / f"step-{step:08d}")
    main([*command, "--resume"])
    assert (tmp_path / "out" / "skipped.csv").read_text().splitlines() == listed


def test_evaluation_logs_metrics_and_does_not_change_the_training(two_classes, tmp_path):
    options = ("--max-steps", 4, "--batch-size", 6)
    main(arguments("dino", two_classes, tmp_path / "plain", *options))
    evaluated = ("--eval-steps", 2, "--eval-train", two_classes, "--eval-test", two_classes)
    main(arguments("dino", two_classes, tmp_path / "evaluated", *options, *evaluated))
    assert_equal_tensors(weights_of(tmp_path / "plain"), weights_of(tmp_path / "evaluated"))
    lines = (tmp_path / "evaluated" / "log.jsonl").read_text().splitlines()
    reported = [json.loads(line) for line in lines if "knn_10" in line]
    assert [line["step"] for line in reported] == [2, 4]
    assert all(0 <= line["knn_10"] <= 1 and math.isfinite(line["rankme"]) for line in reported)
    assert "k-NN, k = 10" in (tmp_path / "evaluated" / "README.md").read_text()


def test_evaluation_without_labels_logs_the_label_free_metrics(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for index in range(8):
        noise(30, 30, index).save(data / f"{index}.png")
    main(arguments("dino", data, out, "--max-steps", 2, "--batch-size", 4, "--eval-steps", 1))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "feature_std" in line] == [1, 2]


def test_a_classifier_without_labels_is_an_error_before_anything_is_written(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for index in range(4):
        noise(30, 30, index).save(data / f"{index}.png")
    command = ["classify", *LOOP, *ENCODER, "--max-steps", "40", "--batch-size", "2"]
    with pytest.raises(ValueError, match="classify needs labels, but there are none for 4 image"):
        main([*command, "--data", str(data), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("empty", (), "no images in"),
        ("missing/folder/of/images", (), "missing/folder/of/images"),
        ("images", ("--batch-size", 25), r"batch_size \(25\) is larger than .* \(24 images"),
        ("images", ("--batch-size", 6, "--image-size", 30), "image_size .30. must be a multiple"),
        ("images", ("--batch-size", 6, "--gradient-accumulation-steps", 4), "use 4"),
    ],
)
def test_invalid_input_is_an_error_before_anything_is_written(
    data, options, message, two_classes, tmp_path
):
    (tmp_path / "empty").mkdir()
    folder = two_classes if data == "images" else tmp_path / data
    with pytest.raises(Exception, match=message):
        main(arguments("dino", folder, tmp_path / "out", "--max-steps", 1, *options))
    assert not (tmp_path / "out").exists()


def test_overwrite_does_not_delete_the_checkpoint_that_the_run_starts_from(two_classes, tmp_path):
    # it used to be loaded and then deleted, so a run that was stopped could not be started again
    out = tmp_path / "out"
    command = arguments("mae", two_classes, out, "--max-steps", 1, "--batch-size", 6)
    main(command)
    for folder in (out, out / "checkpoints" / "step-00000001"):
        with pytest.raises(ValueError, match=f"would delete {folder}, .*choose another --output"):
            main([*command, "--init-from", str(folder), "--overwrite"])
        assert (folder / "model.safetensors").exists()


def test_values_of_an_objective_that_contradict_each_other_are_warned_of(
    two_classes, tmp_path, capsys
):
    balanced = ("--sinkhorn-iterations", 3, "--batch-size", 8, "--dry-run")
    warning = "warning: sinkhorn_iterations (3) makes the targets uniform"
    for prior in ("power_law", "uniform"):
        main(arguments("pmsn", two_classes, tmp_path / "out", *balanced, "--prior", prior))
        assert (warning in capsys.readouterr().out) == (prior == "power_law")


def test_every_trainable_class_has_a_recipe():
    from selfvit.training.recipes import RECIPES

    named = {recipe(None, None).architecture for recipe in RECIPES.values()}
    assert named == TRAINABLE_CLASSES.keys()


def test_every_path_may_be_a_path_object_in_python(two_classes, tiny_checkpoint, tmp_path):
    # only data and output were converted: training.yaml cannot hold another Path, so the run failed
    out = tmp_path / "out"
    options = dict(max_steps=1, batch_size=8, num_workers=0, tracker="none", energy_meter="none")
    start = Path(tiny_checkpoint)
    train("mae_finetune", data=two_classes, output=out, init_from=start, cpu=True, **options)
    run = RunConfig.from_yaml((out / "training.yaml").read_text())
    assert (run.data.data, run.start.init_from) == (str(two_classes), str(tiny_checkpoint))
