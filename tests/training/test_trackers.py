"""Trackers: what they wrote is read back."""

import importlib.util
import json
import struct

import pytest

from selfvit.training.train import main

from .tiny_runs import arguments, log_of

BLOCK, HEADER = 32768, 7  # bytes; LevelDB's log format, with a header of W&B's before it
HAS_WANDB = importlib.util.find_spec("wandb") is not None


def records_of(content):
    """Yield the records of a .wandb file; parts have checksum (4), length (2), kind (1)."""
    position, record = HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        position += HEADER
        record += content[position : position + length]
        position += length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.skipif(HAS_WANDB, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_named_with_its_command(two_classes, tmp_path):
    with pytest.raises(ValueError, match="pip install wandb"):
        main(arguments("mae", two_classes, tmp_path / "out", "--tracker", "wandb"))
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not HAS_WANDB, reason="wandb is not installed")
def test_wandb_offline_has_the_loss_of_the_log(two_classes, tmp_path, monkeypatch):
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    out = tmp_path / "out"
    options = ("--max_steps", 3, "--batch_size", 6, "--tracker", "wandb")
    main(arguments("mae", two_classes, out, *options))
    (file,) = out.rglob("offline-run-*/*.wandb")
    losses = []
    for content in records_of(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        for item in record.history.item:
            if "loss" in (item.key, *item.nested_key):
                losses.append(json.loads(item.value_json))
    assert losses == pytest.approx([line["loss"] for line in log_of(out).values()])
