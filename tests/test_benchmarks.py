"""The comparison of the objectives: a few steps on tiny data; Lightly's side where it is there."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import duplicates, duplicates_images, gpu, objectives_runs
from benchmarks.duplicates_report import Measured, table
from benchmarks.fashion_mnist import LabeledImages, load_splits, read_idx
from benchmarks.interleaved import Times, measure, write_section
from benchmarks.objectives import Benchmark, main
from benchmarks.side_by_side import (
    Side,
    batches_of,
    lightly_side,
    selfvit_side,
    step_at_equal_time,
    train_side_by_side,
)
from benchmarks.training import Measured as MeasuredStep
from benchmarks.training import table_of
from benchmarks.training_sides import Case, Trainer
from selfvit.exploration.duplication.alignment import SIDE, agreement

OBJECTIVES = list(objectives_runs.CHANGES)


def write_idx(array: np.ndarray, path: Path) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="module")
def data_folder(tmp_path_factory):
    """132 training and 22 test images of noise, of ten classes, as the package has them."""
    folder = tmp_path_factory.mktemp("fashion_mnist")
    rng = np.random.default_rng(0)
    for name, count in (("train", 132), ("t10k", 22)):
        write_idx(rng.integers(0, 256, (count, 28, 28)), folder / f"{name}-images-idx3-ubyte.gz")
        write_idx(np.arange(count) % 10, folder / f"{name}-labels-idx1-ubyte.gz")
    return folder


def short_run(objective: str, num_steps: int = 2, seed: int = 0):
    run = objectives_runs.run_of(objective, seed, num_steps)
    return run.replace(batch_size=8)


def require_lightly() -> None:
    for name in ("lightly", "timm"):
        pytest.importorskip(name, reason="compared with only where it is installed: [bench]")


def test_the_splits_have_no_image_in_common(data_folder):
    splits = load_splits(data_folder)
    parts = [splits.train, splits.held_out, splits.test]
    assert [len(part) for part in parts] == [121, 11, 22]
    assert len(np.unique(np.concatenate([part.pixels for part in parts]), axis=0)) == 154
    assert np.array_equal(load_splits(data_folder).held_out.pixels, splits.held_out.pixels)


def test_a_missing_dataset_says_how_to_get_it(tmp_path, capsys):
    with pytest.raises(SystemExit, match="sudo apt install dataset-fashion-mnist"):
        main(["--data", str(tmp_path / "nowhere"), "--output", str(tmp_path)])


def test_a_truncated_file_is_refused(data_folder, tmp_path):
    content = gzip.decompress((data_folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    (tmp_path / "labels.gz").write_bytes(gzip.compress(content[:-1]))
    with pytest.raises(ValueError, match="not an IDX file"):
        read_idx(tmp_path / "labels.gz")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_selfvits_side_trains_and_is_measured(objective, data_folder, tmp_path):
    benchmark = Benchmark(load_splits(data_folder), tmp_path, num_steps=2, sides=("selfvit",))
    measured = benchmark.measure(objective, rates=[1e-3], seeds=[0])
    assert measured["rates"] == {"selfvit": 1e-3}
    report = measured["seeds"]["0"]["selfvit"]
    assert 0 <= report["knn_20"] <= 1
    assert 0 <= report["linear_probe"] <= 1
    assert report["seconds"] > 0
    assert [point["step"] for point in report["curve"]] == [1, 2]


def test_what_was_measured_is_not_measured_again(data_folder, tmp_path):
    benchmark = Benchmark(load_splits(data_folder), tmp_path, num_steps=1, sides=("selfvit",))
    first = benchmark.try_rate("dino", 1e-3)
    again = benchmark.try_rate("dino", 1e-3)
    assert again == first  # the times, too
    longer = replace(benchmark, num_steps=2)
    with pytest.raises(ValueError, match="other settings"):
        longer.try_rate("dino", 1e-3)


def test_a_seed_determines_weights_and_batches(data_folder):
    images = load_splits(data_folder).train
    losses = []
    for seed in (0, 0, 1):
        run = short_run("dino", seed=seed)
        side = selfvit_side(run)
        train_side_by_side(run, images, [side])
        losses.append(side.losses)
    assert losses[0] == losses[1] != losses[2]


def test_equal_time_is_read_at_or_after_it():
    side = object.__new__(Side)
    side.seconds = [1.0] * 8
    side.snapshots = dict.fromkeys((0, 2, 4, 6, 8), torch.nn.Identity())
    assert step_at_equal_time(side, 4.0) == 4
    assert step_at_equal_time(side, 4.1) == 6
    assert step_at_equal_time(side, 9.0) == 8  # the faster side: its own end


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_both_sides_are_the_same_training(objective, data_folder):
    """From one start, on the same views and masks, losses agree: neither is a straw man."""
    require_lightly()
    images = load_splits(data_folder).train
    run = short_run(objective, num_steps=4)
    at_rate = objectives_runs.at_rate(run, 1e-3)
    sides = [build(at_rate) for build in (selfvit_side, lightly_side)]
    train_side_by_side(run, images, sides)
    assert sides[1].losses == pytest.approx(sides[0].losses, rel=1e-4)
    assert sides[0].losses[-1] != sides[0].losses[0]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_both_sides_train_as_many_parameters(objective, data_folder):
    require_lightly()
    run = short_run(objective)
    counts = [
        sum(value.numel() for _, value in build(run).model.trained_parameters())
        for build in (selfvit_side, lightly_side)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_both_sides_start_at_the_same_embeddings(objective, data_folder):
    require_lightly()
    run = short_run(objective)
    images = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (
            side.embed(side.encoder.eval(), images)
            for side in (selfvit_side(run), lightly_side(run))
        )
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_the_whole_benchmark_writes_table_and_json(data_folder, tmp_path):
    require_lightly()
    options = ["--steps", "2", "--seeds", "0", "--rates", "1e-3", "--data", str(data_folder)]
    main([*options, "--objectives", "dino", "--output", str(tmp_path)])
    table = (tmp_path / "objectives.md").read_text()
    for row in ("| raw pixels |", "| DINO: untrained |", "| DINO: selfvit |", "| DINO: Lightly |"):
        assert row in table
    results = json.loads((tmp_path / "objectives.json").read_text())
    assert results["objectives"]["dino"]["seeds"]["0"]["lightly"]["step_time_ratio"] > 0


def test_images_are_taken_by_position():
    images = LabeledImages(np.zeros((3, 28, 28), dtype=np.uint8), np.array([4, 5, 6]))
    assert images.take(np.array([2, 0])).labels.tolist() == [6, 4]


def test_batches_hold_the_views_and_no_skipped_images(data_folder):
    run = short_run("dino")
    batch = next(batches_of(run, load_splits(data_folder).train, 2))
    assert batch["skipped"] == []
    assert batch["global_views"].shape == (2, 8, 3, 28, 28)


def test_planted_duplicates_are_counted():
    pictures = {f"{n:02d}": noise_picture(n) for n in range(60)}
    planted = duplicates_images.plant(pictures, seed=0)
    true = duplicates_images.true_pairs(planted)
    assert len(planted) == 66 and len(true) == 6
    assert set(pictures) < set(planted)
    found = {*list(true)[:3], ("00", "01")}
    planted["99"] = pictures["00"].copy()
    entry = Measured()  # pairs of equal pixels are left out
    duplicates._count(entry, duplicates.Outcome({*found, ("00", "99")}, "any"), planted, true)
    assert entry.recalls == [0.5] and entry.precisions == [0.75]
    assert entry.false == {("00", "01"): 1} and entry.by_kind.total() == 3
    line = table({"selfvit": entry}, 6, duplicates_images.VARIANTS)[2]
    assert line.startswith("| selfvit | any | 0.750 (0.750 to 0.750) | 0.500")


@pytest.mark.parametrize("kind", list(duplicates_images.OTHER_KINDS))
def test_copies_of_other_kinds_show_the_same_picture(kind):
    picture = noise_picture(0)
    copy = duplicates_images.OTHER_KINDS[kind](picture, np.random.default_rng(0))
    assert copy.mode == "RGB" and copy.tobytes() != picture.tobytes()
    own, other = (np.asarray(image.resize((SIDE, SIDE)))[None] for image in (picture, copy))
    assert agreement(own, other)[0] > 0.9


def noise_picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 80), Image.Resampling.BICUBIC)


def test_programs_take_turns_and_ratios_are_those_within_a_round():
    calls: list[str] = []
    times = measure({name: partial(calls.append, name) for name in "ab"}, num_rounds=2)
    assert "".join(calls) == "ab" + "ab" + "ba"
    assert [len(found.seconds) for found in times.values()] == [2, 2]
    slow, fast = Times([2.0, 8.0, 3.0]), Times([1.0, 2.0, 3.0])  # a neighbor slowed down round 2
    assert fast.ratio_to(slow) == (2.0, 1.0, 4.0)


def test_a_section_of_results_is_replaced_and_others_stay(tmp_path):
    page = tmp_path / "results.md"
    for title, text in (("A", "old"), ("B", "kept"), ("A", "new")):
        write_section(page, title, text)
    assert page.read_text().split("## ")[1:] == ["B\n\nkept\n\n", "A\n\nnew\n"]


def test_a_table_of_steps_compares_with_its_first_row():
    slow = MeasuredStep(Times([2.0, 4.0]), peak=2 << 30, limit=1.5)
    fast = MeasuredStep(Times([1.0, 2.0]), peak=1 << 30, limit=0.75)
    *_, row = table_of({"slow": slow, "fast": fast}).splitlines()
    assert row == "| fast | 1.50 | 2.00 | 2.00 to 2.00 | 1.00 | 50% | 0.75 s, 50% |"


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_a_step_to_measure_trains_and_knows_its_matrix_products(in_bfloat16):
    trainer = Trainer(Case("selfvit_dino", "vitti32", 1, in_bfloat16, num_prototypes=16))
    weight = trainer.model.student.vit.layers[0].mlp.fc1.weight
    before, of_teacher = weight.detach().clone(), trainer.model.vit.layers[0].mlp.fc1.weight
    products = trainer.products()
    assert not torch.equal(weight, before)
    assert not of_teacher.requires_grad
    # 2 global views of 1 + 49 tokens, 6 local views of 1 + 9, in the first 11 of 12 blocks
    assert products[2 * 50, 192, 768, False] == products[2 * 50, 192, 768, True] == 11
    assert products[6 * 10, 192, 768, True] == 11


def test_the_benchmark_of_a_gpu_runs_in_its_dry_mode(capsys, tmp_path):
    page = tmp_path / "gpu.md"
    gpu.main(["--device", "cpu", "--quick", "--output", str(page)])
    shown = capsys.readouterr().out
    for title in ("DINO, S/16, a training step", "MAE, B/16, a training step", "Embedding, S/16"):
        assert title in shown and title in page.read_text()
    assert "failed" not in shown and "no time" not in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_benchmark_of_a_gpu_says_that_there_is_none():
    with pytest.raises(SystemExit, match="needs a GPU"):
        gpu.main([])
