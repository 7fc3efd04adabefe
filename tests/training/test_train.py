"""The loop, run for real on tiny models: in this process, killed in another, and in two."""

import io
import json
import math
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForPreTraining, pipeline

from selfvit import SelfViTModel
from selfvit.modeling.checkpoints.loading import load_strictly
from selfvit.modeling.registry import TRAINABLE_CLASSES
from selfvit.training.exceptions import NonFiniteLossError
from selfvit.training.train import main

from ..image_files import empty_jpeg, noise, text_jpeg, truncated_jpeg
from .tiny_runs import (
    ENCODER,
    LOOP,
    MICRO_BATCH_TOLERANCE,
    OBJECTIVES,
    WITHOUT_GRADIENT,
    arguments,
    log_of,
    start,
    weights_of,
)


def assert_equal_tensors(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_leaves_a_checkpoint_that_every_door_opens(objective, two_classes, tmp_path):
    out = tmp_path / "out"
    main(arguments(objective, two_classes, out, "--max_steps", 2, "--batch_size", 6))
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
def test_two_runs_of_one_seed_are_bit_identical_and_another_seed_differs(
    objective, two_classes, tmp_path
):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--max_steps", 4, "--batch_size", 6, "--seed", seed)
        main(arguments(objective, two_classes, tmp_path / name, *options))
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")
    assert_equal_tensors(weights_of(tmp_path / "a"), weights_of(tmp_path / "b"))
    assert log_of(tmp_path / "a")[4]["loss"] != log_of(tmp_path / "c")[4]["loss"]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_killed_in_mid_epoch_and_resumed_equals_the_unbroken_one(
    objective, two_classes, tmp_path
):
    # 24 images in batches of 4 are 6 steps an epoch: the checkpoints at 20, 40, ... lie within one
    options = ("--max_steps", 130, "--batch_size", 4, "--save_steps", 20)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    main(arguments(objective, two_classes, unbroken, *options))
    command = arguments(objective, two_classes, broken, *options)
    process = start(["-m"], command)
    log = broken / "log.jsonl"
    deadline = time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 45:
        assert process.poll() is None and time.monotonic() < deadline, process.stdout.read()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    steps_before = max(log_of_killed(log))
    assert not (broken / "config.json").exists() and steps_before < 130
    assert (broken / "checkpoints" / "step-00000040").is_dir()

    main([*command, "--resume", "true"])
    assert log_of(broken) == log_of(unbroken)
    assert_equal_tensors(weights_of(broken), weights_of(unbroken))
    assert_equal_tensors(
        weights_of(broken / "checkpoints" / "step-00000130"),
        weights_of(unbroken / "checkpoints" / "step-00000130"),
    )


def log_of_killed(log: Path):
    for line in log.read_text().splitlines():
        try:
            yield json.loads(line)["step"]
        except json.JSONDecodeError:  # the line that was being written
            continue


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_two_processes_agree_with_one_on_the_same_global_batches(objective, two_classes, tmp_path):
    # drop path draws differently in each process, so it is off here
    options = ("--max_steps", 3, "--batch_size", 8, "--drop_path_rate", 0)
    main(arguments(objective, two_classes, tmp_path / "one", *options))
    command = arguments(objective, two_classes, tmp_path / "two", *options)
    launcher = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --main_process_port 0"
    process = start([*launcher.split(), "-m"], command)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert printed.count("trained: ") == 1
    newest = tmp_path / "two" / "checkpoints" / "step-00000003" / "trainer_state.json"
    assert json.loads(newest.read_text())["num_processes"] == 2

    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    for step in (1, 2, 3):
        assert two[step] == pytest.approx(one[step], rel=1e-4)
        assert two[step]["loss"] == pytest.approx(one[step]["loss"], rel=1e-5)
    assert_trained_alike(tmp_path / "one", tmp_path / "two", objective, two_classes, tmp_path)


def assert_trained_alike(first, second, objective, data, tmp_path):
    """Weights moved the same way: their difference is small beside the way they came.

    AdamW divides by the gradient's size, so a gradient that is zero but for rounding moves its
    weight as far as any other: those are left out.
    """
    start_folder = tmp_path / "start"
    options = ("--max_steps", 1, "--batch_size", 8, "--drop_path_rate", 0)
    still = ("--base_learning_rate", 0, "--min_learning_rate", 0)
    main(arguments(objective, data, start_folder, *options, *still))
    initial, ours, theirs = (weights_of(folder) for folder in (start_folder, first, second))
    for name in ours:
        if name.endswith(WITHOUT_GRADIENT[objective]):
            continue
        moved = (ours[name] - initial[name]).norm().item()
        apart = (ours[name] - theirs[name]).norm().item()
        assert apart <= 1e-2 * moved + 1e-6, (name, apart, moved)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_accumulating_four_micro_batches_equals_one_batch(objective, two_classes, tmp_path):
    options = ("--max_steps", 3, "--batch_size", 8, "--drop_path_rate", 0)
    main(arguments(objective, two_classes, tmp_path / "whole", *options))
    accumulation = ("--gradient_accumulation_steps", 4)
    main(arguments(objective, two_classes, tmp_path / "parts", *options, *accumulation))
    whole, parts = log_of(tmp_path / "whole"), log_of(tmp_path / "parts")
    tolerance = MICRO_BATCH_TOLERANCE.get(objective, 1e-5)
    for step in (1, 2, 3):
        assert parts[step]["loss"] == pytest.approx(whole[step]["loss"], rel=tolerance)
    if objective in MICRO_BATCH_TOLERANCE:
        return
    for step in (1, 2, 3):
        assert parts[step]["gradient_norm"] == pytest.approx(whole[step]["gradient_norm"], rel=1e-3)
    assert_trained_alike(tmp_path / "whole", tmp_path / "parts", objective, two_classes, tmp_path)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_bf16_trains_close_to_float32_and_saves_float32(objective, two_classes, tmp_path):
    options = ("--max_steps", 3, "--batch_size", 8, "--drop_path_rate", 0)
    main(arguments(objective, two_classes, tmp_path / "float32", *options))
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    bf16 = ("--mixed_precision", "bf16")
    main(arguments(objective, two_classes, tmp_path / "bf16", *options, *bf16))
    for step in (1, 2, 3):
        losses = [log_of(tmp_path / name)[step]["loss"] for name in ("float32", "bf16")]
        assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {tensor.dtype for tensor in weights_of(tmp_path / "bf16").values()} == {torch.float32}


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_activation_checkpointing_changes_no_loss(objective, two_classes, tmp_path):
    options = ("--max_steps", 2, "--batch_size", 6)
    main(arguments(objective, two_classes, tmp_path / "plain", *options))
    extra = ("--activation_checkpointing", "true")
    main(arguments(objective, two_classes, tmp_path / "checkpointed", *options, *extra))
    plain, checkpointed = log_of(tmp_path / "plain"), log_of(tmp_path / "checkpointed")
    assert checkpointed[2]["loss"] == pytest.approx(plain[2]["loss"], rel=1e-5)


def test_only_the_student_the_teacher_and_the_center_move(two_classes, tmp_path):
    out = tmp_path / "out"
    options = ("--max_steps", 4, "--batch_size", 6, "--save_steps", 1, "--save_total_limit", 9)
    frozen = ("--freeze_last_layer_ratio", 0.5, "--base_learning_rate", 0.1, "--warmup_ratio", 0)
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
            assert moves[0] is False  # an average of what did not move
        else:
            assert all(moves), name
        assert torch.isfinite(first).all()


def test_a_new_head_is_warmed_up_with_the_encoder_frozen(two_classes, tiny_checkpoint, tmp_path):
    # tiny_checkpoint has 3 blocks; the command takes its geometry from there
    out = tmp_path / "out"
    command = [
        *OBJECTIVES["dino"], *LOOP, "--init_from", str(tiny_checkpoint), "--data", str(two_classes),
        "--output", str(out), "--max_steps", "4", "--batch_size", "6", "--save_steps", "1",
        "--save_total_limit", "9", "--freeze_encoder_ratio", "0.5", "--warmup_ratio", "0",
        "--freeze_last_layer_ratio", "0",
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


def test_a_whole_checkpoint_starts_with_its_student_head_and_center(
    two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "out"
    still = ("--base_learning_rate", 0, "--min_learning_rate", 0, "--teacher_momentum", 1)
    command = [
        "dino_demo", *LOOP, "--init_from", str(tiny_checkpoint), "--init_scope", "all",
        "--num_prototypes", "16", "--head_hidden_size", "24", "--head_bottleneck_size", "8",
        "--local_view_size", "16", "--data", str(two_classes), "--output", str(out),
        "--max_steps", "1", "--batch_size", "6", *map(str, still), "--center_momentum", "1",
    ]  # fmt: skip
    main(command)
    assert_equal_tensors(weights_of(out), weights_of(tiny_checkpoint))


def test_a_checkpoint_with_a_tensor_missing_is_never_trained_on(
    two_classes, tiny_checkpoint, tmp_path
):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    tensors = load_file(broken / "model.safetensors")
    del tensors["vit.layers.1.mlp.fc1.weight"]
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    command = [
        *OBJECTIVES["dino"], *LOOP, "--init_from", str(broken), "--data", str(two_classes),
        "--output", str(tmp_path / "out"), "--max_steps", "1", "--batch_size", "6",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.fc1\.weight"):
        main(command)


def test_an_infinite_loss_stops_the_run_and_keeps_the_last_good_checkpoint(two_classes, tmp_path):
    out = tmp_path / "out"
    options = ("--max_steps", 50, "--batch_size", 6, "--save_steps", 1, "--warmup_ratio", 0)
    message = r"recipe dino_demo became .* at step \d+;.*step-0"
    with pytest.raises(NonFiniteLossError, match=message):
        main(arguments("dino", two_classes, out, *options, "--base_learning_rate", 1e30))
    steps = sorted(path.name for path in (out / "checkpoints").iterdir())
    failed = max(log_of(out)) + 1
    assert steps[-1] == f"step-{failed - 1:08d}"
    assert not (out / "config.json").exists()


def test_unreadable_images_do_not_end_a_run_and_are_listed(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for index in range(6):
        noise(30, 30, index).save(data / f"{index}.png")
    empty_jpeg(data / "empty.jpg")
    text_jpeg(data / "text.jpg")
    truncated_jpeg(data / "truncated.jpg")
    command = arguments("dino", data, tmp_path / "out", "--max_steps", 4, "--batch_size", 4)
    command += ["--save_steps", "1", "--save_total_limit", "9"]
    main(command)
    listed = (tmp_path / "out" / "skipped.csv").read_text().splitlines()
    assert listed[0] == "path,reason"
    assert {line.split(",")[0] for line in listed[1:]} == {"empty.jpg", "text.jpg", "truncated.jpg"}
    # after a resume they stood there twice
    for step in (2, 3, 4):
        shutil.rmtree(tmp_path / "out" / "checkpoints" / f"step-{step:08d}")
    main([*command, "--resume", "true"])
    assert (tmp_path / "out" / "skipped.csv").read_text().splitlines() == listed


def test_a_stream_trains_and_resumes_exactly(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for index in range(20):
        content = io.BytesIO()
        noise(36, 36, index).save(content, "PNG")
        rows.append({"image": {"bytes": content.getvalue(), "path": None}})
    data = tmp_path / "images.parquet"
    pq.write_table(pa.Table.from_pylist(rows), data)
    options = ("--streaming", "true", "--batch_size", 4, "--max_steps", 8, "--save_steps", 3)
    main(arguments("dino", data, tmp_path / "whole", *options))
    main(arguments("dino", data, tmp_path / "parts", *options))
    import shutil

    for late in ("step-00000006", "step-00000008"):  # as if it had been killed at step 5
        path = tmp_path / "parts" / "checkpoints" / late
        if path.exists():
            shutil.rmtree(path)
    main(arguments("dino", data, tmp_path / "parts", *options, "--resume", "true"))
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert_equal_tensors(weights_of(tmp_path / "parts"), weights_of(tmp_path / "whole"))


def test_evaluation_reports_figures_and_does_not_change_the_training(two_classes, tmp_path):
    options = ("--max_steps", 4, "--batch_size", 6)
    main(arguments("dino", two_classes, tmp_path / "plain", *options))
    evaluated = ("--eval_steps", 2, "--eval_train", two_classes, "--eval_test", two_classes)
    main(arguments("dino", two_classes, tmp_path / "evaluated", *options, *evaluated))
    assert_equal_tensors(weights_of(tmp_path / "plain"), weights_of(tmp_path / "evaluated"))
    lines = (tmp_path / "evaluated" / "log.jsonl").read_text().splitlines()
    reported = [json.loads(line) for line in lines if "knn_10" in line]
    assert [line["step"] for line in reported] == [2, 4]
    assert all(0 <= line["knn_10"] <= 1 and math.isfinite(line["rankme"]) for line in reported)
    assert "k-NN, k = 10" in (tmp_path / "evaluated" / "README.md").read_text()


def test_evaluation_without_labels_gives_the_label_free_figures(tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    for index in range(8):
        noise(30, 30, index).save(data / f"{index}.png")
    main(arguments("dino", data, out, "--max_steps", 2, "--batch_size", 4, "--eval_steps", 1))
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "feature_std" in line] == [1, 2]


CLASSIFY = ["classify", *LOOP, "--max_steps", "40", "--batch_size", "12", "--warmup_ratio", "0"]


@pytest.mark.parametrize("freeze_encoder_ratio", ["0", "1"])
def test_a_classifier_learns_its_folders_and_a_pipeline_serves_it(
    freeze_encoder_ratio, two_classes, tiny_checkpoint, tmp_path
):
    out = tmp_path / "out"
    main(
        [
            *CLASSIFY, "--init_from", str(tiny_checkpoint), "--data", str(two_classes), "--output",
            str(out), "--freeze_encoder_ratio", freeze_encoder_ratio, "--base_learning_rate", "0.1",
            "--eval_steps", "40", "--eval_train", str(two_classes), "--eval_test", str(two_classes),
        ]
    )  # fmt: skip
    before = load_strictly(SelfViTModel, tiny_checkpoint).state_dict()
    after = load_strictly(SelfViTModel, out).state_dict()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor) == (freeze_encoder_ratio == "1"), name
    serve = pipeline("image-classification", model=str(out))
    assert serve.model.config.id2label == {0: "bright", 1: "dark"}
    paths = sorted(two_classes.rglob("*.png"))
    right = [serve(str(path))[0]["label"] == path.parent.name for path in paths]
    assert sum(right) >= 20
    accuracy = json.loads((out / "log.jsonl").read_text().splitlines()[-1])["accuracy"]
    assert accuracy == pytest.approx(sum(right) / len(right), abs=0.05)


def test_a_classifier_without_labels_is_an_error_before_anything_is_written(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for index in range(4):
        noise(30, 30, index).save(data / f"{index}.png")
    command = [*CLASSIFY, *ENCODER, "--data", str(data), "--output", str(tmp_path / "out")]
    with pytest.raises(ValueError, match="has no labels, and classify needs them"):
        main([*command, "--batch_size", "2"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("empty", (), "no images in"),
        ("missing/folder/of/images", (), "missing/folder/of/images"),
        ("images", ("--batch_size", 25), r"batch_size \(25\) is larger than .* \(24 images"),
        ("images", ("--batch_size", 6, "--image_size", 30), "image_size .30. must be a multiple"),
        ("images", ("--batch_size", 6, "--gradient_accumulation_steps", 4), "use 4"),
    ],
)
def test_bad_input_is_a_clear_error_and_nothing_is_written(
    data, options, message, two_classes, tmp_path
):
    (tmp_path / "empty").mkdir()
    folder = two_classes if data == "images" else tmp_path / data
    with pytest.raises(Exception, match=message):
        main(arguments("dino", folder, tmp_path / "out", "--max_steps", 1, *options))
    assert not (tmp_path / "out").exists()


def test_what_a_run_starts_from_is_never_overwritten_by_it(two_classes, tmp_path):
    # it was loaded and then deleted: a run that was stopped had nothing to go on from
    out = tmp_path / "out"
    command = arguments("mae", two_classes, out, "--max_steps", 1, "--batch_size", 6)
    main(command)
    for folder in (out, out / "checkpoints" / "step-00000001"):
        with pytest.raises(ValueError, match=f"would delete {folder}, .*choose another --output"):
            main([*command, "--init_from", str(folder), "--overwrite", "true"])
        assert (folder / "model.safetensors").exists()


def test_every_trainable_class_has_a_recipe():
    from selfvit.training.recipes import RECIPES

    named = {recipe(None, None).architecture for recipe in RECIPES.values()}
    assert named == TRAINABLE_CLASSES.keys()
