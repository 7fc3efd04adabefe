"""Pictures that a run draws of itself, and that they change nothing."""

import filecmp
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker

from selfvit.embedding.preprocessing import build_processor
from selfvit.training.callbacks.images import largest_views, view_panels
from selfvit.training.callbacks.progress import Reporter
from selfvit.training.train import main
from selfvit.visualization.figures import TILE, tile_panels

from .tiny_runs import OBJECTIVES, arguments, log_of

PICTURE = {"dino": "attention", "mae": "reconstructions", "pmsn": "attention"}


def reporter_with(tracker, folder):
    accelerator = Accelerator(cpu=True)
    accelerator.trackers = [tracker]
    return Reporter(accelerator, folder, start_step=0, num_steps=3, batch_size=2, log_steps=1)


class FullTracker(GeneralTracker):
    """A tracker that can write no more, as one on a full disk."""

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
def test_a_run_with_pictures_is_the_same_run_bit_for_bit(objective, two_classes, tmp_path):
    pytest.importorskip("matplotlib")
    options = ("--max_steps", 4, "--batch_size", 6, "--monitor_steps", 1)
    for name, image_steps in (("without", 0), ("with", 2)):
        main(arguments(objective, two_classes, tmp_path / name, *options,
                       "--image_steps", image_steps))  # fmt: skip
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


def test_the_views_of_a_step_are_drawn_as_they_were_before_normalization(tiny_config):
    processor = build_processor(tiny_config)
    mean = torch.tensor(processor.image_mean).view(3, 1, 1)
    std = torch.tensor(processor.image_std).view(3, 1, 1)
    local, whole = torch.rand(1, 5, 3, 16, 16), torch.rand(2, 5, 3, 32, 32)
    inputs = {"local_views": (local - mean) / std, "global_views": (whole - mean) / std}
    rows = view_panels(processor, inputs)
    assert [len(row) for row in rows] == [3, 3, 3, 3]  # of four images
    for drawn, view in zip(rows[3], (whole[0, 3], whole[1, 3], local[0, 3]), strict=True):
        np.testing.assert_allclose(drawn, view.permute(1, 2, 0), atol=1e-6)
    assert torch.equal(largest_views(inputs), inputs["global_views"][0])


def test_small_panels_grow_by_whole_pixels_and_large_ones_shrink():
    small = np.zeros((32, 16, 3))
    assert tile_panels([[small, small]]).shape == (96, 48 + 8 + 48, 3)
    large = np.ones((224, 448, 3))
    assert tile_panels([[large], [large]]).shape == (TILE // 2 + 8 + TILE // 2, TILE, 3)


def test_a_tracker_that_fails_is_named_once_and_the_log_goes_on(tmp_path, capsys):
    tracker = FullTracker()
    reporter = reporter_with(tracker, tmp_path)
    for step in (1, 2, 3):
        reporter.record(step, {"loss": 1.0 / step})
    reporter.show(3, {"views": np.zeros((8, 8, 3), np.uint8)})
    reporter.close()
    assert tracker.calls == 1
    assert list(log_of(tmp_path)) == [1, 2, 3]
    assert capsys.readouterr().out.count("the tracker full failed") == 1


def test_pictures_that_cannot_be_written_are_named_once_and_the_run_goes_on(
    two_classes, tmp_path, capsys
):
    out = tmp_path / "out"
    command = arguments("mae", two_classes, out, "--max_steps", 4, "--batch_size", 6,
                        "--save_steps", 2, "--image_steps", 1)  # fmt: skip
    main(command)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    shutil.rmtree(out / "images")
    (out / "images").touch()  # a file where the folder has to be
    main([*command, "--resume", "true"])
    said = capsys.readouterr().out
    assert said.count("pictures of views are left out") == 1
    assert said.count("pictures of reconstructions are left out") == 1
    assert (out / "checkpoints" / "step-00000004").exists()
