import contextlib
import faulthandler
import gc
import logging
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from selfvit.data import reading_workers
from selfvit.data.decoding import UnreadableImageError
from selfvit.data.image_source import ImageRecord, ImageSource, RecordSource
from selfvit.data.reading import Batches, read_images, read_spread_images
from selfvit.data.reading_workers import LostWorkersError

from ..worker_kills import kill_workers

# Position of the image that the functions below treat in a special way.
SPECIAL = 10


def source_of(count: int = 41) -> ImageSource:
    return RecordSource([ImageRecord(f"{i}.png", b"", i) for i in range(count)], "records", None)


def pixels_of(record):
    time.sleep(0.001)
    return torch.full((3, 4, 4), float(record.label))


def raise_error(error, record):
    if record.label == SPECIAL:
        raise error
    return pixels_of(record)


def send_signal(number, record):
    if record.label == SPECIAL:
        faulthandler.disable()  # pytest enables it
        os.kill(os.getpid(), number)
        time.sleep(10)
    return pixels_of(record)


def exit_process(code, record):
    if record.label == SPECIAL:
        os._exit(code)
    return pixels_of(record)


def die_once(flag: Path, record):
    if record.label == SPECIAL and not flag.exists():
        flag.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return pixels_of(record)


def die_from(first, record):
    if record.label >= first:
        os.kill(os.getpid(), signal.SIGKILL)
    return pixels_of(record)


def allocate(kind, record):
    if record.label != SPECIAL:
        return pixels_of(record)
    if kind == "numpy":
        return np.ones(2**60, np.uint8)
    if kind == "torch":
        return torch.empty(2**60, dtype=torch.uint8)
    import cv2

    return cv2.resize(np.ones((1, 1), np.uint8), (2**24, 2**24))


def collect_garbage(record):
    assert gc.isenabled()
    gc.collect()
    return pixels_of(record)


class Cycle:
    """Object that only garbage collection frees. It then writes a file named by the process id."""

    def __init__(self, folder: Path):
        self.folder, self.itself = folder, self

    def __del__(self):
        (self.folder / str(os.getpid())).touch()


