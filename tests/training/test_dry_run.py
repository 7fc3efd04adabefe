"""The plan that `--dry-run` prints, compared with real runs."""

import re

import pytest
import torch

from selfvit.training.checkpoints.run_folder import CHECKPOINTS
from selfvit.training.train import main

from .tiny_runs import OBJECTIVES, arguments, weights_of


def plan_of(capsys, *command):
    """Return the lines of the printed plan by their first word."""
    main(list(arguments(*command)))
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line for line in lines if line.strip()}


def mebibytes(line, name):
    return float(re.search(rf"{name} ([0-9.,]+) MiB", line)[1].replace(",", ""))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_planned_memory_of_weights_gradients_and_optimizer_is_exact(
    objective, two_classes, tmp_path, capsys
):
    options = ("--max-steps", 1, "--batch-size", 6)
    memory = plan_of(capsys, objective, two_classes, tmp_path / "a", *options, "--dry-run")[
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


def test_a_dry_run_prints_steps_batches_and_views_and_writes_nothing(two_classes, tmp_path, capsys):
    plan = plan_of(
        capsys, "dino", two_classes, tmp_path / "out",
        *("--epochs", 5, "--batch-size", 8, "--gradient-accumulation-steps", 2),
        "--dry-run",
    )  # fmt: skip
    assert plan["steps"].split()[1] == "15,"
    assert "2 micro-batches x 4 images" in plan["batch"]
    assert "2 global_views of 32 x 32, 2 local_views of 16 x 16" in plan["views"]
    assert not (tmp_path / "out").exists()


def test_estimated_memory_of_activations_grows_linearly_with_the_batch(
    two_classes, tmp_path, capsys
):
    def activations(*options):
        line = plan_of(capsys, "mae", two_classes, tmp_path / "out", *options, "--dry-run")
        return mebibytes(line["memory"], "activations")

    large = ("--image-size", 64, "--max-steps", 4)
    four = activations(*large, "--batch-size", 4)
    assert four > 0.5
    assert activations(*large, "--batch-size", 24) == pytest.approx(6 * four, rel=0.1)


def test_a_dry_run_raises_the_errors_of_a_run(two_classes, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something other than a run"):
        main(
            arguments("mae", two_classes, tmp_path, "--max-steps", 1, "--batch-size", 6,
                      "--dry-run")
        )  # fmt: skip
    with pytest.raises(ValueError, match="batch_size"):
        main(
            arguments("mae", two_classes, tmp_path / "out", "--max-steps", 1, "--batch-size", 7,
                      "--gradient-accumulation-steps", 2, "--dry-run")
        )  # fmt: skip
