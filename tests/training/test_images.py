"""Pictures that a run draws of its views and outputs; they do not change the training."""

import filecmp
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from selfvit.data.pixel_format import Findings
from selfvit.embedding.preprocessing import build_processor
from selfvit.training.callbacks.images import largest_views, view_panels
from selfvit.training.callbacks.progress import ProgressLogger
from selfvit.training.recipes import RECIPES
from selfvit.training.train import main
from selfvit.visualization.figures import TILE, tile_panels

from .tiny_runs import OBJECTIVES, arguments, log_of

PICTURE = {
    "dino": "attention",
    "dinov2": "attention",
    "distill": "attention",
    "lejepa": "attention",
    "mae": "reconstructions",
    "pmsn": "attention",
}


def logger_with(tracker, folder):
    accelerator = Accelerator(cpu=True)
    accelerator.trackers = [tracker]
    return ProgressLogger(accelerator, RECIPES["mae_demo"](None, None).replace(output=str(folder)))


class FullTracker(GeneralTracker):
    """Tracker that cannot write, as on a full disk."""

    name = "full"
    requires_logging_directory = False
    tracker = None

    def __init__(self):
        super().__init__()
        self.calls = 0

    def log(self, values, step=None, **kwargs):
        self.calls += 1
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_drawing_pictures_does_not_change_the_run(objective, two_classes, tmp_path):
    pytest.importorskip("matplotlib")
    options = ("--max-steps", 4, "--batch-size", 6, "--monitor-steps", 1)
    for name, image_steps in (("without", 0), ("with", 2)):
        main(arguments(objective, two_classes, tmp_path / name, *options,
                       "--image-steps", image_steps))  # fmt: skip
    plain, drawn = tmp_path / "without", tmp_path / "with"
    assert filecmp.cmp(plain / "model.safetensors", drawn / "model.safetensors", shallow=False)
    assert log_of(plain) == log_of(drawn)
    for file in ("optimizer.bin", "random_states_0.pkl"):
        folders = [out / "checkpoints" / "step-00000004" for out in (plain, drawn)]
        states = [torch.load(folder / file, weights_only=False) for folder in folders]
        assert str(states[0]) == str(states[1])
    assert not (plain / "images").exists()
    assert sorted(path.name for path in (drawn / "images").iterdir()) == sorted(
        f"step-{step:08d}-{name}.png"
        for step in (1, 2, 4)
        for name in ("views", PICTURE[objective])
    )


def test_views_are_drawn_without_normalization_and_global_views_first(tiny_config):
    processor = build_processor(tiny_config)
    mean = torch.tensor(processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_std).view(3, 1, 1)
    local_views, global_views = torch.rand(1, 5, 3, 16, 16), torch.rand(2, 5, 3, 32, 32)
    inputs = {
        "local_views": (local_views - mean) / std,
        "global_views": (global_views - mean) / std,
    }
    rows = view_panels(processor, inputs)
    assert [len(row) for row in rows] == [3, 3, 3, 3]  # three views of the first four images
    expected = (global_views[0, 3], global_views[1, 3], local_views[0, 3])
    for drawn, view in zip(rows[3], expected, strict=True):
        np.testing.assert_allclose(drawn, view.permute(1, 2, 0), atol=1e-6)
    assert torch.equal(largest_views(inputs), inputs["global_views"][0])


def test_small_panels_are_enlarged_by_an_integer_factor_and_large_ones_are_reduced():
    small = np.zeros((32, 16, 3))
    assert tile_panels([[small, small]]).shape == (96, 48 + 8 + 48, 3)
    large = np.ones((224, 448, 3))
    assert tile_panels([[large], [large]]).shape == (TILE // 2 + 8 + TILE // 2, TILE, 3)


def test_a_failing_tracker_is_reported_once_and_the_log_continues(tmp_path, capsys):
    tracker = FullTracker()
    logger = logger_with(tracker, tmp_path)
    for step in (1, 2, 3):
        logger.log_metrics(step, {"loss": 1.0 / step})
    logger.log_images(3, {"views": np.zeros((8, 8, 3), np.uint8)})
    logger.close()
    assert tracker.calls == 1
    assert list(log_of(tmp_path)) == [1, 2, 3]
    assert capsys.readouterr().out.count("the tracker full failed") == 1


def test_pictures_that_cannot_be_written_are_reported_once_and_the_run_continues(
    two_classes, tmp_path, capsys
):
    out = tmp_path / "out"
    command = arguments("mae", two_classes, out, "--max-steps", 4, "--batch-size", 6,
                        "--save-steps", 2, "--image-steps", 1)  # fmt: skip
    main(command)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    shutil.rmtree(out / "images")
    (out / "images").touch()  # a file in place of the folder
    main([*command, "--resume"])
    printed = capsys.readouterr().out
    assert printed.count("pictures of views are left out") == 1
    assert printed.count("pictures of reconstructions are left out") == 1
    assert (out / "checkpoints" / "step-00000004").exists()


@pytest.mark.parametrize("num_channels, pixel_range, noted", [
    (3, None, True), (3, [0, 65535], False), (1, None, False),
])  # fmt: skip
def test_one_line_says_that_a_stock_processor_does_not_read_deep_images(
    num_channels, pixel_range, noted, monkeypatch, tmp_path
):
    run = RECIPES["mae_demo"](None, None).replace(output=str(tmp_path), pixel_range=pixel_range)
    run.model.num_channels = num_channels
    logger = ProgressLogger(Accelerator(cpu=True), run)
    lines: list[str] = []
    monkeypatch.setattr(logger, "warn", lines.append)
    for name in ("a.png", "b.png"):
        logger._check_findings([])
        logger._check_findings([(name, Findings(ranges=((0.0, 60000.0), (0.0, 65535.0))))])
    assert ["a.png" in line and "stock image processor" in line for line in lines] == [True] * noted
