"""The comparison of all objectives, and of ways to continue an encoder: a few steps on noise."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import continuing, full_curve, which_objective
from benchmarks.continuing_report import last_within, mean_curve
from benchmarks.continuing_report import render_page as render_continuing
from benchmarks.image_sets import accuracies, embed, fashion_mnist, stamps
from benchmarks.timed_training import steps_within, times_of
from benchmarks.which_objective_runs import OBJECTIVES, SWEEP_SEED, TEACHERS, Comparison
from benchmarks.which_objective_table import render_page
from selfvit import SelfViTModel
from selfvit.training.model import build_trainable

from .test_benchmarks import data_folder  # noqa: F401 (a fixture)

SIZES = {"animals": 40, "food": 27, "people": 3}  # images by class

if "fork" not in multiprocessing.get_all_start_methods():
    pytest.skip("trainings are measured in forked processes", allow_module_level=True)


@pytest.fixture(scope="module")
def stamp_folder(tmp_path_factory):
    """70 pictures of noise in three folders."""
    folder, rng = tmp_path_factory.mktemp("stamps"), np.random.default_rng(0)
    for name, count in SIZES.items():
        (folder / name).mkdir()
        for number in range(count):
            pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def comparison(data_folder, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("which_objective")
    return Comparison(fashion_mnist(data_folder), folder, 1e-3, (1e-3,), (0,), 3, ("mae",))


def test_a_budget_gives_the_number_of_steps():
    assert steps_within(90, 0.25) == 360
    assert steps_within(1, 10) == 2


def test_the_time_of_the_first_step_is_that_of_the_others():
    """It has no step before it, so that it has no known start."""
    times = times_of([5.0, 6.0, 8.0, 10.0, 11.0, 12.0])
    assert times == {"seconds": pytest.approx(8.4), "step_seconds": 1.0, "num_steps": 6}


def test_each_stamp_is_classified_once_by_the_other_folds(stamp_folder):
    images = stamps(stamp_folder)
    splits = [*images.choosing, *images.reporting]
    assert len(images.choosing) == 1 and len(splits) == 5
    assert sorted(np.concatenate([split.queries for split in splits])) == list(range(70))
    for split in splits:
        assert sorted([*split.known, *split.queries]) == list(range(70))
    small = [(images.labels[split.queries] == 2).sum() for split in splits]
    assert sum(small) == 3 and max(small) == 1  # a class of three images, in three folds
    assert images.pixels.shape == (70, 56, 56, 3)
    assert images.raw_pixels().shape == (70, 28 * 28 * 3)
    assert images.raw_pixels().mean() == pytest.approx(images.pixels.mean() / 255, rel=1e-3)
    assert images.source[0].image.shape == (40, 50, 3)  # never enlarged


def test_accuracies_are_those_of_the_queries_of_all_splits(stamp_folder):
    images = stamps(stamp_folder)
    vectors = np.eye(3, dtype=np.float32)[images.labels]
    found = accuracies(vectors, images.labels, images.reporting, with_probe=False)
    assert found == {"knn_20": 1.0}


def test_all_objectives_start_from_one_encoder(comparison):
    start = SelfViTModel.from_pretrained(comparison.start(0)).state_dict()
    for objective in TEACHERS:
        model = build_trainable(comparison.run(objective, 1e-3, 0, 2))
        weights = model.trained_encoder.state_dict()
        assert set(weights) - set(start) <= {"embeddings.mask_token"}
        for name, value in start.items():
            assert torch.equal(weights[name], value), (objective, name)


def test_distillation_learns_from_the_best_other_objective(comparison):
    measured = comparison.measure("distill")
    assert measured["teacher"] == "mae" and measured["rate"] == 1e-3
    (found,) = measured["seeds"].values()
    assert found["seconds"] > 0 and found["teacher_seconds"] > 0 and found["num_steps"] == 2
    assert 0 <= found["knn_20"] <= 1 and 0 <= found["linear_probe"] <= 1
    before = {path: path.stat().st_mtime_ns for path in comparison.folder.iterdir()}
    again = replace(comparison, _known={})
    assert again.measure("distill") == measured  # from its files
    assert {path: path.stat().st_mtime_ns for path in comparison.folder.iterdir()} == before
    with pytest.raises(ValueError, match="other settings"):
        replace(comparison, _known={}, budget=1000.0).train("mae", 1e-3, SWEEP_SEED)


def test_the_trained_encoder_differs_from_the_start(comparison):
    encoders = [comparison.start(0), comparison.encoder("mae", 1e-3, 0)]
    start, trained = (embed(encoder, comparison.images, np.arange(5)) for encoder in encoders)
    assert np.abs(start[:5] - trained[:5]).max() > 1e-4
    assert not trained[5:].any()  # not asked for


def test_distillation_alone_needs_the_results_of_the_others(stamp_folder, tmp_path):
    options = ["--images", "stamps", "--stamps", str(stamp_folder), "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="distill needs the results of the other objectives"):
        which_objective.main([*options, "--objectives", "distill"])


def test_missing_images_say_how_to_get_them(tmp_path):
    options = ["--stamps", str(tmp_path / "nowhere"), "--output", str(tmp_path)]
    for main in (which_objective.main, continuing.main):
        chosen = ["--images", "stamps"] if main is which_objective.main else ["--limit", "40"]
        with pytest.raises(SystemExit, match="sudo apt install tuxpaint-stamps-default"):
            main([*options, *chosen])


def test_the_table_of_objectives():
    seed = {"seconds": 90.0, "step_seconds": 0.1, "num_steps": 900, "memory": 2**20}
    seed |= {"knn_20": 0.75, "linear_probe": 0.8, "teacher_seconds": 60.0}
    found = {"rate": 1e-3, "seeds": {"0": seed, "1": seed | {"knn_20": 0.85}}}
    found["sweep"] = [{"rate": 1e-3, "knn_20": 0.7}, {"rate": 5e-3, "diverged": "NaN"}]
    objectives = {name: found for name in OBJECTIVES} | {"distill": {**found, "teacher": "mae"}}
    accuracy = {"knn_20": 0.5, "linear_probe": 0.6}
    measured = {"title": "Noise", "note": "Noise.", "raw_pixels": accuracy}
    measured |= {"untrained": {"0": accuracy}, "objectives": objectives}
    results = {"budget": 90.0, "versions": "torch 2", "machine": "a CPU", "sets": [measured]}
    lines = render_page(results).splitlines()
    assert "| raw pixels | 50.0 | 60.0 |  |  |  |  |  |" in lines
    cells = "80.0 (75.0, 85.0) | 80.0 (80.0, 80.0) | 0.001 | 900 | 90"
    assert f"| DINO | {cells} | 100.0 | 1 |" in lines
    with_teacher = f"| distillation from MAE | {cells}; 150 with the teacher's training | 100.0"
    assert any(line.startswith(with_teacher) for line in lines)
    assert "- DINO: 0.001: 70.0, 0.005: diverged; the best, 0.001, is at the edge of the grid." in (
        lines
    )


CURVE = [
    {"step": 0, "first": 0.80, "second": 0.40},
    {"step": 1, "first": 0.795, "second": 0.45},
    {"step": 2, "first": 0.70, "second": 0.50},
    {"step": 3, "first": 0.80, "second": 0.60},
]


def test_first_images_are_kept_up_to_the_first_loss():
    assert last_within(CURVE)["step"] == 1  # not 3: at step 2 they were lost
    assert last_within(CURVE, tolerance=0.2)["step"] == 3


def test_the_page_of_continued_encoders_and_its_picture(tmp_path):
    higher = [{**point, "second": point["second"] + 0.1} for point in CURVE]
    seeds = {"0": {"curve": CURVE, "seconds": 4.0}, "1": {"curve": higher, "seconds": 6.0}}
    assert mean_curve(seeds)[1] == {"step": 1, "first": 0.795, "second": pytest.approx(0.5)}
    variant = {"title": "dino_finetune", "rate": 2e-4, "factor": 1, "seeds": seeds}
    measured = {"first": "shirts", "second": "stamps", "start_steps": 9, "picture": "a.png"}
    measured |= {"versions": "torch 2", "machine": "a CPU", "variants": {"dino": variant}}
    page = render_continuing({"shirts": measured})
    row = "| dino_finetune | 0.0002 | 80.0 (+0.0) | 65.0 (+20.0) | 50.0 (+5.0), step 1 | 5 |"
    assert row in page.splitlines()
    continuing.draw(measured, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (1500, 520)


def test_a_continued_encoder_is_measured_on_both_sets(data_folder, stamp_folder, tmp_path):  # noqa: F811
    images = (fashion_mnist(data_folder), stamps(stamp_folder, image_size=28, patch_size=7))
    runs = continuing.Continuing(*images, tmp_path, start_steps=2, num_steps=2, num_points=2)
    curve = runs.continued("gram-4", 0)["curve"]
    assert [point["step"] for point in curve] == [0, 1, 2]
    assert all(0 <= point[name] <= 1 for point in curve for name in ("first", "second"))
    rates = {name: runs.run(name, 0).schedule.base_learning_rate for name in continuing.VARIANTS}
    assert rates["gram-4"] == 4 * rates["dinov2"] and rates["dino-0.25"] == rates["dino"] / 4


def test_the_page_of_a_full_run_says_when_raw_pixels_are_passed():
    result = {
        "cpu_seconds": 600,
        "raw_pixels": {"knn_20": 0.8, "linear_probe": 0.84},
        "untrained": {"knn_20": 0.7, "linear_probe": 0.75},
        "curve": [
            {"step": 10, "images": 640, "knn_20": 0.79, "linear_probe": 0.8},
            {"step": 20, "images": 1280, "knn_20": 0.81, "linear_probe": 0.83},
        ],
    }
    page = full_curve.render("dino_demo", "Ten images", result)
    assert "above that of raw pixels from step 20 on" in page
    assert "| 10 | 640 | 5.0 | 79.0 | 80.0 |" in page
    result["raw_pixels"]["knn_20"] = 0.9
    assert "does not pass" in full_curve.render("dino_demo", "Ten images", result)
