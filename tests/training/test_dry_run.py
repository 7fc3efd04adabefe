"""The plan that `--dry_run` prints, against what a run then does."""

import re

import pytest
import torch

from selfvit.training.checkpoints.run_folder import CHECKPOINTS
from selfvit.training.train import main

from .tiny_runs import OBJECTIVES, arguments, weights_of


def plan_of(capsys, *command):
    """Return the printed plan, line by its first word."""
    main(list(arguments(*command)))
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line for line in lines if line.strip()}


def mebibytes(line, name):
    return float(re.search(rf"{name} ([0-9.,]+) MiB", line)[1].replace(",", ""))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_exact_part_of_the_memory_is_that_of_a_run(objective, two_classes, tmp_path, capsys):
    options = ("--max_steps", 1, "--batch_size", 6)
    memory = plan_of(capsys, objective, two_classes, tmp_path / "a", *options, "--dry_run", "true")[
        "memory"
    ]
    main(arguments(objective, two_classes, tmp_path / "a", *options))
    checkpoint = tmp_path / "a" / CHECKPOINTS / "step-00000001"
    weights = sum(tensor.nbytes for tensor in weights_of(checkpoint).values())
    state = torch.load(checkpoint / "optimizer.bin", weights_only=True)["state"].values()
    moments = sum(entry["exp_avg"].nbytes + entry["exp_avg_sq"].nbytes for entry in state)
    assert mebibytes(memory, "weights") == pytest.approx(weights / 2**20, abs=0.06)
    assert mebibytes(memory, "AdamW") == pytest.approx(moments / 2**20, abs=0.06)
    assert mebibytes(memory, "gradients") == pytest.approx(moments / 2**21, abs=0.06)


def test_a_dry_run_says_the_steps_and_views_and_writes_nothing(two_classes, tmp_path, capsys):
    plan = plan_of(
        capsys, "dino", two_classes, tmp_path / "out",
        *("--epochs", 5, "--batch_size", 8, "--gradient_accumulation_steps", 2),
        *("--dry-run", "true"),
    )  # fmt: skip
    assert plan["steps"].split()[1] == "15,"
    assert "2 micro-batches x 4 images" in plan["batch"]
    assert "2 global_views of 32 x 32, 2 local_views of 16 x 16" in plan["views"]
    assert not (tmp_path / "out").exists()


def test_activations_scaled_from_few_images_are_those_of_many(two_classes, tmp_path, capsys):
    def activations(*options):
        line = plan_of(capsys, "mae", two_classes, tmp_path / "out", *options, "--dry_run", "true")
        return mebibytes(line["memory"], "activations")

    large = ("--image_size", 64, "--max_steps", 4)
    four = activations(*large, "--batch_size", 4)
    assert four > 1
    assert activations(*large, "--batch_size", 24) == pytest.approx(6 * four, rel=0.1)


def test_a_dry_run_refuses_what_a_run_refuses(two_classes, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something other than a run"):
        main(
            arguments("mae", two_classes, tmp_path, "--max_steps", 1, "--batch_size", 6,
                      "--dry_run", "true")
        )  # fmt: skip
    with pytest.raises(ValueError, match="batch_size"):
        main(
            arguments("mae", two_classes, tmp_path / "out", "--max_steps", 1, "--batch_size", 7,
                      "--gradient_accumulation_steps", 2, "--dry_run", "true")
        )  # fmt: skip
