"""Trackers: what they wrote is read back. They keep global state: each has its own process."""

import importlib.util
import json
import os
import shutil
import sqlite3
import struct
import subprocess
import sys

import pytest

from selfvit.training.config.tracker_names import NEEDS, chosen_trackers, read_trackers

from .tiny_runs import arguments, log_of

BLOCK, HEADER = 32768, 7  # bytes; LevelDB's log format, with a header of W&B's before it
# Not in [dev]: it asks for Pillow < 13 (0.43), and the tests are to see the newest.
NOT_IN_DEV = {"trackio"}
OURS = ("WANDB_MODE", "WANDB_ERROR_REPORTING", "TRACKIO_DIR", "MLFLOW_TRACKING_URI")


def missing(tracker):
    return [name for name in NEEDS[tracker] if importlib.util.find_spec(name) is None]


def require(tracker):
    """Skip where a tracker is not installed; fail where it has to be: in continuous integration."""
    if not missing(tracker):
        return
    if os.environ.get("CI") and tracker not in NOT_IN_DEV:
        raise ModuleNotFoundError(f"{', '.join(missing(tracker))}: missing, and part of [dev]")
    pytest.skip(f"optional: pip install {tracker}")


def train(command):
    """Train by the command, without what this process' environment says of trackers."""
    kept = {name: value for name, value in os.environ.items() if name not in OURS}
    result = subprocess.run(
        [sys.executable, "-m", "selfvit.training.train", *command],
        env={**kept, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def tracked_run(two_classes, tmp_path_factory):
    """A run of four steps with all trackers; what came after the second was lost, and resumed."""
    out = tmp_path_factory.mktemp("tracked") / "out"
    trackers = ",".join(name for name in NEEDS if not missing(name))
    options = ("--max_steps", 4, "--batch_size", 6, "--save_steps", 2, "--image_steps", 2)
    command = arguments("mae", two_classes, out, *options, "--tracker", trackers)
    train(command)
    shutil.rmtree(out / "checkpoints" / "step-00000004")
    train([*command, "--resume", "true"])
    return out


def losses_of(out):
    """Return the losses of steps 1 to 4, then of those that the resumed run did again."""
    losses = [line["loss"] for line in log_of(out).values()]
    return pytest.approx(losses + losses[2:])


def id_of(out, tracker):
    return json.loads((out / "trackers.json").read_text())[tracker]


def rows_of(database, query):
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


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


def wandb_records(out):
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(out.rglob("offline-run-*/*.wandb")):
        for content in records_of(file.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            yield record


def test_names_of_trackers_are_checked():
    assert read_trackers("none") == []
    assert read_trackers("tensorboard, mlflow") == ["tensorboard", "mlflow"]
    for names in ("tensorbord", "none,wandb", "wandb,wandb", ""):
        with pytest.raises(ValueError, match="separated by commas: tensorboard, wandb"):
            read_trackers(names)


@pytest.mark.parametrize("tracker", ["wandb", "trackio", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_with_its_command(tracker, monkeypatch):
    monkeypatch.setitem(NEEDS, tracker, ("a_module_that_nobody_has",))
    with pytest.raises(ValueError, match=f"pip install {tracker}"):
        chosen_trackers(f"tensorboard,{tracker}")


def test_wandb_offline_has_losses_values_and_pictures_of_a_resumed_run_in_one_run(tracked_run):
    require("wandb")
    losses: list[float] = []
    ids: set[str] = set()
    values: dict[str, str] = {}
    for record in wandb_records(tracked_run):
        if record.HasField("run"):
            ids.add(record.run.run_id)
        for configuration in (record.config, record.run.config):
            values |= {item.key: item.value_json for item in configuration.update}
        for item in record.history.item:
            if "loss" in (item.key, *item.nested_key):
                losses.append(json.loads(item.value_json))
    assert losses == losses_of(tracked_run)
    assert values["training.batch_size"] == "6"
    assert ids == {id_of(tracked_run, "wandb")}
    assert list(tracked_run.rglob("offline-run-*/files/media/images/*.png"))


def test_trackio_has_losses_values_and_pictures_of_a_resumed_run_in_one_run(tracked_run):
    require("trackio")
    (database,) = tracked_run.rglob("trackio/*.db")
    logged = [
        (step, json.loads(metrics))
        for step, metrics in rows_of(database, "select step, metrics from metrics order by id")
    ]
    losses = [metrics["loss"] for _, metrics in logged if "loss" in metrics]
    assert losses == losses_of(tracked_run)
    assert {step for step, metrics in logged if "views" in metrics} == {1, 2, 4}
    ((run, config),) = rows_of(database, "select run_name, config from configs")
    assert run == id_of(tracked_run, "trackio")
    assert json.loads(config)["training.batch_size"] == 6
    assert list((tracked_run / "trackio").rglob("*.png"))


def test_mlflow_has_losses_values_and_pictures_of_a_resumed_run_in_one_run(tracked_run):
    require("mlflow")
    database = tracked_run / "mlflow" / "mlflow.db"
    query = "select value, run_uuid from metrics where key = 'loss' order by timestamp, step"
    logged = rows_of(database, query)
    assert [loss for loss, _ in logged] == losses_of(tracked_run)
    assert {run for _, run in logged} == {id_of(tracked_run, "mlflow")}
    values = dict(rows_of(database, "select key, value from params"))
    assert values["training.batch_size"] == "6"
    assert values["model.mae_config.mask_ratio"] == "0.75"
    assert list((tracked_run / "mlflow" / "artifacts").rglob("views*.png"))


def test_the_words_of_an_alarm_are_tags_of_mlflow(tmp_path):
    require("mlflow")  # whose metrics are numbers: Accelerate dropped the words, with a warning
    code = (
        "from accelerate import Accelerator\n"
        "from selfvit.training.callbacks.trackers import log_figures\n"
        "accelerator = Accelerator(cpu=True, log_with='mlflow')\n"
        "accelerator.init_trackers('alarms')\n"
        "alarm = {'collapse': 'uniform', 'loss': 1.5}\n"
        "log_figures(accelerator.trackers[0], alarm, 3)\n"
        "accelerator.end_training()\n"
    )
    database = tmp_path / "mlflow.db"
    place = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | place, cwd=tmp_path, timeout=600,
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "dropped" not in result.stdout + result.stderr
    assert ("collapse", "uniform") in rows_of(database, "select key, value from tags")
    assert rows_of(database, "select key, value, step from metrics") == [("loss", 1.5, 3)]


def test_tensorboard_shows_each_step_of_a_resumed_run_once_and_its_pictures(tracked_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked_run / "logs" / "selfvit"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert {"views", "reconstructions"} <= set(events.Tags()["images"])
