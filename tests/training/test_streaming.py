"""Streams read by several processes and workers: each image once per pass, also after a resume."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from selfvit.data.files.tars import survey_positions
from selfvit.data.sources import open_images
from selfvit.training.augmentations.single_crop import CropAndFlip
from selfvit.training.dataloader.loader import build_loader
from selfvit.training.dataloader.sampler import BatchPlan
from selfvit.training.dataloader.streaming import partition_stream, stream_state
from selfvit.training.train import main

from ..data.shards import write_parquet_shards, write_tar_shards
from ..image_files import noise
from .processes import AtLogLine, kill_self, start_training, start_two
from .test_watchdog import hanging
from .tiny_runs import LOOP, arguments, assert_equal_tensors, log_of, weights_of

SEED = 3


class UnchangedPixels(CropAndFlip):
    """Augmentation that returns the pixels of an image, so that a test can recognize the image."""

    def __call__(self, image, rng, image_size, patch_size):
        small = Image.fromarray(image).resize(image_size)
        return {"pixel_values": np.array(small).transpose(2, 0, 1)}


def loader_of(source, rank=0, num_processes=1, num_workers=0, start_step=0, **options):
    """Return a loader of micro-batches of two images."""
    batch_size = 2 * num_processes
    return build_loader(
        source,
        UnchangedPixels(),
        BatchPlan(1000, start_step, batch_size, 1, num_processes, rank),
        image_size=(16, 16),
        patch_size=8,
        seed=SEED,
        with_labels=options.pop("with_labels", False),
        num_workers=num_workers,
        shuffle_buffer=options.pop("shuffle_buffer", 4),
        **options,
    )


def images_of(batch):
    """Return the pixels of each image of a batch, which identify it."""
    return [view.numpy().tobytes() for view in batch["pixel_values"]]


def take(loader, num_batches):
    batches = iter(loader)
    return [next(batches) for _ in range(num_batches)]


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = write_tar_shards(tmp_path_factory.mktemp("tars"), [6] * 8)
    return open_images(folder, streaming=True)


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    folder = write_parquet_shards(tmp_path_factory.mktemp("parquet"), [4] * 12, unreadable=(5, 30))
    return open_images(folder, streaming=True)


def test_two_processes_with_two_workers_read_each_image_once_per_pass(tars):
    # 8 shards of 6 images: each of the 4 readers has 12 per pass, which are 6 batches
    for first in (0, 12):  # the first pass, and the second
        seen = []
        for rank in (0, 1):
            batches = take(loader_of(tars, rank, num_processes=2, num_workers=2), first + 12)
            seen += [image for batch in batches[first:] for image in images_of(batch)]
        assert len(seen) == 48 == len(set(seen))


@pytest.mark.parametrize("num_batches", [1, 2, 5, 6, 13])
@pytest.mark.parametrize("source", ["tars", "parquet"])
def test_a_resumed_stream_continues_after_the_last_batch_that_was_used(
    source, num_batches, request
):
    source = request.getfixturevalue(source)
    for rank in (0, 1):
        shared = {"rank": rank, "num_processes": 2, "num_workers": 3}
        uninterrupted = take(loader_of(source, **shared), 18)
        loader = loader_of(source, **shared)
        take(loader, num_batches)  # the workers have read further ahead
        state = json.loads(json.dumps(stream_state(loader)))
        state["readers"] *= 2  # stands for the other process, whose readers are not used
        rest = take(
            loader_of(source, start_step=num_batches, stream_state=state, **shared),
            18 - num_batches,
        )
        for resumed, expected in zip(rest, uninterrupted[num_batches:], strict=True):
            assert torch.equal(resumed["pixel_values"], expected["pixel_values"])
            assert resumed["skipped"] == expected["skipped"]


def test_readers_draw_different_numbers(tars):
    draws = []
    for rank in (0, 1):
        samples = iter(loader_of(tars, rank, num_processes=2).dataset)
        draws += [next(samples)["draw"] for _ in range(20)]
    assert len(set(draws)) == 40


def test_unreadable_images_of_a_stream_are_skipped_and_reported_once_per_pass(parquet):
    skipped = []
    for rank in (0, 1):
        # 12 shards of 4 for 4 readers: 12 images each, two of 48 unreadable
        for batch in take(loader_of(parquet, rank, num_processes=2, num_workers=2), 10):
            skipped += batch["skipped"]
    assert sorted(name for name, _ in skipped) == ["30", "5"]
    assert all(reason for _, reason in skipped)


def test_images_of_a_stream_without_a_label_are_skipped_in_supervised_training(tmp_path):
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["a", "b"])})
    rows = {"image": [noise(8, 8, n) for n in range(6)], "label": [0, -1, 1, -1, 0, 1]}
    Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "data.parquet")
    source = open_images(tmp_path / "data.parquet", streaming=True)
    batches = take(loader_of(source, with_labels=True), 2)
    assert sorted(label for batch in batches for label in batch["labels"].tolist()) == [0, 0, 1, 1]
    skipped = [entry for batch in batches for entry in batch["skipped"]]
    assert {reason for _, reason in skipped} == {"it has no label"}


def test_a_stream_without_readable_images_is_an_error(tmp_path):
    source = open_images(write_parquet_shards(tmp_path, [3], unreadable=range(3)), streaming=True)
    with pytest.raises(ValueError, match=r"100 images in a row cannot be read"):
        next(iter(loader_of(source)))


@pytest.mark.parametrize(
    ("sizes", "num_processes", "num_workers", "expected", "text"),
    [
        ([3] * 8, 2, 2, 2, "8 shards for 2 processes x 2 workers"),
        ([3] * 5, 2, 4, 2, r"5 shards for 2 processes x 2 workers \(not 4, as each worker needs"),
        ([3] * 2, 4, 4, 1, "2 shards for 4 processes x 1 workers; each process reads all shards"),
        ([3] * 3, 1, 0, 1, "3 shards for 1 processes x 1 workers"),
    ],
)
def test_shards_are_divided_among_processes_and_workers(
    sizes, num_processes, num_workers, expected, text, tmp_path
):
    source = open_images(write_tar_shards(tmp_path, sizes), streaming=True)
    partition = partition_stream(source, num_processes, num_workers)
    assert partition.num_workers == expected
    assert re.match(text, str(partition))


def test_a_stream_has_a_worker_even_with_num_workers_0(parquet):
    # Without a worker, threads of pyarrow that were still reading made the process hang on exit.
    assert loader_of(parquet, num_workers=0).num_workers == 1


def test_row_groups_of_one_parquet_file_are_shared_among_workers(tmp_path):
    source = open_images(write_parquet_shards(tmp_path, [24], row_group_size=4), streaming=True)
    assert partition_stream(source, 1, 3).num_workers == 3
    loader = loader_of(source, num_workers=3)
    assert loader.num_workers == 3
    seen = [image for batch in take(loader, 12) for image in images_of(batch)]
    assert len(seen) == 24 == len(set(seen))


@pytest.mark.parametrize(("old", "new"), [((1, 2), (1, 3)), ((1, 2), (2, 2))])
def test_resuming_with_other_processes_or_workers_is_an_error_with_the_numbers(tars, old, new):
    loader = loader_of(tars, num_processes=old[0], num_workers=old[1])
    take(loader, 1)
    with pytest.raises(
        ValueError,
        match=rf"has {old[0]} processes x {old[1]} workers, this run {new[0]} x {new[1]}\. "
        rf"Launch {old[0]} processes with --num-workers {old[1]}",
    ):
        loader_of(
            tars,
            num_processes=new[0],
            num_workers=new[1],
            start_step=1,
            stream_state=stream_state(loader),
        )


def test_resuming_a_stream_without_saved_positions_is_an_error(tars):
    with pytest.raises(ValueError, match="the checkpoint has none, as.*--init-from"):
        loader_of(tars, start_step=1)


# --- training runs

NUM_STEPS = 9
STREAM = (
    *("--streaming", "--max-steps", NUM_STEPS, "--batch-size", 4, "--save-steps", 2),
    *("--shuffle-buffer", 5, "--no-save-code"),
)


def assert_same_result(output, expected):
    assert log_of(output) == log_of(expected)
    assert_equal_tensors(weights_of(output), weights_of(expected))


@pytest.fixture
def shards(tmp_path):
    return write_tar_shards(tmp_path / "shards", [3] * 5)


@pytest.mark.parametrize("write_shards", [write_tar_shards, write_parquet_shards])
def test_a_killed_run_on_a_stream_resumes_exactly(write_shards, tmp_path):
    shards = write_shards(tmp_path / "shards", [3] * 5)

    def command(output):
        return arguments("dino", shards, tmp_path / output, *STREAM, "--num-workers", 2)

    main(command("uninterrupted"))
    killed = start_training(command("killed"), tmp_path / "printed.txt", AtLogLine(6, kill_self))
    assert killed.exit_code() == -signal.SIGKILL, killed.printed
    assert "stream: 5 shards for 1 processes x 2 workers" in killed.printed
    with pytest.raises(ValueError, match=r"has 1 processes x 2 workers, this run 1 x 3"):
        main([*command("killed"), "--resume", "--num-workers", "3"])
    shards = shards.rename(tmp_path / "moved")  # `command` uses the new path
    main([*command("killed"), "--resume"])
    assert_same_result(tmp_path / "killed", tmp_path / "uninterrupted")


def test_a_killed_run_of_two_processes_on_a_stream_resumes_exactly(shards, tmp_path):
    def command(output):
        return arguments("mae", shards, tmp_path / output, *STREAM, "--num-workers", 2)

    for folder in ("a", "b", "c"):  # for the printed output
        (tmp_path / folder).mkdir()
    uninterrupted = start_two(command("uninterrupted"), tmp_path / "a")
    assert [process.exit_code() for process in uninterrupted] == [0, 0], uninterrupted[0].printed
    kill = AtLogLine(6, kill_self)
    killed = start_two(command("killed"), tmp_path / "b", (kill, None))
    assert killed[0].exit_code() == -signal.SIGKILL, killed[0].printed
    assert killed[1].exit_code() != 0
    resumed = start_two([*command("killed"), "--resume"], tmp_path / "c")
    assert [process.exit_code() for process in resumed] == [0, 0], resumed[0].printed
    assert_same_result(tmp_path / "killed", tmp_path / "uninterrupted")


def test_a_shard_that_hangs_ends_the_run_with_an_error_with_its_number(tmp_path):
    # of so many tars, some are not opened before training
    shards = write_tar_shards(tmp_path / "shards", [3] * 12)
    assert 2 not in survey_positions(12)
    command = arguments("mae", shards, tmp_path / "out", *STREAM, "--num-workers", 2)
    with hanging(shards / "shard-002.tar"):
        training = start_training([*command, "--data-timeout", "2"], tmp_path / "printed.txt")
        assert training.exit_code() == 2
    assert "error: reading shard 2 of 12 WebDataset tars in" in training.printed


def test_a_classifier_on_a_stream_of_plain_labels_is_an_error_with_the_fix(shards, tmp_path):
    options = ("--streaming", "--max-steps", 2)
    with pytest.raises(ValueError, match=r"leave out --streaming, as only a ClassLabel"):
        main(
            [
                *("classify", *LOOP, "--data", str(shards), "--output", str(tmp_path)),
                *map(str, options),
            ]
        )


def test_resuming_with_more_shards_is_an_error(shards, tmp_path):
    command = arguments("mae", shards, tmp_path / "out", *STREAM)
    main(command)
    shutil.rmtree(tmp_path / "out" / "checkpoints" / f"step-{NUM_STEPS:08d}")
    write_tar_shards(shards, [3] * 6)
    with pytest.raises(ValueError, match="set has changed.* it was 5 WebDataset tars.* is 6 Web"):
        main([*command, "--resume"])


def test_a_dry_run_prints_how_a_stream_is_partitioned(shards, tmp_path, capsys):
    options = (*STREAM, "--num-workers", 8, "--dry-run")
    main(arguments("mae", shards, tmp_path / "out", *options))
    assert "5 shards for 1 processes x 5 workers (not 8, as each worker" in capsys.readouterr().out
