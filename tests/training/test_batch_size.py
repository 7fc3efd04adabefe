"""The largest micro-batch that fits: with memory that is really full, by the system's own limit."""

import os
import socket
import subprocess
import sys

import pytest
import torch
import yaml

from selfvit.modeling.distributed import several_processes, without_others
from selfvit.training.dataloader.sampler import BatchPlan
from selfvit.training.preflight.batch_size import is_out_of_memory, more_micro_batches
from selfvit.training.train import main

from .tiny_runs import OBJECTIVES, arguments, weights_of

# Trains, after its memory is limited to what it has by now and so many MiB. With one arena, as each
# thread's own would count in full here, used or not.
LIMITED = """
import os, resource, sys
from pathlib import Path
import torch
from selfvit.training.train import main
torch.set_num_threads(1)
if "LIMIT" in os.environ:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + int(os.environ["LIMIT"]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
main(sys.argv[1:])
"""
# A head so wide that a batch of 24 takes 900 MiB, and the model hardly anything.
WIDE = ("--num_prototypes", 131072, "--num_local_views", 6, "--save_code", "false")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux' own")


def plan(batch_size, accumulation_steps, num_processes=1):
    return BatchPlan(
        num_steps=1,
        start_step=0,
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        num_processes=num_processes,
        rank=0,
    )


def start_limited(command, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", LIMITED, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1",
             "ACCELERATE_USE_CPU": "true", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


def output_of(process):
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    return printed


def training_of(out):
    return yaml.safe_load((out / "training.yaml").read_text())["training"]


def equal_weights(one, other):
    one, other = weights_of(one), weights_of(other)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("batch_size", "num_processes", "expected"),
    [(24, 1, [1, 2, 4, 8, 24]), (48, 2, [1, 2, 4, 8, 24]), (7, 1, [1, 7]), (1, 1, [1])],
)
def test_micro_batches_double_or_more_and_divide_the_batch(batch_size, num_processes, expected):
    tried, current = [], plan(batch_size, 1, num_processes)
    while current is not None:
        tried.append(current.accumulation_steps)
        current = more_micro_batches(current)
    assert tried == expected


def test_full_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match"))


@LINUX
def test_where_memory_is_full_the_batch_is_cut_and_trains_as_if_cut_by_hand(two_classes, tmp_path):
    out = tmp_path / "out"
    options = ("--max_steps", 4, "--batch_size", 24, "--save_steps", 2, *WIDE)
    command = arguments("dino", two_classes, out, *options)
    printed = output_of(start_limited([*command, "--find_batch_size", "true"], LIMIT="600"))
    assert "24 images at a time do not fit" in printed
    assert "KoLeo, where there are any, see the images of a micro-batch only" in printed
    training = training_of(out)
    assert training["gradient_accumulation_steps"] in (2, 4, 8)
    assert training["find_batch_size"] is False
    by_hand = ("--gradient_accumulation_steps", training["gradient_accumulation_steps"])
    main(arguments("dino", two_classes, tmp_path / "by_hand", *options, *by_hand))
    assert equal_weights(out, tmp_path / "by_hand")


@LINUX
def test_all_processes_take_what_the_one_with_the_least_memory_needs(two_classes, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    # 12 images a process take 950 MiB, one 550: what else a process holds varies by some dozens
    command = arguments("dino", two_classes, tmp_path / "out", "--max_steps", 2, "--batch_size", 24,
                        *WIDE, "--num_prototypes", 262144, "--find-batch-size", "true")  # fmt: skip
    processes = [
        start_limited(command, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **limit)
        for rank, limit in (("0", {}), ("1", {"LIMIT": "720"}))
    ]  # fmt: skip
    printed, _ = map(output_of, processes)
    assert "do not fit" not in printed  # of the first process, which has memory enough
    assert training_of(tmp_path / "out")["gradient_accumulation_steps"] in (2, 4, 12)


@LINUX
def test_where_not_even_one_image_fits_it_says_what_to_change(two_classes, tmp_path):
    out = tmp_path / "out"
    koleo = ("--koleo_weight", 0.1)  # which refuses a single image
    options = ("--max_steps", 2, "--batch_size", 2, "--find_batch_size", "true", *WIDE, *koleo)
    process = start_limited(arguments("dino", two_classes, out, *options), LIMIT="150")
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "ValueError: not even a micro-batch of one image (or the few" in printed
    assert not out.exists()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_where_all_fits_the_run_is_the_same_bit_for_bit(objective, two_classes, tmp_path, capsys):
    options = ("--max_steps", 2, "--batch_size", 6)
    main(arguments(objective, two_classes, tmp_path / "plain", *options))
    found = tmp_path / "found"
    main(arguments(objective, two_classes, found, *options, "--find_batch_size", "true"))
    assert "6 images fit at a time" in capsys.readouterr().out
    assert training_of(found)["gradient_accumulation_steps"] == 1
    assert equal_weights(tmp_path / "plain", found)


def test_a_resumed_run_keeps_the_micro_batches_that_it_was_started_with(
    two_classes, tmp_path, capsys
):
    options = ("--max_steps", 2, "--batch_size", 6)
    command = arguments("mae", two_classes, tmp_path, *options, "--save_steps", 1)
    main([*command, "--gradient_accumulation_steps", "3"])
    (tmp_path / "config.json").unlink()
    main([*command, "--find_batch_size", "true", "--resume", "true"])
    assert "images fit" not in capsys.readouterr().out
    assert training_of(tmp_path)["gradient_accumulation_steps"] == 3


def test_a_dry_run_prints_the_plan_of_what_was_found_and_writes_nothing(
    two_classes, tmp_path, capsys
):
    out = tmp_path / "out"
    options = ("--max_steps", 2, "--batch_size", 6, "--gradient_accumulation_steps", 2)
    main(arguments("mae", two_classes, out, *options, "--find_batch_size", "true",
                   "--dry_run", "true"))  # fmt: skip
    printed = capsys.readouterr().out
    assert "3 images fit at a time" in printed
    assert "2 micro-batches x 3 images" in printed
    assert not out.exists()


def test_nothing_is_tried_where_the_folder_is_taken(two_classes, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else than a run"):
        main(arguments("mae", two_classes, tmp_path, "--max_steps", 1, "--batch_size", 6,
                       "--find_batch_size", "true"))  # fmt: skip
    assert "images fit" not in capsys.readouterr().out


def test_nothing_is_tried_for_a_run_that_is_refused_anyway(two_classes, tmp_path, capsys):
    with pytest.raises(ValueError, match="license"):
        main(arguments("mae", two_classes, tmp_path, "--max_steps", 1, "--batch_size", 6,
                       "--find_batch_size", "true", "--license", "nonsense"))  # fmt: skip
    assert "images fit" not in capsys.readouterr().out


def test_alone_a_process_has_no_others():
    with without_others():
        assert not several_processes()
