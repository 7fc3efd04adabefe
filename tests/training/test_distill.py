"""Runs of distillation: what the teacher determines, resuming, and starting from the teacher."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, ViTMAEConfig, ViTMAEModel

from selfvit import SelfViTModel
from selfvit.embedding.preprocessing import build_processor
from selfvit.modeling.checkpoints.weight_files import weights_digest
from selfvit.sharing.published_files import strip_local_paths, strip_teacher_path
from selfvit.training.depth import spaced_blocks
from selfvit.training.recipes import RECIPES
from selfvit.training.train import main

from ..objectives import TINY_TEACHER, tiny_config
from .tiny_runs import ENCODER, LOOP, arguments, assert_equal_tensors, log_of, weights_of

SHORT = ("--max-steps", 4, "--batch-size", 8, "--save-steps", 2)


@pytest.fixture
def teacher(tmp_path):
    """Return a copy of the teacher that the test may change."""
    return shutil.copytree(TINY_TEACHER, tmp_path / "teacher")


def command(teacher, data, output, *options):
    """Return the arguments of a run with mixup."""
    words = arguments("distill", data, output, *SHORT, "--mixup", *options)
    return [str(teacher) if word == TINY_TEACHER else word for word in words]


def distill_of(output):
    return json.loads((output / "config.json").read_text())["distill_config"]


def statistics_of(output):
    processor = AutoImageProcessor.from_pretrained(output)
    return [tuple(processor.image_mean), tuple(processor.image_std)]


def test_the_teacher_determines_preprocessing_width_revision_and_license(
    teacher, two_classes, tmp_path, capsys
):
    out = tmp_path / "out"
    main(command(teacher, two_classes, out))
    digest = weights_digest(teacher)
    printed = capsys.readouterr().out
    assert f"teacher: {teacher} (dinov2_with_registers, " in printed
    assert f"width 24, 2 x 2 patches), revision {digest[:12]}, license apache-2.0" in printed
    assert "--image-mean 0.4 0.5 0.6 --image-std 0.3 0.2 0.1" in printed
    stored = distill_of(out)
    assert stored["teacher"] == str(teacher)
    assert stored["teacher_revision"] == digest
    assert (stored["teacher_license"], stored["teacher_hidden_size"]) == ("apache-2.0", 24)
    assert statistics_of(out) == [(0.4, 0.5, 0.6), (0.3, 0.2, 0.1)]
    card = (out / "README.md").read_text()
    assert f"| Teacher | teacher, revision {digest[:12]}, license apache-2.0 |" in card
    assert "license: apache-2.0" in card and str(teacher) not in card
    assert not any("teacher" in name for name in weights_of(out))


def test_a_run_resumes_exactly_also_with_a_moved_teacher(teacher, two_classes, tmp_path):
    uninterrupted, resumed = tmp_path / "uninterrupted", tmp_path / "resumed"
    for output in (uninterrupted, resumed):
        main(command(teacher, two_classes, output))
    shutil.rmtree(resumed / "checkpoints" / "step-00000004")
    moved = shutil.move(teacher, tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=f"the teacher '{teacher}' cannot be opened"):
        main([str(resumed / "training.yaml"), "--output", str(resumed), "--resume"])
    main([*command(moved, two_classes, resumed), "--resume"])
    assert log_of(resumed) == log_of(uninterrupted)
    assert_equal_tensors(weights_of(resumed), weights_of(uninterrupted))
    queue = weights_of(resumed)["loss.queue"]
    assert queue.any(dim=1).all()  # 16 vectors; 32 images were seen
    assert distill_of(resumed)["teacher"] == str(moved)


def test_a_resumed_run_refuses_a_teacher_with_other_weights(teacher, two_classes, tmp_path):
    out = tmp_path / "out"
    main(command(teacher, two_classes, out))
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    file = teacher / "model.safetensors"
    weights = {name: value * 2 for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="other weights than the student was trained with"):
        main([*command(teacher, two_classes, out), "--resume"])


def tiny_start(folder, image_size=28):
    """Write an encoder of four blocks, with its own mean and std."""
    torch.manual_seed(0)
    config = tiny_config(num_hidden_layers=4, image_size=image_size, patch_size=7)
    SelfViTModel(config).save_pretrained(folder)
    build_processor(config, mean=[0.2] * 3, std=[0.6] * 3).save_pretrained(folder)
    return folder


def test_without_teacher_the_student_starts_from_half_of_the_blocks_of_its_teacher(
    two_classes, tmp_path, capsys
):
    start, out = tiny_start(tmp_path / "start"), tmp_path / "out"
    no_learning = ("--base-learning-rate", "0", "--min-learning-rate", "0", "--max-steps", "1")
    command = ["distill_finetune", *LOOP, "--init-from", str(start), "--data", str(two_classes)]
    main([*command, "--output", str(out), "--batch-size", "6", *no_learning])
    assert "student: 2 of the teacher's 4 blocks (0, 3, counted" in capsys.readouterr().out
    teacher = AutoModel.from_pretrained(start).state_dict()
    student = AutoModel.from_pretrained(out)
    assert student.config.num_hidden_layers == 2
    assert student.config.distill_config.teacher == str(start)
    for name, value in student.state_dict().items():
        source = name.replace("layers.1.", "layers.3.")
        assert torch.equal(value, teacher[source]), name
    assert statistics_of(out) == [(0.2, 0.2, 0.2), (0.6, 0.6, 0.6)]
    with pytest.raises(ValueError, match=r"lora_rank \(4\) adapts .* all its 4 blocks"):
        main([*command, "--output", str(tmp_path / "b"), "--batch-size", "6", "--lora-rank", "4"])


def test_a_student_with_another_teacher_keeps_its_blocks_and_takes_the_teachers_statistics(
    two_classes, tmp_path, capsys
):
    start, out = tiny_start(tmp_path / "start", image_size=112), tmp_path / "out"
    main([
        "distill_finetune", *LOOP, "--init-from", str(start), "--data", str(two_classes),
        *("--teacher", TINY_TEACHER, "--max-steps", "1", "--batch-size", "6"),
        *("--output", str(out)),
    ])  # fmt: skip
    assert "they replace --image-mean 0.2 0.2 0.2" in capsys.readouterr().out
    assert AutoModel.from_pretrained(out).config.num_hidden_layers == 4
    assert statistics_of(out) == [(0.4, 0.5, 0.6), (0.3, 0.2, 0.1)]


def test_errors_of_the_teacher_come_before_anything_is_written(two_classes, tmp_path):
    out = tmp_path / "out"
    plain = ["distill_demo", *ENCODER, *LOOP, "--data", str(two_classes), "--output", str(out)]
    options = ("--max-steps", "1", "--batch-size", "6")
    with pytest.raises(ValueError, match="needs a teacher, and none is named; give --teacher"):
        main([*plain, *options])
    with pytest.raises(FileNotFoundError, match="the teacher 'no/where/at/all' cannot be opened"):
        main([*plain, *options, "--teacher", "no/where/at/all"])
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "mask_ratio": 0.0}
    config = ViTMAEConfig(**sizes, intermediate_size=32, image_size=32, patch_size=8)
    ViTMAEModel(config).save_pretrained(tmp_path / "mae")
    with pytest.raises(ValueError, match="the same finite features for an image each time"):
        main([*plain, *options, "--teacher", str(tmp_path / "mae")])
    with pytest.raises(ValueError, match=r"cannot embed images of 1 channels"):
        main([*plain, *options, "--teacher", TINY_TEACHER, "--num-channels", "1"])
    with pytest.raises(ValueError, match=r"24 x 24\) must be a multiple of the teacher's patch"):
        main([*plain, *options, "--teacher", TINY_TEACHER, "--image-size", "24"])
    assert not out.exists()


def test_a_teacher_without_image_processor_needs_mean_and_std(teacher, two_classes, tmp_path):
    (teacher / "preprocessor_config.json").unlink()
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="give --image-mean and --image-std"):
        main(command(teacher, two_classes, out))
    given = ("--image-mean", "0.1", "0.2", "0.3", "--image-std", "0.5", "0.5", "0.5")
    main(command(teacher, two_classes, out, *given))
    assert statistics_of(out) == [(0.1, 0.2, 0.3), (0.5, 0.5, 0.5)]


def test_the_license_of_the_teacher_applies(teacher, two_classes, tmp_path):
    (teacher / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="license of the teacher teacher: .* cc-by-nc-4.0"):
        main(command(teacher, two_classes, out, "--license", "mit"))
    main(command(teacher, two_classes, out))
    assert "license: cc-by-nc-4.0" in (out / "README.md").read_text()


def test_published_files_do_not_contain_the_path_of_the_teacher(tmp_path):
    config = {"distill_config": {"teacher": str(tmp_path / "teacher"), "queue_size": 3}}
    assert json.loads(strip_teacher_path(json.dumps(config)))["distill_config"] == {
        "teacher": "teacher",
        "queue_size": 3,
    }
    stripped = yaml.safe_load(strip_local_paths(yaml.safe_dump({"model": config})))
    assert stripped["model"]["distill_config"]["teacher"] == "teacher"
    hub = json.dumps({"distill_config": {"teacher": "facebook/dinov2-base"}})
    assert json.loads(strip_teacher_path(hub)) == json.loads(hub)


def test_the_queue_is_a_quarter_of_the_images_as_a_power_of_two():
    sizes = {50: 16, 1000: 256, 2000: 512, 4000: 1024, 10_000: 2048, 20_000: 4096, 1_300_000: 8192}
    for num_images, queue_size in sizes.items():
        run = RECIPES["distill_vits16"](num_images, None)
        assert run.model.distill_config.queue_size == queue_size
    assert RECIPES["distill_vits16"](None, None).model.distill_config.queue_size == 8192


def test_the_learning_rate_grows_with_the_square_root_of_the_batch():
    rates = {
        size: RECIPES["distill_vits16"](None, size).schedule.learning_rate for size in (96, 1536)
    }
    assert rates == pytest.approx({96: 5e-4 / 4, 1536: 5e-4})


@pytest.mark.parametrize(
    ("num_blocks", "num_wanted", "blocks"),
    [(12, 6, [0, 2, 4, 7, 9, 11]), (4, 2, [0, 3]), (3, 1, [0]), (3, 3, [0, 1, 2])],
)
def test_blocks_are_evenly_spaced(num_blocks, num_wanted, blocks):
    assert spaced_blocks(num_blocks, num_wanted) == blocks
