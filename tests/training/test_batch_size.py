"""`--find-batch-size`, tested with memory that is really full because of a limit of the system."""

import ctypes
import resource
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from selfvit.modeling.distributed import several_processes, without_others
from selfvit.training.dataloader.sampler import BatchPlan
from selfvit.training.preflight.batch_size import is_out_of_memory, more_micro_batches
from selfvit.training.train import main

from .processes import launched_environments, start_training
from .tiny_runs import OBJECTIVES, arguments, weights_of

M_ARENA_MAX = -8  # of malloc.h
# A head so wide that a batch of 24 takes 900 MiB, while the model itself takes little memory.
WIDE = ("--num-prototypes", 131072, "--num-local-views", 6, "--no-save-code")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS works on Linux only")


def plan(batch_size, accumulation_steps, num_processes=1):
    return BatchPlan(
        num_steps=1,
        start_step=0,
        batch_size=batch_size,
        accumulation_steps=accumulation_steps,
        num_processes=num_processes,
        rank=0,
    )


def limit_memory(mebibytes):
    """Limit this process to some more memory than it uses now.

    It has one malloc arena, because RLIMIT_AS counts the full arena of each thread, used or not.
    """
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + mebibytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def start_limited(command, printed_to, mebibytes, **environment):
    before = partial(limit_memory, mebibytes)
    return start_training(command, printed_to, None, before, **environment)


def output_of(training):
    assert training.exit_code() == 0, training.printed
    return training.printed


def runtime_of(out):
    return yaml.safe_load((out / "training.yaml").read_text())["runtime"]


def equal_weights(one, other):
    one, other = weights_of(one), weights_of(other)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("batch_size", "num_processes", "expected"),
    [(24, 1, [1, 2, 4, 8, 24]), (48, 2, [1, 2, 4, 8, 24]), (7, 1, [1, 7]), (1, 1, [1])],
)
def test_each_try_at_least_doubles_the_micro_batches_and_divides_the_batch(
    batch_size, num_processes, expected
):
    tried, current = [], plan(batch_size, 1, num_processes)
    while current is not None:
        tried.append(current.accumulation_steps)
        current = more_micro_batches(current)
    assert tried == expected


def test_out_of_memory_errors_are_distinguished_from_other_errors():
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match"))


@LINUX
def test_a_batch_that_does_not_fit_is_split_and_trains_like_one_split_by_hand(
    two_classes, tmp_path
):
    out = tmp_path / "out"
    options = ("--max-steps", 4, "--batch-size", 24, "--save-steps", 2, *WIDE)
    command = arguments("dino", two_classes, out, *options)
    limited = start_limited([*command, "--find-batch-size"], tmp_path / "printed.txt", 600)
    printed = output_of(limited)
    assert "24 images at a time do not fit" in printed
    assert "KoLeo, where used, only see the images of a micro-batch" in printed
    training = runtime_of(out)
    assert training["gradient_accumulation_steps"] in (2, 4, 8)
    assert training["find_batch_size"] is False
    by_hand = ("--gradient-accumulation-steps", training["gradient_accumulation_steps"])
    main(arguments("dino", two_classes, tmp_path / "by_hand", *options, *by_hand))
    assert equal_weights(out, tmp_path / "by_hand")


@LINUX
def test_all_processes_use_the_micro_batches_of_the_process_with_the_least_memory(
    two_classes, tmp_path
):
    # 12 images take 950 MiB per process and one image 550 MiB, each give or take some dozen MiB
    command = arguments("dino", two_classes, tmp_path / "out", "--max-steps", 2, "--batch-size", 24,
                        *WIDE, "--num-prototypes", 262144, "--find-batch-size")  # fmt: skip
    first, second = launched_environments(2)
    processes = [
        start_training(command, tmp_path / "printed-0.txt", **first),
        start_limited(command, tmp_path / "printed-1.txt", 720, **second),
    ]
    printed, _ = map(output_of, processes)
    assert "do not fit" not in printed  # output of the first process, which has enough memory
    assert runtime_of(tmp_path / "out")["gradient_accumulation_steps"] in (2, 4, 12)


@LINUX
def test_an_error_explains_what_to_change_if_not_even_one_image_fits(two_classes, tmp_path):
    out = tmp_path / "out"
    koleo = ("--koleo-weight", 0.1)  # KoLeo raises an error for a single image
    options = ("--max-steps", 2, "--batch-size", 2, "--find-batch-size", *WIDE, *koleo)
    command = arguments("dino", two_classes, out, *options)
    training = start_limited(command, tmp_path / "printed.txt", 150)
    assert training.exit_code() == 2
    assert "error: not even a micro-batch of one image (or the few" in training.printed
    assert not out.exists()


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_search_does_not_change_the_run_if_the_batch_fits(
    objective, two_classes, tmp_path, capsys
):
    options = ("--max-steps", 2, "--batch-size", 6)
    main(arguments(objective, two_classes, tmp_path / "plain", *options))
    found = tmp_path / "found"
    main(arguments(objective, two_classes, found, *options, "--find-batch-size"))
    assert "6 images fit at a time" in capsys.readouterr().out
    assert runtime_of(found)["gradient_accumulation_steps"] == 1
    assert equal_weights(tmp_path / "plain", found)


def test_a_resumed_run_keeps_the_micro_batches_of_its_start(two_classes, tmp_path, capsys):
    options = ("--max-steps", 2, "--batch-size", 6)
    command = arguments("mae", two_classes, tmp_path, *options, "--save-steps", 1)
    main([*command, "--gradient-accumulation-steps", "3"])
    (tmp_path / "config.json").unlink()
    main([*command, "--find-batch-size", "--resume"])
    assert "images fit" not in capsys.readouterr().out
    assert runtime_of(tmp_path)["gradient_accumulation_steps"] == 3


def test_a_dry_run_prints_the_plan_with_the_micro_batches_found_and_writes_nothing(
    two_classes, tmp_path, capsys
):
    out = tmp_path / "out"
    options = ("--max-steps", 2, "--batch-size", 6, "--gradient-accumulation-steps", 2)
    main(arguments("mae", two_classes, out, *options, "--find-batch-size",
                   "--dry-run"))  # fmt: skip
    printed = capsys.readouterr().out
    assert "3 images fit at a time" in printed
    assert "2 micro-batches x 3 images" in printed
    assert not out.exists()


def test_a_run_with_invalid_settings_is_rejected_before_the_search(two_classes, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    options = ("--max-steps", 1, "--batch-size", 6, "--find-batch-size")
    with pytest.raises(FileExistsError, match="something other than a run"):
        main(arguments("mae", two_classes, tmp_path / "taken", *options))
    with pytest.raises(ValueError, match="license"):
        main(arguments("mae", two_classes, tmp_path, *options, "--license", "nonsense"))
    assert "images fit" not in capsys.readouterr().out


def test_without_others_hides_the_other_processes():
    with without_others():
        assert not several_processes()
