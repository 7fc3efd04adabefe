"""Detection of files that hang; a file lease of this process blocks opening in other processes."""

import contextlib
import fcntl
import os
import signal
import time

import pytest
import torch

from selfvit.training.dataloader.watchdog import ReadingBoard, WatchedLoader
from selfvit.training.train import main

from ..image_files import noise
from .processes import start_training
from .tiny_runs import arguments, log_of, weights_of

OPTIONS = ("--max-steps", 4, "--batch-size", 4, "--save-steps", 1)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(6):
        noise(36, 36, index).save(folder / f"{index}.png")
    return folder


@contextlib.contextmanager
def hanging(path):
    """Block other processes from opening the file; yield a function that unblocks them.

    The system also unblocks them after /proc/sys/fs/lease-break-time seconds, 45 by default.
    """
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # sent when another process opens the file
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except (OSError, AttributeError) as error:
        pytest.skip(f"no leases on this file system: {error}")
    try:
        yield lambda: fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(descriptor)
        signal.signal(signal.SIGIO, before)


def test_a_file_that_hangs_ends_the_run_with_an_error_with_its_name(images, tmp_path):
    command = arguments("dino", images, tmp_path / "out", *OPTIONS, "--num-workers", 2)
    with hanging(images / "3.png"):
        training = start_training([*command, "--data-timeout", "2"], tmp_path / "printed.txt")
        assert training.exit_code() == 2
    assert "error: reading 3.png of 6 image files in" in training.printed
    assert "--data-timeout" in training.printed
    main([*command, "--resume"])  # data_timeout may differ
    main(arguments("dino", images, tmp_path / "uninterrupted", *OPTIONS))
    assert log_of(tmp_path / "out") == log_of(tmp_path / "uninterrupted")


def test_a_slow_file_does_not_change_the_result(images, tmp_path):
    command = arguments("dino", images, tmp_path / "slow", *OPTIONS, "--num-workers", 2)
    with hanging(images / "3.png") as release:
        training = start_training(command, tmp_path / "printed.txt")
        time.sleep(6)  # longer than the loader waits between two checks
        assert training.process.is_alive(), training.printed
        release()
        assert training.exit_code() == 0, training.printed
    main(arguments("dino", images, tmp_path / "fast", *OPTIONS))
    slow, fast = weights_of(tmp_path / "slow"), weights_of(tmp_path / "fast")
    assert all(torch.equal(slow[name], tensor) for name, tensor in fast.items())


def test_a_named_pipe_among_the_images_is_skipped_with_the_reason(images, tmp_path):
    # It used to hang, as opening a pipe waits for a writer.
    os.mkfifo(images / "2.5.png")
    main(arguments("dino", images, tmp_path / "out", *OPTIONS))
    listed = (tmp_path / "out" / "skipped.csv").read_text().splitlines()
    assert listed[1].startswith("2.5.png,") and "pipe" in listed[1]


class Slow(torch.utils.data.IterableDataset):
    """Numbers that take a second each, so that reading a batch takes longer than the timeout."""

    def __init__(self, board):
        self.board = board

    def __iter__(self):
        for number in range(4):
            with self.board.reading(number):
                time.sleep(1)
            yield number


def test_the_timeout_applies_to_one_read_and_not_to_a_batch():
    board = ReadingBoard(1)
    loader = WatchedLoader(
        Slow(board), batch_size=4, num_workers=1, board=board, name_of=str, data_timeout=3
    )
    assert next(iter(loader)).tolist() == [0, 1, 2, 3]  # in 4 seconds


def test_the_error_names_the_read_that_takes_too_long():
    board = ReadingBoard(1)
    loader = WatchedLoader(
        Slow(board),
        batch_size=4,
        num_workers=1,
        board=board,
        name_of=lambda number: f"number {number}",
        data_timeout=1e-3,
    )
    with pytest.raises(TimeoutError, match=r"reading number \d has taken"):
        next(iter(loader))


def test_a_dataset_without_a_watchdog_can_be_read():
    loader = torch.utils.data.DataLoader(Slow(ReadingBoard(0)), batch_size=1, num_workers=1)
    assert next(iter(loader)).tolist() == [0]