class Unpicklable(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def read_all(prepare, num_workers, source=None, batches=None):
    source = source or source_of()
    if batches is None:
        batches = Batches([range(len(source))], 4)
    return list(
        read_images(source, prepare, batches=batches, num_workers=num_workers, collate=torch.stack)
    )


def values(batches):
    """Return the value of each image, after checking that it belongs to its name and label."""
    found = []
    for batch in batches:
        if batch.pixels is not None:
            found += batch.pixels[:, 0, 0, 0].tolist()
    names = [name for batch in batches for name in batch.ids]
    assert names == [f"{value:.0f}.png" for value in found]
    assert [label for batch in batches for label in batch.labels] == found
    return found


def skipped(batches):
    return [(image.id, image.reason) for batch in batches for image in batch.skipped]


@pytest.fixture(autouse=True)
def no_child_is_left():
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


def test_a_worker_does_not_free_objects_of_the_main_process(tmp_path):
    gc.disable()
    try:
        Cycle(tmp_path)
        assert values(read_all(collect_garbage, num_workers=2)) == list(range(41))
        assert not list(tmp_path.iterdir())
    finally:
        gc.enable()
    gc.collect()
    assert [file.name for file in tmp_path.iterdir()] == [str(os.getpid())]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
class TestReading:
    def test_images_keep_their_order_and_batches(self, num_workers):
        batches = read_all(pixels_of, num_workers)
        assert values(batches) == list(range(41))
        assert [len(batch.ids) for batch in batches] == [4] * 10 + [1]

    def test_positions_choose_the_images(self, num_workers):
        batches = read_all(pixels_of, num_workers, batches=[[7, 3], [12]])
        assert [batch.ids for batch in batches] == [["7.png", "3.png"], ["12.png"]]
        assert read_all(pixels_of, num_workers, batches=[]) == []

    def test_no_batch_continues_from_one_range_into_the_next(self, num_workers):
        ranges = [range(3, 8), range(8, 8), range(20, 22)]
        batches = read_all(pixels_of, num_workers, batches=Batches(ranges, 3))
        assert [values([batch]) for batch in batches] == [[3, 4, 5], [6, 7], [20, 21]]

    def test_an_unreadable_image_is_skipped_with_its_reason(self, num_workers):
        batches = read_all(partial(raise_error, UnreadableImageError("empty")), num_workers)
        assert skipped(batches) == [("10.png", "empty")] and len(values(batches)) == 40

    def test_an_image_without_memory_is_skipped(self, num_workers):
        batches = read_all(partial(raise_error, MemoryError()), num_workers)
        assert skipped(batches) == [("10.png", "not enough memory to decode it")]

    @pytest.mark.parametrize("kind", ["numpy", "torch", "cv2"])
    def test_a_failed_allocation_of_a_library_is_no_memory(self, num_workers, kind):
        if kind == "cv2":
            pytest.importorskip("cv2")
        batches = read_all(partial(allocate, kind), num_workers)
        assert skipped(batches) == [("10.png", "not enough memory to decode it")]

    @pytest.mark.parametrize("error", [KeyError("x"), OSError(5, "Input/output error")])
    def test_another_error_is_raised_after_the_batches_before(self, num_workers, error):
        batches = read_images(
            source_of(),
            partial(raise_error, error),
            batches=Batches([range(41)], 4),
            num_workers=num_workers,
        )
        assert [next(batches).ids[0], next(batches).ids[0]] == ["0.png", "4.png"]
        with pytest.raises(type(error)):
            next(batches)

    def test_an_error_that_cannot_be_pickled_is_raised_with_its_message(self, num_workers):
        with pytest.raises((Unpicklable, RuntimeError), match="one two"):
            read_all(partial(raise_error, Unpicklable("one", "two")), num_workers)

    def test_a_reader_that_is_closed_early_leaves_no_process(self, num_workers):
        with contextlib.closing(
            read_images(source_of(), pixels_of, batches=[range(4)], num_workers=num_workers)
        ) as batches:
            next(batches)


def wait_at_special(record):
    if record.label == SPECIAL:
        time.sleep(0.6)
    return pixels_of(record)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_one_warning_names_the_image_of_workers_that_deliver_nothing(
    num_workers, caplog, monkeypatch
):
    monkeypatch.setattr(reading_workers, "SECONDS_OF_SILENCE", 0.2)
    batches = read_all(wait_at_special, num_workers)
    assert values(batches) == list(range(41))
    (line,) = [line for line in caplog.messages if "delivered" in line]
    assert f"they read {SPECIAL}.png" in line


class TestDeaths:
    @pytest.mark.parametrize("seed", range(5))
    def test_killed_workers_cost_no_image(self, seed, caplog):
        rng = random.Random(seed)
        batches, killed = [], 0
        reader = read_images(
            source_of(400),
            pixels_of,
            batches=Batches([range(400)], 4),
            num_workers=3,
            collate=torch.stack,
        )
        for number, batch in enumerate(reader):
            batches.append(batch)
            if number % 15 == seed:  # far apart, so that no image is read during two kills
                time.sleep(rng.uniform(0, 0.01))
                killed += kill_workers(rng, at_once=1 + number % 2)
        assert values(batches) == list(range(400)) and skipped(batches) == []
        deaths = [line for line in caplog.messages if line.startswith("a worker process was kil")]
        assert killed >= 9 and killed - 2 <= len(deaths) <= killed  # the last at the end

    @pytest.mark.parametrize("num_workers", [1, 3])
    @pytest.mark.parametrize(
        ("prepare", "reason"),
        [
            (partial(send_signal, signal.SIGKILL), "was killed twice (signal 9, often too little"),
            (partial(send_signal, signal.SIGSEGV), "was killed twice (signal 11)"),
            (partial(send_signal, signal.SIGBUS), "was killed twice (signal 7, often a full /dev"),
            (partial(exit_process, 3), "ended twice with exit code 3"),
            (partial(exit_process, 0), "ended twice with exit code 0"),
        ],
        ids=["SIGKILL", "SIGSEGV", "SIGBUS", "3", "0"],
    )
    def test_an_image_that_ends_its_worker_twice_is_skipped(
        self, prepare, reason, num_workers, caplog
    ):
        batches = read_all(prepare, num_workers)
        ((name, listed),) = skipped(batches)
        assert name == "10.png" and listed.startswith(f"its worker process {reason}")
        assert values(batches) == [value for value in range(41) if value != SPECIAL]
        first, second = caplog.messages
        assert "while it read 10.png; the image is read once more" in first
        assert "for the second time; the image is left out" in second

    def test_an_image_that_ends_its_worker_once_is_read(self, tmp_path, caplog):
        batches = read_all(partial(die_once, tmp_path / "flag"), 2)
        assert values(batches) == list(range(41)) and len(caplog.messages) == 1

    def test_several_such_images_cost_one_image_each(self):
        batches = read_all(partial(die_from, 36), 2)
        assert values(batches) == list(range(36))
        assert [name for name, _ in skipped(batches)] == [f"{i}.png" for i in range(36, 41)]

    def test_a_computer_that_kills_every_worker_ends_the_reading(self, caplog):
        caplog.set_level(logging.CRITICAL)
        batches = read_images(
            source_of(200), partial(die_from, 8), batches=Batches([range(200)], 4), num_workers=1
        )
        assert [next(batches).ids[0], next(batches).ids[0]] == ["0.png", "4.png"]
        with pytest.raises(
            LostWorkersError, match="44 in a row died; the last one: .* fewer --num"
        ):
            list(batches)


class TestSpreadImages:
    def test_a_number_of_readable_images_is_read_if_there_are_as_many(self):
        source = RecordSource(
            [ImageRecord(str(i), b"", i) for i in range(13)], "thirteen records", None
        )
        for num_images, expected in [(3, [5, 6, 8]), (8, list(range(5, 13))), (50, range(5, 13))]:
            pixels, left_out = read_spread_images(
                source, readable_from_five, num_images, num_workers=1
            )
            assert pixels == list(expected)
            assert [image.id for image in left_out] == [str(i) for i in range(len(left_out))]

    def test_an_image_that_kills_its_worker_costs_itself(self):
        pixels, left_out = read_spread_images(
            source_of(12), partial(send_signal, signal.SIGKILL), 12, num_workers=1
        )
        assert len(pixels) == 11 and [image.id for image in left_out] == ["10.png"]


def readable_from_five(record):
    if record.label < 5:
        raise UnreadableImageError("empty")
    return record.label
